"""Usage report of a job, recomputed by hand."""

import json
from collections import Counter

import pytest

from ureca.corpus.schema import Distractor, ImageRow, Provenance, RegionRow
from ureca.errors import ConfigError, MaskError
from ureca.pipeline.usage import HeldResources, PriceConfig, counts_of, make_usage, total_counts, usage_lines


def region(**more) -> RegionRow:
    rle = {"size": [2, 3], "counts": "06"}
    return RegionRow(region_id="1", parent=-1, depth=0, segmentation=rle, area=6, bbox=(0, 0, 3, 2), **more)


LABELED = ImageRow(
    image_id="a",
    image_path="/a.jpg",
    height=2,
    width=3,
    status="labeled",
    regions=(
        region(short_caption="s", long_caption="l", caption="c", uniqueness=1.0),
        region(short_caption="s", flags=("refusal",), distractors=(Distractor(index=0, similarity=0.9),)),
    ),
    provenance=Provenance(
        prompt_tokens=1000,
        completion_tokens=50,
        requests={"short": 3, "long": 1},
        retries={"refusal": 1},
        describer_seconds=2.5,
    ),
    notes={"too_small": 4},
)
QUARANTINED = ImageRow.quarantined("b", "/b.jpg", "read", MaskError("b.json: damaged"))


def test_counts_of_labeled_and_quarantined_image():
    counts = counts_of(LABELED)
    assert counts == Counter(
        {
            "images": 1,
            "regions": 2,
            "captions": 4,
            "verified": 1,
            "flagged": 1,
            "flagged:refusal": 1,
            "requests": 4,
            "requests:short": 3,
            "requests:long": 1,
            "retries": 1,
            "retries:refusal": 1,
            "prompt_tokens": 1000,
            "completion_tokens": 50,
            "describer_milliseconds": 2500,
            "notes:too_small": 4,
        }
    )
    assert +counts_of(QUARANTINED) == Counter({"images": 1, "quarantined": 1, "quarantined:MaskError": 1})


def usage(**more):
    prices = PriceConfig(
        per_million_prompt_tokens=2, per_million_completion_tokens=10, per_gpu_hour=3, per_kwh=0.5, gpu_watts=500
    )
    counts = total_counts([LABELED, QUARANTINED])
    held = HeldResources(wall_seconds=10, gpu_seconds=7200, cpu_seconds=3600)
    return make_usage(counts, held, prices, **{"table": counts, "project_images": 0, **more})


def test_make_usage_rates_energy_and_money():
    report = usage()
    start = report["start"]
    assert (start["images_per_second"], start["captions_per_second"]) == (0.2, 0.4)
    assert start["captions_per_gpu_hour"] == 2.0
    assert start["describer_requests_at_once"] == 0.25
    assert start["quarantined_by"] == {"MaskError": 1}
    assert start["retries_by"] == {"refusal": 1}
    assert start["notes"] == {"too_small": 4}
    kwh = 2 * 0.5 + 1 * 0.01
    assert report["cost"]["estimated_kwh"] == kwh
    assert report["cost"]["estimated_money"] == pytest.approx(0.002 + 0.0005 + 6 + kwh * 0.5)
    json.dumps(report)


def test_make_usage_projection_is_proportional():
    projection = usage(project_images=2000)["projection"]
    assert projection["captions"] == 4000
    assert projection["prompt_tokens"] == 1_000_000
    assert projection["gpu_hours"] == 2000
    assert projection["estimated_money"] == pytest.approx(1000 * usage()["cost"]["estimated_money"], rel=1e-4)
    assert usage()["projection"] is None


def test_make_usage_stopped_job_has_no_table():
    report = usage(table=None)
    assert report["table"] is None
    text = "\n".join(usage_lines(report))
    assert "2 images, 2 regions, 4 captions in 10 s" in text
    assert "refusal 1" in text
    assert "1 images quarantined (MaskError 1)" in text


def test_make_usage_empty_start_has_no_rates():
    report = make_usage(
        Counter(),
        HeldResources(wall_seconds=0, gpu_seconds=0, cpu_seconds=0),
        PriceConfig(),
        table=Counter(),
        project_images=9,
    )
    assert report["start"]["captions_per_gpu_hour"] is None
    assert report["projection"] is None
    assert usage_lines(report)


def test_price_config_negative_price_raises():
    with pytest.raises(ConfigError, match="prices.per_gpu_hour=-1:.*0"):
        PriceConfig(per_gpu_hour=-1)
