"""One contract for every family of backbones: what an encoder on each of its networks promises."""

import functools

import pytest
from contracts import (
    check_gradients,
    check_onnx,
    check_program,
    check_reload,
    check_resume,
    check_shapes,
    module_with,
    sizes_of,
    training_builder,
)
from safetensors.torch import load_file

from progeo.export.formats import FORMATS, ExportOptions, SavedEncoder
from progeo.models.backbones import FAMILIES, empty_traits
from progeo.models.backbones.position_embedding import sample_size
from progeo.models.encoder import build_encoder

BOTH = ("map", "token")
NETWORKS = {
    "open_clip": {"tiny-resnet": BOTH, "tiny-vit": BOTH},
    "torchvision": {
        **{"resnet18": ("map",), "mobilenet_v3_large": ("map",), "convnext_tiny": ("map",), "swin_t": ("map",)},
        **{"mobilenet_v3_large_512": ("map",), "resnet18_conv4": ("map",), "shufflenet_v2_x0_5": ("map",)},
        "vit_b_16": BOTH,
    },
    "timm": {
        **{"vit_small_patch14_dinov2": BOTH, "vit_small_patch14_reg4_dinov2": BOTH},
        **{
            "test_vit": BOTH,
            "test_vit_prenorm": BOTH,
            "convnext_atto": ("map",),
            "mobilenetv3_small_050": ("map",),
        },
    },
    "aggregation_tokens": {"vit_small_patch14_reg4_dinov2": BOTH, "test_vit+3@4": BOTH},
    "multiconv_adapters": {"vit_small_patch14_dinov2": BOTH, "test_vit": BOTH},
    "lopa": {"vit_small_patch14_dinov2": BOTH, "test_vit": BOTH},
}
"""Networks of each family, with the parts of their features."""
TRAINED = ("tiny-resnet", "tiny-vit", "shufflenet_v2_x0_5", "test_vit+3@4")
"""Networks that training is resumed with by default: of each family, of convolutions and of tokens."""
LARGE = (
    *("convnext_tiny", "mobilenet_v3_large", "mobilenet_v3_large_512", "resnet18", "resnet18_conv4", "swin_t"),
    *("vit_b_16", "convnext_atto", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
)
OWN = ("aggregation_tokens", "multiconv_adapters", "lopa")
"""Families whose networks are no library's."""
REFUSED = {"swin_t": "No graph can be made of swin_t: Specializations unexpectedly required (height, width)"}
"""Beginnings of the sentences that graphs of networks are refused with; those of others are written."""
CASES = [
    (f"{family}/{network}", part)
    for family, networks in NETWORKS.items()
    for network, parts in networks.items()
    for part in parts
]
"""Networks with the part of the features that an encoder aggregates."""
AGGREGATION_OF = {"map": "gem", "token": "token"}


def own_name(architecture):
    return architecture.partition("/")[2]


traits_of = functools.cache(empty_traits)


@functools.cache
def built(architecture, part):
    size = sample_size(traits_of(architecture))
    return build_encoder(architecture, "random", size, aggregation=AGGREGATION_OF[part]).eval()


def test_every_family_has_networks_here():
    assert NETWORKS.keys() == FAMILIES.keys()
    assert all(NETWORKS.values())


def each_case(is_slow=LARGE.__contains__):
    """Parametrize a test over all cases, of which some are slow."""
    marked = [
        pytest.param(*case, marks=[pytest.mark.slow] if is_slow(own_name(case[0])) else [], id="-".join(case))
        for case in CASES
    ]
    return pytest.mark.parametrize(("architecture", "part"), marked)


@each_case()
def test_descriptors_and_features_have_the_shapes_promised_in_any_batch(architecture, part):
    encoder = built(architecture, part)
    assert own_name(architecture) == encoder.spec.architecture
    assert len(sizes_of(encoder)) == 2
    traits = traits_of(architecture)
    has = {"map": traits.channels is not None, "token": traits.token_dim is not None}
    assert has == {part: (architecture, part) in CASES for part in has}
    check_shapes(encoder)


@each_case()
def test_the_gradient_reaches_every_parameter(architecture, part):
    check_gradients(built(architecture, part))


@each_case()
def test_an_encoder_that_is_saved_and_loaded_is_equal_bit_for_bit(architecture, part, tmp_path):
    check_reload(built(architecture, part), tmp_path)


@each_case()
def test_the_library_loads_the_backbone_alone_or_it_is_refused(architecture, part, tmp_path, monkeypatch):
    metadata = {"provenance": {"settings": {}}, "encoder": {"text_weights": None}}
    write = functools.partial(FORMATS["backbone"].write, tmp_path)
    saved = SavedEncoder(metadata, built(architecture, part), None)
    if architecture.startswith(OWN):
        with pytest.raises(ValueError, match=r"not for .*: its family names no way to load one"):
            write(saved, ExportOptions())
        return
    usage = write(saved, ExportOptions()).usage
    monkeypatch.chdir(tmp_path)
    exec(usage, used := {})
    module = module_with(used, load_file("backbone.safetensors"))
    assert type(module).__module__.startswith(("open_clip.", "torchvision.", "timm."))


@each_case(lambda architecture: True)
def test_an_onnx_file_computes_the_descriptors_or_is_refused(architecture, part, tmp_path):
    check_onnx(built(architecture, part), tmp_path, REFUSED.get(own_name(architecture)))


@each_case(lambda architecture: True)
def test_a_program_computes_the_descriptors_or_is_refused(architecture, part, tmp_path):
    check_program(built(architecture, part), tmp_path, REFUSED.get(own_name(architecture)))


@each_case(lambda network: network not in TRAINED)
def test_a_training_that_is_resumed_ends_with_the_same_bits(architecture, part, config, tmp_path):
    settings = {
        "model.architecture": architecture,
        "encoder.aggregation": AGGREGATION_OF[part],
        "encoder.image_size": sample_size(traits_of(architecture))[0],
        "encoder.descriptor_dim": "null",
        "text.weight": 0,
        "training.batch_size": 2,
    }
    check_resume(training_builder(config, settings), tmp_path)
