"""Options of the service; no torch."""

from dataclasses import dataclass, field

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from progeo.cores import usable_cores
from progeo.engine.options import Precision


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """How photos are localized over HTTP."""

    token: str | None = field(default=None, repr=False)
    """Secret that requests must give as "Authorization: Bearer TOKEN". null takes it from the environment variable
    PROGEO_TOKEN, which the list of processes does not show; without both, only this machine is served."""
    device: str | None = None
    """Device of the encoder, such as cuda:1 or cpu. null takes the GPU, or the CPU where there is none."""
    mixed_precision: Precision = "no"
    """Precision of the encoder."""
    threshold: ClosedUnitInterval = 0.5
    """Minimum confidence, from 0 to 1, of requests that give none. A position with a lower confidence is reported as
    unknown."""
    batch_size: PositiveInt = 32
    """Maximum number of photos that the encoder gets at once."""
    decoders: PositiveInt = field(default_factory=lambda: min(4, usable_cores()))
    """Number of processes that decode photos."""
    reload_s: PositiveFloat = 2
    """Seconds between looks at whether the place index was changed by another command."""
    max_photos: PositiveInt = field(default=16, metadata={"title": "Limits of requests"})
    """Maximum number of photos in a request."""
    max_upload_mb: PositiveInt = 32
    """Maximum size of a request, in megabytes."""
    max_uploads: PositiveInt = 32
    """Maximum number of requests that are received at the same time; others are refused with status 429."""
    max_waiting: PositiveInt = 128
    """Maximum number of photos that wait for their answer; requests beyond are refused with status 429."""
    upload_s: PositiveFloat = 60
    """Seconds within which a request must be received completely, later ones are refused with status 408, and within
    which its answer must be taken."""
    answer_s: PositiveFloat = 30
    """Seconds within which a request must be answered once it is received; later ones are refused with status 503."""
    no_images: bool = field(default=False, metadata={"title": "What pages and answers show"})
    """Do not show images of the index."""
    show_paths: bool = False
    """Show absolute paths of images of the index instead of their names."""
    tile_url: str | None = None
    """Address of street tiles for the map, such as https://tile.example.org/{z}/{x}/{y}.png, which the page then asks
    for. null draws no streets and asks no other host for anything."""
    tile_attribution: str = ""
    """Text about the source of the street tiles, which the map shows."""

    def __post_init__(self) -> None:
        if self.max_photos > self.max_waiting:
            raise ValueError(
                f"`max_photos` must be at most `max_waiting`, got {self.max_photos} and {self.max_waiting}: a request "
                f"of as many photos could never wait."
            )
