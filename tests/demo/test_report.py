"""The demo's report says what the shipped captioner is weak at, by its own scores."""

import re
from pathlib import Path

import pytest
from support.labeled_scenes import KnownCaptioner, scene_row

from ureca.corpus.schema import ImageRow
from ureca.demo.report import SHIPPED, demo_report, unknown, who_saw
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.predictions import Variant

SUMMARY = {
    "images": 5,
    "regions": 80,
    "tree_exact": 1.0,
    "labels_unique": 0.99,
    "serve": {"requests": 80, "equal_to_transformers": 80, "regions_per_second": 9.5},
}


@pytest.fixture(scope="module")
def rows():
    return [scene_row(0), scene_row(1), scene_row(7, known=False)]


@pytest.fixture(scope="module")
def evaluation(rows, tmp_path_factory):
    """The shipped captioner says the labels without colors; the one trained in the run says one thing for all."""
    said = {
        each.segmentation["counts"]: re.sub(r"^the (\w+) [\w ]+,", r"the \1,", each.caption)
        for row in rows
        for each in row.regions
    }
    captioners = {
        "mask_stage2": KnownCaptioner(dict.fromkeys(said, "the small red part")),
        SHIPPED: KnownCaptioner(said),
    }
    variants = [
        Variant(name=name, cue="mask", model=name, load=lambda captioner=captioner: captioner)
        for name, captioner in captioners.items()
    ]
    return evaluate(variants, rows, output=tmp_path_factory.mktemp("evaluation"))


def test_weak_attributes_are_named_with_their_accuracy_and_strong_ones_are_not(evaluation):
    attributes, *_ = unknown(evaluation)
    assert attributes == "Attributes that it often gets wrong on held-out synthetic scenes: color 0.00 right."


def test_captions_that_fit_another_region_are_counted_beside_the_labels(evaluation):
    *_, drawn, photos = unknown(evaluation)
    for sentence, group in ((drawn, evaluation.main), (photos, evaluation.groups["photo"])):
        wrong = 1 - group.scores[SHIPPED]["uniqueness"]["value"]
        assert f"{wrong:.0%} of its captions fit another region" in sentence
        assert f"of the labels {1 - group.ceiling['uniqueness']['value']:.0%}" in sentence
    assert photos.startswith("On the held-out photos")


@pytest.mark.parametrize(
    ("image_ids", "said"),
    [
        (["astronaut", "coffee", "scene_5000000", "scene_20999999", "scene_21003000"], "Neither training used"),
        (["astronaut", "chelsea"], "The demo's training did not use the images below; the captioner"),
        (["scene_21002999"], "The demo's training did not use"),
    ],
)
def test_the_page_says_which_training_saw_its_images(image_ids: list[str], said: str) -> None:
    rows = [ImageRow(image_id=image_id, height=1, width=1, status="labeled") for image_id in image_ids]
    assert who_saw(rows).startswith(said)


def test_the_page_shows_the_shipped_captions_and_both_scores(evaluation, rows, tmp_path: Path):
    page = demo_report(tmp_path / "report.html", evaluation, rows, runs={}, summary=SUMMARY).read_text()
    assert "nano as shipped" in page
    assert "stage 2, mask" in page
    assert unknown(evaluation)[0] in page
    assert "Attribute accuracy by region size" in page
    assert "Neither training used the images below" in page
