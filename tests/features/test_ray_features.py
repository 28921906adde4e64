"""Features extracted by a Ray cluster of several nodes on this machine."""

import itertools
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from running import build_catalogue

from progeo import plugins
from progeo.engine.accelerator import start_accelerator
from progeo.engine.cluster import connected, cores_per_worker, run_on_cluster
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.ray_features import _shard_extractor, shards_on_ray
from progeo.features.shards import shards_here
from progeo.models.encoder import build_encoder
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.places.catalogue import read_catalogue

pytestmark = pytest.mark.slow
NUM_IMAGES, BROKEN = 700, 130


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """700 images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for row in range(NUM_IMAGES):
        Image.fromarray(random.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(folder / f"@{row:03}@0@.jpg")
    (folder / f"@{BROKEN}@0@.jpg").write_bytes(b"broken")
    return read_catalogue(folder)


@pytest.fixture
def nodes(monkeypatch):
    """A cluster whose first node has no cores, as this process must survive; it is ended at last."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")]))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield nodes
    nodes.shutdown()


@pytest.fixture
def cluster(nodes):
    """The cluster, to which this process is connected."""
    import ray

    ray.init(nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()


@pytest.fixture
def extract(catalogue, tmp_path):
    """Extract descriptors into a cache of their own; returns the content of its files."""

    def extracted(encoder, *, on_ray):
        accelerator, images = start_accelerator("no"), ImageOptions()
        extractor = descriptor_extractor(encoder, images, accelerator)
        rows = extract_descriptors(
            extractor,
            catalogue,
            accelerator,
            work=WorkOptions(batch_size=16, num_workers=0),
            cache=CacheOptions(descriptor_cache=tmp_path / ("ray" if on_ray else "here")),
            compute=shards_on_ray(encoder, images, "no") if on_ray else shards_here,
        )
        assert rows.missing.tolist() == [BROKEN]
        return {path.name: path.read_bytes() for path in rows.folder.iterdir()}

    torch.set_num_threads(1)
    return extracted


def test_nodes_that_leave_and_join_change_nothing(extract, nodes, tmp_path, caplog, capfd):
    encoder = build_encoder("torchvision/resnet18", "random", 96, descriptor_dim=8).eval()
    expected = extract(encoder, on_ray=False)
    first = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
    with connected(nodes.address), ThreadPoolExecutor(1) as pool:
        found = pool.submit(extract, encoder, on_ray=True)
        while not found.done() and not list(tmp_path.glob("ray/*/rows_*.npy")):
            time.sleep(0.01)
        nodes.add_node(num_cpus=1)
        for node in first:
            nodes.remove_node(node, allow_graceful=False)
        assert len(list(tmp_path.glob("ray/*/rows_*.npy"))) < 10  # the node that joined makes the others
        assert found.result() == expected
    assert len([name for name in expected if name.startswith("rows_")]) == 11
    assert "a worker of the cluster was lost" in caplog.text
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_workers_on_gpus_extract_what_a_gpu_here_does(extract, cluster):
    encoder = build_encoder("torchvision/resnet18", "random", 96, descriptor_dim=8).eval()
    expected = extract(encoder, on_ray=False)
    cluster.add_node(num_cpus=1, num_gpus=1)
    assert extract(encoder, on_ray=True) == expected


_PEAK = """
from progeo.models.aggregation import AGGREGATIONS, Aggregation, MeanPool


class Peak(MeanPool):
    def forward(self, feature_map):
        return feature_map.amax((2, 3))


AGGREGATIONS["peak"] = Aggregation(build=lambda traits, dim: Peak(), needs=("map",), dim=lambda traits: traits.channels)
"""


def test_encoders_of_plugins_and_those_that_are_no_spec_are_sent(extract, cluster, plugins_forgotten, tmp_path):
    cluster.add_node(num_cpus=1)
    thumbnail = ThumbnailEncoder().eval()
    assert extract(thumbnail, on_ray=True) == extract(thumbnail, on_ray=False)
    plugin = tmp_path / "peak_of_mine.py"
    plugin.write_text(_PEAK)
    plugins.import_plugin(plugin)  # which is not where the workers, started before, look for modules
    encoder = build_encoder("tiny-resnet", "random", 64, aggregation="peak").eval()
    assert extract(encoder, on_ray=True) == extract(encoder, on_ray=False)


def test_a_machine_without_the_images_is_named(cluster, tmp_path):
    cluster.add_node(num_cpus=1)
    (tmp_path / "unmounted").mkdir()
    names = build_catalogue(tmp_path / "unmounted", ["@0@0@.jpg"])
    arguments = ({}, ThumbnailEncoder().eval(), ImageOptions(), "no", {}, "float32")
    found = run_on_cluster(_shard_extractor, *arguments, calls=iter([(0, names)]), num_calls=1, num_cores=1)
    sentence = f"^There are no images in {tmp_path}/unmounted on {socket.gethostname()}, a machine of"
    with pytest.raises(FileNotFoundError, match=sentence):
        list(found)


def failing(kind, blocked=None):
    """Make a function that fails in one of several ways, here or on a machine of the cluster."""
    if kind == "start" or (blocked is not None and blocked.exists()):
        raise ModuleNotFoundError("No module named 'gone'")

    def fail(_):
        if kind == "started":
            return os.getpid()
        if kind == "lost":
            os._exit(1)
        raise FileNotFoundError("There is no photo.jpg.")

    return fail


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("start", ValueError, "^No worker of the Ray cluster could be started: .*No module named 'gone'"),
        ("lost", OSError, "^4 workers of the Ray cluster were lost with the same work: "),
        ("raise", FileNotFoundError, r"^There is no photo\.jpg\.$"),
    ],
)
def test_what_fails_on_the_machines_is_said(kind, error, sentence, cluster):
    cluster.add_node(num_cpus=1)
    with pytest.raises(error, match=sentence):
        list(run_on_cluster(failing, kind, calls=iter([(1,)]), num_calls=1, num_cores=1))


def test_that_machines_which_joined_start_no_workers_is_said_once_the_others_are_lost(cluster, tmp_path, caplog):
    cluster.add_node(num_cpus=1)
    calls = ((number,) for number in itertools.count())
    found = run_on_cluster(failing, "started", tmp_path / "blocked", calls=calls, num_calls=10**9, num_cores=1)
    _, worker = next(found)
    (tmp_path / "blocked").touch()
    cluster.add_node(num_cpus=1)
    while caplog.text.count("could not be started") < 4:
        next(found)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"^No worker of the Ray cluster could be started: .*No module named 'gone'"):
        list(found)


def test_a_cluster_that_has_no_room_is_said_and_waited_for(cluster, caplog, monkeypatch):
    monkeypatch.setattr("progeo.engine.cluster._PATIENT_LOOKS", 1)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(list, run_on_cluster(failing, "started", calls=iter([(1,)]), num_calls=1, num_cores=3))
        while "has had room for a worker with 3 cores" not in caplog.text and not found.done():
            time.sleep(0.01)
        cluster.add_node(num_cpus=3)
        assert [call for call, _ in found.result()] == [(1,)]


def test_every_machine_has_room_for_a_worker_for_each_of_its_gpus(cluster):
    cluster.add_node(num_cpus=8)
    assert cores_per_worker(16) == 8
    assert cores_per_worker(3) == 3
    cluster.add_node(num_cpus=10, num_gpus=4)
    assert cores_per_worker(16) == 2


def test_a_cluster_that_is_not_there_is_named():
    sentence = r"^There is no Ray cluster at `ray_address` localhost:1: .*Connection refused\. Start one by ray start"
    with pytest.raises(ValueError, match=sentence), connected("localhost:1"):
        pass
