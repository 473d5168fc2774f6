"""Questions about drawn scenes: true to the scene, the same for a seed, and never in the labels' words."""

import re

import numpy as np

from ureca.model.processor import GRID
from ureca.nano.pretrain_questions import Question, cell_coverage, held_cells, questions
from ureca.nano.scenes.draw import draw_scene
from ureca.regions.rle import decode_rle, rle_area


def asked(seed: int) -> list[Question]:
    return questions(draw_scene(seed), np.random.default_rng(seed), points=6, boxes=3, wheres=2)


def test_the_same_seed_asks_the_same() -> None:
    assert asked(3) == asked(3)
    assert asked(3) != asked(4)


def test_points_lie_in_the_smallest_region_that_holds_them_all() -> None:
    for seed in range(20):
        scene = draw_scene(seed)
        held = held_cells(cell_coverage(scene))
        areas = [rle_area(region.segmentation) for region in scene.regions]
        for question in asked(seed):
            if question.kind == "point":
                cells = [int(cell) for cell in re.findall(r"<p(\d+)>", question.query)]
                holders = [i for i in range(len(areas)) if held[i, cells].all()]
                assert question.region in holders
                assert areas[question.region] <= 1.05 * min(areas[i] for i in holders)  # cells are a coarse measure


def test_a_region_without_a_half_covered_cell_is_asked_about_by_its_best_one() -> None:
    coverage = np.zeros((1, GRID, GRID), dtype=np.float32)
    coverage[0, 3, 4], coverage[0, 3, 5] = 0.2, 0.4
    assert np.flatnonzero(held_cells(coverage)[0]).tolist() == [3 * GRID + 5]


def test_answers_name_place_size_color_and_the_wholes_above() -> None:
    for seed in range(20):
        scene = draw_scene(seed)
        for question in asked(seed):
            if question.kind in ("point", "box"):
                region = scene.regions[question.region]
                own = region.attributes
                start = f"at the {own['place']}, {own['size']}: {own['color']} {own['shape']} {own['texture']} "
                assert question.answer.startswith(start + (region.part or region.kind))
                assert question.answer.count(" of ") == region.depth


def test_a_box_answer_holds_the_whole_region() -> None:
    for seed in range(20):
        scene = draw_scene(seed)
        for question in asked(seed):
            if question.kind == "where":
                first, last = (divmod(int(cell), GRID) for cell in re.findall(r"<p(\d+)>", question.answer))
                rows, columns = np.nonzero(decode_rle(scene.regions[question.region].segmentation))
                assert (rows.min() // 8, columns.min() // 8) == first
                assert (rows.max() // 8, columns.max() // 8) == last
