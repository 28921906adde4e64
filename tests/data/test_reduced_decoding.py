"""JPEG files decoded at a reduced size, where no more is needed."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from progeo.data.augmentation import build_crop, draw_changes
from progeo.data.crops import RandomCrop
from progeo.data.datasets import CatalogueImages
from progeo.data.decode import decode_image, read_image, read_shape
from progeo.data.loaders import cache_images
from progeo.data.options import Augmentation, DataOptions
from progeo.engine.accelerator import start_accelerator
from progeo.engine.randomness import seeded_generator
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.models.preprocessing import resized_shape
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.places.catalogue import read_catalogue
from progeo.training.image_descriptors import training_image_extractor

SMOOTH = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)).resize((248, 120), Image.BICUBIC)
)


def saved(path, kind, orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(SMOOTH).save(path, kind, exif=exif, quality=95)
    return path


@pytest.mark.parametrize(
    ("needed", "shape"),
    [((61, 9), (120, 248)), ((60, 124), (60, 124)), ((31, 9), (60, 124)), ((30, 62), (30, 62)), ((1, 1), (15, 31))],
)
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_is_no_less_than_needed(tmp_path, needed, shape):
    path = saved(tmp_path / "photo.jpg", "JPEG")
    asked = []
    pixels = read_image(path, "exif", lambda *own: (asked.append(own), needed)[1])
    assert asked == [(120, 248)]
    assert pixels.shape[1:] == shape == read_shape(path, "exif", lambda *_: needed)
    expected = torch.tensor(np.asarray(Image.fromarray(SMOOTH).resize(shape[::-1], Image.BOX))).permute(2, 0, 1)
    assert (pixels.float() - expected.float()).abs().mean() < 3


@pytest.mark.parametrize("orientation", ["exif", "ignore"])
def test_what_is_needed_is_of_the_upright_photo(tmp_path, orientation):
    path = saved(tmp_path / "photo.jpg", "JPEG", orientation=6)
    needed = {(248, 120): (124, 60), (120, 248): (30, 62)}
    pixels = read_image(path, orientation, lambda *own: needed[own])
    assert pixels.shape[1:] == {"exif": (124, 60), "ignore": (30, 62)}[orientation]
    assert pixels.shape[1:] == read_shape(path, orientation, lambda *own: needed[own])


def test_the_first_of_several_images_in_a_file_is_decoded_at_a_reduced_size(tmp_path):
    saved(tmp_path / "photo.jpg", "JPEG")
    Image.fromarray(SMOOTH).save(
        tmp_path / "photos.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], quality=95
    )
    one, several = (read_image(tmp_path / name, "exif", lambda *_: (30, 62)) for name in ("photo.jpg", "photos.jpg"))
    assert several.shape[1:] == (30, 62)
    assert torch.equal(several, one)


def test_other_formats_are_decoded_in_full(tmp_path):
    path = saved(tmp_path / "photo.png", "PNG")
    assert torch.equal(read_image(path, "exif", lambda *_: (1, 1)), read_image(path))


def test_photos_that_are_needed_in_full_have_the_same_pixels(tmp_path):
    path = saved(tmp_path / "photo.jpg", "JPEG")
    assert torch.equal(read_image(path, "exif", lambda *own: own), read_image(path))


def test_a_truncated_photo_is_refused(tmp_path):
    content = saved(tmp_path / "photo.jpg", "JPEG").read_bytes()
    with pytest.raises(ValueError, match="truncated"):
        decode_image(io.BytesIO(content[:-50]), "exif", lambda *_: (1, 1))


@pytest.mark.parametrize(
    ("scale", "ratio", "own", "needed"),
    [
        ((1.0, 1.0), (3 / 4, 4 / 3), (400, 900), (10, 20)),
        ((0.25, 1.0), (1.0, 1.0), (400, 400), (20, 40)),  # the smallest box has 200 x 200 pixels
        ((0.25, 0.5), (0.25, 4.0), (400, 400), (40, 80)),  # 100 x 400 to 400 x 100
        ((0.25, 0.5), (1.0, 2.0), (400, 1600), (15, 80)),  # 283 x 566 to 400 x 400
        ((0.5, 1.0), (1.0, 1.0), (100, 1000), (10, 200)),  # none of 224 x 224 fits: 100 x 100
        ((0.5, 1.0), (1.0, 1.0), (1000, 100), (100, 20)),
    ],
)
def test_the_smallest_box_of_a_reduced_photo_has_the_size_of_a_crop(scale, ratio, own, needed):
    crop = RandomCrop((10, 20), scale, ratio)
    assert crop.min_shape(*own) == needed
    rng, part = np.random.default_rng(0), min(own[0] / needed[0], own[1] / needed[1])
    boxes = [crop.box(rng.random(22), round(own[0] / part), round(own[1] / part)) for _ in range(300)]
    assert min(box.height for box in boxes) >= 10
    assert min(box.width for box in boxes) >= 20


def test_images_that_are_cached_are_as_small_as_others(tmp_path):
    saved(tmp_path / "@1@2@.jpg", "JPEG")
    images = CatalogueImages(read_catalogue(tmp_path), min_shape=lambda *_: (30, 62))
    assert images.shape(0) == (30, 62)
    assert torch.equal(cache_images(images, num_workers=0)[0], images[0])


def test_a_crop_of_a_reduced_photo_is_nearly_that_of_the_photo(tmp_path):
    path = saved(tmp_path / "photo.jpg", "JPEG")
    crop = build_crop(Augmentation(), (24, 24))
    full, reduced = read_image(path), read_image(path, "exif", crop.min_shape)
    assert reduced.shape[1:] == (30, 62)
    drawn = draw_changes(Augmentation(), 9, seeded_generator(0)).crops.numpy()
    differences = [(crop(full, draws).float() - crop(reduced, draws).float()).abs().mean() for draws in drawn]
    assert 0 < np.median(differences) < 4  # some boxes only fit one of them, to rounding


@pytest.mark.parametrize("kind", ["hard_resize", "single_query", "larger_query", "central_crop", "five_crops"])
def test_descriptors_of_reduced_photos_are_near_those_of_photos_and_kept_apart(tmp_path, kind):
    folder = tmp_path / "images"
    folder.mkdir()
    for east in (550000, 550010):
        saved(folder / f"@{east}@4180000@.jpg", "JPEG")
    accelerator, catalogue = start_accelerator("no"), read_catalogue(folder)
    work, cache = WorkOptions(num_workers=0), CacheOptions(descriptor_cache=tmp_path / "cache")
    found = {}
    for fast in (False, True, True):
        options = ImageOptions(image_size=32, database_preprocessing=kind, fast_decode=fast)
        extractor = descriptor_extractor(ThumbnailEncoder(), options, accelerator)
        (found[fast],) = extract_descriptors(extractor, catalogue, accelerator, work=work, cache=cache).parts()
        assert extractor.images(catalogue).shape(0) == ((60, 124) if fast else (120, 248))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    cosines = (found[False] * found[True]).sum(1)
    assert (cosines > 0.98).all()
    assert not np.array_equal(found[False], found[True])


def test_photos_that_are_not_resized_are_decoded_in_full():
    assert resized_shape("native", (32, 32), 123, 250) == (123, 250)


@pytest.mark.parametrize("fast_decode", [False, True])
def test_training_images_are_reduced_in_all_that_is_extracted_of_them(tmp_path, fast_decode):
    data = DataOptions(train_folder=tmp_path, orientation="ignore", fast_decode=fast_decode)
    extractor = training_image_extractor(ThumbnailEncoder(), data, start_accelerator("no"))
    assert (extractor.fast_decode, extractor.orientation) == (fast_decode, "ignore")
