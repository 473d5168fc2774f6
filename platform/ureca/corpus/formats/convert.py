"""Convert region tables to formats of other tools, and back.

    coco          COCO-style captions JSON
    jsonl         JSONL of (image, RLE, caption)
    ureca_jsonl   the authors' training file
    datasets      a folder for Hugging Face's `datasets`

Images without regions, including quarantined ones, have no content for these formats and are skipped. docs/formats.md
shows each format.
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
    """Writer and reader of a format. Their last argument is the folder of the images, if needed."""

    write: Callable[[Rows, str, str | None], None]
    """Write rows, which may be requested repeatedly, to a path."""
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
    """Counts of a conversion."""

    images: int
    regions: int
    captions: int
    """Regions with a unique caption."""
    left_out: int
    """Images without regions, or without captions in formats that hold only captions."""


def export_regions(table: str, out: str, format_name: str, images: str | None = None) -> Converted:
    """Write the region table `table` in a format; image file names become relative to the folder `images`.

    Raises:
        ConfigError: unknown format.
        InputError: no region to write, or the format's own errors.
        StorageError: the output can't be written; a previous file at `out` is unchanged.
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
    """Write the content of a file or folder of a format as a region table; `images` is the folder of its images.

    Raises:
        ConfigError: unknown format, or `table` is not the name of a .parquet file.
        InputError: names file, line and key at fault, or no image was found.
        StorageError: the table can't be written; a previous table is unchanged.
    """
    chosen = _format(format_name)
    if not table.endswith(".parquet"):
        raise ConfigError(f"{table}: the region table must be a .parquet file")
    counts: Counter[str] = Counter()

    def rows() -> Iterator[ImageRow]:
        for row in chosen.read(path, images):
            captions = sum(region.caption is not None for region in row.regions)
            counts.update(images=1, regions=len(row.regions), captions=captions)
            yield row
        if not counts["images"]:
            raise InputError(f"{path}: no image in it. Use a file with images.")

    write_regions(table, rows())
    return _converted(counts)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"format {name!r}: unknown; formats: {', '.join(FORMATS)}")
    return FORMATS[name]


def _converted(counts: Counter[str]) -> Converted:
    return Converted(**{name: counts[name] for name in ("images", "regions", "captions", "left_out")})
