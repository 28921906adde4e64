"""The ROS 2 node of the documentation, with small stand-ins for the modules of ROS, which pip cannot install."""

import importlib.util
import json
import math
import shutil
import sys
from types import MappingProxyType, ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from running import ROOT

from progeo.localization.localizations import Localization, Match


class Node:
    """What the node uses of rclpy.node.Node."""

    parameters = MappingProxyType({})

    def __init__(self, name):
        self.name, self.published, self.errors, self.callbacks = name, [], [], {}

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(publish=lambda message: self.published.append((topic, kind, message)))

    def create_subscription(self, kind, topic, callback, qos):
        self.callbacks[topic] = callback

    def get_logger(self):
        return SimpleNamespace(error=self.errors.append)


class NavSatStatus:
    STATUS_NO_FIX, STATUS_FIX = -1, 0


class NavSatFix:
    COVARIANCE_TYPE_APPROXIMATED = 1

    def __init__(self):
        self.status, self.header = SimpleNamespace(status=0), None
        self.position_covariance, self.position_covariance_type = [0.0] * 9, 0


@pytest.fixture
def ros2_node(monkeypatch):
    modules = {
        name: ModuleType(name) for name in ("rclpy", "rclpy.node", "rclpy.qos", "sensor_msgs", "sensor_msgs.msg")
    }
    modules["rclpy.node"].Node = Node
    modules["rclpy.qos"].QoSHistoryPolicy = SimpleNamespace(KEEP_LAST=1)
    modules["rclpy.qos"].QoSReliabilityPolicy = SimpleNamespace(BEST_EFFORT=2)
    modules["rclpy.qos"].QoSProfile = SimpleNamespace
    for kind in (NavSatFix, NavSatStatus, type("Image", (SimpleNamespace,), {})):
        setattr(modules["sensor_msgs.msg"], kind.__name__, kind)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("ros2_node", ROOT / "docs/ros2_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def message(pixels, encoding, *, padding=0):
    """A message with the pixels (H, W, C) of an image, with `padding` bytes at the end of each row."""
    height, width, count = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=7)
    return SimpleNamespace(
        height=height,
        width=width,
        step=width * count + padding,
        encoding=encoding,
        data=rows.tobytes(),
        header=SimpleNamespace(frame_id="camera"),
    )


def test_rows_may_be_padded_and_channels_in_any_order(ros2_node):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for shown, encoding in ((pixels, "rgb8"), (pixels[:, :, ::-1], "bgr8")):
        np.testing.assert_array_equal(ros2_node.pixels_of(message(shown, encoding, padding=5)), pixels)
    gray = ros2_node.pixels_of(message(pixels[:, :, :1], "mono8", padding=1))
    np.testing.assert_array_equal(gray, pixels[:, :, [0, 0, 0]])
    with pytest.raises(ValueError, match="Images must be encoded as rgb8, bgr8, mono8, got 16UC1"):
        ros2_node.pixels_of(message(pixels, "16UC1"))


def test_a_fix_has_the_variance_that_its_confidence_means(ros2_node):
    match = Match("a.jpg", 37.5, -122.5, 1.0, 2.0, 0.5, row=0)
    fix = ros2_node.fix_of(Localization("photo 1", 1 - math.exp(-2), 20.0, True, (match,)))
    assert (fix.status.status, fix.latitude, fix.longitude) == (0, 37.5, -122.5)
    np.testing.assert_allclose([fix.position_covariance[0], fix.position_covariance[4]], 100)  # 20 m are 2 sigma
    assert fix.position_covariance_type == 1 and math.isnan(fix.altitude)
    certain = ros2_node.fix_of(Localization("photo 1", 1.0, 20.0, True, (match,)))
    assert 0 < certain.position_covariance[0] < 100
    doubtful = ros2_node.fix_of(Localization("photo 1", 0.0, 20.0, True, (match,)))
    assert 1e5 < doubtful.position_covariance[0] < math.inf
    unknown = ros2_node.fix_of(Localization("photo 1", 0.1, 20.0, False, (match,)))
    assert unknown.status.status == -1 and math.isnan(unknown.latitude) and math.isnan(unknown.longitude)


def test_an_index_without_confidences_is_refused_at_the_start(ros2_node, built, tmp_path, monkeypatch):
    shutil.copytree(built / "index", tmp_path / "index")
    for file in (tmp_path / "index").glob("index*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "calibration": None}))
    monkeypatch.setattr(Node, "parameters", {"index": str(tmp_path / "index")})
    with pytest.raises(ValueError, match="A fix needs a confidence: run `progeo index calibrate`"):
        ros2_node.Localizer()


def test_the_node_publishes_a_fix_for_each_image(ros2_node, built, city, monkeypatch):
    monkeypatch.setattr(Node, "parameters", {"index": str(built / "index")})
    node = ros2_node.Localizer()
    photo = sorted((city / "train").iterdir())[3]
    image = message(np.asarray(Image.open(photo))[:, :, ::-1], "bgr8", padding=3)
    node.callbacks["image"](image)
    node.callbacks["image"](message(np.zeros((4, 4, 2), np.uint8), "yuv422"))
    ((topic, kind, fix),) = node.published
    assert (topic, kind, fix.header.frame_id, fix.status.status) == ("fix", NavSatFix, "camera", 0)
    latitude, longitude = map(float, photo.name.split("@")[5:7])
    assert (fix.latitude, fix.longitude) == pytest.approx((latitude, longitude), abs=1e-5)
    assert node.errors == ["Images must be encoded as rgb8, bgr8, mono8, got yuv422."]
