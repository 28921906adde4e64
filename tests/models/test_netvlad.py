import math

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from progeo.models.aggregation import AGGREGATIONS, NetVLAD, build_aggregation
from progeo.models.aggregation.centroids import cluster_centers, read_centroids
from progeo.models.aggregation.netvlad import initialize_netvlad, region_grid
from progeo.models.backbones.family import Traits

CHANNELS, CLUSTERS = 5, 3


def netvlad(regions="thirds", clusters=CLUSTERS):
    torch.manual_seed(0)
    return NetVLAD(CHANNELS, clusters, regions).double()


def feature_map(height=6, width=3, batch=2):
    return torch.randn(batch, CHANNELS, height, width, dtype=torch.float64)


def naive_residuals(module, values):
    """The definition: every local feature adds its residual to every centroid, weighted by the softmax."""
    rows = []
    for image in values:
        total = torch.zeros(len(module.centroids), CHANNELS, dtype=values.dtype)
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                local = image[:, y, x] / image[:, y, x].norm()
                scores = torch.stack([(weight * local).sum() for weight in module.assignment]).exp()
                weights = scores / scores.sum()
                total = total + torch.stack(
                    [weight * (local - centroid) for weight, centroid in zip(weights, module.centroids, strict=True)]
                )
        rows.append(total)
    return torch.stack(rows)


def naive_descriptor(residuals):
    inner = torch.stack([row / row.norm() for row in residuals]).flatten()
    return inner / inner.norm()


def gradients(output, *inputs):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


def test_residuals_and_descriptors_equal_the_definition_in_value_and_gradient():
    module, values = netvlad(), feature_map().requires_grad_()
    inputs = (values, module.assignment, module.centroids)
    for found, expected in (
        (module.residuals(values), naive_residuals(module, values)),
        (module(values), torch.stack([naive_descriptor(each) for each in naive_residuals(module, values)])),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        for one, other in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def parts_of(values, regions):
    """The feature maps of the regions, cut out one by one."""
    height, width = values.shape[2:]
    side = {"thirds": 3, "quarters": 2}[regions]
    tall, wide = height // side, width // side
    yield values
    yield from (values[:, :, i * tall : (i + 1) * tall] for i in range(side))
    yield from (values[:, :, :, i * wide : (i + 1) * wide] for i in range(side))
    if regions == "quarters":
        for row in (values[:, :, :tall], values[:, :, tall:]):
            yield from (row[:, :, :, :wide], row[:, :, :, wide:])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("regions", "count"), [("thirds", 7), ("quarters", 9)])
def test_regions_are_the_descriptors_of_the_parts_of_the_map(regions, count, memory_format):
    module = netvlad(regions)
    values = feature_map(6, 12).contiguous(memory_format=memory_format).requires_grad_()
    found = module.regions(values)
    expected = torch.stack([module(part) for part in parts_of(values, regions)], dim=1)
    assert found.shape == (2, count, CLUSTERS * CHANNELS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    inputs = (values, module.assignment, module.centroids)
    for one, other in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("regions", "size", "words"),
    [
        ("thirds", (6, 8), "rows and columns 3 divides, got 6 x 8: use another image size"),
        ("thirds", (7, 9), "got 7 x 9"),
        ("quarters", (3, 4), "rows and columns 2 divides, got 3 x 4"),
    ],
)
def test_a_map_that_the_grid_does_not_divide_has_no_regions(regions, size, words):
    with pytest.raises(ValueError, match=f"The regions {regions} need feature maps whose .*{words}"):
        netvlad(regions).regions(feature_map(*size))
    netvlad(regions)(feature_map(*size))


def test_image_sizes_that_fit_are_named_by_the_stride():
    assert region_grid("thirds", 42, 30, stride=16) == 3
    with pytest.raises(ValueError, match=r"got 30 x 40: use sides in multiples of 48 pixels, such as 480 x 624\.$"):
        region_grid("thirds", 30, 40, stride=16)
    with pytest.raises(ValueError, match="such as 480 x 672"):  # the nearest, and the size of WAKD
        region_grid("thirds", 15, 20, stride=32)
    with pytest.raises(ValueError, match="such as 96 x 96"):
        region_grid("thirds", 2, 4, stride=32)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sums_are_in_float32_under_autocast(device):
    module = netvlad().float().to(device)
    values = feature_map().float().to(device)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(module.residuals(values), netvlad().float().to(device).residuals(values))
        halves = values.bfloat16()
        assert (module(halves).dtype, module.regions(halves).dtype) == (torch.float32, torch.float32)
    assert torch.equal(module.residuals(halves), module.residuals(halves.float()))
    expected = netvlad().residuals(values.double().cpu())
    torch.testing.assert_close(module.residuals(values).double().cpu(), expected, rtol=0, atol=1e-5)


def test_residuals_are_not_materialized():
    """The largest tensor has as many numbers as the map or its assignments, not K times the map."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    module = NetVLAD(16, 8)
    values = torch.randn(2, 16, 12, 12, requires_grad=True)
    with Largest():
        module(values).sum().backward()
        module.regions(values).sum().backward()
    assert largest == values.numel()


def test_a_map_of_zeros_gives_finite_descriptors_and_gradients():
    module, values = netvlad(), torch.zeros(1, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    descriptors = torch.cat([module(values)[:, None], module.regions(values)], dim=1)
    descriptors.sum().backward()
    assert descriptors.isfinite().all()
    assert values.grad.isfinite().all()


def published_start(centroids, local_features):
    """Alpha and the kernel of the published code: sorted cosines of all local features to all centroids."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    dots = np.sort(unit @ local_features.T, axis=0)
    alpha = -np.log(0.01) / np.mean(dots[-1] - dots[-2])
    return alpha, alpha * unit


def clustered(count=60, seed=0):
    """L2-normalized local features around three directions."""
    generator = np.random.default_rng(seed)
    directions = np.eye(CHANNELS, dtype=np.float32)[:CLUSTERS]
    rows = directions[np.arange(count) % CLUSTERS] + 0.1 * generator.standard_normal((count, CHANNELS))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_start_equals_the_published_one():
    local_features = clustered()
    centroids = np.stack([local_features[i::CLUSTERS].mean(axis=0) for i in range(CLUSTERS)])
    module = NetVLAD(CHANNELS, CLUSTERS)
    found = module.initialize(torch.from_numpy(centroids), torch.from_numpy(local_features))
    alpha, kernel = published_start(centroids, local_features)
    assert found == pytest.approx(alpha, rel=1e-6)
    np.testing.assert_array_equal(module.centroids.detach(), centroids)
    np.testing.assert_allclose(module.assignment.detach(), kernel, rtol=1e-6, atol=1e-6)
    assert module.assignment.requires_grad and module.centroids.requires_grad


def test_a_local_feature_with_the_mean_gap_gives_its_nearest_cluster_a_hundred_times_the_weight_of_the_second():
    module = NetVLAD(2, 2)
    module.initialize(torch.eye(2), F.normalize(torch.tensor([[1.0, 0.5]]), dim=1))
    first, second = (F.normalize(torch.tensor([[1.0, 0.5]]), dim=1) @ module.assignment.T).softmax(dim=1)[0].tolist()
    assert first / second == pytest.approx(100, rel=1e-5)


def test_the_hook_starts_from_clusters_of_normalized_local_features():
    local_features = clustered(3000)
    lengths = np.random.default_rng(1).uniform(0.5, 40, (3000, 1)).astype(np.float32)
    started = []
    for rows in (local_features, local_features * lengths, local_features):
        module = build_aggregation("netvlad", Traits(CHANNELS, None, CHANNELS, 16), num_clusters=CLUSTERS)
        parameters = list(module.parameters())
        initialize = AGGREGATIONS["netvlad"].initialize
        initialize(module, torch.from_numpy(rows), 7)
        assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))
        started.append(module.centroids.detach())
    means = np.stack([local_features[i::CLUSTERS].mean(axis=0) for i in range(CLUSTERS)])
    order = np.abs(started[0].numpy()[:, None] - means).sum(axis=2).argmin(axis=1)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(started[0], means[order], atol=1e-4)  # of all 3000: nothing is subsampled
    np.testing.assert_allclose(started[1], started[0], atol=1e-4)
    assert torch.equal(started[2], started[0])
    _, kernel = published_start(started[0].numpy(), local_features)
    np.testing.assert_allclose(module.assignment.detach(), kernel, rtol=1e-4)


def test_clusters_follow_their_seed():
    rows = F.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    first, again, other = (cluster_centers(rows, 8, seed=seed) for seed in (2**40, 2**40, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_start_that_cannot_be_is_refused():
    module, rows = NetVLAD(CHANNELS, CLUSTERS), torch.from_numpy(clustered())
    with pytest.raises(ValueError, match="3 clusters need as many local features, there are 2: use more images"):
        initialize_netvlad(module, rows[:2], 0)
    with pytest.raises(ValueError, match=r"of 3 clusters and 5 channels cannot start from centroids \(4, 5\)"):
        module.initialize(rows[:4], rows)
    with pytest.raises(ValueError, match=r"cannot start from centroids \(3, 5\) and local features \(60, 4\)"):
        module.initialize(rows[:3], rows[:, :4])
    with pytest.raises(ValueError, match="no local feature is nearer to one than to all"):
        module.initialize(rows[:1].repeat(3, 1), rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_clusters": 1}, "num_clusters of netvlad must be at least 2, got 1"),
        ({"regions": "halves"}, "regions of netvlad must be thirds or quarters, got 'halves'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=f"`aggregation_options`: {words}"):
        build_aggregation("netvlad", Traits(CHANNELS, None, CHANNELS, 16), **options)


def test_only_aggregations_with_regions_say_so():
    for name, row in AGGREGATIONS.items():
        module = build_aggregation(name, Traits(16, 16, 16, 16))
        assert row.has_regions == hasattr(module, "regions")


def test_the_state_has_the_parameters_alone():
    module = NetVLAD(CHANNELS, CLUSTERS)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "assignment": (CLUSTERS, CHANNELS),
        "centroids": (CLUSTERS, CHANNELS),
    }
    assert isinstance(module, nn.Module)
    with torch.device("meta"):
        assert NetVLAD(CHANNELS, CLUSTERS).membership.device.type == "cpu"  # it is in no file


def test_a_published_file_of_centroids_is_read(tmp_path):
    centroids, local_features = clustered(CLUSTERS), clustered()
    local_features[7] = 0  # of a feature map that is 0 there
    with h5py.File(tmp_path / "vgg16_pitts_3_desc_cen.hdf5", "w") as file:
        file["centroids"], file["descriptors"] = centroids.astype(np.float64), local_features
    found = read_centroids(tmp_path / "vgg16_pitts_3_desc_cen.hdf5")
    for each, expected in zip(found, (centroids, local_features), strict=True):
        assert torch.equal(each, torch.from_numpy(expected))
    assert math.isfinite(NetVLAD(CHANNELS, CLUSTERS).initialize(*found))


def test_other_files_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["centroids"] = clustered()
    with h5py.File(tmp_path / "shapes.hdf5", "w") as file:
        file["centroids"], file["descriptors"] = clustered()[:, :4], clustered()
    with h5py.File(tmp_path / "lengths.hdf5", "w") as file:
        file["centroids"], file["descriptors"] = clustered(), 40 * clustered()
    with h5py.File(tmp_path / "groups.hdf5", "w") as file:
        file.create_group("centroids")
        file["descriptors"] = clustered()
    with h5py.File(tmp_path / "elsewhere.hdf5", "w") as file:
        file["centroids"], file["descriptors"] = h5py.ExternalLink("lengths.hdf5", "centroids"), clustered()
    with h5py.File(tmp_path / "nan.hdf5", "w") as file:
        file["centroids"], file["descriptors"] = np.nan * clustered(), clustered()
    with pytest.raises(FileNotFoundError, match="There is no file "):
        read_centroids(tmp_path / "absent.hdf5")
    for name, words in (
        ("text", "text.hdf5 is no HDF5 file with the data sets centroids and descriptors: "),
        ("other", "other.hdf5 is no HDF5 file with the data sets centroids and descriptors: "),
        ("groups", "groups.hdf5 is no HDF5 file with the data sets centroids and descriptors: "),
        ("elsewhere", r"data sets centroids and descriptors: its values lie in other files\.$"),
        ("nan", "nan.hdf5: centroids must be finite, and are not"),
        ("shapes", r"must be of the same C channels, got \(60, 4\) and \(60, 5\)"),
        ("lengths", "lengths.hdf5: descriptors must be L2-normalized, as NetVLAD takes them, and are not"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read_centroids(tmp_path / f"{name}.hdf5")
        assert "\n" not in str(error.value)
