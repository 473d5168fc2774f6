"""Write a region table as one self-contained HTML page: images, regions, trees, captions, filters.

The page needs no other files: pictures, data, style and script are embedded. Each picture is a separate block that the
browser decodes only when it is shown. Images beyond the limit are counted and left out, and the page says so.

    write_gallery("gallery.html", "runs/label_corpus/regions.parquet", images=200, only="flagged")
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca.corpus.schema import ImageRow, Status
from ureca.corpus.split import evenly_spaced
from ureca.corpus.table import iter_batches
from ureca.errors import InputError
from ureca.runs import Progress
from ureca.storage import files as io
from ureca.viewer.gallery_records import picture_of, record_of

FLAGGED = "flagged"
"""Selects images with a flagged region."""
_COUNTED = ("images", *get_args(Status), "regions", "flagged regions")


@dataclass(frozen=True, kw_only=True)
class GallerySummary:
    """Content of a gallery."""

    num_bytes: int
    """Size of the page."""
    shown: int
    """Images on the page."""
    matching: int
    """Images of the table that match the selection."""
    images: int
    """Images of the table."""


@dataclass
class _Survey:
    """Content of a table, and its rows that match the selection."""

    counts: Counter[str] = field(default_factory=Counter)
    matching: list[int] = field(default_factory=list)
    """Row numbers, in the table's order."""


def write_gallery(path: str | os.PathLike[str], table: str, *, images: int = 200, only: str = "") -> GallerySummary:
    """Write the page of a region table.

    Args:
        path: the HTML file, local or in S3; it appears when it is complete.
        images: maximum images to show; if there are more, a selection spread evenly over the table.
        only: "flagged", a status ("quarantined", …), or a pattern of image ids with * and ?; empty: all.

    Raises:
        InputError: not a region table, or nothing in it matches.
        StorageError: the page can't be written.
    """
    survey = _survey(table, only)
    if not survey.matching:
        held = ", ".join(f"{survey.counts[name]:,} {name}" for name in _COUNTED if survey.counts[name])
        raise InputError(f"{table}: no image is {only!r}. It holds {held}." if only else f"{table}: holds no image.")
    chosen = evenly_spaced(survey.matching, images)
    num_bytes = 0
    with io.open_output(path) as file:
        for piece in _page(table, survey, chosen, only):
            num_bytes += file.write(piece.encode())
    return GallerySummary(
        num_bytes=num_bytes, shown=len(chosen), matching=len(survey.matching), images=survey.counts["images"]
    )


def _survey(table: str, only: str) -> _Survey:
    """Scan the table by columns: rows become objects only if they are shown."""
    survey = _Survey()
    for batch in iter_batches(table):
        first = survey.counts["images"]
        status = np.asarray(batch["status"].to_pylist())
        flagged = _flagged(batch, survey.counts)
        survey.counts["images"] += batch.num_rows
        for name in get_args(Status):
            survey.counts[name] += int((status == name).sum())
        if only == FLAGGED:
            wanted = flagged
        elif not only or only in get_args(Status):
            wanted = status == only if only else np.ones(batch.num_rows, bool)
        else:
            wanted = np.array([fnmatch.fnmatchcase(image_id, only) for image_id in batch["image_id"].to_pylist()])
        survey.matching += (first + np.flatnonzero(wanted)).tolist()
    return survey


def _flagged(batch: pa.RecordBatch, counts: Counter[str]) -> np.ndarray:
    """Return bool (rows,): images that have a flagged region; counts regions and flags along the way."""
    regions = batch["regions"]
    lengths = pc.fill_null(pc.list_value_length(regions), 0).to_numpy(zero_copy_only=False)
    flags = pc.struct_field(regions.flatten(), "flags")
    has_flag = pc.greater(pc.fill_null(pc.list_value_length(flags), 0), 0).to_numpy(zero_copy_only=False)
    counts["regions"] += int(lengths.sum())
    counts["flagged regions"] += int(has_flag.sum())
    images = np.repeat(np.arange(batch.num_rows), lengths)
    return np.bincount(images, weights=has_flag, minlength=batch.num_rows) > 0


def _rows(table: str, chosen: list[int]) -> Iterator[ImageRow]:
    """Yield the rows with these numbers, in ascending order."""
    wanted, first = iter(chosen), 0
    number = next(wanted, None)
    for batch in iter_batches(table):
        while number is not None and number < first + batch.num_rows:
            yield ImageRow.from_record(batch.slice(number - first, 1).to_pylist()[0])
            number = next(wanted, None)
        if number is None:
            return
        first += batch.num_rows


def _page(table: str, survey: _Survey, chosen: list[int], only: str) -> Iterator[str]:
    """Yield the page in order, holding one picture at a time."""
    files = resources.files("ureca.viewer")
    frame, style, script = (
        files.joinpath(name).read_text(encoding="utf-8") for name in ("gallery.html", "gallery.css", "gallery.js")
    )
    head, tail = frame.split("<!-- data -->")
    texts = {
        "<!-- title -->": escape(f"Regions of {Path(table).name}"),
        "<!-- table -->": escape(table),
        "<!-- facts -->": _facts(survey.counts),
        "<!-- shown -->": _shown(survey, len(chosen), only),
        "/* style */": style,
    }
    for mark, text in texts.items():
        head = head.replace(mark, text)
    yield head
    progress = Progress("view", len(chosen), unit="images")
    records = []
    for number, row in enumerate(_rows(table, chosen)):
        records.append(record_of(row))
        yield _block(f"picture-{number}", picture_of(row))
        progress.update(number + 1)
    progress.close()
    yield _block("records", records)
    yield tail.replace("/* script */", script)


def _block(name: str, value: Any) -> str:
    """Return data in a block that the browser ignores until the script reads it."""
    # "<" could end the block; no other character is special inside it
    data = io.to_json(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{data}</script>\n'


def _facts(counts: Counter[str]) -> str:
    always = ("images", "quarantined", "regions", "flagged regions")
    return "".join(
        f"<li><b>{counts[name]:,}</b><span>{name}</span></li>" for name in _COUNTED if counts[name] or name in always
    )


def _shown(survey: _Survey, shown: int, only: str) -> str:
    """Return one sentence on what the page leaves out."""
    matching, images = len(survey.matching), survey.counts["images"]
    asked = f" that are {escape(repr(only))}" if only else ""
    if shown < matching:
        return (
            f"This page shows {shown:,} of the {matching:,} images{asked}, evenly spread over the table; the other "
            f"{matching - shown:,} are left out. <code>--images {matching}</code> shows all."
        )
    if only:
        return f"This page shows all {matching:,} images{asked}, of {images:,} in the table."
    return f"This page shows all {images:,} images of the table."
