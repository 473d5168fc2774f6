"""The authors' training file: JSONL, one question and answer per region, masks named by their SA-1B id.

    {"id": 0, "image": "sa_223750", "mask_id": "7", "conversations": [
        {"from": "human", "value": "<image>\nDescribe this region in the image."},
        {"from": "gpt", "value": "the red cup …"}]}

It holds only captions. Reading looks up images and masks in their corpus: the image by its name without folder and
suffix, the mask by its id. The mask tree is built from the captioned masks. Source: URECA's repository,
`convert_to_jsonl`. Of its ten wordings the plain one is written, which its evaluation uses. Its training expects a mask
placeholder in the question, which another of its scripts inserts.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ureca.corpus.formats.jsonl import iter_json_lines
from ureca.corpus.formats.records import need, with_regions
from ureca.corpus.read import read_row
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow, iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.errors import ConfigError, InputError
from ureca.storage import files as io

QUESTION = "<image>\nDescribe this region in the image."


@dataclass(frozen=True)
class _Caption:
    mask_id: str
    text: str
    where: str


def write_conversations(rows: Callable[[], Iterable[ImageRow]], path: str, images: str | None = None) -> None:
    """Write the captions of the rows that `rows` returns; regions without a caption are skipped.

    Raises:
        InputError: two images have the same name.
        StorageError: the file can't be written.
    """
    del images  # images are named without their folders
    image_ids: dict[str, str] = {}
    number = 0
    with io.open_output(path) as file:
        for row in rows():
            name = _name(row.image_id)
            if image_ids.setdefault(name, row.image_id) != row.image_id:
                raise InputError(
                    f"images {image_ids[name]!r} and {row.image_id!r} are both named {name!r} in this format. Split "
                    "the table so that names differ."
                )
            for region in row.regions:
                if region.caption is None:
                    continue
                line = {
                    "id": number,
                    "image": name,
                    "mask_id": region.region_id,
                    "conversations": [
                        {"from": "human", "value": QUESTION},
                        {"from": "gpt", "value": region.caption},
                    ],
                }
                file.write((io.to_json(line) + "\n").encode())
                number += 1


def read_conversations(path: str, images: str | None = None) -> Iterator[ImageRow]:
    """Yield the rows of a file, with images and masks from the corpus `images` (a source as for `write_manifest`).

    All captions of the file are held in memory.

    Raises:
        ConfigError: `images` is not given.
        InputError: names the line: a key missing, or an image or mask missing in the corpus.
        UrecaError: like `ureca.corpus.read.read_row`.
    """
    if images is None:
        raise ConfigError(
            f"{path}: this format holds no masks. Set --images to the folder of SA-1B's photos and masks."
        )
    captions: dict[str, list[_Caption]] = {}
    for where, record in iter_json_lines(path):
        name = str(need(record, "image", where))
        caption = _Caption(str(need(record, "mask_id", where)), _answer(record, where), where)
        captions.setdefault(_name(os.path.splitext(name)[0]), []).append(caption)
    with tempfile.TemporaryDirectory(prefix="ureca-convert-") as folder:
        manifest = Path(folder) / "manifest.parquet"
        write_manifest([images], manifest)
        for row in iter_manifest(manifest):
            if found := captions.pop(_name(row.image_id), None):
                yield _image_row(row, found)
    if captions:
        (first, *_) = captions.values()
        raise InputError(
            f"{first[0].where}: {images} has no image {next(iter(captions))!r}; {len(captions)} images are missing."
        )


def _image_row(row: ManifestRow, captions: list[_Caption]) -> ImageRow:
    loaded = read_row(row)
    masks = {mask.region_id: mask.segmentation for mask in loaded.masks}
    for caption in captions:
        if caption.mask_id not in masks:
            raise InputError(
                f"{caption.where}: image {row.image_id!r} has no mask {caption.mask_id!r} in {row.masks_path}. Use "
                "the masks that were captioned."
            )
    height, width = loaded.size
    records = [
        {"region_id": caption.mask_id, "segmentation": masks[caption.mask_id], "caption": caption.text}
        for caption in captions
    ]
    bare = ImageRow(image_id=row.image_id, image_path=row.image_path, height=height, width=width, status="unlabeled")
    return with_regions(bare, records, [caption.where for caption in captions])


def _answer(record: dict[str, object], where: str) -> str:
    conversations = need(record, "conversations", where)
    turns = conversations if isinstance(conversations, list) else []
    answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
    if len(answers) != 1 or not isinstance(answers[0], str):
        raise InputError(
            f"{where}: key 'conversations' holds {len(answers)} answers. "
            'Give one {"from": "gpt", "value": the caption} after the question.'
        )
    return answers[0]


def _name(image_id: str) -> str:
    return PurePosixPath(image_id).name
