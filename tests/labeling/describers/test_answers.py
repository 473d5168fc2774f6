"""Answers are read whatever their form, and those that can't be used are named by kind."""

import pytest
from support.describe_requests import request

from ureca.labeling.describers.answers import Reply, answer_problem, is_english, json_schema, phrases_of, read_answer
from ureca.labeling.describers.prompts import PromptSet

NOTHING = frozenset[str]()


def read(text: str, pass_name: str = "short", marked: tuple[int, ...] = (), **reply):
    return read_answer(Reply(text=text, **reply), request(pass_name), marked=marked, phrases=NOTHING)


def kind(text: str, pass_name: str = "short", **reply) -> str | None:
    problem = read(text, pass_name, **reply).problem
    return problem and problem.kind


def test_captions_are_read_from_json_and_from_text():
    assert read('{"caption": " a blue\\n box "}').text == "a blue box"
    assert read('Sure!\n```json\n{"caption": "a blue box"}\n```').text == "a blue box"
    assert read('Caption: "a blue box"', structured=False).text == "a blue box"
    assert read('<think>is it {blue}?</think>\n{"caption": "a blue box"}').text == "a blue box"
    assert read("a blue box", "unique", structured=False).text == "a blue box"
    assert read('{"caption": "a blue box"}', prompt_tokens=7, completion_tokens=3, seconds=0.5).prompt_tokens == 7


def test_what_tells_regions_apart_is_kept_by_region():
    text = '{"differences": [{"number": 1, "difference": "it is on its own"}, {"number": 9, "difference": "?"}], '
    found = read(text + '"caption": "the blue box in the red one"}', "unique", marked=(1, 2, 4))
    assert found.told_apart == {2: "it is on its own"}, "number 1 of the view is region 2; there is no number 9"
    assert found.problem is None


@pytest.mark.parametrize(
    ("text", "choice", "problem"),
    [('{"number": 2}', 1, None), ("Number 3.", 4, None), ("0", None, None), ("4", None, "malformed"),
     ("1 or 2", None, "malformed"), ('{"number": "two"}', None, "malformed")],
)  # fmt: skip
def test_choices_are_read_as_regions(text, choice, problem):
    found = read(text, "choose", marked=(2, 1, 4), structured=False)
    assert found.choice == choice
    assert (found.problem and found.problem.kind) == problem


@pytest.mark.parametrize(("text", "verdict"), [('{"correct": false}', False), ("True.", True), ("yes", True)])
def test_verdicts_are_read(text, verdict):
    assert read(text, "judge", structured=False).verdict is verdict
    assert kind("I would say it mostly is", "judge", structured=False) == "malformed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"caption": "I\'m sorry, but I can\'t help with identifying people."}', "refusal"),
        ("I cannot describe this image.", "refusal"),
        ("As an AI language model, I", "refusal"),
        ("Unfortunately, I am unable to see any picture.", "refusal"),
        ('{"caption": ""}', "empty"),
        ("   ", "empty"),
        ('{"caption": "..."}', "empty"),
        ('{"text": "a blue box"}', "malformed"),
        ('{"caption": 5}', "malformed"),
        ("a blue box", "malformed"),
        ('{"caption": "eine blaue Kiste auf dem Tisch"}', "language"),
        ('{"caption": "蓝色的盒子"}', "language"),
        ('{"caption": "A small blue box, on the right."}', "equal"),
        ('{"caption": "the large red box"}', "equal"),
        ('{"caption": "the blue box outlined in yellow"}', "marks"),
        ('{"caption": "the blue box of Image-2"}', "marks"),
        ('{"caption": "a blue box"}', None),
        ('{"caption": "a sign that reads \\"I am sorry, no dogs\\" at a gate"}', None),
        ('{"caption": "a race car with the number 12 on its door"}', None),
    ],
)
def test_what_can_not_be_used_is_named(text, expected):
    assert kind(text) == expected


def test_an_answer_that_was_cut_off_is_named():
    assert kind('{"caption": "a blue box that goes on', finish_reason="length") == "cut"
    assert kind("a blue box that goes on", structured=False, finish_reason="length") == "cut"
    assert kind('{"caption": "a blue box"}', finish_reason="content_filter") == "refusal"


def test_captions_of_distractors_and_parts_are_not_the_regions_own():
    assert answer_problem("a green sliver", request("unique")).kind == "equal"
    assert answer_problem("the yellow square in the middle.", request("long")).kind == "equal"
    assert answer_problem("a blue box in a red one", request("unique")) is None, "its own text may stay unchanged"


def test_copied_instructions_are_noticed_and_captions_are_not_taken_for_them():
    asked = PromptSet.load().prompt(request("short"))
    sentence = "Name what helps to find it: color, texture, shape, what it does, and its place."
    assert answer_problem(sentence, request("short"), asked.phrases).kind == "copied"
    parent = "a part of the large red box with rounded corners that stands at the left of the wide gray wall"
    about_parent = PromptSet.load().prompt(request("short", parent_caption=parent))
    assert answer_problem(f"{parent}, blue", request("short"), about_parent.phrases) is None, "facts may be repeated"
    assert phrases_of(["one two three"]) == frozenset()


def test_messages_tell_the_model_what_was_wrong():
    message = read("I can't see any image").problem.message
    assert message == "it declined to answer. The task is only to describe what is visible, which is always possible"


def test_schemas_are_strict():
    schema = json_schema("unique")
    assert schema["required"] == ["differences", "caption"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["DistractorDifference"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "caption",
    [
        "a red mug on the table", "red mug", "the Los Angeles Lakers jersey", "crème brûlée", "a die-cast car",
        'a sign with "der Weg ist das Ziel" above a door', "the 红 character on a wide white banner over the shop",
        "an à la carte menu on the table", "dandelion", "23",
    ],
)  # fmt: skip
def test_english_is_left_alone(caption):
    assert is_english(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "eine rote Tasse auf dem Tisch", "une tasse rouge sur la table", "el gato negro en la silla",
        "um copo com água na mesa", "il gatto nero sulla sedia", "een rode mok op het bureau",
        "en röd mugg på ett bord", "czerwony kubek obok talerza jest na stole", "kırmızı bir fincan ile tabak",
        "sebuah cangkir merah yang di atas meja", "红色的杯子", "красная кружка на столе", "كوب أحمر على الطاولة",
    ],
)  # fmt: skip
def test_other_languages_are_noticed(caption):
    assert not is_english(caption)
