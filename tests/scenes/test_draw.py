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
from ureca.attributes.vocabulary import COLORS, PLACES, SHAPES, SIZES, TEXTURES, place_of, size_of
from ureca.errors import ConfigError
from ureca.regions.rle import decode_rle
from ureca.regions.tree import Mask, MaskTree, TreeConfig, build_mask_tree
from ureca.scenes import Scene, SceneConfig, draw_scene

DIGEST = """
import hashlib, json
from ureca.scenes import draw_scene
digest = hashlib.sha256()
for seed in range(5):
    scene = draw_scene(seed)
    digest.update(scene.image.tobytes())
    told = [[r.region_id, r.parent, r.attributes, r.segmentation] for r in scene.regions]
    digest.update(json.dumps(told).encode())
print(digest.hexdigest())
"""


def masks_of(scene: Scene) -> np.ndarray:
    """bool (K, H, W)."""
    return np.stack([decode_rle(region.segmentation) for region in scene.regions])


def tree_of(scene: Scene, config: TreeConfig) -> MaskTree:
    masks = [Mask(region.region_id, region.segmentation) for region in scene.regions]
    return build_mask_tree(masks, scene.image.shape[:2], config)


def nearest_colors(pixels: np.ndarray) -> dict[str, int]:
    """How many of the pixels (N, 3) are nearest to each named color."""
    anchors = np.array(list(COLORS.values()), np.float64)
    nearest = ((pixels[:, None].astype(np.float64) - anchors) ** 2).sum(-1).argmin(1)
    return dict(zip(COLORS, np.bincount(nearest, minlength=len(COLORS)).tolist(), strict=True))


def test_a_fresh_process_draws_the_same_bytes():
    digest = hashlib.sha256()
    for seed in range(5):
        scene = draw_scene(seed)
        digest.update(scene.image.tobytes())
        told = [[r.region_id, r.parent, r.attributes, r.segmentation] for r in scene.regions]
        digest.update(json.dumps(told).encode())
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
        tops = [region for region in scene.regions if region.parent < 0]
        assert config.min_objects <= len(tops) <= config.max_objects
        for mask in masks_of(scene):
            assert mask.mean() >= config.min_region_share
            assert mask.any(0).sum() >= 6
            assert mask.any(1).sum() >= 6
    assert {region.depth for scene in scenes for region in scene.regions} == {0, 1, 2}


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
            assert words["color"] in COLORS
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
                assert words["part"]
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
            counts = nearest_colors(scene.image[mask])
            assert max(counts, key=counts.__getitem__) == region.attributes["color"], (
                f"seed {scene.seed}, region {region.region_id}: {counts}"
            )


def test_measuring_finds_the_true_shapes_and_the_true_textures_of_parts(scenes: list[Scene]):
    checked = wrong_shape = wrong_texture = 0
    for scene in scenes[:100]:
        parents = [region.parent for region in scene.regions]
        measured = measure_tree(scene.image, [region.segmentation for region in scene.regions], parents)
        for region, found in zip(scene.regions, measured, strict=True):
            wrong_shape += found.shape != region.attributes["shape"]
            # A thing made of parts shows several surfaces; what its texture is, is a matter of definition.
            wrong_texture += region.depth > 0 and found.texture != region.attributes["texture"]
            checked += 1
    assert wrong_shape <= 0.01 * checked
    assert wrong_texture <= 0.01 * checked


def test_alike_things_differ_in_one_attribute_at_most_besides_place(scenes: list[Scene]):
    with_alike = 0
    differences = set()
    for scene in scenes:
        tops = [region for region in scene.regions if region.parent < 0]
        pairs = [(a, b) for a, b in combinations(tops, 2) if a.kind == b.kind]
        with_alike += bool(pairs)
        for a, b in pairs:
            keys = ("color", "texture", "shape", "size", "place")
            differing = {key for key in keys if a.attributes[key] != b.attributes[key]}
            assert differing, f"seed {scene.seed}: {a.region_id} and {b.region_id} cannot be told apart"
            assert len(differing - {"place"}) <= 1
            differences |= differing
    assert 0.35 < with_alike / len(scenes) < 0.65
    assert differences == {"color", "texture", "size", "place"}


def test_alike_things_can_be_switched_off_and_on():
    for share, expected in ((0.0, False), (1.0, True)):
        for seed in range(20):
            scene = draw_scene(seed, SceneConfig(alike_share=share))
            kinds = [region.kind for region in scene.regions if region.parent < 0]
            assert (len(set(kinds)) < len(kinds)) is expected


def test_other_sizes_and_counts():
    config = SceneConfig(height_px=320, width_px=480, min_objects=7, max_objects=7, max_regions=40)
    scene = draw_scene(3, config)
    assert scene.image.shape == (320, 480, 3)
    assert scene.regions[0].segmentation["size"] == [320, 480]
    assert sum(region.parent < 0 for region in scene.regions) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_objects": 4, "max_objects": 3}, "min_objects=4, max_objects=3: need 1 <= min <= max <= 17"),
        (
            {"min_regions": 9, "max_regions": 8},
            r"min_regions=9, max_regions=8: need min_objects \(3\) <= min",
        ),
        ({"max_objects": 18}, "min_objects=3, max_objects=18: need .* <= 17, the number of kinds"),
        ({"max_regions": 300}, "max_regions=300: need .* <= 200"),
        ({"height_px": 32}, "height_px=32, width_px=256: a scene needs at least 64 x 64 px"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**values)


def test_a_scene_that_does_not_fit_names_what_to_change():
    config = SceneConfig(height_px=64, width_px=64, min_objects=16, max_objects=17, min_regions=16)
    with pytest.raises(ConfigError, match=r"16 to 24 regions fits 64 x 64 px \(seed 1\); allow fewer regions"):
        draw_scene(1, config)
