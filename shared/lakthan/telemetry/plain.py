"""A histogram of plain numbers, for what happens a hundred thousand times a second.

`prometheus_client`'s own takes a lock and looks for its bucket in a loop; this one costs a sixth of a microsecond. It
belongs to one thread, the event loop's, which also reads it.

An exemplar is one case of those that a bucket counts, with the id that the log has for it. Whoever counts says so
separately and only for cases worth a look (`lakthan.telemetry.slow`), so that all others cost nothing more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from time import time

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector


class Series:
    """The numbers under one label."""

    __slots__ = ("_bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, times: int = 1) -> None:
        """Count one, or so many of this value."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def exemplify(self, value: float, request_id: str) -> None:
        """Let a case that was counted stand for its bucket from now on."""
        exemplar = Exemplar({"request_id": request_id}, value, time())
        self.exemplars[bisect_left(self._bounds, value)] = exemplar


class PlainHistogram(Collector):
    """Histograms of one name. `buckets`: their upper bounds in order, without infinity; `label`: '' for none."""

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        label: str = "",
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = tuple(buckets)
        self._series: dict[str, Series] = {}
        registry.register(self)

    def labels(self, value: str = "") -> Series:
        """The series with this label; made when it is not there yet."""
        series = self._series.get(value)
        if series is None:
            series = self._series[value] = Series(self._bounds)
        return series

    def describe(self) -> Iterable[Metric]:
        """See `Collector`."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        family = self._family()
        names = [*map(repr, self._bounds), "+Inf"]
        for value, series in self._series.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            so_far = 0
            for at, (name, count) in enumerate(zip(names, series.counts, strict=True)):
                so_far += count
                exemplar = series.exemplars.get(at)
                buckets.append((name, float(so_far)) if exemplar is None else (name, float(so_far), exemplar))
            family.add_metric([value] if self._label else [], buckets, series.sum)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])
