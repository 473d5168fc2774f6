"""In-loop evaluation: caption, score and draw held-out images every few steps of a training.

    <run>/eval/images.json                  location of the images in the table
               step_000050/captions.jsonl   image, region, caption, label, whether the caption fits only its region
                           image_00.jpg     the same as a picture

Every evaluation captions the same regions greedily; the image prefix is computed once per image. Workers divide the
images among them. Under ZeRO 3, which gathers weights collectively, all workers caption the same number of images and
decode until the longest caption is complete. Weights, random states and module modes are unchanged afterwards.
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
    """An image that every evaluation captions."""

    row: ImageRow
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[int, ...]
    """Indices of the regions to caption."""
    candidates: Candidates

    @classmethod
    def of(cls, row: ImageRow, *, regions: int) -> EvalImage:
        """Read an image and measure its regions; select at most `regions` to caption. Raises ImageError."""
        there = captioned_regions(row)
        chosen = sorted(random.Random(f"watch/{row.image_id}").sample(there, min(regions, len(there))))
        pixels = load_image(row)
        return cls(row, pixels, tuple(chosen), region_candidates(pixels, row))


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation, over all workers."""

    scores: dict[str, float]
    """Metric -> value in 0..1; see `ureca.evaluation.inloop`."""
    records: list[dict[str, Any]]
    """One record per region, as in captions.jsonl."""
    files: list[Path]
    """Files written by this worker."""


def eval_directory(run: str | Path, step: int) -> Path:
    """Return the folder of pictures and captions of the evaluation after `step` steps."""
    return Path(run) / EVAL_DIRECTORY / f"step_{step:06d}"


def select_eval_images(
    table: str, directory: str | Path, config: EvalConfig, *, heldout: float, heldout_seed: int
) -> int:
    """Select the held-out images to evaluate on, write their locations to the run's folder, return their number.

    The selection is the same for every run on the same table. The driver calls this before workers start.

    Raises:
        InputError: no held-out image has a reference caption, or the score needs true attributes and none has any.
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
            f"{table}: no held-out image has captions, so in-loop evaluation has no references. Raise --heldout, or "
            "set --eval.every_steps=0."
        )
    rows = [groups.row(*place) for place in chosen]
    if config.score == "attribute_accuracy" and not any(each.attributes for row in rows for each in row.regions):
        raise InputError(
            f"{table}: eval.score=attribute_accuracy needs true attributes, which only drawn scenes have, and this "
            "table has none. Set --eval.score to rouge_l or uniqueness."
        )
    write_json(Path(directory) / EVAL_DIRECTORY / IMAGES_FILE, {"files": files, "places": chosen})
    return len(chosen)


def _is_captioned(region: dict[str, Any]) -> bool:
    """Return whether a region has a usable caption, like `captioned_regions`."""
    return bool(region["caption"]) and "judged_false" not in (region["flags"] or ())


def read_eval_images(directory: str | Path) -> list[ImageRow]:
    """Read the images that `select_eval_images` selected. Raises InputError if the table has changed since."""
    record = read_json(Path(directory) / EVAL_DIRECTORY / IMAGES_FILE)
    groups = RowGroups([TableFile(*file) for file in record["files"]])
    return [groups.row(*place) for place in record["places"]]


class InLoopEvaluator:
    """One worker's part of in-loop evaluation. All workers must make the same calls."""

    def __init__(
        self, directory: str | Path, config: EvalConfig, *, cue: Cue, in_lockstep: bool, rank: int, num_workers: int
    ) -> None:
        """Read this worker's images. Raises InputError like `read_eval_images`, ImageError if one can't be read."""
        self._directory, self._config, self._cue = directory, config, cue
        self._rank, self._num_workers = rank, num_workers
        rows = read_eval_images(directory) if config.every_steps else []
        numbers = range(rank, len(rows), num_workers)
        self._mine = [(number, self._image(rows[number])) for number in numbers]
        self._idle: EvalImage | None = None
        """Image captioned without effect by a worker that has one image less than others, under ZeRO 3."""
        if in_lockstep and len(numbers) < len(range(0, len(rows), num_workers)):
            self._idle = self._image(rows[0])

    def due(self, step: int, num_steps: int) -> bool:
        """Return whether to evaluate after `step` steps."""
        every = self._config.every_steps
        return every > 0 and (step % every == 0 or step == num_steps)

    def evaluate(self, captioner: Captioner, step: int) -> EvalResult:
        """Caption and score the images; write pictures and captions to `eval_directory`."""
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
    """Switch to evaluation mode inside the block; restore module modes and random states afterwards."""
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
