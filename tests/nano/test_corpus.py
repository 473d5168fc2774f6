"""The demo's corpus and what is measured of its labels."""

from pathlib import Path

import pytest

from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.sources.manifest import iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.split import split_heldout
from ureca.demo.config import DemoConfig
from ureca.demo.report import CREDITS
from ureca.demo.steps import Steps
from ureca.errors import ConfigError
from ureca.nano.corpus import make_corpus, scene_seeds, tree_exact, unique_share
from ureca.nano.recipe import HELDOUT_PHOTOS, learned_images
from ureca.nano.scenes.draw import draw_scene
from ureca.nano.scenes.files import image_id_of
from ureca.regions.rle import rle_area, rle_bbox
from ureca.regions.tree import Mask, build_mask_tree


def labeled(image_id: str, seed: int, captions: list[str] | None = None) -> ImageRow:
    scene = draw_scene(seed)
    tree = build_mask_tree([Mask(r.region_id, r.segmentation) for r in scene.regions], scene.image.shape[:2])
    regions = [
        RegionRow(
            region_id=region.region_id,
            parent=region.parent,
            depth=region.depth,
            segmentation=region.segmentation,
            area=rle_area(region.segmentation),
            bbox=rle_bbox(region.segmentation),
            caption=captions[number] if captions else f"caption {number}",
        )
        for number, region in enumerate(tree.regions)
    ]
    return ImageRow(image_id=image_id, height=256, width=256, status="labeled", regions=tuple(regions))


def test_the_corpus_is_made_once_and_holds_scenes_and_photos(tmp_path: Path) -> None:
    sources = make_corpus(tmp_path / "corpus", scenes=3, seed=5)
    write_manifest(sources, str(tmp_path / "manifest.parquet"))
    ids = {row.image_id for row in iter_manifest(str(tmp_path / "manifest.parquet"))}
    assert len(ids) == 3 + 6
    assert {"coffee", "scene_5000000"} <= ids
    marked = Path(sources[0]) / "scene_5000000.jpg"
    before = marked.stat().st_mtime_ns
    assert make_corpus(tmp_path / "corpus", scenes=3, seed=5) == sources
    assert marked.stat().st_mtime_ns == before


def test_the_demo_holds_out_the_photos_that_the_shipped_captioner_never_saw() -> None:
    demo = DemoConfig()
    image_ids = [*(image_id_of(seed) for seed in scene_seeds(demo.scenes, demo.seed)), *CREDITS]
    split = split_heldout(image_ids, demo.heldout, demo.seed)
    assert {image_id for image_id in split.heldout if image_id in CREDITS} == set(HELDOUT_PHOTOS)
    assert learned_images().isdisjoint(split.heldout)
    assert learned_images() & set(CREDITS) == set(CREDITS) - set(HELDOUT_PHOTOS)


def test_tree_exact_counts_scenes_whose_every_parent_is_true(tmp_path: Path) -> None:
    make_corpus(tmp_path, scenes=2, seed=5)
    truth = read_ground_truth(tmp_path / "scenes")
    rows = [labeled("scene_5000000", 5_000_000), labeled("scene_5000001", 5_000_001)]
    assert tree_exact(rows, truth) == 1.0
    moved = list(rows[1].regions)
    child = next(i for i, region in enumerate(moved) if region.parent >= 0)
    moved[child] = RegionRow(**{**vars(moved[child]), "parent": -1})
    wrong = ImageRow(**{**vars(rows[1]), "regions": tuple(moved)})
    assert tree_exact([rows[0], wrong], truth) == 0.5


def test_unique_share_counts_captions_that_no_other_region_of_the_image_has() -> None:
    count = len(draw_scene(1).regions)
    row = labeled("a", 1, ["the same"] * 2 + [f"caption {i}" for i in range(count - 2)])
    assert unique_share([row], ["a"]) == pytest.approx((count - 2) / count)


def test_steps_say_what_is_left_and_keep_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps({"one": 2, "two": 3})
    with steps.step("two", "do the second"):
        pass
    assert "[2/2] do the second  (about 3 min left on two cores)" in capsys.readouterr().err
    assert steps.seconds["two"] < 1


def test_too_few_scenes_are_refused() -> None:
    with pytest.raises(ConfigError, match="scenes=3:.*10"):
        DemoConfig(scenes=3)
