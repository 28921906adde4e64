"""A ROS 2 node that localizes the images of a camera: `python ros2_node.py --ros-args -p index:=city.index`.

It subscribes to `image` (sensor_msgs/Image) and publishes `fix` (sensor_msgs/NavSatFix) for each image that it has time
for. Parameters: index, threshold.
"""

import math

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image, NavSatFix, NavSatStatus

import progeo

CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "mono8": (0, 0, 0)}
"""Encoding of an image -> its channels of red, green and blue."""
NEWEST = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT
)  # a camera is faster than an encoder: skip images instead of falling behind


def pixels_of(message: Image) -> np.ndarray:
    """Convert an image to an array, uint8 (H, W, 3).

    Raises:
        ValueError: the encoding is none of `CHANNELS`.
    """
    if message.encoding not in CHANNELS:
        raise ValueError(f"Images must be encoded as {', '.join(CHANNELS)}, got {message.encoding}.")
    channels = CHANNELS[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)  # rows may be padded
    count = max(channels) + 1
    return rows[:, : message.width * count].reshape(message.height, message.width, count)[:, :, channels]


def fix_of(result: progeo.Localization) -> NavSatFix:
    """Convert a localization to a fix; one without a known position has the status NO_FIX and no coordinates.

    The covariance is that of a circular Gaussian with the result's confidence within its radius.
    """
    fix = NavSatFix()
    fix.altitude = math.nan
    if not result.known or result.latitude is None or result.longitude is None:
        fix.status.status = NavSatStatus.STATUS_NO_FIX
        fix.latitude = fix.longitude = math.nan
        return fix
    fix.status.status = NavSatStatus.STATUS_FIX
    fix.latitude, fix.longitude = result.latitude, result.longitude
    confidence = min(max(result.confidence, 0.001), 0.999)  # which no finite variance means below or above
    variance = result.radius_m**2 / (-2 * math.log(1 - confidence))
    fix.position_covariance = [variance, 0.0, 0.0, 0.0, variance, 0.0, 0.0, 0.0, 1e6]  # the altitude is unknown
    fix.position_covariance_type = NavSatFix.COVARIANCE_TYPE_APPROXIMATED
    return fix


class Localizer(Node):
    """Publishes where the images of a camera were taken."""

    def __init__(self) -> None:
        super().__init__("progeo")
        self.index = progeo.open_index(self.declare_parameter("index", "city.index").value)
        if self.index.metadata.calibration is None:
            raise ValueError("A fix needs a confidence: run `progeo index calibrate` on the index first.")
        self.threshold = self.declare_parameter("threshold", 0.5).value
        self.publisher = self.create_publisher(NavSatFix, "fix", 10)
        self.create_subscription(Image, "image", self.localize, NEWEST)

    def localize(self, message: Image) -> None:
        """Localize an image and publish its fix, with the time and frame of the image."""
        try:
            (result,) = self.index.localize(pixels_of(message), top=1, threshold=self.threshold)
        except ValueError as error:
            self.get_logger().error(str(error))
            return
        fix = fix_of(result)
        fix.header = message.header
        self.publisher.publish(fix)


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = Localizer()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
