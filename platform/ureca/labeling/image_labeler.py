"""Label one image: read it, build its mask tree, caption its regions in four passes, verify.

    pass      a region waits for
    tree      -
    short     its parent's short caption, and those of the preceding siblings
    long      its children's long captions, and its own short one
    unique    its own long caption and its distractors'; repeated while it is mistaken for another region

One image is one coroutine and each caption one task, so nothing waits for an entire level or pass, and requests of many
images run concurrently. A describer with a model gets no request for a known answer: the long caption of a region
without children is its short one, and a region without distractors is unique. Unusable answers are requested again,
then flagged. Every failure becomes a quarantined row with its step and reason: one bad image never stops a corpus.
Source: URECA (arXiv 2504.05305) section 3, figure 2.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ureca.corpus.schema import ImageRow, Provenance, RegionRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.split import is_heldout
from ureca.errors import StorageError, UrecaError
from ureca.labeling.config import LabelSettings
from ureca.labeling.describers.base import Describer, DescribeRequest, Description, Pass
from ureca.labeling.prepare import PreparedImage, Preparer
from ureca.labeling.uniqueness_check import Verdict, blind_order, judge_choice, verify_caption
from ureca.pipeline.errors import JobStopped
from ureca.pipeline.flags import NOT_UNIQUE, UnusableAnswerError, repeated_captions

logger = logging.getLogger(__name__)

JUDGED_FALSE = "judged_false"
"""Flag of a test-set region whose caption was not judged true."""

_NOT_CHOSEN = "A reader of the caption could not tell which of the regions it describes."


Truth = Mapping[str, Mapping[str, str]]
"""Region id -> true attributes, where known."""


class ImageLabeler:
    """Labels images, many concurrently. One per process."""

    def __init__(self, describer: Describer, config: LabelSettings | None = None) -> None:
        self._describer = describer
        self._config = LabelSettings() if config is None else config
        self._preparer = Preparer(self._config, uses_model=describer.uses_model)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")

    async def label(self, row: ManifestRow, truth: Truth | None = None) -> ImageRow:
        """Return the image's row of the region table, labeled or quarantined; a quarantined row has no captions.

        Steps in a quarantined row's error: read, tree, describe.

        Raises:
            JobStopped: neither this nor any other image can be labeled for now.
            StorageError: the storage does not answer.
        """
        started = time.monotonic()
        counts = _Counts()
        step = "read"
        try:
            loaded = await self._in_thread(self._preparer.loader.read, row)
            step = "tree"
            prepared = await self._in_thread(self._preparer.arrange, loaded)
            step = "describe"
            state = _ImageState(row.image_id, prepared, self._describer, self._config, counts)
            regions = await state.run(truth or {})
        except (JobStopped, StorageError):  # not the image's fault: the next image would fail the same way
            raise
        except Exception as error:
            if not isinstance(error, UrecaError):
                logger.exception("image %s failed in step %s", row.image_id, step)
            provenance = self._provenance(counts, started) if counts.requests else None
            return replace(ImageRow.quarantined(row.image_id, row.image_path, step, error), provenance=provenance)
        return ImageRow(
            image_id=row.image_id,
            image_path=row.image_path,
            height=prepared.size[0],
            width=prepared.size[1],
            status="labeled",
            regions=regions,
            provenance=self._provenance(counts, started),
            notes=prepared.notes,
        )

    async def _in_thread(self, function: Any, argument: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    def _provenance(self, counts: "_Counts", started: float) -> Provenance:
        return Provenance(
            describer=self._describer.name,
            model=self._describer.model,
            prompt_version=self._describer.prompt_version,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            seconds=round(time.monotonic() - started, 4),
            requests=dict(counts.requests) or None,
            retries=dict(counts.retries) or None,
            describer_seconds=round(counts.seconds, 4),
        )


class _Counts:
    """Usage of one image's captions."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.seconds = 0.0

    def add(self, pass_name: Pass, description: Description) -> None:
        self.requests[pass_name] += 1
        self.prompt_tokens += description.prompt_tokens
        self.completion_tokens += description.completion_tokens
        self.seconds += description.seconds


@dataclass(frozen=True)
class _Answer:
    """A caption, or the problem with an unusable answer."""

    text: str | None
    flag: str | None = None


@dataclass(frozen=True)
class _UniqueCaption:
    """The unique caption of a region, with its verdict."""

    text: str | None
    verdict: Verdict
    flags: tuple[str, ...] = ()


class _ImageState:
    """The captions of one image while they are being written."""

    def __init__(
        self, image_id: str, prepared: PreparedImage, describer: Describer, config: LabelSettings, counts: _Counts
    ) -> None:
        self._image_id, self._prepared = image_id, prepared
        self._describer, self._config, self._counts = describer, config, counts
        self._judged = config.judge_share > 0 and is_heldout(image_id, config.judge_share, config.judge_seed)
        self._top = [index for index, parent in enumerate(prepared.parents) if parent < 0]
        self._short: list[asyncio.Task[_Answer]] = []
        self._long: dict[int, asyncio.Task[_Answer]] = {}

    async def run(self, truth: Truth) -> tuple[RegionRow, ...]:
        """Run all passes over all regions.

        Raises:
            Exception: the first error of a request; the image's other requests are then canceled.
            UnusableAnswerError: no region received a caption.
        """
        indices = range(len(self._prepared.parents))
        try:
            async with asyncio.TaskGroup() as group:
                # All tasks are created before the first one runs, so every task can find those it waits for.
                self._short = [group.create_task(self._describe_short(index)) for index in indices]
                self._long = {index: group.create_task(self._describe_long(index)) for index in indices}
                unique_tasks = [group.create_task(self._describe_unique(index)) for index in indices]
        except ExceptionGroup as errors:
            # A stop of the job takes precedence over other errors of this image.
            first_stop = next((error for error in errors.exceptions if isinstance(error, JobStopped)), None)
            raise first_stop or errors.exceptions[0] from None
        captions = [task.result() for task in unique_tasks]
        if captions and all(caption.text is None for caption in captions):
            kinds = Counter(flag for caption in captions for flag in caption.flags)
            raise UnusableAnswerError(
                f"image {self._image_id!r}: none of its {len(captions)} regions received a caption "
                f"({', '.join(f'{kind} {count}' for kind, count in kinds.items())}). Check the image, the prompts and "
                "the model."
            )
        repeated = repeated_captions([caption.text for caption in captions])
        return tuple(
            self._row(index, caption, truth, repeated=repeated[index]) for index, caption in enumerate(captions)
        )

    async def _describe_short(self, index: int) -> _Answer:
        parent = self._prepared.parents[index]
        siblings = self._prepared.children[parent] if parent >= 0 else self._top
        before = [await self._short[sibling] for sibling in siblings if sibling < index]
        return await self._caption(
            "short",
            index,
            parent_caption=(await self._short[parent]).text if parent >= 0 else None,
            sibling_captions=tuple(answer.text for answer in before if answer.text),
        )

    async def _describe_long(self, index: int) -> _Answer:
        short = await self._short[index]
        if short.text is None:
            return short
        answers = {child: await self._long[child] for child in self._prepared.children[index]}
        captions = {child: answer.text for child, answer in answers.items() if answer.text}
        if self._describer.uses_model and not captions:
            return short
        long = await self._caption(
            "long",
            index,
            own_caption=short.text,
            children=tuple(captions),
            child_captions=tuple(captions.values()),
        )
        return long if long.text else _Answer(short.text, long.flag)

    async def _describe_unique(self, index: int) -> _UniqueCaption:
        unique = await self._write_unique(index)
        if not self._judged or unique.text is None:
            return unique
        # The paper's check of its test set: truth, not uniqueness (section 3, "Data verification").
        answer = await self._ask("judge", index, own_caption=unique.text)
        return unique if answer.verdict else replace(unique, flags=(*unique.flags, JUDGED_FALSE))

    async def _write_unique(self, index: int) -> _UniqueCaption:
        """Return the best attempt: the one that fits the fewest other regions, the first among equals."""
        long, distractors = await self._long[index], self._prepared.distractors[index]
        unchecked = Verdict(uniqueness=None, passed=True, confused_with=(), distractors=distractors)
        flags = (long.flag,) if long.flag else ()
        if long.text is None or (self._describer.uses_model and not distractors):
            return _UniqueCaption(long.text, unchecked, flags)
        parent = self._prepared.parents[index]
        facts = {
            "own_caption": long.text,
            "parent_caption": (await self._short[parent]).text if parent >= 0 else None,
            "distractors": distractors,
            "distractor_captions": tuple([(await self._long[other.index]).text or "" for other in distractors]),
        }
        attempts: list[tuple[str, Verdict]] = []
        for attempt in range(1 + self._config.verify_retries):
            if attempt:
                self._counts.retries[NOT_UNIQUE] += 1
            confused_with = attempts[-1][1].confused_with if attempts else ()
            problem = _NOT_CHOSEN if attempts and not confused_with else None
            description = await self._ask("unique", index, problem, **facts, confused_with=confused_with)
            if description.problem:
                flags = (*flags, description.problem.kind)
                break
            verdict = await self._verify(index, description) if self._config.verify else unchecked
            attempts.append((description.text, verdict))
            if verdict.passed:
                break
        if not attempts:
            return _UniqueCaption(long.text, unchecked, flags)
        text, verdict = min(attempts, key=lambda attempt: (not attempt[1].passed, len(attempt[1].confused_with)))
        return _UniqueCaption(text, verdict, flags)

    async def _verify(self, index: int, description: Description) -> Verdict:
        distractors = self._prepared.distractors[index]
        if not self._describer.uses_model:
            return verify_caption(description.text, index, self._prepared.attributes, distractors)
        candidates = blind_order(self._image_id, index, distractors)
        answer = await self._ask("choose", index, own_caption=description.text, candidates=candidates)
        return judge_choice(answer.choice, index, distractors, description.told_apart)

    async def _caption(self, pass_name: Pass, index: int, **facts: Any) -> _Answer:
        description = await self._ask(pass_name, index, **facts)
        return _Answer(None, description.problem.kind) if description.problem else _Answer(description.text)

    async def _ask(self, pass_name: Pass, index: int, problem: str | None = None, **facts: Any) -> Description:
        """Return the answer; if all attempts are unusable, the last one with its problem."""
        for retries_left in reversed(range(1 + self._config.answer_retries)):
            description = await self._describer.describe(
                DescribeRequest(
                    pass_name=pass_name,
                    image=self._prepared.image,
                    segmentations=self._prepared.segmentations,
                    parents=self._prepared.parents,
                    index=index,
                    attributes=self._prepared.attributes,
                    problem=problem,
                    **facts,
                )
            )
            self._counts.add(pass_name, description)
            if description.problem is None or not retries_left:
                break
            self._counts.retries[description.problem.kind] += 1
            problem = description.problem.message
        return description

    def _row(self, index: int, unique: _UniqueCaption, truth: Truth, *, repeated: bool) -> RegionRow:
        region = self._prepared.tree.regions[index]
        attributes = truth.get(region.region_id)
        not_unique = (NOT_UNIQUE,) if repeated or not unique.verdict.passed else ()
        return RegionRow.of(
            region,
            short_caption=self._short[index].result().text,
            long_caption=self._long[index].result().text,
            caption=unique.text,
            distractors=unique.verdict.distractors,
            uniqueness=unique.verdict.uniqueness,
            flags=tuple(dict.fromkeys((*not_unique, *unique.flags))),
            attributes=None if attributes is None else dict(attributes),
        )
