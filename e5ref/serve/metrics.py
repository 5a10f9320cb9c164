"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = tuple(2**n for n in range(0, 17, 2))


class Metrics:
    """The numbers of one service.

    Attributes:
        registry: all of them.
        requests: how many were answered, by route and status.
        seconds: from a request's first byte to the last of its answer, by route.
        waiting: texts that wait for the engine.
        window_texts: texts that were computed together.
        window_tokens: their tokens.
        texts: how many were computed.
        tokens: how many tokens these have.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter("e5ref_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "e5ref_request_seconds", "Time of a request.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.waiting = Gauge("e5ref_waiting_texts", "Texts that wait for the engine.", registry=self.registry)
        self.window_texts = Histogram(
            "e5ref_window_texts", "Texts computed together.", buckets=COUNTS, registry=self.registry
        )
        self.window_tokens = Histogram(
            "e5ref_window_tokens", "Tokens of texts computed together.", buckets=COUNTS, registry=self.registry
        )
        self.texts = Counter("e5ref_texts", "Texts computed.", registry=self.registry)
        self.tokens = Counter("e5ref_tokens", "Tokens of these texts.", registry=self.registry)
