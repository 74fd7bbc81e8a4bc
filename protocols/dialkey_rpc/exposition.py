"""The counters of services and clients for Prometheus, on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Final, cast

import attrs

from dialkey_rpc.client import service_of, stats
from dialkey_rpc.metrics import BUCKETS_S, MethodStats
from dialkey_rpc.server import Rpc

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["MetricsPage", "PrometheusCollector", "metrics_page"]

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"

_LABELS: Final = ("service", "side", "method")


@attrs.frozen
class MetricsPage:
    """What an HTTP server answers to Prometheus.

    Attributes:
        content_type: the header that says what the body is.
        body: the page.
    """

    content_type: str
    body: bytes


def metrics_page(*sources: object, accept: str = "") -> MetricsPage:
    """Write the counters of services and clients on one page.

    Args:
        sources: services (`Rpc`) and clients (what `connect` returned).
        accept: the ``Accept`` header of the request; it chooses between the Prometheus text format,
            which is the default, and OpenMetrics.

    Raises:
        InvalidInput: a source is neither.
    """
    from prometheus_client import CollectorRegistry, exposition
    from prometheus_client.openmetrics import exposition as openmetrics

    registry = CollectorRegistry()
    registry.register(PrometheusCollector(*sources))
    newer = _prefers_openmetrics(accept)
    # The library does not say the type of these functions, and its own choice between them repeats
    # whatever version the reader names.
    generate = (openmetrics if newer else exposition).generate_latest
    body = cast("Callable[[CollectorRegistry], bytes]", generate)(registry)
    return MetricsPage(OPENMETRICS if newer else PLAIN, body)


def _prefers_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header prefers OpenMetrics. Source: RFC 9110 section 12.5.1."""
    qualities = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for member in accept.lower().split(","):
        media, *parameters = (part.strip() for part in member.split(";"))
        found = {name.strip(): value.strip(' "') for name, _, value in map(_split, parameters)}
        try:
            quality = float(found.get("q", "1"))
        except ValueError:
            continue
        if media in qualities and found.get("version", "1.0.0") in ("1.0.0", "0.0.4"):
            qualities[media] = max(qualities[media], quality)
    newer, older = qualities.values()
    return newer > 0 and newer >= older


def _split(parameter: str) -> tuple[str, str, str]:
    return parameter.partition("=")


class PrometheusCollector:
    """Gives the counters of services and clients to a registry of ``prometheus_client``.

    ``REGISTRY.register(PrometheusCollector(shop, stock))`` puts them on the page that the application
    has already. Several sources of the same service are added up.

    Args:
        sources: as for `metrics_page`.

    Raises:
        InvalidInput: a source is neither a service nor a client.
    """

    def __init__(self, *sources: object) -> None:
        self._sources = sources
        for source in sources:
            _stats(source)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they stand."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        calls = CounterMetricFamily(
            "dialkey_rpc_calls", "Calls that ended, by outcome.", labels=[*_LABELS, "outcome"]
        )
        active = GaugeMetricFamily("dialkey_rpc_calls_active", "Calls in progress.", labels=_LABELS)
        items = CounterMetricFamily(
            "dialkey_rpc_items", "Items that streamed.", labels=[*_LABELS, "direction"]
        )
        seconds = HistogramMetricFamily(
            "dialkey_rpc_call_seconds", "How long calls took.", labels=_LABELS
        )
        for labels, each in sorted(self._totals().items()):
            for outcome, count in sorted(each.ended.items()):
                calls.add_metric([*labels, outcome], count)
            active.add_metric(labels, each.active)
            items.add_metric([*labels, "up"], each.items_up)
            items.add_metric([*labels, "down"], each.items_down)
            ends = [*map(str, BUCKETS_S), "+Inf"]
            buckets = list(zip(ends, accumulate(each.buckets), strict=True))
            seconds.add_metric(labels, buckets, round(each.seconds, 6))
        yield from (calls, active, items, seconds)

    def _totals(self) -> dict[tuple[str, str, str], MethodStats]:
        totals: dict[tuple[str, str, str], MethodStats] = {}
        for source in self._sources:
            service, side, methods = _stats(source)
            for method, each in methods.items():
                labels = (service, side, method)
                known = totals.get(labels)
                totals[labels] = each if known is None else known.plus(each)
        return totals


def _stats(source: object) -> tuple[str, str, Mapping[str, MethodStats]]:
    if isinstance(source, Rpc):
        return source.spec.name, "server", source.stats()
    return service_of(source), "client", stats(source)
