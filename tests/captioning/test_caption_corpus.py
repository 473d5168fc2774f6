"""Captioning on a real Ray with a real engine."""

from pathlib import Path

import pytest

from ureca.captioning import CaptionConfig, CaptionSummary, caption_corpus
from ureca.corpus import ImageRow, canonical_digest, iter_images, load_image
from ureca.errors import ConfigError
from ureca.io import read_json
from ureca.model import Captioner
from ureca.model.presets import shipped

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[2] / "jobs" / "caption_corpus.py"
IDS = [f"scene_{seed:06d}" for seed in range(6)]
BROKEN = "scene_000002"
SETTINGS = {"images_per_block": 1, "images_in_flight": 2}


@pytest.fixture(scope="module")
def captioned(ray_cluster: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionSummary:
    """The corpus, captioned by nano without interruption."""
    assert ray_cluster
    return caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.from_pretrained(shipped("nano_captioner"))


def rows_of(table: str | Path) -> dict[str, ImageRow]:
    return {row.image_id: row for row in iter_images(table)}


def test_each_image_once_and_the_broken_one_with_its_reason(captioned):
    rows = rows_of(captioned.table)
    assert list(rows) == IDS
    assert captioned.images == captioned.captioned + sum(captioned.quarantined.values()) == 6
    assert captioned.quarantined == {"ImageError": 1}
    assert rows[BROKEN].error.step == "read"
    assert f"{BROKEN}.jpg" in rows[BROKEN].error.message
    assert captioned.captions == captioned.regions == sum(len(row.regions) for row in rows.values()) > 40
    made = rows[IDS[0]].provenance
    assert (made.describer, made.model) == ("captioner", captioned.model)
    assert captioned.model.startswith("nano_captioner@sha256:")
    assert made.requests == {"unique": len(rows[IDS[0]].regions)}


def test_captions_are_those_that_transformers_gives(captioned, captioner):
    row = rows_of(captioned.table)[IDS[0]]
    asked = [captioner.processor.query("unique")] * len(row.regions)
    told = captioner.generate(load_image(row), [each.segmentation for each in row.regions], asked)
    assert [each.caption for each in row.regions] == told
    assert len(set(told)) > 1, "alike captions would prove nothing"


def test_the_account_says_how_busy_the_engine_was(captioned):
    figures = captioned.engine
    assert 0 < figures.engine_busy <= 1
    assert figures.regions_at_once > 1
    assert figures.start_seconds > 1
    assert figures.regions_per_second > captioned.regions / captioned.caption_seconds, "the start is left out"
    assert 0.5 < figures.cached_share < 1, "the image is computed once for all its regions"
    ledger = read_json(Path(captioned.table).parent / "ledger.json")
    assert ledger["table"]["captions"] == captioned.captions
    assert 0 < ledger["start"]["engine"]["busy_milliseconds"] <= ledger["start"]["engine"]["milliseconds"]


def test_a_finished_table_is_not_made_again_and_not_with_other_settings(captioned, corpus, capsys):
    folder = Path(captioned.table).parent
    again = caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), folder)
    assert again.digest == captioned.digest
    assert "is there already, of the same images and settings" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="with other settings; changed: max_tokens, prompt_version, styles"):
        caption_corpus(CaptionConfig(sources=(str(corpus),), max_tokens=9, styles=("brief", "unique")), folder)
    assert canonical_digest(captioned.table) == captioned.digest
