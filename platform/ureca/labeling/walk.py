"""Label one image: read it, build its mask tree, walk the tree in four passes, verify.

    pass      a region waits for
    tree      -
    short     its parent's short caption, and those of the siblings before it
    long      its children's long captions, and its own short one
    unique    every long caption of the image; asked again while it fits another region too

One image is one coroutine and each caption a task of it, so nothing waits for a whole level or pass, and the
requests of many images can be under way together. Whatever fails becomes a value, `Quarantined`, with the
step it failed in: one bad image never stops a corpus.
Source: URECA (arXiv 2504.05305) section 3, figure 2.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.corpus import ImageRow, ManifestRow, Provenance, RegionRow, RowError, decode_image, read_sa1b
from ureca.errors import InputError, UrecaError
from ureca.labeling.describer import Describer, DescribeRequest, Pass
from ureca.labeling.distractors import DistractorConfig, find_distractors
from ureca.labeling.verify import Verdict, verify_caption
from ureca.regions.tree import MaskTree, TreeConfig, build_mask_tree

logger = logging.getLogger(__name__)

Step = Literal["read", "tree", "describe"]

NOT_UNIQUE = "not_unique"
"""Flag of a region whose caption also fits another region of the image."""


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """How one image is labeled."""

    tree: TreeConfig = field(default_factory=TreeConfig)
    """How the mask tree is built."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions count as alike."""
    verify_retries: int = 1
    """How often a caption that fits another region too is asked for again."""


@dataclass(frozen=True)
class LabeledImage:
    """An image that got its captions."""

    row: ImageRow


@dataclass(frozen=True)
class Quarantined:
    """An image set aside, and why."""

    image_id: str
    image_path: str
    step: Step
    error: str
    """Class name: what a summary counts."""
    message: str
    """Names the file and the remedy."""

    @property
    def row(self) -> ImageRow:
        """Its row of the region table."""
        error = RowError(step=self.step, kind=self.error, message=self.message)
        return ImageRow(image_id=self.image_id, image_path=self.image_path, status="quarantined", error=error)


Truth = Mapping[str, Mapping[str, str]]
"""Region id -> its true attributes, where they are known."""


async def label_image(
    row: ManifestRow, describer: Describer, config: WalkConfig, truth: Truth | None = None
) -> LabeledImage | Quarantined:
    """Label the image of a manifest's row. Never raises for what is wrong with one image."""
    started = time.monotonic()
    step: Step = "read"
    try:
        photo = await asyncio.to_thread(read_sa1b, row.image_path, row.masks_path)
        if row.masks_path is None:
            raise InputError(
                f"{row.image_path}: no masks beside it. "
                "Add a JSON file of its name in SA-1B's form, or remove the photo."
            )
        image = decode_image(photo.data, where=row.image_path, size=photo.size)
        step = "tree"
        tree = await asyncio.to_thread(build_mask_tree, photo.masks, photo.size, config.tree)
        segmentations = [region.segmentation for region in tree.regions]
        parents = [region.parent for region in tree.regions]
        attributes = await asyncio.to_thread(measure_tree, image, segmentations, parents)
        step = "describe"
        walk = _Walk(image, tree, tuple(attributes), describer, config)
        regions = await walk.run(truth or {})
    except Exception as error:
        if not isinstance(error, UrecaError):
            logger.exception("image %s failed in step %s", row.image_id, step)
        return Quarantined(row.image_id, row.image_path, step, type(error).__name__, str(error))
    height, width = photo.size
    return LabeledImage(
        ImageRow(
            image_id=row.image_id,
            image_path=row.image_path,
            height=height,
            width=width,
            status="labeled",
            regions=regions,
            provenance=Provenance(
                describer=describer.name,
                model=describer.model,
                prompt_version=describer.prompt_version,
                prompt_tokens=walk.prompt_tokens,
                completion_tokens=walk.completion_tokens,
                seconds=round(time.monotonic() - started, 4),
            ),
        )
    )


class _Walk:
    """The captions of one image while they come in."""

    def __init__(
        self,
        image: np.ndarray,
        tree: MaskTree,
        attributes: tuple[RegionAttributes, ...],
        describer: Describer,
        config: WalkConfig,
    ) -> None:
        self._image, self._tree, self._attributes = image, tree, attributes
        self._describer, self._config = describer, config
        self._distractors = find_distractors(attributes, config.distractors)
        self._segmentations = tuple(region.segmentation for region in tree.regions)
        self._parents = tuple(region.parent for region in tree.regions)
        self._children: dict[int, list[int]] = {index: [] for index in range(-1, len(attributes))}
        for index, region in enumerate(tree.regions):
            self._children[region.parent].append(index)
        self._short: list[asyncio.Task[str]] = []
        self._long: dict[int, asyncio.Task[str]] = {}
        self.prompt_tokens = self.completion_tokens = 0

    async def run(self, truth: Truth) -> tuple[RegionRow, ...]:
        """All passes over all regions.

        Raises:
            Exception: the first that a request raised; the image's other requests are then canceled.
        """
        indices = range(len(self._attributes))
        try:
            async with asyncio.TaskGroup() as group:
                # Created in an order in which whatever a task waits for exists before it.
                self._short = [group.create_task(self._describe_short(index)) for index in indices]
                for index in reversed(indices):
                    self._long[index] = group.create_task(self._describe_long(index))
            async with asyncio.TaskGroup() as group:
                unique = [group.create_task(self._describe_unique(index)) for index in indices]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return tuple(self._row(index, *unique[index].result(), truth) for index in indices)

    async def _describe_short(self, index: int) -> str:
        parent = self._tree.regions[index].parent
        parent_caption = await self._short[parent] if parent >= 0 else None
        siblings = [sibling for sibling in self._children[parent] if sibling < index]
        return await self._ask(
            "short",
            index,
            parent_caption=parent_caption,
            sibling_captions=tuple([await self._short[sibling] for sibling in siblings]),
        )

    async def _describe_long(self, index: int) -> str:
        children = self._children[index]
        return await self._ask(
            "long",
            index,
            own_caption=await self._short[index],
            children=tuple(children),
            child_captions=tuple([await self._long[child] for child in children]),
        )

    async def _describe_unique(self, index: int) -> tuple[str, Verdict]:
        """The best of the tries: the one that the fewest other regions fit, the first of equals."""
        parent = self._tree.regions[index].parent
        tries: list[tuple[str, Verdict]] = []
        for _ in range(1 + self._config.verify_retries):
            caption = await self._ask(
                "unique",
                index,
                own_caption=self._long[index].result(),
                parent_caption=self._short[parent].result() if parent >= 0 else None,
                distractors=self._distractors[index],
                confused_with=tries[-1][1].confused_with if tries else (),
            )
            verdict = verify_caption(caption, index, self._attributes, self._distractors[index])
            tries.append((caption, verdict))
            if not verdict.confused_with:
                break
        return min(tries, key=lambda outcome: len(outcome[1].confused_with))

    async def _ask(self, pass_name: Pass, index: int, **facts: Any) -> str:
        description = await self._describer.describe(
            DescribeRequest(
                pass_name=pass_name,
                image=self._image,
                segmentations=self._segmentations,
                parents=self._parents,
                index=index,
                attributes=self._attributes,
                **facts,
            )
        )
        self.prompt_tokens += description.prompt_tokens
        self.completion_tokens += description.completion_tokens
        return description.text

    def _row(self, index: int, caption: str, verdict: Verdict, truth: Truth) -> RegionRow:
        region = self._tree.regions[index]
        true = truth.get(region.region_id)
        return RegionRow(
            region_id=region.region_id,
            merged_ids=region.merged_ids,
            parent=region.parent,
            depth=region.depth,
            segmentation=region.segmentation,
            area=region.area,
            bbox=region.bbox,
            short_caption=self._short[index].result(),
            long_caption=self._long[index].result(),
            caption=caption,
            distractors=verdict.distractors,
            uniqueness=verdict.uniqueness,
            flags=(NOT_UNIQUE,) if verdict.confused_with else (),
            attributes=None if true is None else dict(true),
        )
