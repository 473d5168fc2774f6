"""The service's metrics in Ray's own export: one Prometheus page on every node, beside Ray's and vLLM's."""

from typing import Any

from ray.serve import metrics as serve_metrics

from ureca.serving.metrics import METRICS, Metric

__all__ = ["RayRecorder"]


class RayRecorder:
    """Make it inside a replica: Serve then adds the tags application, deployment and replica."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {metric.name: _made(metric) for metric in METRICS}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        made = self._made[metric.name]
        if metric.kind == "counter":
            if value:  # Ray refuses to add nothing
                made.inc(value, tags)
        elif metric.kind == "gauge":
            made.set(value, tags)
        else:
            made.observe(value, tags)


def _made(metric: Metric) -> Any:
    tags: Any = metric.tags  # Ray's annotation says one tag
    if metric.kind == "counter":
        return serve_metrics.Counter(metric.name, metric.help, tags)
    if metric.kind == "gauge":
        return serve_metrics.Gauge(metric.name, metric.help, tags)
    return serve_metrics.Histogram(metric.name, metric.help, list(metric.boundaries), tags)
