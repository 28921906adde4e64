import pytest

from progeo.doctor.fits import list_fits
from progeo.engine.accelerator import choose_processor
from progeo.models.encoder import build_encoder
from progeo.training.memory import image_memory, state_bytes

SETTINGS = {"batch_sizes": (1, 2, 16), "free_bytes": 10**9}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    "architecture", ["tiny-resnet", "tiny-vit", pytest.param("mobilenet_v3_large", marks=pytest.mark.slow)]
)
def test_what_is_estimated_without_weights_is_what_a_training_with_them_keeps(architecture, precision):
    encoder = build_encoder(architecture, "random", 64)
    images = image_memory(encoder, (64, 64), choose_processor("cpu", precision))
    states = 4 * 4 * sum(parameter.numel() for parameter in encoder.parameters())
    assert state_bytes(encoder, "adamw") == states
    (fit,) = list_fits([architecture], image_sizes=(64,), mixed_precision=precision, **SETTINGS)
    kept = {count: states + images.of(count) for count in (1, 2, 16)}
    assert fit.bytes_by_batch == pytest.approx(kept, rel=1e-3)  # kernels of attention in bf16 pad what they keep


def test_the_largest_batch_fits_and_one_more_image_does_not():
    (fit,) = list_fits(["tiny-vit"], image_sizes=(64,), mixed_precision="no", **SETTINGS)
    sizes = (fit.max_batch, fit.max_batch + 1)
    wanted = {**SETTINGS, "batch_sizes": sizes}
    (again,) = list_fits(["tiny-vit"], image_sizes=(64,), mixed_precision="no", **wanted)
    fitting, too_large = (again.bytes_by_batch[count] for count in sizes)
    assert fitting <= SETTINGS["free_bytes"] < too_large
    (none,) = list_fits(["tiny-vit"], image_sizes=(64,), mixed_precision="no", batch_sizes=(1,), free_bytes=1000)
    assert none.max_batch == 0


@pytest.mark.slow
def test_image_sizes_are_those_that_a_network_takes():
    patches = "timm/vit_small_patch14_dinov2"
    fits = list_fits([patches, "tiny-resnet"], image_sizes=(60, 70, 72), mixed_precision="no", **SETTINGS)
    assert [(each.architecture, each.image_size) for each in fits] == [
        *((patches, side) for side in (56, 70)),
        *(("tiny-resnet", side) for side in (60, 70, 72)),
    ]


def test_a_backbone_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="`architecture` 'resnet51' is not known"):
        list(list_fits(["resnet51"], image_sizes=(224,), mixed_precision="no", **SETTINGS))
