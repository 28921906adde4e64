import multiprocessing
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from progeo.data.crops import CROP_DRAWS, RandAugmentedCrop, RandomCrop
from progeo.data.datasets import CatalogueImages, LabeledImages, max_unreadable
from progeo.data.decode import read_image, read_shape
from progeo.data.loaders import batches_by_shape, build_loader, cache_images, read_batches
from progeo.data.samplers import ClassSampler
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import read_catalogue


def five_crops(image):
    return torch.stack(F.five_crop(image, [16]))


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(6):
        shape = (40 + index, 60, 3)
        save(tmp_path / f"@{index}@0@.png", rng.integers(0, 256, shape, dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("fraction", "count", "allowed"),
    [(0, 1000, 0), (0.01, 40, 1), (0.01, 199, 1), (0.01, 200, 2), (0.07, 100, 7), (0.29, 100, 29), (1, 5, 5)],
)
def test_a_fraction_of_images_may_be_unreadable_and_above_zero_one_at_least(fraction, count, allowed):
    assert max_unreadable(fraction, count) == allowed


def test_png_and_jpeg_of_every_mode_come_as_uint8_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    save(tmp_path / "rgb.png", rgb)
    save(tmp_path / "gray.jpg", rgb[..., 0])
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "rgba.png")
    assert torch.equal(read_image(tmp_path / "rgb.png"), torch.from_numpy(rgb).permute(2, 0, 1))
    for name in ("gray.jpg", "rgba.png"):
        image = read_image(tmp_path / name)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 8, 9))


def test_a_photo_lying_on_its_side_is_turned_by_its_exif_orientation(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    save(tmp_path / "photo.jpg", pixels, exif=exif, quality=95)
    image = read_image(tmp_path / "photo.jpg")
    assert image.shape == (3, 32, 16)
    assert image[:, :14].float().mean() > 250
    assert image[:, 18:].float().mean() < 5


def test_a_broken_image_is_refused_by_name_also_from_a_worker_process(folder):
    (folder / "@3@0@.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"@3@0@.png cannot be decoded"):
        read_image(folder / "@3@0@.png")
    images = CatalogueImages(read_catalogue(folder), partial(resize_image, size=(32, 32)))
    for num_workers in (0, 1):
        with pytest.raises(ValueError) as error:
            list(read_batches(build_loader(images, [[0, 1], [2, 3], [4, 5]], num_workers=num_workers)))
        assert "@3@0@.png cannot be decoded" in str(error.value)
        assert "Traceback" not in str(error.value)


def test_a_missing_image_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image .*gone.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_all_images_come_once_in_order_resized(folder):
    images = CatalogueImages(read_catalogue(folder), partial(resize_image, size=(32, 48)))
    loaded = torch.cat(list(read_batches(build_loader(images, [[0, 1, 2, 3], [4, 5]], num_workers=0))))
    assert loaded.shape == (6, 3, 32, 48)
    for row in range(6):
        assert torch.equal(loaded[row], resize_image(read_image(images.catalogue.path(row)), (32, 48)))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("preprocess", [partial(resize_image, size=(32, 48)), five_crops])
def test_batches_have_channels_last_in_memory_as_networks_take_them(folder, num_workers, preprocess):
    images = CatalogueImages(read_catalogue(folder), preprocess)
    for rows, pixels in zip([[0, 1], [4]], build_loader(images, [[0, 1], [4]], num_workers=num_workers), strict=True):
        assert torch.equal(pixels.items, torch.stack([images[row] for row in rows]))
        assert pixels.items.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [RandomCrop, RandAugmentedCrop])
def test_training_batches_have_channels_last_in_memory(folder, num_workers, kind):
    crop = kind((32, 24), (0.5, 1.0), (0.75, 1.33))
    images = LabeledImages(CatalogueImages(read_catalogue(folder)), np.arange(6), np.array([0, 2, 6]), crop)
    batch = [(row, np.linspace(0.1, 0.9, CROP_DRAWS)) for row in (3, 1, 5)]
    assert all(images[key][0].movedim(0, -1).is_contiguous() for key in batch)
    (loaded,) = build_loader(images, [batch], num_workers=num_workers)
    pixels, labels, rows = loaded.items
    assert torch.equal(pixels, torch.stack([images[key][0] for key in batch]))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert (labels.tolist(), rows.tolist()) == ([1, 0, 1], [3, 1, 5])


@pytest.fixture
def spawning():
    """Processes that start as on macOS and Windows: anew, from what is pickled for them."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_a_worker_that_is_spawned_reads_what_this_process_reads(folder, spawning):
    (folder / "@3@0@.png").write_bytes(b"no image")
    images = CatalogueImages(read_catalogue(folder), partial(resize_image, size=(32, 48)))
    crop = RandomCrop((24, 24), (0.5, 1.0), (0.75, 1.33))
    labeled = LabeledImages(images, np.arange(6), np.array([0, 2, 6]), crop)
    batches = [[(row, np.linspace(0.1, 0.9, CROP_DRAWS)) for row in rows] for rows in ([1, 3], [5])]
    here, there = (list(build_loader(labeled, batches, num_workers=number)) for number in (0, 1))
    for mine, theirs in zip(here, there, strict=True):
        assert all(torch.equal(*pair) for pair in zip(mine.items, theirs.items, strict=True))
        assert mine.replaced == theirs.replaced
    assert list(here[0].replaced) == [1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_images_equal_the_decoded_ones_in_their_own_shapes(folder, num_workers):
    images = CatalogueImages(read_catalogue(folder))
    cached = cache_images(images, num_workers=num_workers)
    assert len(cached) == 6
    assert all(torch.equal(cached[row], images[row]) for row in range(6))
    assert cached.pixels.nbytes == sum(3 * (40 + index) * 60 for index in range(6))


def test_images_that_are_cached_must_all_be_readable(folder):
    path = folder / "@3@0@.png"
    for content in (b"no image", path.read_bytes()[:300]):  # without a header, and with one
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"@3@0@.png cannot be decoded"):
            cache_images(CatalogueImages(read_catalogue(folder)), num_workers=0)


def corner(image, draws):
    """A crop that shows where it is from: the size that was drawn."""
    return image[:, : int(draws[0]), : int(draws[1])]


def test_training_batches_hold_the_crops_and_labels_that_the_sampler_names(folder):
    images = CatalogueImages(read_catalogue(folder))
    rows, offsets, labels = np.array([5, 1, 0, 2]), np.array([0, 2, 4]), np.array([0, 0, 1, 1])
    sampler = ClassSampler(offsets, batch_size=2, num_batches=3, seed=0, epoch=0)
    crops = [[np.array([5, 7])] * 2, [np.array([9, 3])] * 2, [np.array([2, 2])] * 2]
    batches = [list(zip(indices, drawn, strict=True)) for indices, drawn in zip(sampler, crops, strict=True)]
    loader = build_loader(LabeledImages(images, rows, offsets, corner), batches, num_workers=0)
    for indices, (height, width), (pixels, got, used) in zip(
        sampler, [(5, 7), (9, 3), (2, 2)], read_batches(loader), strict=True
    ):
        assert (got.tolist(), used.tolist()) == (labels[indices].tolist(), rows[indices].tolist())
        assert torch.equal(pixels, torch.stack([images[row][:, :height, :width] for row in rows[indices]]))


def test_an_image_that_cannot_be_read_is_replaced_by_the_next_of_its_class(folder):
    for broken in (1, 2, 4, 5):
        (folder / f"@{broken}@0@.png").write_bytes(b"no image")
    images = CatalogueImages(read_catalogue(folder))
    labeled = LabeledImages(images, np.arange(6), np.array([0, 4, 6]), corner)  # classes 0 1 2 3 and 4 5
    drawn = np.array([8, 9])
    (batch,) = build_loader(labeled, [[(0, drawn), (1, drawn), (2, drawn)]], num_workers=0)  # 3 stands for 1 and 2
    assert torch.equal(batch.items[0], torch.stack([images[row][:, :8, :9] for row in (0, 3, 3)]))
    assert (batch.items[1].tolist(), batch.items[2].tolist()) == ([0, 0, 0], [0, 3, 3])
    assert {place: "@.png cannot be decoded" in reason for place, reason in batch.replaced.items()} == {
        1: True,
        2: True,
    }
    assert labeled[2, drawn].reason == images[2].reason
    (batch,) = build_loader(labeled, [[(3, drawn), (5, drawn)]], num_workers=0)
    assert (list(batch.unreadable), batch.replaced) == ([1], {})  # class 1 has no image that can be read


def test_the_shape_in_a_header_is_that_of_the_pixels(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tmp_path / f"{orientation}.jpg", np.zeros((16, 32, 3), np.uint8), exif=exif)
        save(tmp_path / f"{orientation}.tif", np.zeros((16, 32, 3), np.uint8), exif=exif)
    save(tmp_path / "plain.png", np.zeros((5, 9, 3), np.uint8))
    for path in tmp_path.iterdir():
        assert read_shape(path) == tuple(read_image(path).shape[1:])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert read_shape(tmp_path / "broken.jpg") is None
    assert read_shape(tmp_path / "missing.jpg") is None


def test_batches_hold_one_shape_each_in_order_and_not_too_many_pixels():
    rows = np.array([10, 11, 12, 13, 14, 15, 16])
    shapes = np.array([(1, 2, 3), (1, 4, 5), (1, 2, 3), (1, 2, 3), (1, 4, 5), (1, 100, 100), (1, 2, 3)])
    batches = batches_by_shape(rows, shapes, batch_size=3, max_pixels=30)
    assert [batch.tolist() for batch in batches] == [[10, 12, 13], [16], [11], [14], [15]]


def test_photos_of_16_bits_are_not_cut_off(tmp_path):
    gray = np.array([[0, 255], [256, 65535]], np.uint16)
    save(tmp_path / "deep.png", gray)
    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 0], [1, 255]]] * 3
