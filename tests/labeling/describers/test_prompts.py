"""Prompt sets: complete, refused early where not, and their version says when anything changed."""

import pickle
import shutil
from pathlib import Path

import pytest
from support.describe_requests import request

from ureca.corpus.schema import Distractor
from ureca.errors import ConfigError
from ureca.labeling.describers.prompts import PromptSet


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's copy of the default set."""
    from ureca.labeling.describers import prompts

    shipped = Path(prompts.__file__).parent / "prompt_texts" / "default"
    return Path(shutil.copytree(shipped, tmp_path / "own"))


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("pass_name", ["short", "long", "unique", "choose", "judge"])
def test_every_question_holds_its_facts_and_its_views(name, pass_name):
    asked = request(pass_name, problem="it was empty")
    prompt = PromptSet.load(name).prompt(asked)
    text = prompt.text_for(structured=True)
    for fact in (asked.own_caption, asked.parent_caption, *asked.sibling_captions, *asked.child_captions):
        assert fact is None or fact in text
    assert "it was empty" in text
    assert '{"' in text
    assert '{"' not in prompt.text_for(structured=False)
    assert "\n\n\n" not in text
    assert [received.split(":")[0] for received, _ in prompt.views] == [
        f"Image-{n}" for n in range(1, len(prompt.views) + 1)
    ]
    assert all(max(view.size) <= 1344 for _, view in prompt.views)


def test_views_fit_the_place_in_the_tree():
    default = PromptSet.load()
    part = default.prompt(request("judge", index=1)).views
    assert len(part) == 3
    top = default.prompt(request("judge", index=0)).views
    assert len(top) == 2, "context is the whole image there, and is not shown twice"
    [context, _] = default.prompt(request("short", index=0)).views
    assert context[0].startswith("Image-1: the whole picture"), "and is labeled as such"
    assert context[1].size == (400, 300)


def test_context_is_cut_around_the_parent_or_as_in_the_papers_code_around_the_top():
    around_parent = PromptSet.load("default").prompt(request("short", index=3)).views[0][1]
    around_top = PromptSet.load("paper").prompt(request("short", index=3)).views[0][1]
    assert around_parent.width == around_parent.height, "region 1 is square"
    assert around_top.height > around_top.width, "region 0 is not"


def test_numbers_mean_the_regions_of_the_view():
    unique = PromptSet.load().prompt(request("unique", confused_with=(4, 3)))
    assert unique.marked == (1, 2, 4, 3), "the target, its distractors, and what it was taken for besides"
    text = unique.text
    assert "1: a blue box on its own" in text
    assert "for region 2 and for region 3" in text
    assert PromptSet.load().prompt(request("choose")).marked == (2, 1, 4)


def test_nothing_in_a_blind_question_depends_on_the_right_answer():
    """But the order of the candidates, which whoever asks has shuffled."""
    prompts = PromptSet.load()
    one, other = (prompts.prompt(request("choose", index=index)) for index in (1, 2))
    assert one.text == other.text
    assert one.system == other.system
    assert [view.tobytes() for _, view in one.views] == [view.tobytes() for _, view in other.views]


def test_sampling_repeats_for_the_same_question_and_not_when_asked_again():
    prompts = PromptSet.load()
    assert prompts.prompt(request("short")).seed == prompts.prompt(request("short")).seed
    assert prompts.prompt(request("short")).seed != prompts.prompt(request("short", index=2)).seed
    assert prompts.prompt(request("short", problem="it was empty")).seed is None
    assert prompts.prompt(request("unique", confused_with=(2,))).seed is None
    assert prompts.prompt(request("choose")).temperature == 0.0
    assert prompts.prompt(request("short")).temperature == 0.2


def test_version_names_the_set_and_changes_with_any_word(own):
    before = PromptSet.load(str(own)).version
    assert before == PromptSet.load("default").version, "a copy asks the same"
    assert before.startswith("default-")
    (own / "long.txt").write_text((own / "long.txt").read_text().replace("plain", "flowery"))
    after = PromptSet.load(str(own))
    assert after.version != before
    assert "flowery" in after.prompt(request("long")).text
    assert PromptSet.load(longest_px=300).version != before
    assert max(PromptSet.load(longest_px=300).prompt(request("long")).views[0][1].size) == 300


def test_a_set_travels_without_its_folder(own):
    (own / "short.txt").write_text("My words. {{ parent_caption }}{{ sibling_captions }}{{ problem }}")
    packed = pickle.dumps(PromptSet.load(str(own)))
    shutil.rmtree(own)
    assert pickle.loads(packed).prompt(request("short")).text.startswith("My words.")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("short.txt", "{{ parent }}", "parent_caption"),
        ("judge.txt", "Is it so? {{ problem }}", "judge.txt"),
        ("long.txt", "a\n{% if caption %}", "long.txt"),
        ("set.yaml", "name: [", "set.yaml"),
        ("set.yaml", "just text", "set.yaml"),
    ],
)
def test_a_set_that_can_not_work_is_refused(own, file, text, message):
    (own / file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        PromptSet.load(str(own))
    assert message in str(caught.value)
    assert str(own) in str(caught.value)


@pytest.mark.parametrize(
    ("was", "instead", "message"),
    [
        ("short: [context, crop]", "short: [context, zoom]", "['context', 'zoom']"),
        ("choose: [marks]", "choose: [image]", "views.choose"),
        ("long: [image, crop]", "long: [marks]", "views.long"),
        ("  crop: the region alone, all else blurred\n", "", "labels lacks crop"),
        ("  judge: [image, context, crop]\n", "", "passes"),
        ("temperature: 0.2", "temprature: 0.2", "temprature"),
    ],
)
def test_views_that_can_not_be_are_refused(own, was, instead, message):
    text = (own / "set.yaml").read_text()
    assert was in text
    (own / "set.yaml").write_text(text.replace(was, instead))
    with pytest.raises(ConfigError) as caught:
        PromptSet.load(str(own))
    assert message in str(caught.value)


def test_a_missing_file_or_folder_names_what_to_copy(own):
    (own / "choose.txt").unlink()
    with pytest.raises(ConfigError, match="choose.txt:.*prompt_texts"):
        PromptSet.load(str(own))
    with pytest.raises(ConfigError, match="prompts=nowhere"):
        PromptSet.load("nowhere")


def test_without_distractors_nothing_is_said_of_any():
    text = PromptSet.load().prompt(request("unique", distractors=(), distractor_captions=())).text
    assert "look like it" not in text
    many = tuple(Distractor(index=index, similarity=0.9) for index in (0, 2, 3, 4))
    assert "- 4" in PromptSet.load().prompt(request("unique", distractors=many, distractor_captions=())).text
