"""Numbers of the service for Prometheus, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PHOTOS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All that is counted; no label holds anything that a client sent."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "progeo_requests", "Answered requests", ("route", "method", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "progeo_request_seconds", "Time of a request", ("route",), buckets=_SECONDS, registry=registry
        )
        self.photos = Counter("progeo_photos", "Localized photos", ("answer",), registry=registry)
        self.batch_photos = Histogram(
            "progeo_batch_photos", "Photos in a batch of the encoder", buckets=_PHOTOS, registry=registry
        )
        self.waiting_photos = Gauge("progeo_waiting_photos", "Photos that wait for their answer", registry=registry)
        self.decoder_restarts = Counter(
            "progeo_decoder_restarts", "Processes killed by an image and started again", registry=registry
        )
        self.index_images = Gauge("progeo_index_images", "Images or classes of the place index", registry=registry)
        self.index_generation = Gauge("progeo_index_generation", "Generation of the place index", registry=registry)
        self.index_reloads = Counter(
            "progeo_index_reloads", "Changes of the place index", ("result",), registry=registry
        )

    def text(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        return generate_latest(self._registry)
