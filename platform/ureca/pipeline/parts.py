"""Intermediate files of a corpus job, and how the region table is assembled from them.

    TABLE.parts/manifest.parquet   one row per image, sorted by image id
                rows/*.parquet     finished rows of the region table, one file per block
                checkpoint/        ids of these rows (written by Ray Data)
                settings.json      settings that decide the rows
                spent.json         tokens spent, over all starts
                finished.json      written last: the table is complete, with its images and settings

Rows of a block are close together in the manifest, so all parts can be merged in id order: assembling the table holds
the ids of some parts and the rows of a few, for any corpus size.
"""

import functools
import hashlib
import heapq
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.config import flatten
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import iter_image_ids
from ureca.corpus.table import write_regions
from ureca.errors import ConfigError, InputError
from ureca.storage import files as io

_CHUNK_BYTES = 2**20


class Parts:
    """Paths and bookkeeping of the folder TABLE.parts."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.folder = f"{table}.parts"
        self.manifest = f"{self.folder}/manifest.parquet"
        self.rows = f"{self.folder}/rows"
        self.checkpoint = f"{self.folder}/checkpoint"
        self.spent = f"{self.folder}/spent.json"
        self._settings = f"{self.folder}/settings.json"
        self._finished = f"{self.folder}/finished.json"

    def check_settings(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Check that an earlier start used the same settings; with `overwrite`, delete its results otherwise.

        Sources may be added between starts: the row of an image does not depend on other images.

        Raises:
            ConfigError: the settings differ.
        """
        before = io.read_json(self._settings) if io.exists(self._settings) else settings
        removed = set(before["sources"]) - set(settings["sources"])
        changed = sorted(_leaves({**before, "sources": ()}) ^ _leaves({**settings, "sources": ()}))
        names = list(dict.fromkeys([*(["sources"] if removed else []), *(name for name, _ in changed)]))
        if names and not overwrite:
            raise ConfigError(
                f"{self.folder}: an earlier start used other settings; changed: {', '.join(names)}. Set another "
                "--table, restore the settings, or use --overwrite true to delete the earlier results."
            )
        if names:
            print(f"settings have changed ({', '.join(names)}): deleting {self.folder}", file=sys.stderr)
            for path in (self.rows, self.checkpoint, self.spent):
                self._delete(path)
        self._delete(self._finished)
        io.write_json(self._settings, settings)

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Return whether the table was assembled from these images with these settings."""
        if not (io.exists(self._finished) and io.exists(self.table)):
            return False
        return bool(io.read_json(self._finished) == self._finished_as(settings))

    def mark_finished(self, settings: dict[str, Any]) -> None:
        """Record that the table is complete."""
        io.write_json(self._finished, self._finished_as(settings))

    def num_rows(self) -> int:
        """Return the number of rows that earlier starts wrote, from the file footers."""
        if not io.exists(self.rows):
            return 0
        total = 0
        for path in io.list_files(self.rows, ".parquet"):
            try:
                with io.open_input(path) as file:
                    total += pq.ParquetFile(file).metadata.num_rows
            except (InputError, pa.ArrowInvalid):  # left by a start that was killed while writing; Ray Data deletes it
                continue
        return total

    def write_table(self) -> None:
        """Write the rows of the manifest's images into one table, sorted by id.

        Rows of images that were removed from the sources since an earlier start are skipped.
        """
        write_regions(self.table, self._rows_in_order(), in_order=True)

    def _rows_in_order(self) -> Iterator[ImageRow]:
        load = functools.lru_cache(maxsize=32)(_read)  # neighbors in id order were mostly written together
        written = self._rows_by_id()
        image_id, path, index = next(written, ("", "", 0))
        for wanted in iter_image_ids(self.manifest):
            while path and image_id < wanted:
                image_id, path, index = next(written, ("", "", 0))
            assert image_id == wanted, f"{wanted} was neither labeled nor quarantined"
            yield ImageRow.from_record(load(path).slice(index, 1).to_pylist()[0])
            image_id, path, index = next(written, ("", "", 0))
            assert image_id != wanted, f"{wanted} was labeled twice"

    def _rows_by_id(self) -> Iterator[tuple[str, str, int]]:
        """Yield (image id, file, row index) of every written row, sorted by id."""
        unopened = sorted((min(_ids(path), default=""), path) for path in io.list_files(self.rows, ".parquet"))
        unopened.reverse()
        heads: list[tuple[str, str, int, Iterator[tuple[str, int]]]] = []

        def advance(path: str, rest: Iterator[tuple[str, int]]) -> None:
            for image_id, index in rest:
                heapq.heappush(heads, (image_id, path, index, rest))
                return

        while heads or unopened:
            while unopened and (not heads or unopened[-1][0] <= heads[0][0]):
                _, path = unopened.pop()
                ids = _ids(path)
                advance(path, iter(sorted(zip(ids, range(len(ids)), strict=True))))
            if heads:
                image_id, path, index, rest = heapq.heappop(heads)
                yield image_id, path, index
                advance(path, rest)

    def _finished_as(self, settings: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256()
        with io.open_input(self.manifest) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return {"settings": settings, "manifest_sha256": digest.hexdigest()}

    def _delete(self, path: str) -> None:
        if not io.exists(path):
            return
        filesystem, inner = io.filesystem(path)
        if io.is_folder(path):
            filesystem.delete_dir(inner)
        else:
            filesystem.delete_file(inner)


def _read(path: str, columns: list[str] | None = None) -> pa.Table:
    with io.open_input(path) as file:
        return pq.ParquetFile(file).read(columns=columns)


def _ids(path: str) -> list[str]:
    ids: list[str] = _read(path, ["image_id"])["image_id"].to_pylist()
    return ids


def _leaves(settings: dict[str, Any]) -> set[tuple[str, str]]:
    """Return (dotted name, value as JSON) of every setting."""
    return {(name, io.to_json(value)) for name, value in flatten(settings).items()}
