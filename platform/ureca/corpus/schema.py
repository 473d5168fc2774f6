"""Schema of the region table: one row per image, the only interface between labeling, training and evaluation.

`REGION_TABLE_SCHEMA` is the parquet schema; `ImageRow` and its parts are the same row in Python. A quarantined image is
a row like any other, with `error` set and no regions, so nothing is lost: images in = rows out.

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
"""Version 2 added `notes`, and `requests`, `retries` and `describer_seconds` to `provenance`; readers fill them for
1."""
READABLE_VERSIONS = (1, 2)
ADDED_COLUMNS = ("notes",)
"""Columns missing in version 1."""
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
    """Iterate a list that other writers may store as null, or pandas returns as an array."""
    return () if values is None else values


def _pairs(counts: Mapping[str, int] | None) -> list[tuple[str, int]] | None:
    """Convert a map for Arrow, in deterministic order; null if empty."""
    return sorted(counts.items()) if counts else None


def _mapping(pairs: Any) -> dict[str, Any] | None:
    return None if pairs is None else dict(pairs)


def _whole(value: Any) -> int | None:
    """Convert to int; pandas turns integer columns with nulls into floats with NaN."""
    return None if value is None or value != value else int(value)


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """A region of the same image that a caption may be mistaken for."""

    index: int
    """Index of the other region in the image's list."""
    similarity: float
    told_apart_by: str | None = None
    """Claim of the caption that rules it out; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class RegionRow:
    """One region of an image: its position in the mask tree, and its captions if it has any."""

    region_id: str
    parent: int
    """Index in the image's list of regions; -1 = top level. Parents precede their children."""
    depth: int
    segmentation: Rle
    area: int
    """Area in pixels."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""
    merged_ids: tuple[str, ...] = ()
    """Ids of near-duplicates merged into this region."""
    short_caption: str | None = None
    long_caption: str | None = None
    caption: str | None = None
    """The unique caption."""
    distractors: tuple[Distractor, ...] = ()
    uniqueness: float | None = None
    """Share of verification questions that picked this region; None if none was asked."""
    flags: tuple[str, ...] = ()
    attributes: dict[str, str] | None = None
    """True attributes, known only with ground truth."""

    @classmethod
    def of(cls, region: Region, **labels: Any) -> Self:
        """Create a row from a region of a mask tree, with further fields."""
        return cls(**vars(region), **labels)

    def without_captions(self) -> Self:
        """Return the region without captions: position, mask and distractors."""
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
        """Return this region's value in the table's `regions` list."""
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
        """Read one element of `regions`, as returned by pyarrow, pandas or Ray Data."""
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
    """Reason why an image was quarantined."""

    step: str
    """Step that failed: read, tree, describe, verify, write, …"""
    kind: str
    """Error class name, counted in summaries."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin and usage of an image's captions."""

    describer: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    """Seconds from reading the image to its last caption, including waits."""
    code_version: str | None = None
    requests: Mapping[str, int] | None = None
    """Pass -> requests, including repeated ones."""
    retries: Mapping[str, int] | None = None
    """Problem of an answer -> requests repeated for it."""
    describer_seconds: float | None = None
    """Total service time of endpoint or engine, in seconds."""

    def to_record(self) -> dict[str, Any]:
        """Return the value of the table's column `provenance`."""
        return {**vars(self), "requests": _pairs(self.requests), "retries": _pairs(self.retries)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read the column as returned by pyarrow, pandas or Ray Data."""
        maps = {name: _mapping(record.get(name)) for name in ("requests", "retries")}
        return cls(**{**record, **maps})


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image of the region table."""

    image_id: str
    image_path: str | None = None
    image_bytes: bytes | None = None
    """The encoded file; None if the table refers to the image by `image_path`."""
    height: int | None = None
    width: int | None = None
    """Size in the orientation of its masks: as stored, or after EXIF rotation; None if unreadable."""
    status: Status
    error: RowError | None = None
    regions: tuple[RegionRow, ...] = ()
    provenance: Provenance | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    """Repairs and drops on the way here -> count, e.g. masks dropped for their size."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise InputError(
                f"region table row {self.image_id!r}: {problem}. Write rows with ureca.corpus.schema.ImageRow."
            )

    def _problem(self) -> str | None:
        if self.status not in get_args(Status):
            return f"status {self.status!r} is not one of {', '.join(get_args(Status))}"
        if (self.status == "quarantined") != (self.error is not None):
            return f"status {self.status!r} with error {self.error}"
        if self.status == "quarantined" and self.regions:
            return "quarantined with regions"
        if self.status != "quarantined" and (self.height is None or self.width is None):
            return f"status {self.status!r} without the image's height and width"
        for index, region in enumerate(self.regions):
            if not -1 <= region.parent < index:
                return f"region {region.region_id!r} at index {index} has its parent at {region.parent}, not before it"
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
        """(height, width); only for readable images."""
        assert self.height is not None
        assert self.width is not None
        return self.height, self.width

    @classmethod
    def quarantined(cls, image_id: str, path: str | None, step: str, error: Exception) -> Self:
        """Return the row of an image that failed in `step`."""
        return cls(
            image_id=image_id,
            image_path=path,
            status="quarantined",
            error=RowError(step=step, kind=type(error).__name__, message=str(error)),
        )

    def to_record(self) -> dict[str, Any]:
        """Return the row as a dict for `pyarrow.Table.from_pylist(…, REGION_TABLE_SCHEMA)`."""
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
        """Read one row as returned by pyarrow (`to_pylist`), pandas or Ray Data.

        Raises:
            InputError: the row is inconsistent, e.g. a region precedes its parent.
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
