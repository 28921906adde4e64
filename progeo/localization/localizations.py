"""Localizations: where a query was taken, how likely that is, and its matches."""

from dataclasses import dataclass

from progeo.places.coordinates import map_link


@dataclass(frozen=True)
class Match:
    """An image of the index, or a class of an index of classes, that matches a query."""

    path: str
    """Path of the image, or name of the class."""
    latitude: float | None
    """Degrees; None if only UTM is known."""
    longitude: float | None
    east_m: float | None
    """UTM meters; None if the position is unknown."""
    north_m: float | None
    distance: float
    """Euclidean distance between descriptors, or to the vector of a class."""
    row: int
    """Row of the index."""
    heading_deg: float | None = None
    """Viewing direction in degrees clockwise from north; None if it is unknown."""
    probability: float | None = None
    """Probability of the class; None for images, and for a sentence."""
    corners: tuple[tuple[float, float], ...] | None = None
    """Longitude and latitude of the corners of the class's cell, counterclockwise from the south-west; None for images,
    and if they are unknown."""
    inliers: int | None = None
    """Number of points that match those of the photo with one geometry; None if it was not matched with the photo."""
    lines: tuple[tuple[float, float, float, float], ...] = ()
    """Such points, at most 100: x and y in the photo, x and y in the match, as fractions of their width and height."""

    @property
    def position(self) -> str:
        """The position as text: degrees, or UTM if only that is known."""
        if self.east_m is None:
            return "no known position"
        if self.latitude is None:
            return f"UTM {self.east_m:.1f} east, {self.north_m:.1f} north"
        return f"{self.latitude:.5f}, {self.longitude:.5f}"

    @property
    def map_link(self) -> str:
        """URL of a street map of the position; empty if its degrees are unknown."""
        if self.latitude is None or self.longitude is None:
            return ""
        return map_link(self.latitude, self.longitude)


@dataclass(frozen=True)
class Frame:
    """A photo as a frame of a sequence."""

    seconds: float
    """Time since the first frame."""
    alone: Match | None
    """The first match of this frame on its own, before the sequence was smoothed; None if it has no matches."""


@dataclass(frozen=True)
class Localization:
    """Result of a query. Its estimated position is that of the first match."""

    query: str
    """Path of the query photo, or the query sentence."""
    confidence: float | None = None
    """Probability that the query was taken within `radius_m` of the first match, in a sequence given all frames; None
    if the index is not calibrated, or was without verification and the photo is verified."""
    radius_m: float | None = None
    known: bool | None = None
    """Whether the confidence reaches the threshold, and a frame of a sequence is on its track; None without a
    confidence."""
    matches: tuple[Match, ...] = ()
    """The nearest images or classes, best first; of a frame on a track, that of the track first."""
    error: str = ""
    """Why there are no matches; empty if there are."""
    is_restricted: bool = False
    """Whether only a part of the index was searched, near a position or in a direction: without a confidence, which is
    calibrated on searches of all of it."""
    verified: bool = False
    """Whether the first matches were matched with the photo, and ranked by their inliers."""
    frame: Frame | None = None
    """What the photo is in a sequence; None for a photo on its own."""

    @property
    def latitude(self) -> float | None:
        """Latitude of the estimated position in degrees; None if it is unknown."""
        return self.matches[0].latitude if self.matches else None

    @property
    def longitude(self) -> float | None:
        """Longitude of the estimated position in degrees; None if it is unknown."""
        return self.matches[0].longitude if self.matches else None

    @property
    def can_be_mapped(self) -> bool:
        """Whether its latitude and longitude are known, and its confidence, if any, reaches the threshold."""
        return self.known is not False and None not in (self.latitude, self.longitude)

    def __str__(self) -> str:
        """The position with its confidence, a link to its map, then a line for each match; or the error alone."""
        if self.error:
            return self.error
        confidence = ""
        if self.confidence is not None:
            confidence = f", within {self.radius_m:g} m with probability {self.confidence:.2f}"
        unknown = "unknown, at best " if self.known is False else ""
        lines = [f"{self.query}: {unknown}{self.matches[0].position}{confidence}"]
        if link := self.matches[0].map_link:
            lines.append(f"       {link}")
        if self.frame is not None and self.frame.alone not in (None, self.matches[0]):
            lines.append(f"       alone: {self.frame.alone.position}  {self.frame.alone.path}")
        for rank, match in enumerate(self.matches, 1):
            measure = f"{match.distance:.3f}" if match.probability is None else f"{100 * match.probability:5.1f} %"
            inliers = "" if match.inliers is None else f"{match.inliers:4} points  "
            lines.append(f"{rank:5}  {measure}  {inliers}{match.position}  {match.path}")
        return "\n".join(lines)
