"""The weights that come with the package: they load, belong together, and do what their cards say."""

import json
import re

import numpy as np

from ureca.model import Captioner, preset_path
from ureca.model.captioner import weights_hash
from ureca.model.presets import shipped
from ureca.scenes import draw_scene
from ureca.training.questions import questions


def test_base_and_captioner_are_small_and_belong_together() -> None:
    for name in ("nano", "nano_captioner"):
        assert sum(file.stat().st_size for file in shipped(name).glob("*.safetensors")) < 15e6
    base = Captioner.from_base("nano", tile_limit=1)
    captioner = Captioner.from_pretrained(shipped("nano_captioner"))
    assert captioner.config.base_hash == weights_hash(base.base)
    assert len(captioner.processor.prefix_ids(1)) >= 256


def test_the_base_names_colors_at_points_as_its_card_says() -> None:
    base = Captioner.from_base("nano", tile_limit=1)
    card = json.loads((shipped("nano") / "training.json").read_text())
    right = []
    for number in range(4):
        scene = draw_scene(900_000_000 + number)
        asked = questions(scene, np.random.default_rng(number), points=8, boxes=0, wheres=0)[1:]
        answers = base.generate(scene.image, [None] * len(asked), [q.query for q in asked], max_new_tokens=24)
        for question, answer in zip(asked, answers, strict=True):
            right.append(f": {scene.regions[question.region].attributes['color']} " in answer)
    assert np.mean(right) > card["scores"]["point_color"] - 0.15


def test_the_captioner_says_where_a_region_lies() -> None:
    captioner = Captioner.from_pretrained(shipped("nano_captioner"))
    scene = draw_scene(900_000_001)
    regions = [region for region in scene.regions if region.parent < 0]
    query = captioner.processor.query("unique")
    captions = captioner.generate(scene.image, [r.segmentation for r in regions], [query] * len(regions))
    placed = [region.attributes["place"] in caption for region, caption in zip(regions, captions, strict=True)]
    assert np.mean(placed) >= 0.5
    assert all(re.match(r"the \w+", caption) for caption in captions)


def test_the_name_nano_stands_for_the_folder_in_the_package() -> None:
    assert preset_path("nano") == str(shipped("nano"))
