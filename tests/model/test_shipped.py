"""The weights that come with the package: they load, belong together, and do what their cards say."""

import json

import numpy as np

from ureca.attributes.vocabulary import base_color
from ureca.model.captioner import Captioner, weights_hash
from ureca.model.internvl.presets import packaged_weights, preset_path
from ureca.nano.pretrain_questions import questions
from ureca.nano.scenes.draw import draw_scene


def test_base_and_captioner_are_small_and_belong_together() -> None:
    for name in ("base", "captioner"):
        assert sum(file.stat().st_size for file in packaged_weights(name).glob("*.safetensors")) < 15e6
    base = Captioner.from_base("nano", tile_limit=1)
    captioner = Captioner.from_pretrained(packaged_weights("captioner"))
    assert captioner.config.base_hash == weights_hash(base.base)
    assert len(captioner.processor.prefix_ids(1)) >= 256


def test_the_base_names_colors_at_points_as_its_card_says() -> None:
    base = Captioner.from_base("nano", tile_limit=1)
    card = json.loads((packaged_weights("base") / "training.json").read_text())
    right = []
    for number in range(4):
        scene = draw_scene(900_000_000 + number)
        asked = questions(scene, np.random.default_rng(number), points=8, boxes=0, wheres=0)[1:]
        answers = base.generate(scene.image, [None] * len(asked), [q.query for q in asked], max_new_tokens=24)
        for question, answer in zip(asked, answers, strict=True):
            right.append(f": {scene.regions[question.region].attributes['color']} " in answer)
    assert np.mean(right) > card["scores"]["point_color"] - 0.15


def test_the_captioner_says_what_a_region_looks_like_as_its_card_says() -> None:
    captioner = Captioner.from_pretrained(packaged_weights("captioner"))
    query = captioner.processor.query("unique")
    said: dict[str, list[bool]] = {"color": [], "shape": [], "size": [], "place": []}
    for number in range(4):
        scene = draw_scene(900_000_000 + number)
        captions = captioner.generate(
            scene.image, [r.segmentation for r in scene.regions], [query] * len(scene.regions)
        )
        assert all(caption.startswith("the ") for caption in captions)
        for region, caption in zip(scene.regions, captions, strict=True):
            for name, right in said.items():
                right.append(base_color(region.attributes[name]) in caption)
    assert np.mean(said["color"]) > 0.75
    assert min(np.mean(said[name]) for name in ("shape", "size", "place")) > 0.9


def test_the_name_nano_stands_for_the_folder_in_the_package() -> None:
    assert preset_path("nano") == str(packaged_weights("base"))
