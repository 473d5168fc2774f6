"""Metrics of engine calls; the dashboard may use only existing metrics."""

import asyncio
import json
import re

import pytest
from support.kept_records import KeptRecords
from support.paths import SERVE_APPS

from ureca.engine.results import Caption, collect_captions
from ureca.serving import metrics
from ureca.serving.metrics import METRICS, EngineMeter

DASHBOARD = SERVE_APPS / "grafana_dashboard.json"


async def received(count: int, failure: Exception | None = None):
    """Yield an engine's events for `count` regions: one piece and the caption of each; then fail if requested."""
    for index in range(count):
        yield index, "a "
        await asyncio.sleep(0.01)
        yield index, Caption("a", "length" if index else "stop", (1, 2), 300, 256 if index else 0, 2)
    if failure:
        raise failure


def test_a_call_s_regions_times_and_tokens_are_recorded():
    kept = KeptRecords()
    captions = asyncio.run(collect_captions(EngineMeter(kept, "m").measure(received(3), 3)))
    assert len(captions) == 3
    assert kept.count(metrics.REGIONS) == {"m stop": 1, "m length": 2}
    in_flight = [value for metric, value, _ in kept.records if metric is metrics.REGIONS_IN_FLIGHT]
    assert in_flight == [3, 2, 1, 0, 0]
    [first] = [value for metric, value, _ in kept.records if metric is metrics.FIRST_TOKEN_SECONDS]
    regions = [value for metric, value, _ in kept.records if metric is metrics.REGION_SECONDS]
    assert 0 <= first < 0.01 <= regions[0] < regions[1] < regions[2]
    assert kept.count(metrics.PROMPT_TOKENS) == {"m": 900}
    assert kept.count(metrics.CACHED_TOKENS) == {"m": 512}
    assert kept.count(metrics.CAPTION_TOKENS) == {"m": 6}


def test_regions_of_a_call_that_fails_or_is_left_are_no_longer_in_flight():
    async def leave(meter: EngineMeter) -> None:
        events = meter.measure(received(3), 3)
        await anext(events)
        await events.aclose()

    kept = KeptRecords()
    meter = EngineMeter(kept, "m")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(collect_captions(meter.measure(received(1, ZeroDivisionError()), 4)))
    asyncio.run(leave(meter))
    assert kept.count(metrics.REGIONS) == {"m stop": 1, "m abandoned": 6}
    *_, last = [value for metric, value, _ in kept.records if metric is metrics.REGIONS_IN_FLIGHT]
    assert last == 0


def test_the_gauge_is_set_again_and_again_since_ray_forgets_one_that_is_not(monkeypatch):
    async def report(meter: EngineMeter) -> None:
        reporting = asyncio.create_task(meter.keep_reporting())
        await asyncio.sleep(0.05)
        reporting.cancel()

    kept = KeptRecords()
    monkeypatch.setattr(metrics, "REPORT_SECONDS", 0.01)
    asyncio.run(report(EngineMeter(kept, "m")))
    assert len(kept.records) >= 2
    assert {(metric, value) for metric, value, _ in kept.records} == {(metrics.REGIONS_IN_FLIGHT, 0)}


def exported_names() -> set[str]:
    """Ours as Prometheus sees them."""
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"ray_{metric.name}{end}" for metric in METRICS for end in ends[metric.kind]}


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_shows_each_of_our_metrics_and_none_that_does_not_exist():
    named = set(re.findall(r"\bray_ureca_\w+", " ".join(queries())))
    assert named <= exported_names()
    shown = {re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name) for name in named}
    assert shown == {metric.name for metric in METRICS}


def test_its_counters_are_asked_for_by_rate_and_its_histograms_by_quantile():
    for query in queries():
        assert query.count("(") == query.count(")")
        for name in re.findall(r"\bray_ureca_\w+", query):
            if name.endswith(("_total", "_bucket")):
                assert f"rate({name}{{" in query, query
            if name.endswith("_bucket"):
                assert re.search(r"histogram_quantile\(0\.\d+, sum by \(le", query), query


def test_its_panels_have_ids_and_places_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
