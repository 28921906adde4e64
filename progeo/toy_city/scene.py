"""What differs between visits to a district: camera, light, and the picture taken."""

import math
from dataclasses import dataclass

import numpy as np

from progeo.toy_city.colors import rgb

Share = np.ndarray | float


@dataclass(frozen=True)
class Camera:
    """Position and orientation of the camera."""

    position: np.ndarray
    height_m: float
    heading_deg: float
    pitch_deg: float
    """Shifts the picture instead of tilting it: walls stay upright, and a pixel column has a single direction."""
    fov_deg: float

    def axes(self) -> np.ndarray:
        """Return the unit vectors forward and right, as rows of (east, north)."""
        sine, cosine = math.sin(math.radians(self.heading_deg)), math.cos(math.radians(self.heading_deg))
        return np.array([[sine, cosine], [cosine, -sine]], dtype=np.float32)

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return directions (2, size) of the columns, with forward component 1, and slopes (size,) of the rows."""
        tangents = ((np.arange(size) + 0.5) / size * 2 - 1) * math.tan(math.radians(self.fov_deg / 2))
        forward, right = self.axes()
        directions = forward[:, None] + right[:, None] * tangents
        return directions.astype(np.float32), (math.tan(math.radians(self.pitch_deg)) - tangents).astype(np.float32)

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Return column, row and depth (N, 3) of points (N, 3) in front of the camera."""
        depth, side = self.axes() @ (points[:, :2] - self.position).T
        extent, depth = math.tan(math.radians(self.fov_deg / 2)), np.maximum(depth, 0.3)
        slope = (points[:, 2] - self.height_m) / depth - math.tan(math.radians(self.pitch_deg))
        return np.stack([(side / depth / extent + 1) * size / 2, (1 - slope / extent) * size / 2, depth], axis=1)


@dataclass(frozen=True)
class Light:
    """The sky and light of a visit; colors are RGB from 0 to 255, or factors that multiply surface colors."""

    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    sun: np.ndarray
    """At night, the light of street lamps, which decreases with height."""
    sun_direction: np.ndarray
    sun_slope: float
    """Tangent of the sun's elevation, 0 at night."""
    clouds: float
    haze_m: float
    traffic: float

    @property
    def night(self) -> bool:
        """Whether street lamps are the light source."""
        return self.sun_slope == 0


@dataclass(frozen=True)
class Picture:
    """Pixel data before lighting: color (H, W, 3); distance, fraction of sunlight and glow, each (H, W)."""

    color: np.ndarray
    distance: np.ndarray
    sunlit: np.ndarray
    glow: np.ndarray

    def fill(self, where: np.ndarray, color: np.ndarray, distance: np.ndarray, sunlit: Share, glow: Share) -> None:
        """Set the pixels at flat indices `where`."""
        self.color.reshape(-1, 3)[where] = color
        for plane, value in ((self.distance, distance), (self.sunlit, sunlit), (self.glow, glow)):
            plane.reshape(-1)[where] = value


def draw_light(rng: np.random.Generator) -> Light:
    """Sample the weather and the light of a visit."""
    weather = rng.choice(["clear", "overcast", "fog", "golden", "night"], p=[0.34, 0.22, 0.1, 0.17, 0.17])
    zenith, horizon, ambient, sun = {
        "clear": ("#4a80c8", "#bcd2e6", (0.42, 0.46, 0.56), (0.75, 0.70, 0.58)),
        "overcast": ("#8f979f", "#c4c8ca", (0.72, 0.74, 0.76), (0.06, 0.06, 0.06)),
        "fog": ("#b9bdc0", "#c8cacb", (0.66, 0.68, 0.72), (0.0, 0.0, 0.0)),
        "golden": ("#6f7fae", "#f0b27a", (0.36, 0.34, 0.42), (0.95, 0.58, 0.26)),
        "night": ("#0c1226", "#2a2a3c", (0.13, 0.14, 0.21), (0.62, 0.46, 0.24)),
    }[weather]
    azimuth = rng.uniform(0, 2 * math.pi)
    elevation_deg = rng.uniform(8, 22) if weather == "golden" else rng.uniform(25, 65)
    return Light(
        zenith=rgb(zenith) * np.float32(rng.uniform(0.85, 1.1)),
        horizon=rgb(horizon) * np.float32(rng.uniform(0.85, 1.1)),
        ambient=(np.array(ambient) * rng.uniform(0.85, 1.15, 3)).astype(np.float32),
        sun=(np.array(sun) * rng.uniform(0.85, 1.15, 3)).astype(np.float32),
        sun_direction=np.array([math.sin(azimuth), math.cos(azimuth)], dtype=np.float32),
        sun_slope=0.0 if weather == "night" else math.tan(math.radians(elevation_deg)),
        clouds=float(rng.uniform(0.8, 1.0) if weather == "overcast" else rng.uniform(0, 0.7)),
        haze_m=float(rng.uniform(40, 90) if weather == "fog" else rng.uniform(150, 500)),
        traffic=float(rng.uniform(0.05, 0.75)),
    )
