"""Questions about drawn scenes: true to the scene, the same for a seed, and never in the labels' words."""

import re

import numpy as np

from ureca.regions.rle import decode_rle
from ureca.scenes import draw_scene
from ureca.training.questions import Question, questions, region_map


def asked(seed: int) -> list[Question]:
    return questions(draw_scene(seed), np.random.default_rng(seed), points=6, boxes=3, wheres=2)


def test_the_same_seed_asks_the_same() -> None:
    assert asked(3) == asked(3)
    assert asked(3) != asked(4)


def test_points_lie_in_the_region_that_the_answer_is_about() -> None:
    for seed in range(20):
        scene = draw_scene(seed)
        deepest = region_map(scene)
        for question in asked(seed):
            if question.kind == "point":
                for cell in map(int, re.findall(r"<p(\d+)>", question.query)):
                    y, x = cell // 16 * 16 + 8, cell % 16 * 16 + 8
                    assert deepest[y, x] == question.region


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
                first, last = (divmod(int(cell), 16) for cell in re.findall(r"<p(\d+)>", question.answer))
                rows, columns = np.nonzero(decode_rle(scene.regions[question.region].segmentation))
                assert (rows.min() // 16, columns.min() // 16) == first
                assert (rows.max() // 16, columns.max() // 16) == last
