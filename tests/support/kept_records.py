"""A metrics recorder that keeps what it records."""

from collections import Counter

from ureca.serving.metrics import Metric


class KeptRecords:
    """A recorder that keeps what it is received."""

    def __init__(self) -> None:
        self.records: list[tuple[Metric, float, dict[str, str]]] = []

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        assert set(tags) == set(metric.tags), metric.name
        self.records.append((metric, value, tags))

    def count(self, wanted: Metric) -> Counter:
        """Sums by the tags' values, as one text."""
        sums: Counter = Counter()
        for metric, value, tags in self.records:
            if metric is wanted:
                sums[" ".join(tags[key] for key in metric.tags)] += value
        return sums
