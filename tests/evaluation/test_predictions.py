import dataclasses
import functools
import json

import pytest
from support.labeled_scenes import KnownCaptioner

from ureca.errors import InputError
from ureca.evaluation.predictions import REGIONS_PER_BATCH, Variant, predict, read_predictions
from ureca.model.captioner import Captioner


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("first")
    return folder


def variant(captioner, model, cue="mask", name="mask_stage2"):
    return Variant(name=name, cue=cue, model=str(model), load=lambda: captioner)


def test_every_labeled_region_gets_one_line_a_variant(scenes, true_answers, model, tmp_path):
    captioner = KnownCaptioner(true_answers)
    rows = [dataclasses.replace(scenes[0], regions=(*scenes[0].regions[:2], unlabeled(scenes[0].regions[2])))]
    made = predict([variant(captioner, model)], rows, tmp_path / "p.jsonl", max_new_tokens=9)
    assert [each.caption for each in made] == [region.caption for region in scenes[0].regions[:2]]
    assert read_predictions(tmp_path / "p.jsonl") == made
    line = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert set(line) == {"image_id", "region_id", "variant", "caption", "reference", "seed"}


def unlabeled(region):
    return dataclasses.replace(region, parent=-1, caption=None)


def test_regions_come_in_batches_and_keep_their_captions(scenes, true_answers, model, tmp_path):
    row = scenes[0]
    many = [
        dataclasses.replace(region, region_id=f"{region.region_id}-{copy}", parent=-1)
        for copy in range(4)
        for region in row.regions
    ]
    captioner = KnownCaptioner(true_answers)
    rows = [dataclasses.replace(row, regions=tuple(many))]
    made = predict([variant(captioner, model)], rows, tmp_path / "p.jsonl", max_new_tokens=9)
    assert len(many) > REGIONS_PER_BATCH
    assert max(size for size, _ in captioner.asked) == REGIONS_PER_BATCH
    assert [each.caption for each in made] == [region.caption for region in many]


def test_without_a_cue_an_image_is_asked_about_once(scenes, true_answers, model, tmp_path):
    for cue in ("none", "image"):
        captioner = KnownCaptioner(true_answers, otherwise="the same for all")
        made = predict([variant(captioner, model, cue=cue)], scenes[:2], tmp_path / f"{cue}.jsonl", max_new_tokens=9)
        assert captioner.asked == [(1, [f"unique {cue} [] []"])] * 2
        assert len(made) == sum(len(row.regions) for row in scenes[:2])
        assert {each.caption for each in made} == {"the same for all"}


def test_the_box_is_told_in_the_query_and_no_mask_is_shown(scenes, true_answers, model, tmp_path):
    captioner = KnownCaptioner(true_answers)
    predict([variant(captioner, model, cue="box")], scenes[:1], tmp_path / "p.jsonl", max_new_tokens=9)
    (_, queries), *_ = captioner.asked
    first = scenes[0].regions[0]
    assert queries[0] == f"unique box {list(first.bbox)} {list(scenes[0].size)}"


class Stopped(KnownCaptioner):
    """Ctrl-C comes at its third image."""

    def generate(self, *args, **kwargs):
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        return super().generate(*args, **kwargs)


def test_a_stopped_run_goes_on_where_it_was(scenes, true_answers, model, tmp_path):
    path, whole_path = tmp_path / "p.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict([variant(Stopped(true_answers), model)], scenes, path, max_new_tokens=9)
    with open(path, "a") as file:
        file.write('{"image_id": "scene_2", "region')  # killed while writing
    captioner = KnownCaptioner(true_answers)
    predict([variant(captioner, model)], scenes, path, max_new_tokens=9)
    predict([variant(KnownCaptioner(true_answers), model)], scenes, whole_path, max_new_tokens=9)
    assert len(captioner.asked) == len(scenes) - 2
    assert sorted(path.read_text().splitlines()) == sorted(whole_path.read_text().splitlines())


def test_a_finished_run_asks_nothing_and_loads_no_model(scenes, true_answers, model, tmp_path):
    path = tmp_path / "p.jsonl"
    first = predict([variant(KnownCaptioner(true_answers), model)], scenes, path, max_new_tokens=9)
    loaded = dataclasses.replace(variant(None, model), load=lambda: pytest.fail("loaded"))
    again = predict([loaded], scenes, path, max_new_tokens=9)
    assert again == first


@pytest.mark.parametrize("change", ["model", "length", "label"])
def test_captions_that_no_longer_hold_are_made_anew(scenes, true_answers, model, tmp_path, change):
    path, rows = tmp_path / "p.jsonl", scenes[:2]
    predict([variant(KnownCaptioner(true_answers), model)], rows, path, max_new_tokens=9)
    if change == "model":
        (model / "weights").write_text("trained on")
    if change == "label":
        first = dataclasses.replace(rows[0].regions[0], caption="another label")
        rows = [dataclasses.replace(rows[0], regions=(first, *rows[0].regions[1:])), rows[1]]
    captioner = KnownCaptioner(true_answers)
    made = predict([variant(captioner, model)], rows, path, max_new_tokens=10 if change == "length" else 9)
    assert len(captioner.asked) == (1 if change == "label" else 2)
    assert len(made) == sum(len(row.regions) for row in rows)


def test_other_variants_keep_their_captions(scenes, true_answers, model, tmp_path):
    path = tmp_path / "p.jsonl"
    first = variant(KnownCaptioner(true_answers), model)
    predict([first], scenes[:1], path, max_new_tokens=9)
    second = KnownCaptioner(true_answers)
    kept = KnownCaptioner(true_answers)
    predict(
        [variant(kept, model), variant(second, model, "none", "tuned_none")],
        scenes[:1],
        path,
        max_new_tokens=9,
    )
    assert kept.asked == []
    assert len(second.asked) == 1


@pytest.mark.slow
def test_several_processes_say_what_one_says(scenes, tiny_base, tmp_path):
    load = functools.partial(Captioner.from_base, str(tiny_base), tile_limit=1)
    variants = [
        Variant(name=name, cue=cue, model=str(tiny_base), load=load)
        for name, cue in (("box", "box_question"), ("mask_stage1", "mask"))
    ]
    alone, together = (
        predict(variants, scenes[:3], tmp_path / f"{processes}.jsonl", max_new_tokens=4, processes=processes)
        for processes in (1, 2)
    )
    assert together == alone
    assert read_predictions(tmp_path / "2.jsonl") == alone


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="missing.jsonl"):
        read_predictions(tmp_path / "missing.jsonl")
    (tmp_path / "p.jsonl").write_text('{"image_id": "1"}\n')
    with pytest.raises(InputError, match="prediction"):
        read_predictions(tmp_path / "p.jsonl")
