"""The region table: one row per image, the only hand-over between labeling, training, evaluation, relabeling.

`REGION_TABLE_SCHEMA` is what stands in the parquet files; `ImageRow` and its parts are the same row in
Python. A quarantined image is a row like any other, with `error` set and no regions, so that nothing
vanishes: images in = rows out.

    status        regions        captions   error
    unlabeled     a tree         none       none
    labeled       a tree         yes        none
    quarantined   none           none       step, kind, message
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import pyarrow as pa

from ureca.errors import InputError
from ureca.regions.rle import Rle
from ureca.regions.tree import Region

SCHEMA_VERSION = 2
"""2 added `notes`, and `requests`, `retries` and `describer_seconds` to `provenance`; 1 is read as having none."""
READABLE_VERSIONS = (1, 2)
ADDED_COLUMNS = ("notes",)
"""Columns that a table of version 1 lacks."""
SCHEMA_VERSION_KEY = b"ureca.region_table.version"

Status = Literal["unlabeled", "labeled", "quarantined"]

_DISTRACTOR = pa.struct([("index", pa.int32()), ("similarity", pa.float32()), ("told_apart_by", pa.string())])

_REGION = pa.struct(
    [
        ("region_id", pa.string()),
        ("merged_ids", pa.list_(pa.string())),
        ("parent", pa.int32()),
        ("depth", pa.int16()),
        ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.float32())),
        ("short_caption", pa.string()),
        ("long_caption", pa.string()),
        ("caption", pa.string()),
        ("distractors", pa.list_(_DISTRACTOR)),
        ("uniqueness", pa.float32()),
        ("flags", pa.list_(pa.string())),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

_PROVENANCE = pa.struct(
    [
        ("describer", pa.string()),
        ("model", pa.string()),
        ("prompt_version", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("code_version", pa.string()),
        ("requests", pa.map_(pa.string(), pa.int32())),
        ("retries", pa.map_(pa.string(), pa.int32())),
        ("describer_seconds", pa.float64()),
    ]
)

REGION_TABLE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("status", pa.string()),
        ("error", pa.struct([("step", pa.string()), ("kind", pa.string()), ("message", pa.string())])),
        ("regions", pa.list_(_REGION)),
        ("provenance", _PROVENANCE),
        ("notes", pa.map_(pa.string(), pa.int32())),
    ],
    metadata={SCHEMA_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def _items(values: Iterable[Any] | None) -> Iterable[Any]:
    """Other writers may store an empty list as null; pandas hands out arrays, which have no truth value."""
    return () if values is None else values


def _pairs(counts: Mapping[str, int] | None) -> list[tuple[str, int]] | None:
    """A map as Arrow takes it, in an order that does not depend on the run; null if it holds nothing."""
    return sorted(counts.items()) if counts else None


def _mapping(pairs: Any) -> dict[str, Any] | None:
    return None if pairs is None else dict(pairs)


def _whole(value: Any) -> int | None:
    """pandas turns a column of whole numbers with nulls into floats with NaN."""
    return None if value is None or value != value else int(value)


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """A region of the same image that the caption might be taken for."""

    index: int
    """Place of the other region in the image's list."""
    similarity: float
    told_apart_by: str | None = None
    """What the caption says to rule it out; None if nothing was found."""


@dataclass(frozen=True, kw_only=True)
class RegionRow:
    """One region of an image: its place in the mask tree, and its captions once there are any."""

    region_id: str
    parent: int
    """Index in the image's list of regions; -1 = top level. Parents stand before their children."""
    depth: int
    segmentation: Rle
    area: int
    """Pixels."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""
    merged_ids: tuple[str, ...] = ()
    """Ids of the near-duplicates folded into this region."""
    short_caption: str | None = None
    long_caption: str | None = None
    caption: str | None = None
    """The unique one."""
    distractors: tuple[Distractor, ...] = ()
    uniqueness: float | None = None
    """Share of verification questions that picked this region; None if never asked."""
    flags: tuple[str, ...] = ()
    attributes: dict[str, str] | None = None
    """True attributes, known for drawn scenes only."""

    @classmethod
    def of(cls, region: Region, **labels: Any) -> Self:
        """A region of a mask tree, with the fields that tell more of it."""
        return cls(**vars(region), **labels)

    def without_captions(self) -> Self:
        """The region as it was before anybody captioned it: its place, its mask, and which others are alike."""
        return replace(
            self,
            short_caption=None,
            long_caption=None,
            caption=None,
            distractors=tuple(replace(each, told_apart_by=None) for each in self.distractors),
            uniqueness=None,
            flags=(),
        )

    def to_record(self) -> dict[str, Any]:
        """The value of this region in the table's `regions` list."""
        return {
            "region_id": self.region_id,
            "merged_ids": list(self.merged_ids),
            "parent": self.parent,
            "depth": self.depth,
            "segmentation": {"size": list(self.segmentation["size"]), "counts": self.segmentation["counts"]},
            "area": self.area,
            "bbox": list(self.bbox),
            "short_caption": self.short_caption,
            "long_caption": self.long_caption,
            "caption": self.caption,
            "distractors": [
                {"index": d.index, "similarity": d.similarity, "told_apart_by": d.told_apart_by}
                for d in self.distractors
            ],
            "uniqueness": self.uniqueness,
            "flags": list(self.flags),
            "attributes": None if self.attributes is None else list(self.attributes.items()),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read one element of `regions`, as pyarrow, pandas or Ray Data hands it out."""
        x, y, width, height = (float(value) for value in record["bbox"])
        segmentation, attributes = record["segmentation"], record["attributes"]
        return cls(
            region_id=record["region_id"],
            merged_ids=tuple(_items(record["merged_ids"])),
            parent=int(record["parent"]),
            depth=int(record["depth"]),
            segmentation={
                "size": [int(value) for value in segmentation["size"]],
                "counts": segmentation["counts"],
            },
            area=int(record["area"]),
            bbox=(x, y, width, height),
            short_caption=record["short_caption"],
            long_caption=record["long_caption"],
            caption=record["caption"],
            distractors=tuple(
                Distractor(
                    index=int(item["index"]),
                    similarity=float(item["similarity"]),
                    told_apart_by=item["told_apart_by"],
                )
                for item in _items(record["distractors"])
            ),
            uniqueness=None if record["uniqueness"] is None else float(record["uniqueness"]),
            flags=tuple(_items(record["flags"])),
            attributes=None if attributes is None else dict(attributes),
        )


@dataclass(frozen=True, kw_only=True)
class RowError:
    """Why an image was set aside."""

    step: str
    """Where it failed: read, tree, describe, verify, write, …"""
    kind: str
    """The error's class name: what a summary counts."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who wrote the captions of an image, from what, and what it took."""

    describer: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    """From the reading of the image to its last caption, waiting included."""
    code_version: str | None = None
    requests: Mapping[str, int] | None = None
    """Pass -> questions asked, those asked again included."""
    retries: Mapping[str, int] | None = None
    """What was wrong with an answer -> how often the question was asked again for it."""
    describer_seconds: float | None = None
    """That endpoint or engine worked on the questions, one after the other."""

    def to_record(self) -> dict[str, Any]:
        """The value of the table's column `provenance`."""
        return {**vars(self), "requests": _pairs(self.requests), "retries": _pairs(self.retries)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read the column as pyarrow, pandas or Ray Data hands it out."""
        maps = {name: _mapping(record.get(name)) for name in ("requests", "retries")}
        return cls(**{**record, **maps})


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image of the region table."""

    image_id: str
    image_path: str | None = None
    image_bytes: bytes | None = None
    """The encoded file; None when the table holds the image by reference (`image_path`)."""
    height: int | None = None
    width: int | None = None
    """Pixels in the frame of its masks: as stored in the file, or as EXIF turns it; None where unreadable."""
    status: Status
    error: RowError | None = None
    regions: tuple[RegionRow, ...] = ()
    provenance: Provenance | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was put right or left out on the way here -> how often, e.g. masks dropped for their size."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise InputError(f"region table row {self.image_id!r}: {problem}. Write rows with ureca.corpus.ImageRow.")

    def _problem(self) -> str | None:
        if self.status not in get_args(Status):
            return f"status {self.status!r} is none of {', '.join(get_args(Status))}"
        if (self.status == "quarantined") != (self.error is not None):
            return f"status {self.status!r} with error {self.error}"
        if self.status == "quarantined" and self.regions:
            return "quarantined with regions"
        if self.status != "quarantined" and (self.height is None or self.width is None):
            return f"status {self.status!r} without the image's height and width"
        for index, region in enumerate(self.regions):
            if not -1 <= region.parent < index:
                return f"region {region.region_id!r} at {index} has its parent at {region.parent}, not before it"
            if list(region.segmentation["size"]) != [self.height, self.width]:
                return (
                    f"region {region.region_id!r} has an RLE of size {region.segmentation['size']}, "
                    f"the image is {[self.height, self.width]}"
                )
            if not region.segmentation["counts"]:
                return f"region {region.region_id!r} has an RLE without counts"
        return None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width); only for rows that were read."""
        assert self.height is not None
        assert self.width is not None
        return self.height, self.width

    @classmethod
    def quarantined(cls, image_id: str, path: str | None, step: str, error: Exception) -> Self:
        """The row of an image that `step` could not get through."""
        return cls(
            image_id=image_id,
            image_path=path,
            status="quarantined",
            error=RowError(step=step, kind=type(error).__name__, message=str(error)),
        )

    def to_record(self) -> dict[str, Any]:
        """The row as a dict that `pyarrow.Table.from_pylist(…, REGION_TABLE_SCHEMA)` takes."""
        return {
            "image_id": self.image_id,
            "image": {"bytes": self.image_bytes, "path": self.image_path},
            "height": self.height,
            "width": self.width,
            "status": self.status,
            "error": None if self.error is None else dict(vars(self.error)),
            "regions": [region.to_record() for region in self.regions],
            "provenance": None if self.provenance is None else self.provenance.to_record(),
            "notes": _pairs(self.notes),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read one row as pyarrow (`to_pylist`), pandas or Ray Data hands it out.

        Raises:
            InputError: the row contradicts itself, e.g. a region whose parent stands after it.
        """
        image, error, provenance = record["image"] or {}, record["error"], record["provenance"]
        return cls(
            image_id=record["image_id"],
            image_path=image.get("path"),
            image_bytes=image.get("bytes"),
            height=_whole(record["height"]),
            width=_whole(record["width"]),
            status=record["status"],
            error=None if error is None else RowError(**error),
            regions=tuple(RegionRow.from_record(region) for region in _items(record["regions"])),
            provenance=None if provenance is None else Provenance.from_record(provenance),
            notes=dict(_items(record.get("notes"))),
        )
