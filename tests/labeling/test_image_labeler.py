"""One image through the four passes."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.sources.manifest import ManifestRow
from ureca.errors import UrecaError
from ureca.labeling.config import LabelSettings
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.describers.base import AnswerProblem, DescribeRequest, Description
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.image_labeler import JUDGED_FALSE, ImageLabeler, LabeledImage, Quarantined
from ureca.pipeline.errors import BudgetSpent
from ureca.pipeline.flags import NOT_UNIQUE
from ureca.proposals.config import ProposalConfig
from ureca.regions.tree import TreeConfig


def row_of(folder: Path, image_id: str) -> ManifestRow:
    masks = folder / f"{image_id}.json"
    return ManifestRow(
        image_id=image_id,
        image_path=str(folder / f"{image_id}.jpg"),
        masks_path=str(masks) if masks.exists() else None,
        masks_kind="record" if masks.exists() else None,
    )


def label(folder, image_id, describer=None, config=None, truth=None):
    describer = describer or AttributesDescriber()
    return asyncio.run(ImageLabeler(describer, config).label(row_of(folder, image_id), truth))


class Scribe:
    """A describer whose answers name the request, and that takes its time at random."""

    name, model, prompt_version, uses_model = "scribe", "pen", "1", False

    def __init__(self) -> None:
        self.requests: list[DescribeRequest] = []
        self._rng = np.random.default_rng(0)

    async def describe(self, request: DescribeRequest) -> Description:
        await asyncio.sleep(float(self._rng.uniform(0, 0.003)))
        self.requests.append(request)
        return Description(f"{request.pass_name} {request.index}", prompt_tokens=3, completion_tokens=2, seconds=0.5)

    async def check(self) -> None:
        """It can always answer."""

    async def close(self) -> None:
        """It holds nothing."""


class Looker(Scribe):
    """Looks, and chooses the region `chosen` gives, by default the right one."""

    uses_model = True

    def chosen(self, request: DescribeRequest) -> int | None:
        return request.index

    async def describe(self, request: DescribeRequest) -> Description:
        description = await super().describe(request)
        if request.pass_name == "choose":
            return replace(description, choice=self.chosen(request))
        if request.pass_name == "unique":
            told_apart = {each.index: f"not like {each.index}" for each in request.distractors}
            tries = sum(r.pass_name == "unique" and r.index == request.index for r in self.requests)
            return replace(description, text=f"{description.text} try {tries}", told_apart=told_apart)
        return description


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def test_each_pass_waits_for_what_it_is_told(corpus, scribe):
    config = LabelSettings(verify_retries=0)
    outcome = label(corpus, "scene_000001", scribe, config)
    assert isinstance(outcome, LabeledImage)
    regions = outcome.row.regions
    requests = {(request.pass_name, request.index): request for request in scribe.requests}
    assert len(requests) == len(scribe.requests) == 3 * len(regions)
    for index, region in enumerate(regions):
        before = [k for k in range(index) if regions[k].parent == region.parent]
        children = [k for k in range(len(regions)) if regions[k].parent == index]
        parent = f"short {region.parent}" if region.parent >= 0 else None
        short, long, unique = (requests[name, index] for name in ("short", "long", "unique"))
        assert short.parent_caption == parent
        assert short.sibling_captions == tuple(f"short {k}" for k in before)
        assert long.own_caption == f"short {index}"
        assert long.children == tuple(children)
        assert long.child_captions == tuple(f"long {k}" for k in children)
        assert unique.own_caption == f"long {index}"
        assert unique.parent_caption == parent
        assert unique.distractor_captions == tuple(f"long {each.index}" for each in unique.distractors)
        assert (region.short_caption, region.long_caption) == (f"short {index}", f"long {index}")


def test_no_pass_waits_for_a_whole_level(corpus, scribe):
    label(corpus, "scene_000001", scribe)
    order = [request.pass_name for request in scribe.requests]
    assert order.index("long") < len(order) - 1 - order[::-1].index("short")


def test_tokens_and_describer_are_recorded(corpus, scribe):
    outcome = label(corpus, "scene_000001", scribe)
    made = outcome.row.provenance
    assert (made.describer, made.model, made.prompt_version) == ("scribe", "pen", "1")
    assert (made.prompt_tokens, made.completion_tokens) == (
        3 * len(scribe.requests),
        2 * len(scribe.requests),
    )
    assert made.requests == Counter(request.pass_name for request in scribe.requests)
    assert made.describer_seconds == 0.5 * len(scribe.requests)
    assert made.retries == {"not_unique": made.requests["unique"] - len(outcome.row.regions)}


def test_a_caption_that_fits_others_is_asked_for_again_and_flagged(corpus, scribe):
    outcome = label(corpus, "scene_000001", scribe, LabelSettings(verify_retries=2))
    asked = [request for request in scribe.requests if request.pass_name == "unique" and request.index == 0]
    assert len(asked) == 3
    assert [bool(request.confused_with) for request in asked] == [False, True, True]
    assert all(region.flags == (NOT_UNIQUE,) for region in outcome.row.regions)
    assert {region.uniqueness for region in outcome.row.regions} <= {0.0, None}


def test_labels_of_a_drawn_scene_carry_its_truth(corpus):
    truth = {region_id: found["attributes"] for region_id, found in read_ground_truth(corpus)["scene_000003"].items()}
    outcome = label(corpus, "scene_000003", truth=truth)
    assert {region.region_id: region.attributes for region in outcome.row.regions} == truth
    assert all(region.flags == () for region in outcome.row.regions)
    assert outcome.row.status == "labeled"


@pytest.mark.parametrize(
    "fault", ["json_of_other_form", "json_without_image", "photo_without_masks", "rle_of_other_size", "truncated"]
)
def test_a_bad_image_becomes_a_value_that_names_its_file(corpus, bad_images, fault):
    outcome = label(corpus, f"bad/{fault}")
    assert isinstance(outcome, Quarantined)
    assert (outcome.step, outcome.error) == ("read", bad_images[f"bad/{fault}"])
    assert fault in outcome.message
    assert outcome.row.error.kind == outcome.error
    assert outcome.row.regions == ()


def test_a_describer_that_fails_sets_its_image_aside(corpus):
    class Broken(Scribe):
        async def describe(self, request: DescribeRequest) -> Description:
            if request.pass_name == "long" and request.index == 0:
                raise UrecaError("no such model; name another")
            return await super().describe(request)

    outcome = label(corpus, "scene_000001", Broken())
    assert (outcome.step, outcome.error) == ("describe", "UrecaError")
    assert outcome.message == "no such model; name another"


def test_a_tree_that_admits_nothing_is_labeled_without_regions(corpus):
    outcome = label(corpus, "scene_000001", config=LabelSettings(tree=TreeConfig(min_levels=9)))
    assert isinstance(outcome, LabeledImage)
    assert outcome.row.regions == ()


def test_no_region_waits_for_those_it_does_not_depend_on(corpus):
    """The unique caption of one region is asked for while another has not got its short one."""

    class Slow(Scribe):
        async def describe(self, request: DescribeRequest) -> Description:
            if request.pass_name == "short" and request.index == slow:
                await asyncio.sleep(0.3)
            return await super().describe(request)

    config = LabelSettings(distractors=DistractorConfig(max_count=0))
    regions = label(corpus, "scene_000001", config=config).row.regions
    slow = max(index for index, region in enumerate(regions) if region.parent < 0)
    describer = Slow()
    label(corpus, "scene_000001", describer, config)
    order = [(request.pass_name, request.index) for request in describer.requests]
    assert order.index(("unique", 0)) < order.index(("short", slow))


def test_one_that_looks_is_not_asked_what_is_known(corpus):
    scribe = Looker()
    regions = label(corpus, "scene_000001", scribe).row.regions
    parents = {region.parent for region in regions}
    asked = {name: [r.index for r in scribe.requests if r.pass_name == name] for name in ("short", "long", "unique")}
    assert sorted(asked["short"]) == list(range(len(regions)))
    assert set(asked["long"]) == parents - {-1}
    assert set(asked["unique"]) == {index for index, region in enumerate(regions) if region.distractors}
    for index, region in enumerate(regions):
        assert region.long_caption == (f"long {index}" if index in parents else f"short {index}")
        if not region.distractors:
            assert (region.caption, region.uniqueness) == (region.long_caption, None)


def test_captions_are_checked_blind(corpus):
    scribe = Looker()
    regions = label(corpus, "scene_000001", scribe).row.regions
    checks = [request for request in scribe.requests if request.pass_name == "choose"]
    assert sorted(request.index for request in checks) == [k for k, region in enumerate(regions) if region.distractors]
    for request in checks:
        region = regions[request.index]
        assert request.own_caption == region.caption
        assert set(request.candidates) == {request.index, *(each.index for each in region.distractors)}
        assert [each.told_apart_by for each in region.distractors] == [
            f"not like {each.index}" for each in region.distractors
        ]
        assert (region.uniqueness, region.flags) == (1.0, ())
    places = Counter(request.candidates.index(request.index) for request in checks)
    assert len(places) > 1, "the right answer always stands in the same place"


def test_what_a_caption_was_mistaken_for_is_named_and_then_flagged(corpus):
    class Misled(Looker):
        def chosen(self, request: DescribeRequest) -> int | None:
            return next(candidate for candidate in request.candidates if candidate != request.index)

    scribe = Misled()
    outcome = label(corpus, "scene_000001", scribe, LabelSettings(verify_retries=2))
    region_index = next(k for k, region in enumerate(outcome.row.regions) if region.distractors)
    region = outcome.row.regions[region_index]
    asked = [r for r in scribe.requests if (r.pass_name, r.index) == ("unique", region_index)]
    chosen = [scribe.chosen(r) for r in scribe.requests if (r.pass_name, r.index) == ("choose", region_index)]
    assert [r.confused_with for r in asked] == [(), (chosen[0],), (chosen[1],)]
    assert (region.flags, region.uniqueness) == ((NOT_UNIQUE,), 0.0)
    assert [each.told_apart_by is None for each in region.distractors] == [
        each.index == chosen[0] for each in region.distractors
    ]


def test_a_caption_that_no_region_is_chosen_for_is_asked_for_again(corpus):
    class Helpless(Looker):
        def chosen(self, request: DescribeRequest) -> int | None:
            return None if "try 1" in request.own_caption else request.index

    scribe = Helpless()
    regions = label(corpus, "scene_000001", scribe).row.regions
    asked = [request for request in scribe.requests if request.pass_name == "unique"]
    again = [request for request in asked if request.problem]
    assert len(asked) == 2 * len(again) > 0
    assert "could not tell" in again[0].problem
    assert all(region.flags == () for region in regions)


class Refusing(Looker):
    """Refuses the first `times` answers to a question about one region."""

    def __init__(self, times: int, only: str | None = None, index: int = 1) -> None:
        super().__init__()
        self._times, self._only, self._index = times, only, index
        self._refused: Counter[str] = Counter()

    async def describe(self, request: DescribeRequest) -> Description:
        description = await super().describe(request)
        name = request.pass_name
        if request.index == self._index and self._only in (None, name) and self._refused[name] < self._times:
            self._refused[name] += 1
            return replace(description, problem=AnswerProblem("refusal", "You refused."))
        return description


def test_an_answer_of_no_use_is_asked_for_again_with_what_was_wrong(corpus):
    scribe = Refusing(2, only="short")
    outcome = label(corpus, "scene_000001", scribe)
    asked = [request for request in scribe.requests if (request.pass_name, request.index) == ("short", 1)]
    assert [request.problem for request in asked] == [None, "You refused.", "You refused."]
    assert outcome.row.provenance.retries == {"refusal": 2}
    assert all("refusal" not in region.flags for region in outcome.row.regions)


def test_a_region_refused_for_good_is_flagged_and_the_others_labeled(corpus):
    outcome = label(corpus, "scene_000001", Refusing(99))
    refused, *others = [outcome.row.regions[1], outcome.row.regions[0], *outcome.row.regions[2:]]
    assert (refused.short_caption, refused.long_caption, refused.caption) == (None, None, None)
    assert refused.flags == ("refusal",)
    assert all(region.caption and region.flags == () for region in others)


def test_a_rewriting_refused_for_good_leaves_the_long_caption_flagged(corpus):
    regions = label(corpus, "scene_000001", Looker()).row.regions
    index = next(k for k, region in enumerate(regions) if region.distractors)
    refused = label(corpus, "scene_000001", Refusing(99, only="unique", index=index)).row.regions[index]
    assert refused.caption == refused.long_caption
    assert refused.flags == ("refusal",)


def test_equal_captions_are_flagged_even_without_distractors(corpus):
    class Parrot(Looker):
        async def describe(self, request: DescribeRequest) -> Description:
            description = await super().describe(request)
            return replace(description, text="A thing." if request.index < 2 else description.text)

    regions = label(
        corpus, "scene_000001", Parrot(), LabelSettings(distractors=DistractorConfig(max_count=0))
    ).row.regions
    assert [region.flags for region in regions[:3]] == [(NOT_UNIQUE,), (NOT_UNIQUE,), ()]


def test_an_image_without_one_usable_caption_is_set_aside(corpus):
    class Mute(Looker):
        async def describe(self, request: DescribeRequest) -> Description:
            return replace(await super().describe(request), problem=AnswerProblem("empty", "You said nothing."))

    outcome = label(corpus, "scene_000001", Mute())
    assert (outcome.step, outcome.error) == ("describe", "UnusableAnswerError")
    assert "regions received a caption (empty" in outcome.message
    assert outcome.row.provenance.prompt_tokens > 0


def test_a_stop_of_the_job_is_no_fault_of_the_image(corpus):
    class Poor(Scribe):
        async def describe(self, request: DescribeRequest) -> Description:
            if len(self.requests) > 3:
                raise BudgetSpent("all spent")
            return await super().describe(request)

    with pytest.raises(BudgetSpent):
        label(corpus, "scene_000001", Poor())


def test_captions_of_the_test_set_are_judged_and_flagged(corpus):
    class Judge(Looker):
        async def describe(self, request: DescribeRequest) -> Description:
            description = await super().describe(request)
            verdicts = {0: True, 1: False}
            return (
                replace(description, verdict=verdicts.get(request.index))
                if request.pass_name == "judge"
                else description
            )

    scribe = Judge()
    regions = label(corpus, "scene_000001", scribe, LabelSettings(judge_share=1.0)).row.regions
    judged = {r.index: r.own_caption for r in scribe.requests if r.pass_name == "judge"}
    assert judged == {index: region.caption for index, region in enumerate(regions)}
    assert [region.flags for region in regions[:3]] == [(), (JUDGED_FALSE,), (JUDGED_FALSE,)]
    scribe = Judge()
    label(corpus, "scene_000001", scribe)
    assert not [r for r in scribe.requests if r.pass_name == "judge"]


def test_paper_preset_checks_nothing_and_takes_all_pairs(corpus):
    scribe = Looker()
    paper = LabelSettings.paper()
    config = replace(paper, tree=TreeConfig())  # its tree admits no drawn scene
    regions = label(corpus, "scene_000001", scribe, config).row.regions
    assert not [request for request in scribe.requests if request.pass_name == "choose"]
    assert all(region.uniqueness is None for region in regions)
    assert any(each.index == region.parent for region in regions for each in region.distractors)


def test_photos_without_masks_can_get_proposed_regions(corpus):
    outcome = label(corpus, "bad/photo_without_masks", config=LabelSettings(proposals=ProposalConfig()))
    assert outcome.row.notes["proposed"] >= len(outcome.row.regions) > 0
