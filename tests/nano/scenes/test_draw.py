"""Drawn scenes: reproducible, masks exact, tree and attributes true."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from ureca.attributes.measure import measure_tree
from ureca.attributes.shapes import shape_of
from ureca.attributes.vocabulary import COLORS, PLACES, SHADES, SHAPES, SIZES, TEXTURES, base_color, place_of, size_of
from ureca.errors import ConfigError
from ureca.nano.scenes.areas import GROUNDS
from ureca.nano.scenes.catalog import CARRIERS, CONTAINERS
from ureca.nano.scenes.draw import CROWDED_OBJECTS, Scene, SceneConfig, SceneRegion, draw_scene
from ureca.regions.rle import decode_rle
from ureca.regions.tree import Mask, MaskTree, TreeConfig, build_mask_tree

DIGEST = """
import hashlib, json
from ureca.nano.scenes.draw import draw_scene
digest = hashlib.sha256()
for seed in range(5):
    scene = draw_scene(seed)
    digest.update(scene.image.tobytes())
    received = [[r.region_id, r.parent, r.attributes, r.segmentation] for r in scene.regions]
    digest.update(json.dumps(received).encode())
print(digest.hexdigest())
"""


def masks_of(scene: Scene) -> np.ndarray:
    """bool (K, H, W)."""
    return np.stack([decode_rle(region.segmentation) for region in scene.regions])


def tree_of(scene: Scene, config: TreeConfig) -> MaskTree:
    masks = [Mask(region.region_id, region.segmentation) for region in scene.regions]
    return build_mask_tree(masks, scene.image.shape[:2], config)


def nearest_colors(pixels: np.ndarray, anchors: dict[str, tuple[int, int, int]]) -> dict[str, int]:
    """Count the pixels (N, 3) nearest to each of the named colors, light and dark ones together."""
    nearest = ((pixels[:, None].astype(np.float64) - np.array(list(anchors.values()))) ** 2).sum(-1).argmin(1)
    counts = dict.fromkeys(COLORS, 0)
    for name, count in zip(anchors, np.bincount(nearest, minlength=len(anchors)).tolist(), strict=True):
        counts[base_color(name)] += count
    return counts


def whole_things(scene: Scene) -> list[SceneRegion]:
    return [region for region in scene.regions if not region.part and not region.is_area]


def test_a_fresh_process_draws_the_same_bytes():
    digest = hashlib.sha256()
    for seed in range(5):
        scene = draw_scene(seed)
        digest.update(scene.image.tobytes())
        received = [[r.region_id, r.parent, r.attributes, r.segmentation] for r in scene.regions]
        digest.update(json.dumps(received).encode())
    fresh = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert fresh.stdout.strip() == digest.hexdigest()


def test_seeds_differ(scenes: list[Scene]):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_counts_and_sizes_are_as_configured(scenes: list[Scene]):
    config = SceneConfig()
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3)
        assert scene.image.dtype == np.uint8
        assert config.min_regions <= len(scene.regions) <= config.max_regions
        assert config.min_objects <= len(whole_things(scene)) <= CROWDED_OBJECTS[1]
        for mask in masks_of(scene):
            assert mask.mean() >= config.min_region_share
            assert mask.any(0).sum() >= 6
            assert mask.any(1).sum() >= 6
    assert {region.depth for scene in scenes for region in scene.regions} >= {0, 1, 2, 3}


def test_parts_lie_inside_their_parents_and_siblings_share_no_pixel(scenes: list[Scene]):
    for scene in scenes:
        masks = masks_of(scene)
        for index, region in enumerate(scene.regions):
            if region.parent >= 0:
                assert region.parent < index
                assert region.depth == scene.regions[region.parent].depth + 1
                assert not (masks[index] & ~masks[region.parent]).any()
                assert masks[index].sum() < 0.85 * masks[region.parent].sum()
        siblings = [
            (i, j) for i, j in combinations(range(len(masks)), 2) if scene.regions[i].parent == scene.regions[j].parent
        ]
        assert not any((masks[i] & masks[j]).any() for i, j in siblings)


def test_the_mask_tree_is_the_true_tree(scenes: list[Scene]):
    for scene in scenes:
        tree = tree_of(scene, TreeConfig())
        parent_ids = {
            region.region_id: tree.regions[region.parent].region_id if region.parent >= 0 else None
            for region in tree.regions
        }
        assert parent_ids == {
            region.region_id: scene.regions[region.parent].region_id if region.parent >= 0 else None
            for region in scene.regions
        }, f"seed {scene.seed}"


def test_attributes_are_words_of_the_vocabulary(scenes: list[Scene]):
    places = {place for row in PLACES for place in row}
    for scene in scenes:
        for region in scene.regions:
            words = region.attributes
            assert words["color"] in (SHADES if region.is_area else COLORS)
            assert words["texture"] in TEXTURES
            assert words["shape"] in SHAPES
            assert words["size"] in SIZES
            assert words["place"] in places
            assert words["kind"] == region.kind
            assert words["part"] == region.part
            if region.parent < 0:
                assert (words["part"], words["parent_kind"]) == ("", "")
            else:
                parent = scene.regions[region.parent]
                assert words["part"] or words["relation"] == "inside"
                assert words["parent_kind"] == (parent.part or parent.kind)


def test_size_and_place_follow_from_the_mask(scenes: list[Scene]):
    for scene in scenes[:60]:
        height, width = scene.image.shape[:2]
        for region, mask in zip(scene.regions, masks_of(scene), strict=True):
            y, x = np.argwhere(mask).mean(0) + 0.5
            assert region.attributes["size"] == size_of(mask.mean())
            assert region.attributes["place"] == place_of(x / width, y / height)


def test_the_named_color_is_the_commonest_one(scenes: list[Scene]):
    for scene in scenes[:60]:
        for region, mask in zip(scene.regions, masks_of(scene), strict=True):
            counts = nearest_colors(scene.image[mask], SHADES if region.is_area else COLORS)
            assert max(counts, key=counts.__getitem__) == base_color(region.attributes["color"]), (
                f"seed {scene.seed}, region {region.region_id}: {counts}"
            )


def test_measuring_finds_the_true_shapes_and_the_true_textures_of_parts(scenes: list[Scene]):
    checked = wrong_shape = wrong_texture = 0
    for scene in scenes[:100]:
        parents = [region.parent for region in scene.regions]
        measured = measure_tree(scene.image, [region.segmentation for region in scene.regions], parents)
        for region, found in zip(scene.regions, measured, strict=True):
            wrong_shape += found.shape != region.attributes["shape"]
            # A thing with parts shows several surfaces; its texture is a matter of definition.
            wrong_texture += region.depth > 0 and found.texture != region.attributes["texture"]
            checked += 1
    assert wrong_shape <= 0.01 * checked
    assert wrong_texture <= 0.01 * checked


def test_alike_things_differ_in_one_attribute_at_most_besides_place(scenes: list[Scene]):
    with_alike = 0
    differences = set()
    for scene in scenes:
        pairs = [(a, b) for a, b in combinations(whole_things(scene), 2) if a.kind == b.kind]
        with_alike += bool(pairs)
        assert {thing.region_id for pair in pairs for thing in pair} == {
            thing.region_id for thing in whole_things(scene) if thing.alike
        }
        for a, b in pairs:
            keys = ("color", "texture", "shape", "size", "place")
            differing = {key for key in keys if a.attributes[key] != b.attributes[key]}
            assert differing, f"seed {scene.seed}: {a.region_id} and {b.region_id} cannot be told apart"
            assert len(differing - {"place"}) <= 1
            differences |= differing
    assert 0.35 < with_alike / len(scenes) < 0.65
    assert differences == {"color", "texture", "size", "place"}


def share_of_scenes(scenes: list[Scene], relation: str) -> float:
    return sum(any(r.attributes["relation"] == relation for r in scene.regions) for scene in scenes) / len(scenes)


def test_a_covered_thing_stays_recognizable_and_is_described_as_it_is_seen(scenes: list[Scene]):
    assert 0.25 < share_of_scenes(scenes, "in front of") < 0.5
    covered = other_shape = 0
    for scene in scenes:
        by_kind = {region.kind: region for region in whole_things(scene)}
        for region in scene.regions:
            assert region.is_area or 0.5 <= region.seen_share <= 1
            if region.attributes["relation"] == "in front of":
                behind = by_kind[region.attributes["related_kind"]]
                assert 0.6 <= behind.seen_share < 0.95
                assert region.seen_share == 1
            if region.seen_share < 1 and not region.is_area:
                covered += 1
                assert region.attributes["shape"] == shape_of(decode_rle(region.segmentation))
                if region.part == "stripe":
                    other_shape += region.attributes["shape"] != "thin"
    assert covered > 100
    assert other_shape, "no covered stripe has lost its shape: is the shape that of the mask that is seen?"


def test_what_is_inside_has_its_holder_as_parent_and_what_is_on_something_touches_it(scenes: list[Scene]):
    assert 0.12 < share_of_scenes(scenes, "inside") < 0.35
    assert 0.3 < share_of_scenes(scenes, "on") < 0.7
    on = set()
    for scene in scenes:
        masks = masks_of(scene)
        for index, region in enumerate(scene.regions):
            relation, related = region.attributes["relation"], region.attributes["related_kind"]
            assert bool(relation) == bool(related)
            if relation == "inside":
                assert related in CONTAINERS
                assert scene.regions[region.parent].kind == related
            if relation == "on":
                on.add(related)
                below = np.pad(masks[index], ((2, 0), (0, 0)))[:-2] & ~masks[index]
                holders = [masks[i] for i, r in enumerate(scene.regions) if r.kind == related and not r.part]
                assert any((below & holder).any() for holder in holders), f"seed {scene.seed}, {region.region_id}"
    assert set(CARRIERS) <= on <= {*CARRIERS, *GROUNDS}


def test_areas_of_the_background_hold_nothing_and_overlap_nothing(scenes: list[Scene]):
    with_areas = 0
    for scene in scenes:
        masks = masks_of(scene)
        areas = [index for index, region in enumerate(scene.regions) if region.is_area]
        with_areas += bool(areas)
        assert len(areas) <= 3
        for index in areas:
            assert scene.regions[index].parent == -1
            assert all(region.parent != index for region in scene.regions)
            assert not (masks[index] & np.delete(masks, index, 0).any(0)).any()
            assert masks[index].mean() >= 0.03
    assert 0.4 < with_areas / len(scenes) < 0.6


def test_thin_tiny_and_crowded_come_in_their_shares(scenes: list[Scene]):
    regions = [region for scene in scenes for region in scene.regions]
    assert 0.10 < np.mean([region.attributes["shape"] == "thin" for region in regions]) < 0.25
    assert 0.30 < np.mean([region.attributes["size"] == "tiny" for region in regions]) < 0.55
    counts = np.array([len(scene.regions) for scene in scenes])
    assert 17 <= counts.mean() <= 20
    assert 0.10 < (counts >= 24).mean() < 0.30
    crowded = [len(whole_things(scene)) >= CROWDED_OBJECTS[0] for scene in scenes]
    assert 0.08 < np.mean(crowded) < 0.22


def test_alike_things_can_be_switched_off_and_on():
    for share, expected in ((0.0, False), (1.0, True)):
        for seed in range(20):
            scene = draw_scene(seed, SceneConfig(alike_share=share))
            kinds = [region.kind for region in whole_things(scene)]
            assert (len(set(kinds)) < len(kinds)) is expected


def test_other_sizes_and_counts():
    config = SceneConfig(height_px=320, width_px=480, min_objects=7, max_objects=7, crowded_share=0.0)
    scene = draw_scene(3, config)
    assert scene.image.shape == (320, 480, 3)
    assert scene.regions[0].segmentation["size"] == [320, 480]
    assert len(whole_things(scene)) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_objects": 4, "max_objects": 3}, "min_objects=4, max_objects=3:.*1 <=.*<=.*<= 25"),
        (
            {"min_regions": 9, "max_regions": 8},
            r"min_regions=9, max_regions=8:.*min_objects \(3\) <=",
        ),
        ({"max_objects": 26}, "min_objects=3, max_objects=26:.*<= 25"),
        ({"max_regions": 300}, "max_regions=300:.*<= 200"),
        ({"height_px": 32}, "height_px=32, width_px=256:.*64.*64"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**values)


def test_a_scene_that_does_not_fit_names_what_to_change():
    config = SceneConfig(height_px=64, width_px=64, min_objects=16, max_objects=17, min_regions=16, crowded_share=0.0)
    with pytest.raises(ConfigError, match=r"16.*40.*64.*64.*1\)"):
        draw_scene(1, config)
