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
class Localization:
    """Result of a query. Its estimated position is that of the first match."""

    query: str
    """Path of the query photo, or the query sentence."""
    confidence: float | None = None
    """Probability that the query was taken within `radius_m` of the first match; None if the index is not
    calibrated."""
    radius_m: float | None = None
    known: bool | None = None
    """Whether the confidence reaches the threshold; None without a confidence."""
    matches: tuple[Match, ...] = ()
    """The nearest images or classes, best first."""
    error: str = ""
    """Why there are no matches; empty if there are."""
    is_restricted: bool = False
    """Whether only a part of the index was searched, near a position or in a direction: without a confidence, which is
    calibrated on searches of all of it."""

    @property
    def latitude(self) -> float | None:
        """Latitude of the estimated position in degrees; None if it is unknown."""
        return self.matches[0].latitude if self.matches else None

    @property
    def longitude(self) -> float | None:
        """Longitude of the estimated position in degrees; None if it is unknown."""
        return self.matches[0].longitude if self.matches else None

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
        for rank, match in enumerate(self.matches, 1):
            measure = f"{match.distance:.3f}" if match.probability is None else f"{100 * match.probability:5.1f} %"
            lines.append(f"{rank:5}  {measure}  {match.position}  {match.path}")
        return "\n".join(lines)
