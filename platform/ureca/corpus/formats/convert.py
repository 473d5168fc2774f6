"""Region tables as files that other tools read, and back.

    coco          COCO-style captions JSON
    jsonl         JSONL of (image, RLE, caption)
    ureca_jsonl   the authors' own training file
    datasets      a folder that Hugging Face's `datasets` loads

Images without regions, quarantined ones among them, have nothing that these formats could hold and are left out.
docs/formats.md shows each format.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ureca.corpus.formats.coco_captions import read_coco, write_coco
from ureca.corpus.formats.conversations import read_conversations, write_conversations
from ureca.corpus.formats.datasets_folder import read_datasets, write_datasets
from ureca.corpus.formats.jsonl import read_jsonl, write_jsonl
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ConfigError, InputError

Rows = Callable[[], Iterable[ImageRow]]


@dataclass(frozen=True)
class Format:
    """How a format is written and read. The last argument is the folder of the images, where it is asked for."""

    write: Callable[[Rows, str, str | None], None]
    """From rows, which may be asked for again, to a path."""
    read: Callable[[str, str | None], Iterator[ImageRow]]
    holds_captions_only: bool = False
    """Regions without a caption can't be written."""


FORMATS = {
    "coco": Format(write_coco, read_coco),
    "jsonl": Format(write_jsonl, read_jsonl),
    "ureca_jsonl": Format(write_conversations, read_conversations, holds_captions_only=True),
    "datasets": Format(write_datasets, read_datasets),
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was carried over."""

    images: int
    regions: int
    captions: int
    """Regions with a unique caption."""
    left_out: int
    """Images without regions, or without captions where the format holds nothing else."""


def export_regions(table: str, out: str, format_name: str, images: str | None = None) -> Converted:
    """Write the region table `table` in a format; `images` is a folder that image files are named relative to.

    Raises:
        ConfigError: there is no such format.
        InputError: no region to write, or as the format's own.
        StorageError: it can't be written; a file that was at `out` before is unchanged.
    """
    chosen = _format(format_name)
    counts: Counter[str] = Counter()

    def rows() -> Iterator[ImageRow]:
        counts.clear()
        for row in iter_images(table):
            captions = sum(region.caption is not None for region in row.regions)
            if not row.regions or (chosen.holds_captions_only and not captions):
                counts["left_out"] += 1
                continue
            counts.update(images=1, regions=len(row.regions), captions=captions)
            yield row
        if not counts["images"]:
            what = "a caption" if chosen.holds_captions_only else "regions"
            raise InputError(f"{table}: none of its {counts['left_out']} images has {what}. Label it first.")

    chosen.write(rows, out, images)
    return _converted(counts)


def import_regions(path: str, table: str, format_name: str, images: str | None = None) -> Converted:
    """Write what a file or folder of a format holds as a region table; `images` is where its images are.

    Raises:
        ConfigError: there is no such format, or `table` is no name of a .parquet file.
        InputError: naming file, line and key that are wrong, or that there is no image.
        StorageError: it can't be written; a table that was there before is unchanged.
    """
    chosen = _format(format_name)
    if not table.endswith(".parquet"):
        raise ConfigError(f"{table}: give the name of a .parquet file for the region table")
    counts: Counter[str] = Counter()

    def rows() -> Iterator[ImageRow]:
        for row in chosen.read(path, images):
            captions = sum(region.caption is not None for region in row.regions)
            counts.update(images=1, regions=len(row.regions), captions=captions)
            yield row
        if not counts["images"]:
            raise InputError(f"{path}: no image in it. Give a file that has some.")

    write_regions(table, rows())
    return _converted(counts)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"format {name!r}: there is no such format; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _converted(counts: Counter[str]) -> Converted:
    return Converted(**{name: counts[name] for name in ("images", "regions", "captions", "left_out")})
