"""Looks at a training while it runs: held-out images captioned, scored, and drawn, every few steps.

    <run>/eval/images.json                   where in the table the images are
                step_000050/captions.jsonl    image, region, caption, label, whether the caption fits its region alone
                            image_00.jpg      the same as a picture

A look captions the same regions every time, greedily, the image prefix of an image computed once for all of its
regions. The images are shared out over the workers. With ZeRO 3, where these gather the weights together, all caption
equally many, and go on until the longest caption of all is done. It leaves the training as it was: no weight, no random
state, no module's mode differs after it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from PIL import Image

from ureca.corpus.row_groups import RowGroups, TableFile, table_files
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import split_heldout
from ureca.corpus.table import load_image
from ureca.errors import InputError
from ureca.evaluation.inloop import Sums, quick_sums, scores_of
from ureca.evaluation.predictions import STYLE, captioned_regions
from ureca.evaluation.uniqueness import Candidates, ScoredCaption, picks_own, region_candidates
from ureca.model.captioner import Captioner
from ureca.storage.files import read_json, write_json
from ureca.training.config import Cue, EvalConfig
from ureca.viewer.captioned_picture import CaptionedRegion, captioned_picture

EVAL_DIRECTORY = "eval"
CAPTIONS_FILE = "captions.jsonl"
IMAGES_FILE = "images.json"


@dataclass(frozen=True)
class EvalImage:
    """One image that is captioned at every look."""

    row: ImageRow
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[int, ...]
    """Those of its regions that are captioned."""
    candidates: Candidates

    @classmethod
    def of(cls, row: ImageRow, *, regions: int) -> EvalImage:
        """Read the image and measure its regions; at most `regions` of them are captioned. Raises ImageError."""
        there = captioned_regions(row)
        chosen = sorted(random.Random(f"watch/{row.image_id}").sample(there, min(regions, len(there))))
        pixels = load_image(row)
        return cls(row, pixels, tuple(chosen), region_candidates(pixels, row))


@dataclass(frozen=True)
class EvalResult:
    """What a look found, over all workers."""

    scores: dict[str, float]
    """Metric -> 0..1; see `ureca.evaluation.inloop`."""
    records: list[dict[str, Any]]
    """One a region, as in captions.jsonl."""
    files: list[Path]
    """What this worker has written of it."""


def eval_directory(run: str | Path, step: int) -> Path:
    """Where the pictures and captions of the look after `step` steps are."""
    return Path(run) / EVAL_DIRECTORY / f"step_{step:06d}"


def select_eval_images(
    table: str, directory: str | Path, config: EvalConfig, *, heldout: float, heldout_seed: int
) -> int:
    """Choose the held-out images that a run looks at, and leave their places in its folder; returns their number.

    They are the same for every run over the same table. For the driver, before any worker starts.

    Raises:
        InputError: no held-out image has a caption to compare with, or none the truth that the score needs.
    """
    files = table_files(table)
    groups = RowGroups(files)
    leaves = {"image_id", "status", "regions.caption", "regions.flags"}
    places: dict[str, tuple[int, int, int]] = {}
    usable: set[str] = set()
    for number in range(len(files)):
        for group, part in enumerate(groups.scan(number, lambda name: name in leaves)):
            for row, found in enumerate(part.to_pylist()):
                places[found["image_id"]] = (number, group, row)
                if found["status"] == "labeled" and any(map(_is_captioned, found["regions"] or ())):
                    usable.add(found["image_id"])
    usable &= set(split_heldout(places, heldout, heldout_seed).heldout)
    ordered = sorted(usable, key=lambda image_id: hashlib.sha256(f"watch\n{image_id}".encode()).digest())
    chosen = [places[image_id] for image_id in ordered[: config.images]]
    if not chosen:
        raise InputError(
            f"{table}: no held-out image has captions, so there is nothing to look at while training runs. "
            "Hold out a larger share (--heldout), or set --eval.every_steps=0."
        )
    rows = [groups.row(*place) for place in chosen]
    if config.score == "attribute_accuracy" and not any(each.attributes for row in rows for each in row.regions):
        raise InputError(
            f"{table}: true attributes are known for drawn scenes only, and it holds none: "
            "eval.score=attribute_accuracy can't be had. Set --eval.score to rouge_l or uniqueness."
        )
    write_json(Path(directory) / EVAL_DIRECTORY / IMAGES_FILE, {"files": files, "places": chosen})
    return len(chosen)


def _is_captioned(region: dict[str, Any]) -> bool:
    """As `captioned_regions` has it."""
    return bool(region["caption"]) and "judged_false" not in (region["flags"] or ())


def read_eval_images(directory: str | Path) -> list[ImageRow]:
    """The images that `select_eval_images` chose for a run. Raises InputError if the table has changed since."""
    record = read_json(Path(directory) / EVAL_DIRECTORY / IMAGES_FILE)
    groups = RowGroups([TableFile(*file) for file in record["files"]])
    return [groups.row(*place) for place in record["places"]]


class InLoopEvaluator:
    """One worker's part in the looks of a training. All workers must call it alike."""

    def __init__(
        self, directory: str | Path, config: EvalConfig, *, cue: Cue, in_lockstep: bool, rank: int, num_workers: int
    ) -> None:
        """Reads this worker's images. Raises InputError as `read_eval_images`, ImageError where one can't be read."""
        self._directory, self._config, self._cue = directory, config, cue
        self._rank, self._num_workers = rank, num_workers
        rows = read_eval_images(directory) if config.every_steps else []
        numbers = range(rank, len(rows), num_workers)
        self._mine = [(number, self._image(rows[number])) for number in numbers]
        self._idle: EvalImage | None = None
        """Captioned for nothing by a worker that has an image less than others, where ZeRO 3 wants it to."""
        if in_lockstep and len(numbers) < len(range(0, len(rows), num_workers)):
            self._idle = self._image(rows[0])

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to look after `step` steps."""
        every = self._config.every_steps
        return every > 0 and (step % every == 0 or step == num_steps)

    def evaluate(self, captioner: Captioner, step: int) -> EvalResult:
        """Caption and score; pictures and captions lie in `eval_directory` afterwards."""
        records: list[dict[str, Any]] = []
        sums: list[Sums] = []
        files: list[Path] = []
        folder = eval_directory(self._directory, step)
        folder.mkdir(parents=True, exist_ok=True)
        with preserve_state(captioner):
            for number, image in self._mine:
                captions = self._caption(captioner, image)
                found, items = _records(image, captions)
                records += [{"image": number, **each} for each in found]
                sums.append(quick_sums(items))
                if number < self._config.pictures:
                    files.append(folder / f"image_{number:02d}.jpg")
                    Image.fromarray(_picture(image, found, step)).save(files[-1], quality=90)
            if self._idle:
                self._caption(captioner, self._idle)
        gathered: list[Any] = [None] * self._num_workers
        torch.distributed.all_gather_object(gathered, (records, sums))
        everyone = sorted((each for part, _ in gathered for each in part), key=lambda record: record["image"])
        if self._rank == 0:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in everyone)
            files.append(folder / CAPTIONS_FILE)
            files[-1].write_text(lines, encoding="utf-8")
        return EvalResult(scores_of(each for _, part in gathered for each in part), everyone, files)

    def _image(self, row: ImageRow) -> EvalImage:
        return EvalImage.of(row, regions=self._config.regions_per_image)

    def _caption(self, captioner: Captioner, image: EvalImage) -> list[str]:
        cue, regions = self._cue, [image.row.regions[index] for index in image.regions]
        processor = captioner.processor
        return captioner.generate(
            image.pixels,
            [region.segmentation if cue == "mask" else None for region in regions],
            [processor.query(STYLE, cue=cue, box=region.bbox, size=image.row.size) for region in regions],
            max_new_tokens=self._config.max_new_tokens,
        )


@contextmanager
def preserve_state(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; after it every module's mode and the random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _records(image: EvalImage, captions: Sequence[str]) -> tuple[list[dict[str, Any]], list[ScoredCaption]]:
    records, items = [], []
    for index, caption in zip(image.regions, captions, strict=True):
        region = image.row.regions[index]
        items.append(ScoredCaption(caption, region.caption or "", index, image.candidates))
        records.append(
            {
                "image_id": image.row.image_id,
                "region_id": region.region_id,
                "caption": caption,
                "reference": region.caption,
                "fits_alone": picks_own(items[-1]),
            }
        )
    return records, items


def _picture(image: EvalImage, records: Sequence[dict[str, Any]], step: int) -> np.ndarray:
    regions = [
        CaptionedRegion(
            number=number,
            segmentation=image.row.regions[index].segmentation,
            caption=record["caption"],
            label=record["reference"],
            fits_alone=record["fits_alone"],
        )
        for number, (index, record) in enumerate(zip(image.regions, records, strict=True), start=1)
    ]
    return captioned_picture(image.pixels, regions, title=f"{image.row.image_id}, step {step}")
