"""Captions of held-out regions by every variant, appended to predictions.jsonl as they arrive.

    {"image_id", "region_id", "variant", "caption", "reference", "seed"}    one line per region, variant and seed

An interrupted run resumes. A second file records the origin of each variant's captions (model files, query, length);
lines of a variant whose origin has changed are dropped and generated again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.errors import InputError
from ureca.model.captioner import Captioner
from ureca.model.processor import Cue
from ureca.runs import Progress
from ureca.storage.files import write_bytes, write_json

STYLE = "unique"
"""The query: the references are the labels' unique captions."""
REGIONS_PER_BATCH = 32

_Task = tuple["Variant", ImageRow, int]
"""Variant, image, and maximum caption length in tokens."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of predictions.jsonl."""

    image_id: str
    region_id: str
    variant: str
    caption: str
    reference: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A captioner, and its region cue.

    `mask` passes the region's mask tokens, `box` its box in words, `none` nothing; `box_question` and `image` ask an
    untuned base in its own words about the region's box, or about the whole image.
    """

    name: str
    cue: Cue
    model: str
    """Folder or hub name of the model that `load` loads; determines whether earlier captions are valid."""
    load: Callable[[], Captioner]
    """Called when the variant is next, so that one model is in memory at a time."""
    seed: int = 0
    """Training seed; variants of the same name and different seeds are runs of one variant."""

    @property
    def key(self) -> str:
        """Unique key of the variant."""
        return f"{self.name}/{self.seed}"


def captioned_regions(row: ImageRow) -> list[int]:
    """Return the indices of the regions with a label to compare with; labels judged false do not count."""
    return [index for index, region in enumerate(row.regions) if region.caption and "judged_false" not in region.flags]


def predict(
    variants: Sequence[Variant], rows: Sequence[ImageRow], path: Path, *, max_new_tokens: int, processes: int = 1
) -> list[Prediction]:
    """Caption the labeled regions of `rows` with every variant, greedily; return all lines of `path`.

    `processes`: several help for models too small to use all cores; each process loads its own copy.

    Raises:
        InputError: an image can't be read.
        CheckpointError: a model can't be loaded.
    """
    origins = {variant.key: _origin(variant, max_new_tokens) for variant in variants}
    kept = _kept_predictions(path, origins, rows)
    done = {(_key(each), each.image_id) for each in kept}
    predictions = list(kept)
    progress = Progress("caption", len(variants) * len(rows), unit="images")
    finished = len(done)
    left = ((variant, row) for variant in variants for row in rows if (variant.key, row.image_id) not in done)
    tasks = [(variant, row, max_new_tokens) for variant, row in left]
    answers = map(_Captioners().predict, tasks) if processes == 1 else _in_processes(tasks, processes)
    with open(path, "a", encoding="utf-8") as file:
        for (variant, _, _), made in zip(tasks, answers, strict=True):
            file.write("".join(json.dumps(asdict(each)) + "\n" for each in made))
            file.flush()
            predictions += made
            finished += 1
            progress.update(finished, variant=variant.name)
    progress.close()
    return predictions


class _Captioners:
    """Holds the captioner of one variant at a time; tasks are ordered by variant."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._captioner: Captioner | None = None

    def predict(self, task: _Task) -> list[Prediction]:
        variant, row, max_new_tokens = task
        if self._key != variant.key:
            self._captioner = None  # freed before the next one is loaded
            self._captioner, self._key = variant.load(), variant.key
        assert self._captioner is not None
        return _predict_image(variant, self._captioner, row, max_new_tokens)


def _in_processes(tasks: Sequence[_Task], processes: int) -> Iterator[list[Prediction]]:
    """Yield the results of the tasks, in their order."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and Ray's threads in a broken state
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_process, initargs=(threads,))
    try:
        yield from pool.map(_predict_in_process, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    import torch

    torch.set_num_threads(threads)


_captioners = _Captioners()
"""Captioners of a process of `_in_processes`."""


def _predict_in_process(task: _Task) -> list[Prediction]:
    return _captioners.predict(task)


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions.jsonl; an incomplete last line is ignored.

    Raises:
        InputError: no such file, or another line is not a prediction.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found. Give the predictions.jsonl that jobs/evaluate.py writes.")
    predictions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            predictions.append(Prediction(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: line {number} is not a prediction ({error}). Remove the file.") from error
    return predictions


def _predict_image(variant: Variant, captioner: Captioner, row: ImageRow, max_new_tokens: int) -> list[Prediction]:
    regions = [row.regions[index] for index in captioned_regions(row)]
    image = load_image(row)
    captions: list[str] = []
    if variant.cue in ("none", "image"):  # nothing distinguishes the regions: one answer for all
        query = captioner.processor.query(STYLE, cue=variant.cue)
        captions = captioner.generate(image, [None], [query], max_new_tokens=max_new_tokens) * len(regions)
    else:
        for start in range(0, len(regions), REGIONS_PER_BATCH):
            batch = regions[start : start + REGIONS_PER_BATCH]
            captions += captioner.generate(
                image,
                [region.segmentation if variant.cue == "mask" else None for region in batch],
                [captioner.processor.query(STYLE, cue=variant.cue, box=region.bbox, size=row.size) for region in batch],
                max_new_tokens=max_new_tokens,
            )
    return [
        Prediction(
            image_id=row.image_id,
            region_id=region.region_id,
            variant=variant.name,
            caption=caption,
            reference=region.caption or "",
            seed=variant.seed,
        )
        for region, caption in zip(regions, captions, strict=True)
    ]


def _key(prediction: Prediction) -> str:
    return f"{prediction.variant}/{prediction.seed}"


def _origin(variant: Variant, max_new_tokens: int) -> str:
    """Return a digest of what a variant's captions depend on; model files count by name, size and time."""
    parts = [variant.name, variant.cue, variant.model, STYLE, str(max_new_tokens)]
    folder = Path(variant.model)
    if folder.is_dir():
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            stat = file.stat()
            parts.append(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _kept_predictions(path: Path, origins: dict[str, str], rows: Iterable[ImageRow]) -> list[Prediction]:
    """Return the earlier lines that are still valid, and rewrite the file with exactly these.

    An image counts as done for a variant if all its regions are present with the current references.
    """
    origin_file = path.with_suffix(".origin.json")
    before: dict[str, str] = {}
    earlier: dict[tuple[str, str], dict[str, Prediction]] = {}
    if path.is_file() and origin_file.is_file():
        before = json.loads(origin_file.read_text(encoding="utf-8"))
        for each in read_predictions(path):
            earlier.setdefault((_key(each), each.image_id), {})[each.region_id] = each
    kept: list[Prediction] = []
    for row in rows:
        wanted = {row.regions[index].region_id: row.regions[index].caption for index in captioned_regions(row)}
        for variant, origin in origins.items():
            made = earlier.get((variant, row.image_id), {})
            if before.get(variant) == origin and {key: each.reference for key, each in made.items()} == wanted:
                kept += made.values()
    write_bytes(str(path), "".join(json.dumps(asdict(each)) + "\n" for each in kept).encode())
    write_json(str(origin_file), origins)
    return kept
