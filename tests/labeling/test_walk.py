"""One image through the four passes."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ureca.corpus import ManifestRow
from ureca.errors import UrecaError
from ureca.labeling.attributes_describer import AttributesDescriber
from ureca.labeling.describer import DescribeRequest, Description
from ureca.labeling.walk import NOT_UNIQUE, LabeledImage, Quarantined, WalkConfig, label_image
from ureca.regions.tree import TreeConfig
from ureca.scenes import read_truth


def row_of(folder: Path, image_id: str) -> ManifestRow:
    masks = folder / f"{image_id}.json"
    return ManifestRow(
        image_id=image_id,
        image_path=str(folder / f"{image_id}.jpg"),
        masks_path=str(masks) if masks.exists() else None,
    )


def label(folder, image_id, describer=None, config=None, truth=None):
    describer = describer or AttributesDescriber()
    return asyncio.run(label_image(row_of(folder, image_id), describer, config or WalkConfig(), truth))


class Scribe:
    """A describer whose answers name the request, and that takes its time at random."""

    name, model, prompt_version = "scribe", "pen", "1"

    def __init__(self) -> None:
        self.requests: list[DescribeRequest] = []
        self._rng = np.random.default_rng(0)

    async def describe(self, request: DescribeRequest) -> Description:
        await asyncio.sleep(float(self._rng.uniform(0, 0.003)))
        self.requests.append(request)
        return Description(f"{request.pass_name} {request.index}", prompt_tokens=3, completion_tokens=2)


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def test_each_pass_waits_for_what_it_is_told(corpus, scribe):
    config = WalkConfig(verify_retries=0)
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


def test_a_caption_that_fits_others_is_asked_for_again_and_flagged(corpus, scribe):
    outcome = label(corpus, "scene_000001", scribe, WalkConfig(verify_retries=2))
    asked = [request for request in scribe.requests if request.pass_name == "unique" and request.index == 0]
    assert len(asked) == 3
    assert [bool(request.confused_with) for request in asked] == [False, True, True]
    assert all(region.flags == (NOT_UNIQUE,) for region in outcome.row.regions)
    assert {region.uniqueness for region in outcome.row.regions} <= {0.0, None}


def test_labels_of_a_drawn_scene_carry_its_truth(corpus):
    truth = {region_id: found["attributes"] for region_id, found in read_truth(corpus)["scene_000003"].items()}
    outcome = label(corpus, "scene_000003", truth=truth)
    assert {region.region_id: region.attributes for region in outcome.row.regions} == truth
    assert all(region.flags == () for region in outcome.row.regions)
    assert outcome.row.status == "labeled"


@pytest.mark.parametrize(
    "fault", ["empty_mask", "json_without_image", "photo_without_masks", "rle_of_other_size", "truncated"]
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
    outcome = label(corpus, "scene_000001", config=WalkConfig(tree=TreeConfig(min_levels=9)))
    assert isinstance(outcome, LabeledImage)
    assert outcome.row.regions == ()
