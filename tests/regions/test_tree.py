"""The mask tree compared with a direct implementation of its rules on dense masks."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ureca.corpus.read import photos_directory, read_sa1b
from ureca.errors import ConfigError, MaskError, MaskSizeError
from ureca.regions import tree as tree_module
from ureca.regions.overlaps import containments
from ureca.regions.rle import encode_mask
from ureca.regions.tree import Mask, MaskTree, TreeConfig, build_mask_tree

NUM_SETS = 1000
SIZE = (24, 28)
# the test images are small, so the minimum area is too
PRESETS = {
    "default": replace(TreeConfig.preset("default"), min_area_px=5),
    "paper": TreeConfig.preset("paper"),
}


def draw_nested(rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Draw nested boxes and discs: ragged edges, near-copies, copies, equal areas, strays."""
    height, width = SIZE
    yy, xx = np.mgrid[:height, :width]
    boxes = [(0.0, 0.0, float(height), float(width))]
    masks = []
    for _ in range(rng.integers(0, 16)):
        top, left, bottom, right = boxes[rng.integers(max(0, len(boxes) - 3), len(boxes))]
        y0, y1 = np.sort(rng.uniform(top - 1, bottom + 1, 2))
        x0, x1 = np.sort(rng.uniform(left - 1, right + 1, 2))
        if rng.random() < 0.5:  # most of the box, for long chains
            y0, y1 = top + rng.uniform(-1, 2), bottom + rng.uniform(-2, 1)
            x0, x1 = left + rng.uniform(-1, 2), right + rng.uniform(-2, 1)
        if y1 - y0 < 1.5 or x1 - x0 < 1.5:
            continue
        if rng.random() < 0.5:
            mask = (yy >= y0) & (yy < y1) & (xx >= x0) & (xx < x1)
        else:
            mask = ((2 * yy - y0 - y1) / (y1 - y0)) ** 2 + ((2 * xx - x0 - x1) / (x1 - x0)) ** 2 <= 1
        mask ^= rng.random(SIZE) < rng.choice([0, 0, 0.01, 0.05])
        if not mask.any():
            continue
        boxes.append((y0, x0, y1, x1))
        masks.append(mask)
        if rng.random() < 0.2:
            masks.append(np.roll(mask, rng.integers(0, 3), axis=1))
    return [(str(number), mask) for number, mask in zip(rng.permutation(100), masks, strict=False)]


@pytest.fixture(scope="module")
def mask_sets() -> list[list[tuple[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    return [draw_nested(rng) for _ in range(NUM_SETS)]


def dense_tree(masks: list[tuple[str, np.ndarray]], config: TreeConfig) -> tuple[dict, dict]:
    """Apply the rules directly; return ({id: (parent id, merged ids)} kept, {id: reason} dropped)."""

    def share_inside(inner: np.ndarray, outer: np.ndarray) -> float:
        return (inner & outer).sum() / inner.sum()

    ordered = sorted(masks, key=lambda item: (-item[1].sum(), int(item[0])))
    pixels = dict(ordered)

    # merge near-duplicates
    survivors: list[str] = []
    merged: dict[str, list[str]] = {}
    for name, mask in ordered:
        like = [(share, other) for other in survivors if (share := iou(mask, pixels[other])) >= (config.merge_iou or 2)]
        if like:
            most = max(share for share, _ in like)
            merged[next(other for share, other in like if share == most)].append(name)
        else:
            survivors.append(name)
            merged[name] = []

    # find parents
    children: dict[str | None, list[str]] = {None: []}
    parent_of: dict[str, str | None] = {}

    def insert(name: str, node: str | None) -> None:
        for child in children[node]:
            if share_inside(pixels[name], pixels[child]) >= config.containment:
                return insert(name, child)
        children[node].append(name)
        children[name] = []
        parent_of[name] = node
        return None

    for index, name in enumerate(survivors):
        if config.parent_rule == "first":
            insert(name, None)
            continue
        holders = [
            (share, other)
            for other in survivors[:index]
            if (share := share_inside(pixels[name], pixels[other])) >= config.containment
        ]
        parent_of[name] = None
        if holders:
            near = [other for share, other in holders if share >= max(holders)[0] - config.containment_margin]
            smallest = min(pixels[other].sum() for other in near)
            parent_of[name] = [other for other in near if pixels[other].sum() == smallest][-1]
        children[parent_of[name]].append(name)
        children[name] = []

    # drop by level, area and share
    def height(name: str) -> int:
        return 1 + max((height(child) for child in children[name]), default=0)

    kept: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    dropped: dict[str, str] = {}

    def drop(name: str, reason: str) -> None:
        dropped.update(dict.fromkeys([name, *merged[name]], reason))
        for child in children[name]:
            drop(child, "parent_dropped")

    def visit(name: str) -> None:
        area = pixels[name].sum()
        share = area / pixels[name].size
        if parent_of[name] is None and height(name) < config.min_levels:
            return drop(name, "too_few_levels")
        if area < config.min_area_px or share < config.min_area_share:
            return drop(name, "too_small")
        if parent_of[name] is None and share > config.max_area_share:
            return drop(name, "too_large")
        kept[name] = (parent_of[name], tuple(merged[name]))
        for child in children[name]:
            visit(child)
        return None

    for name in children[None]:
        visit(name)
    return kept, dropped


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def as_masks(masks: list[tuple[str, np.ndarray]]) -> list[Mask]:
    return [Mask(name, encode_mask(mask)) for name, mask in masks]


def outline(tree: MaskTree) -> tuple[dict, dict]:
    ids = {-1: None} | {index: region.region_id for index, region in enumerate(tree.regions)}
    kept = {region.region_id: (ids[region.parent], region.merged_ids) for region in tree.regions}
    return kept, {item.region_id: item.reason for item in tree.dropped}


def num_different(mask_sets: list, built_with: TreeConfig, expected_of: TreeConfig) -> int:
    return sum(
        outline(build_mask_tree(as_masks(masks), SIZE, built_with)) != dense_tree(masks, expected_of)
        for masks in mask_sets
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_tree_equals_dense_reference_on_random_sets(preset: str, mask_sets: list):
    seen: Counter[str] = Counter()
    for masks in mask_sets:
        tree = build_mask_tree(as_masks(masks), SIZE, PRESETS[preset])
        assert outline(tree) == dense_tree(masks, PRESETS[preset])
        seen.update(f"depth {region.depth}" for region in tree.regions)
        seen.update("merged" for region in tree.regions for _ in region.merged_ids)
        seen.update(item.reason for item in tree.dropped)
    # without a case for every rule, the equality would prove little
    expected = {
        "default": {"depth 0", "depth 4", "merged", "too_small"},
        "paper": {"depth 0", "depth 4", "too_small", "too_large", "too_few_levels", "parent_dropped"},
    }[preset]
    assert all(seen[rule] >= 10 for rule in expected), seen


@pytest.mark.parametrize(
    ("preset", "wrong"),
    [
        ("default", {"containment": 0.75}),
        ("default", {"containment_margin": 0.0}),
        ("default", {"merge_iou": 0.85}),
        ("default", {"merge_iou": None}),
        ("default", {"parent_rule": "first"}),
        ("default", {"min_area_px": 8}),
        ("paper", {"containment": 0.85}),
        ("paper", {"parent_rule": "best"}),
        ("paper", {"min_levels": 3}),
        ("paper", {"min_area_share": 0.01}),
        ("paper", {"max_area_share": 0.8}),
    ],
)
def test_comparison_detects_a_wrong_setting(preset: str, wrong: dict, mask_sets: list):
    assert num_different(mask_sets[:300], replace(PRESETS[preset], **wrong), PRESETS[preset]) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_comparison_detects_swapped_containment(preset: str, mask_sets: list, monkeypatch: pytest.MonkeyPatch):
    def of_the_outer(rles, areas, boxes, *, at_least):
        return containments(rles, areas, boxes, at_least=at_least) * areas[:, np.newaxis] / areas

    monkeypatch.setattr(tree_module, "containments", of_the_outer)
    assert num_different(mask_sets[:100], PRESETS[preset], PRESETS[preset]) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_comparison_detects_missing_pairs(preset: str, mask_sets: list, monkeypatch: pytest.MonkeyPatch):
    def of_too_few(rles, areas, boxes, *, at_least):
        return containments(rles, areas, boxes, at_least=at_least + 0.1)

    monkeypatch.setattr(tree_module, "containments", of_too_few)
    assert num_different(mask_sets[:300], PRESETS[preset], PRESETS[preset]) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_tree_is_independent_of_mask_order(preset: str, mask_sets: list):
    rng = np.random.default_rng(1)
    for masks in mask_sets[:100]:
        tree = build_mask_tree(as_masks(masks), SIZE, PRESETS[preset])
        shuffled = [masks[i] for i in rng.permutation(len(masks))]
        assert build_mask_tree(as_masks(shuffled), SIZE, PRESETS[preset]) == tree


@pytest.mark.parametrize("preset", PRESETS)
def test_tree_accounts_for_each_id_once_with_parents_first(preset: str, mask_sets: list):
    for masks in mask_sets[:200]:
        tree = build_mask_tree(as_masks(masks), SIZE, PRESETS[preset])
        ids = [region.region_id for region in tree.regions] + [item.region_id for item in tree.dropped]
        ids += [merged for region in tree.regions for merged in region.merged_ids]
        assert sorted(ids) == sorted(name for name, _ in masks)
        pixels = dict(masks)
        for index, region in enumerate(tree.regions):
            assert region.parent < index
            assert region.depth == (0 if region.parent < 0 else tree.regions[region.parent].depth + 1)
            assert region.area == pixels[region.region_id].sum()


def box_mask(name: str, top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros((100, 100), dtype=bool)
    mask[top:bottom, left:right] = True
    return Mask(name, encode_mask(mask))


def test_tree_children_ancestors_and_descendants():
    masks = [
        box_mask("room", 0, 0, 100, 100),
        box_mask("table", 10, 10, 90, 60),
        box_mask("cup", 20, 20, 40, 40),
        box_mask("lamp", 10, 70, 50, 90),
        box_mask("handle", 25, 25, 30, 30),
    ]
    tree = build_mask_tree(masks, (100, 100))
    assert [region.region_id for region in tree.regions] == ["room", "table", "lamp", "cup", "handle"]
    assert [region.parent for region in tree.regions] == [-1, 0, 0, 1, 3]
    assert [region.depth for region in tree.regions] == [0, 1, 1, 2, 3]
    assert tree.regions[3].bbox == (20, 20, 20, 20)
    assert tree.children(-1) == [0]
    assert tree.children(0) == [1, 2]
    assert tree.ancestors(4) == [3, 1, 0]
    assert tree.descendants(1) == [3, 4]
    assert tree.descendants(2) == []


def test_merge_keeps_the_largest_then_the_smallest_id():
    masks = [
        box_mask("10", 10, 10, 50, 50),
        box_mask("9", 10, 10, 50, 50),
        box_mask("2", 10, 10, 50, 49),
        box_mask("11", 10, 10, 51, 50),
    ]
    (region,) = build_mask_tree(masks, (100, 100)).regions
    assert region.region_id == "11"
    assert region.merged_ids == ("9", "10", "2")
    unmerged = build_mask_tree(masks, (100, 100), TreeConfig(merge_iou=None)).regions
    assert [region.depth for region in unmerged] == [0, 1, 2, 3]  # the chain that merging prevents


def test_duplicates_of_a_dropped_region_are_dropped():
    masks = [box_mask("1", 0, 0, 3, 3), box_mask("2", 0, 0, 3, 3)]
    tree = build_mask_tree(masks, (100, 100))
    assert tree.regions == ()
    assert [(item.region_id, item.reason) for item in tree.dropped] == [
        ("1", "too_small"),
        ("2", "too_small"),
    ]


def test_tree_of_no_masks_is_empty():
    for preset in ("default", "paper"):
        assert build_mask_tree([], (10, 10), TreeConfig.preset(preset)) == MaskTree((10, 10), (), ())


def test_tree_of_a_thousand_masks():
    """pycocotools counts masks in one byte: 1,000 exceed it."""
    masks = [box_mask(f"{row}-{column}", 0, 0, row, column) for row in range(60, 100) for column in range(75, 100)]
    tree = build_mask_tree(masks, (100, 100))
    assert len(tree.regions) + sum(len(region.merged_ids) for region in tree.regions) == 1000
    assert tree.regions[0].area == 99 * 99


def test_tree_errors_name_the_region():
    good = box_mask("7", 0, 0, 50, 50)
    with pytest.raises(MaskError, match="'7'"):
        build_mask_tree([good, good], (100, 100))
    with pytest.raises(MaskSizeError, match=r"'7'.*RLE.*\[100, 100\],.*\[50, 100\]"):
        build_mask_tree([good], (50, 100))
    with pytest.raises(MaskError, match="'8'"):
        build_mask_tree([good, box_mask("8", 5, 5, 5, 5)], (100, 100))


def test_tree_config_unknown_preset_or_value_is_refused():
    with pytest.raises(ConfigError, match="'papre'"):
        TreeConfig.preset("papre")
    with pytest.raises(ConfigError, match="tree.containment=1.5:.*0.*1"):
        TreeConfig(containment=1.5)
    with pytest.raises(ConfigError, match="tree.merge_iou=0"):
        TreeConfig(merge_iou=0)
    with pytest.raises(ConfigError, match="'best'.*'first'"):
        TreeConfig(parent_rule="nearest")  # type: ignore[arg-type]


def photo_tree(name: str, config: TreeConfig | None = None) -> tuple[MaskTree, int]:
    path = photos_directory() / name
    photo = read_sa1b(path.with_suffix(".jpg"), path.with_suffix(".json"))
    return build_mask_tree(photo.masks, photo.size, config), len(photo.masks)


PHOTOS = ["astronaut", "chelsea", "china", "coffee", "flower", "rocket"]


@pytest.mark.parametrize("name", PHOTOS)
def test_trees_of_real_photos(name: str):
    tree, num_masks = photo_tree(name)
    assert len(tree.regions) + sum(len(region.merged_ids) for region in tree.regions) == num_masks
    assert max(region.depth for region in tree.regions) >= 3
    paper, _ = photo_tree(name, TreeConfig.preset("paper"))
    assert len(paper.regions) + len(paper.dropped) == num_masks
    assert all(region.area >= 0.007 * paper.size[0] * paper.size[1] for region in paper.regions)


@pytest.mark.parametrize(
    ("photo", "part", "whole", "without_margin"),
    [
        ("astronaut", "neck", "head", "astronaut"),
        ("astronaut", "right booster", "shuttle model", "(auto)"),
        ("astronaut", "star field of the flag", "flag", "(auto)"),
        ("coffee", "bowl of the spoon", "spoon", "(auto)"),
        ("coffee", "handle of the spoon", "spoon", "cup, plate and spoon"),
    ],
)
def test_tree_margin_keeps_protruding_part_with_its_whole(photo: str, part: str, whole: str, without_margin: str):
    names = json.loads((photos_directory() / "provenance.json").read_text())[f"{photo}.jpg"]

    def parent_name(config: TreeConfig) -> str:
        regions = photo_tree(photo, config)[0].regions
        (region,) = [region for region in regions if names[region.region_id].get("name") == part]
        return names[regions[region.parent].region_id].get("name", "(auto)")

    assert parent_name(TreeConfig()) == whole
    assert parent_name(TreeConfig(containment_margin=0)) == without_margin


@pytest.mark.skipif("URECA_TEST_DATA" not in os.environ, reason="URECA_TEST_DATA, the folder with coco/, is not set")
def test_trees_of_coco_photos():
    photos = sorted(Path(os.environ["URECA_TEST_DATA"], "coco").glob("*.jpg"))
    assert len(photos) == 30
    for path in photos:
        photo = read_sa1b(path, path.with_suffix(".json"))
        for preset in ("default", "paper"):
            tree = build_mask_tree(photo.masks, photo.size, TreeConfig.preset(preset))
            merged = sum(len(region.merged_ids) for region in tree.regions)
            assert len(tree.regions) + merged + len(tree.dropped) == len(photo.masks)
            assert preset == "paper" or len(tree.regions) > 0.9 * len(photo.masks)
