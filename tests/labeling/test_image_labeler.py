"""Labeling of one image in four passes."""

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
from ureca.labeling.image_labeler import JUDGED_FALSE, ImageLabeler
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


class FakeDescriber:
    """Describer without a model; its answers name the request and take a random time."""

    name, model, prompt_version, uses_model = "fake", "model", "1", False

    def __init__(self) -> None:
        self.requests: list[DescribeRequest] = []
        self._rng = np.random.default_rng(0)

    async def describe(self, request: DescribeRequest) -> Description:
        await asyncio.sleep(float(self._rng.uniform(0, 0.003)))
        self.requests.append(request)
        return Description(f"{request.pass_name} {request.index}", prompt_tokens=3, completion_tokens=2, seconds=0.5)

    async def check(self) -> None:
        """Do nothing: every request can be answered."""

    async def close(self) -> None:
        """Do nothing."""


class FakeVlm(FakeDescriber):
    """Describer with a model; chooses the region that `chosen` returns, by default the right one."""

    uses_model = True

    def chosen(self, request: DescribeRequest) -> int | None:
        return request.index

    async def describe(self, request: DescribeRequest) -> Description:
        description = await super().describe(request)
        if request.pass_name == "choose":
            return replace(description, choice=self.chosen(request))
        if request.pass_name == "unique":
            told_apart = {other.index: f"not like {other.index}" for other in request.distractors}
            attempt = sum(r.pass_name == "unique" and r.index == request.index for r in self.requests)
            return replace(description, text=f"{description.text} try {attempt}", told_apart=told_apart)
        return description


@pytest.fixture
def describer() -> FakeDescriber:
    return FakeDescriber()


def test_label_requests_contain_captions_of_earlier_passes(corpus, describer):
    config = LabelSettings(verify_retries=0)
    row = label(corpus, "scene_000001", describer, config)
    assert row.status == "labeled"
    regions = row.regions
    requests = {(request.pass_name, request.index): request for request in describer.requests}
    assert len(requests) == len(describer.requests) == 3 * len(regions)
    for index, region in enumerate(regions):
        siblings = [k for k in range(index) if regions[k].parent == region.parent]
        children = [k for k in range(len(regions)) if regions[k].parent == index]
        parent = f"short {region.parent}" if region.parent >= 0 else None
        short, long, unique = (requests[name, index] for name in ("short", "long", "unique"))
        assert short.parent_caption == parent
        assert short.sibling_captions == tuple(f"short {k}" for k in siblings)
        assert long.own_caption == f"short {index}"
        assert long.children == tuple(children)
        assert long.child_captions == tuple(f"long {k}" for k in children)
        assert unique.own_caption == f"long {index}"
        assert unique.parent_caption == parent
        assert unique.distractor_captions == tuple(f"long {other.index}" for other in unique.distractors)
        assert (region.short_caption, region.long_caption) == (f"short {index}", f"long {index}")


def test_label_long_pass_starts_before_short_pass_ends(corpus, describer):
    label(corpus, "scene_000001", describer)
    order = [request.pass_name for request in describer.requests]
    assert order.index("long") < len(order) - 1 - order[::-1].index("short")


def test_label_provenance_has_describer_tokens_and_requests(corpus, describer):
    row = label(corpus, "scene_000001", describer)
    provenance = row.provenance
    assert (provenance.describer, provenance.model, provenance.prompt_version) == ("fake", "model", "1")
    assert (provenance.prompt_tokens, provenance.completion_tokens) == (
        3 * len(describer.requests),
        2 * len(describer.requests),
    )
    assert provenance.requests == Counter(request.pass_name for request in describer.requests)
    assert provenance.describer_seconds == 0.5 * len(describer.requests)
    assert provenance.retries == {"not_unique": provenance.requests["unique"] - len(row.regions)}


def test_label_ambiguous_caption_is_rewritten_then_flagged(corpus, describer):
    row = label(corpus, "scene_000001", describer, LabelSettings(verify_retries=2))
    requests = [request for request in describer.requests if request.pass_name == "unique" and request.index == 0]
    assert len(requests) == 3
    assert [bool(request.confused_with) for request in requests] == [False, True, True]
    assert all(region.flags == (NOT_UNIQUE,) for region in row.regions)
    assert {region.uniqueness for region in row.regions} <= {0.0, None}


def test_label_copies_true_attributes(corpus):
    truth = {region_id: region["attributes"] for region_id, region in read_ground_truth(corpus)["scene_000003"].items()}
    row = label(corpus, "scene_000003", truth=truth)
    assert {region.region_id: region.attributes for region in row.regions} == truth
    assert all(region.flags == () for region in row.regions)
    assert row.status == "labeled"


@pytest.mark.parametrize(
    "fault", ["json_of_other_form", "json_without_image", "photo_without_masks", "rle_of_other_size", "truncated"]
)
def test_label_bad_image_is_quarantined_with_its_file(corpus, bad_images, fault):
    row = label(corpus, f"bad/{fault}")
    assert row.status == "quarantined"
    assert (row.error.step, row.error.kind) == ("read", bad_images[f"bad/{fault}"])
    assert fault in row.error.message
    assert row.regions == ()


def test_label_failed_request_quarantines_the_image(corpus):
    class Broken(FakeDescriber):
        async def describe(self, request: DescribeRequest) -> Description:
            if request.pass_name == "long" and request.index == 0:
                raise UrecaError("no such model; name another")
            return await super().describe(request)

    row = label(corpus, "scene_000001", Broken())
    assert (row.error.step, row.error.kind) == ("describe", "UrecaError")
    assert row.error.message == "no such model; name another"


def test_label_empty_tree_gives_row_without_regions(corpus):
    row = label(corpus, "scene_000001", config=LabelSettings(tree=TreeConfig(min_levels=9)))
    assert row.status == "labeled"
    assert row.regions == ()


def test_label_region_does_not_wait_for_unrelated_regions(corpus):
    """Request the unique caption of one region while another has no short one yet."""

    class Slow(FakeDescriber):
        async def describe(self, request: DescribeRequest) -> Description:
            if request.pass_name == "short" and request.index == slow:
                await asyncio.sleep(0.3)
            return await super().describe(request)

    config = LabelSettings(distractors=DistractorConfig(max_count=0))
    regions = label(corpus, "scene_000001", config=config).regions
    slow = max(index for index, region in enumerate(regions) if region.parent < 0)
    describer = Slow()
    label(corpus, "scene_000001", describer, config)
    order = [(request.pass_name, request.index) for request in describer.requests]
    assert order.index(("unique", 0)) < order.index(("short", slow))


def test_label_vlm_gets_no_request_for_known_captions(corpus):
    describer = FakeVlm()
    regions = label(corpus, "scene_000001", describer).regions
    parents = {region.parent for region in regions}
    requests = {
        name: [r.index for r in describer.requests if r.pass_name == name] for name in ("short", "long", "unique")
    }
    assert sorted(requests["short"]) == list(range(len(regions)))
    assert set(requests["long"]) == parents - {-1}
    assert set(requests["unique"]) == {index for index, region in enumerate(regions) if region.distractors}
    for index, region in enumerate(regions):
        assert region.long_caption == (f"long {index}" if index in parents else f"short {index}")
        if not region.distractors:
            assert (region.caption, region.uniqueness) == (region.long_caption, None)


def test_label_choose_requests_are_blind(corpus):
    describer = FakeVlm()
    regions = label(corpus, "scene_000001", describer).regions
    checks = [request for request in describer.requests if request.pass_name == "choose"]
    assert sorted(request.index for request in checks) == [k for k, region in enumerate(regions) if region.distractors]
    for request in checks:
        region = regions[request.index]
        assert request.own_caption == region.caption
        assert set(request.candidates) == {request.index, *(other.index for other in region.distractors)}
        assert [other.told_apart_by for other in region.distractors] == [
            f"not like {other.index}" for other in region.distractors
        ]
        assert (region.uniqueness, region.flags) == (1.0, ())
    positions = Counter(request.candidates.index(request.index) for request in checks)
    assert len(positions) > 1, "the right answer is always at the same position"


def test_label_confused_region_is_named_then_flagged(corpus):
    class Misled(FakeVlm):
        def chosen(self, request: DescribeRequest) -> int | None:
            return next(candidate for candidate in request.candidates if candidate != request.index)

    describer = Misled()
    regions = label(corpus, "scene_000001", describer, LabelSettings(verify_retries=2)).regions
    region_index = next(k for k, region in enumerate(regions) if region.distractors)
    region = regions[region_index]
    requests = [r for r in describer.requests if (r.pass_name, r.index) == ("unique", region_index)]
    chosen = [describer.chosen(r) for r in describer.requests if (r.pass_name, r.index) == ("choose", region_index)]
    assert [r.confused_with for r in requests] == [(), (chosen[0],), (chosen[1],)]
    assert (region.flags, region.uniqueness) == ((NOT_UNIQUE,), 0.0)
    assert [other.told_apart_by is None for other in region.distractors] == [
        other.index == chosen[0] for other in region.distractors
    ]


def test_label_caption_without_choice_is_rewritten(corpus):
    class Helpless(FakeVlm):
        def chosen(self, request: DescribeRequest) -> int | None:
            return None if "try 1" in request.own_caption else request.index

    describer = Helpless()
    regions = label(corpus, "scene_000001", describer).regions
    requests = [request for request in describer.requests if request.pass_name == "unique"]
    again = [request for request in requests if request.problem]
    assert len(requests) == 2 * len(again) > 0
    assert "could not tell" in again[0].problem
    assert all(region.flags == () for region in regions)


class Refusing(FakeVlm):
    """Model that refuses the first `times` requests for one region, per pass."""

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


def test_label_unusable_answer_is_requested_again_with_reason(corpus):
    describer = Refusing(2, only="short")
    row = label(corpus, "scene_000001", describer)
    requests = [request for request in describer.requests if (request.pass_name, request.index) == ("short", 1)]
    assert [request.problem for request in requests] == [None, "You refused.", "You refused."]
    assert row.provenance.retries == {"refusal": 2}
    assert all("refusal" not in region.flags for region in row.regions)


def test_label_region_refused_always_is_flagged(corpus):
    regions = label(corpus, "scene_000001", Refusing(99)).regions
    refused, others = regions[1], (regions[0], *regions[2:])
    assert (refused.short_caption, refused.long_caption, refused.caption) == (None, None, None)
    assert refused.flags == ("refusal",)
    assert all(region.caption and region.flags == () for region in others)


def test_label_rewrite_refused_always_keeps_long_caption(corpus):
    regions = label(corpus, "scene_000001", FakeVlm()).regions
    index = next(k for k, region in enumerate(regions) if region.distractors)
    refused = label(corpus, "scene_000001", Refusing(99, only="unique", index=index)).regions[index]
    assert refused.caption == refused.long_caption
    assert refused.flags == ("refusal",)


def test_label_equal_captions_are_flagged(corpus):
    class Repeating(FakeVlm):
        async def describe(self, request: DescribeRequest) -> Description:
            description = await super().describe(request)
            return replace(description, text="A thing." if request.index < 2 else description.text)

    regions = label(
        corpus, "scene_000001", Repeating(), LabelSettings(distractors=DistractorConfig(max_count=0))
    ).regions
    assert [region.flags for region in regions[:3]] == [(NOT_UNIQUE,), (NOT_UNIQUE,), ()]


def test_label_image_without_any_caption_is_quarantined(corpus):
    class Empty(FakeVlm):
        async def describe(self, request: DescribeRequest) -> Description:
            return replace(await super().describe(request), problem=AnswerProblem("empty", "You said nothing."))

    row = label(corpus, "scene_000001", Empty())
    assert (row.error.step, row.error.kind) == ("describe", "UnusableAnswerError")
    assert "scene_000001" in row.error.message
    assert "(empty " in row.error.message
    assert row.provenance.prompt_tokens > 0


def test_label_budget_spent_is_raised_not_quarantined(corpus):
    class BudgetLimited(FakeDescriber):
        async def describe(self, request: DescribeRequest) -> Description:
            if len(self.requests) > 3:
                raise BudgetSpent("all spent")
            return await super().describe(request)

    with pytest.raises(BudgetSpent):
        label(corpus, "scene_000001", BudgetLimited())


def test_label_judge_share_judges_and_flags_captions(corpus):
    class Judge(FakeVlm):
        async def describe(self, request: DescribeRequest) -> Description:
            description = await super().describe(request)
            verdicts = {0: True, 1: False}
            return (
                replace(description, verdict=verdicts.get(request.index))
                if request.pass_name == "judge"
                else description
            )

    describer = Judge()
    regions = label(corpus, "scene_000001", describer, LabelSettings(judge_share=1.0)).regions
    judged = {r.index: r.own_caption for r in describer.requests if r.pass_name == "judge"}
    assert judged == {index: region.caption for index, region in enumerate(regions)}
    assert [region.flags for region in regions[:3]] == [(), (JUDGED_FALSE,), (JUDGED_FALSE,)]
    describer = Judge()
    label(corpus, "scene_000001", describer)
    assert not [r for r in describer.requests if r.pass_name == "judge"]


def test_label_paper_preset_checks_nothing_and_uses_all_pairs(corpus):
    describer = FakeVlm()
    paper = LabelSettings.paper()
    config = replace(paper, tree=TreeConfig())  # its tree has no regions in drawn scenes
    regions = label(corpus, "scene_000001", describer, config).regions
    assert not [request for request in describer.requests if request.pass_name == "choose"]
    assert all(region.uniqueness is None for region in regions)
    assert any(other.index == region.parent for region in regions for other in region.distractors)


def test_label_photo_without_masks_gets_proposed_regions(corpus):
    row = label(corpus, "bad/photo_without_masks", config=LabelSettings(proposals=ProposalConfig()))
    assert row.notes["proposed"] >= len(row.regions) > 0
