"""Corpus of the demo, synthetic scenes and six real photos, and the quality of its labels."""

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ureca.corpus.read import photos_directory
from ureca.corpus.schema import ImageRow
from ureca.nano.scenes.files import write_scenes


def scene_seeds(scenes: int, seed: int) -> range:
    """Return the seeds of the synthetic scenes of a corpus of that seed."""
    return range(seed * 1_000_000, seed * 1_000_000 + scenes)


def make_corpus(directory: Path, *, scenes: int, seed: int, without: Collection[str] = ()) -> list[str]:
    """Write synthetic scenes and the package's photos, except `without`, as SA-1B pairs; return the two folders.

    A complete folder is kept.
    """
    drawn, photos = directory / "scenes", directory / "photos"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        drawn.mkdir(parents=True)
        write_scenes(drawn, scene_seeds(scenes, seed))
        left_out = shutil.ignore_patterns(*(f"{name}.*" for name in without))
        shutil.copytree(photos_directory(), photos, ignore=left_out)
        (directory / "complete").touch()
    return [str(drawn), str(photos)]


def tree_exact(rows: Iterable[ImageRow], truth: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the fraction of synthetic scenes whose mask tree is correct: the same regions with the same parents."""
    exact = []
    for row in rows:
        if row.image_id in truth:
            found = {
                region.region_id: row.regions[region.parent].region_id if region.parent >= 0 else None
                for region in row.regions
            }
            true = {region_id: record["parent_id"] for region_id, record in truth[row.image_id].items()}
            exact.append(found == true)
    return sum(exact) / len(exact)


def unique_share(rows: Iterable[ImageRow], image_ids: Iterable[str]) -> float:
    """Return the fraction of regions of these images whose caption no other region of the image has."""
    wanted = set(image_ids)
    regions = unique = 0
    for row in rows:
        if row.image_id in wanted:
            captions = [region.caption for region in row.regions]
            regions += len(captions)
            unique += sum(captions.count(caption) == 1 for caption in captions)
    return unique / regions
