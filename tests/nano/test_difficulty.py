"""Difficulty of the benchmark: oracles state exactly what they know."""

import numpy as np
import pytest
from support.labeled_scenes import labeled_row

from ureca.attributes.claims import parse_claims
from ureca.evaluation.uniqueness import region_candidates
from ureca.nano.benchmark import Labeled
from ureca.nano.difficulty import as_tables, difficulty, oracle_captions
from ureca.nano.scenes.draw import Scene, draw_scene


def said(scene: Scene) -> list[dict[str, str]]:
    row = labeled_row(scene, [""] * len(scene.regions))
    truth = {region.region_id: region.attributes for region in scene.regions}
    candidates = region_candidates(scene.image, row, truth)
    return [oracle_captions(scene.image, row, candidates, index, "red") for index in range(len(scene.regions))]


@pytest.mark.parametrize("seed", [5, 6])
def test_oracles_say_what_they_know_and_nothing_else(seed: int):
    scene = draw_scene(seed)
    for region, captions in zip(scene.regions, said(scene), strict=True):
        true = region.attributes
        received = parse_claims(captions["true_words"])
        assert (received.color, received.shape, received.size, received.place) == (
            true["color"],
            true["shape"],
            true["size"],
            true["place"],
        )
        guessed = parse_claims(captions["mask_and_guess"])
        assert (guessed.color, guessed.shape, guessed.texture) == ("red", true["shape"], None)
        least = parse_claims(captions["place_and_size"])
        assert (least.size, least.place) == (true["size"], true["place"])
        assert (least.color, least.shape, least.place_in_parent) == (None, None, None)


def test_labels_that_are_the_true_words_reach_everything_and_guesses_do_not():
    scenes = [draw_scene(seed) for seed in (5, 6)]
    captions = [[each["true_words"] for each in said(scene)] for scene in scenes]
    rows = [labeled_row(scene, texts) for scene, texts in zip(scenes, captions, strict=True)]
    truth = {
        row.image_id: {region.region_id: region.attributes for region in scene.regions}
        for row, scene in zip(rows, scenes, strict=True)
    }
    found = difficulty(Labeled(rows, truth, {}))
    assert found["regions"] == sum(len(scene.regions) for scene in scenes)
    assert found["scores"]["labels"]["attribute_accuracy"]["value"] == 1
    assert found["scores"]["true_words"]["rouge_l"]["value"] == pytest.approx(1)
    accuracy = [found["scores"][name]["attribute_accuracy"]["value"] for name in ("mask_and_guess", "place_and_size")]
    assert 1 > accuracy[0] > accuracy[1] > 0
    assert found["attributes"]["mask_and_guess"]["shape"] == 1
    assert found["attributes"]["mask_and_guess"]["color"] < 0.5
    assert "| true_words | 1.000 [1.000, 1.000] |" in as_tables(found)
    depths = found["strata"]["depth"]
    assert sum(of["regions"] for of in depths.values()) == found["regions"]
    for of in depths.values():
        assert of["scores"]["labels"]["attribute_accuracy"] == of["scores"]["true_words"]["attribute_accuracy"] == 1
    guessed = sum(of["regions"] * of["scores"]["mask_and_guess"]["uniqueness"] for of in depths.values())
    assert guessed / found["regions"] == pytest.approx(found["scores"]["mask_and_guess"]["uniqueness"]["value"])
    assert "| depth: 0 | 1.000 / 1.000 | 1.000 / 1.000 | 0." in as_tables(found)
    assert np.isfinite([each["value"] for of in found["scores"].values() for each in of.values()]).all()
