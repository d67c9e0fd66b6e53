"""A histogram of plain numbers, for what happens a hundred thousand times a second.

`prometheus_client`'s own takes a lock and looks for its bucket in a loop; this one costs a sixth of a microsecond. It
belongs to one thread, the event loop's, which also reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Series:
    """The numbers under one label."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


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
            buckets, so_far = [], 0
            for name, count in zip(names, series.counts, strict=True):
                so_far += count
                buckets.append((name, float(so_far)))
            family.add_metric([value] if self._label else [], buckets, series.sum)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])
