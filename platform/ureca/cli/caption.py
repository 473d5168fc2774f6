"""`ureca caption PHOTO`: caption regions of one photo, as a table, a picture or JSON.

Regions are given as boxes, RLEs, PNG masks or a file of masks; without any they are proposed from the photo's colors.
Captions come from transformers' `generate` in this process, without server or vLLM, so it starts in seconds. With
`--server` they come from a running service; its access token is read from URECA_TOKEN.
"""

import argparse
import functools
import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.devices import DTYPES, choose_device, choose_dtype
from ureca.errors import ConfigError, InputError, MaskError

_REGIONS_AT_A_TIME = 16
_REGIONS_PER_REQUEST = 64
_NANO_LIMITS = (
    "nano was trained on drawn scenes: it names color, texture, shape, size and place, not objects. Use a larger "
    "captioner with --model."
)


def caption_photo(argv: list[str]) -> None:
    """Run the subcommand.

    Raises:
        UrecaError: the photo, a mask, a box or the model is unusable.
    """
    options = _parser().parse_args(argv)
    photo = _read(options)
    if not photo.masks:
        raise InputError(
            f"{options.photo}: no region stands out by its color. Name regions with --box, --rle, --mask or --masks."
        )
    from ureca.regions.tree import build_mask_tree

    image = photo.image
    size = (image.shape[0], image.shape[1])
    tree = build_mask_tree(photo.masks, size)
    if not tree.regions:
        raise InputError(f"{options.photo}: every region is smaller than 16 pixels; name larger ones.")
    segmentations = [region.segmentation for region in tree.regions]
    ask = _ask_service if options.server else _ask_here
    answers = ask(options, photo, segmentations)
    captions = answers.captions

    overlay = options.out or (None if options.json else f"{Path(options.photo).stem}.regions.png")
    if overlay:
        _write_overlay(image, segmentations, overlay)
    if options.json:
        print(json.dumps(_record(options, size, tree, answers), ensure_ascii=False, indent=2))
        return
    height, width = size
    print(f"{options.photo}  {width} x {height}  {len(tree.regions)} regions {photo.source}")
    print(_table(tree, captions, width=_terminal_width()))
    for dropped in tree.dropped:
        print(f"not captioned: region {dropped.region_id}, {dropped.reason.replace('_', ' ')}")
    print(f"\nRegion numbers: see {overlay}.")
    if answers.is_nano:
        print(textwrap.fill(_NANO_LIMITS, _terminal_width()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca caption", description="Caption regions of a photo, as a table and a picture."
    )
    parser.add_argument("photo", help="JPEG, PNG or another image file")
    regions = parser.add_argument_group("regions", "any number of the first three; default: proposed by color")
    for name, metavar, meaning in (
        ("box", "X,Y,W,H", "a box in pixels"),
        ("rle", "RLE", "COCO RLE as JSON, or a JSON file of one or a list"),
        ("mask", "FILE.png", "mask of the photo's size; the region is not black (or not transparent)"),
    ):
        kind = functools.partial(_Given, name)
        regions.add_argument(f"--{name}", dest="given", action="append", type=kind, metavar=metavar, help=meaning)
    regions.add_argument("--masks", metavar="FILE.json", help="all masks of the photo in SA-1B's format")
    parser.add_argument("--server", metavar="URL", help="use the service at this address; access token: URECA_TOKEN")
    parser.add_argument(
        "--model",
        metavar="DIR",
        help=("model directory or export, default: the packaged nano; with --server a model name"),
    )
    parser.add_argument("--style", choices=("brief", "detailed", "unique"), default="unique")
    parser.add_argument(
        "--out", metavar="FILE.png", help=("output picture; default: PHOTO.regions.png in the current folder")
    )
    parser.add_argument("--device", default="", help="cpu, cuda or cuda:1; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: float32 on CPUs, bfloat16 on GPUs")
    parser.add_argument("--json", action="store_true", help="print JSON; write a picture only with --out")
    return parser


@dataclass(frozen=True)
class _Given:
    """A region from the command line."""

    kind: str
    text: str


@dataclass(frozen=True)
class _Photo:
    data: bytes
    """Content of the file."""
    image: Any
    """uint8 (H, W, 3), RGB."""
    masks: list[Any]
    source: str
    """Source of the masks, for display."""


@dataclass(frozen=True)
class _Answers:
    """One caption per region."""

    captions: list[str]
    model: str
    is_nano: bool = False


def _ask_here(options: argparse.Namespace, photo: _Photo, segmentations: list[Any]) -> _Answers:
    _be_quiet()
    from ureca.model.captioner import Captioner
    from ureca.model.internvl.presets import packaged_weights

    nano = packaged_weights("captioner")
    model_dir = Path(options.model) if options.model else nano
    device = choose_device(options.device, name="--device")
    captioner = Captioner.from_pretrained(model_dir, device=device, dtype=choose_dtype(options.dtype, device))
    query = captioner.processor.query(options.style)
    captions: list[str] = []
    for first in range(0, len(segmentations), _REGIONS_AT_A_TIME):
        some = segmentations[first : first + _REGIONS_AT_A_TIME]
        captions += captioner.generate(photo.image, some, [query] * len(some))
    return _Answers(captions, str(model_dir), is_nano=model_dir.resolve() == nano.resolve())


def _ask_service(options: argparse.Namespace, photo: _Photo, segmentations: list[Any]) -> _Answers:
    """Caption with a service. Raises InputError for a refused region, ServiceError for a failed request."""
    from ureca.client.client import Client, as_read

    image = as_read(photo.data, photo.image)
    captions: list[str] = []
    with Client(options.server, token=os.environ.get("URECA_TOKEN")) as client:
        for first in range(0, len(segmentations), _REGIONS_PER_REQUEST):
            some = segmentations[first : first + _REGIONS_PER_REQUEST]
            answers = client.caption(image, some, style=options.style, model=options.model)
            for number, answer in enumerate(answers, start=first + 1):
                if answer.error is not None:
                    raise InputError(f"region {number}: {answer.error}")
                captions.append(answer.caption or "")
    return _Answers(captions, answers.model)


def _read(options: argparse.Namespace) -> _Photo:
    """Read the photo and its masks."""
    import io

    import numpy as np
    from PIL import Image, ImageOps

    from ureca.corpus.read import read_sa1b
    from ureca.regions.tree import Mask

    if options.masks and options.given:
        raise ConfigError("--masks holds all regions of the photo: omit --box, --rle and --mask, or --masks.")
    photo = read_sa1b(options.photo, options.masks)
    if options.masks:
        return _Photo(photo.data, photo.image, photo.masks, f"from {options.masks}")
    with Image.open(io.BytesIO(photo.data)) as stored:  # apply the EXIF rotation, as viewers do
        image = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    if options.given:
        size = (image.shape[0], image.shape[1])
        rles = [rle for given in options.given for rle in _MASKS_OF[given.kind](given.text, size)]
        masks = [Mask(str(number), rle) for number, rle in enumerate(rles, start=1)]
        kinds = dict.fromkeys(f"--{given.kind}" for given in options.given)
        return _Photo(photo.data, image, masks, f"from {', '.join(kinds)}")
    from ureca.proposals.segments import propose_segments

    found = propose_segments(image)
    return _Photo(photo.data, image, found, "proposed by color (pass masks of objects with --masks)")


def _of_box(text: str, size: tuple[int, int]) -> list[Any]:
    """Return the RLE of a box "x,y,w,h" in an image of `size` (height, width)."""
    from ureca.regions.rle import box_to_rle

    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--box {text}: must be four numbers, x,y,width,height in pixels, e.g. 40,30,200,120"
        ) from error
    try:
        return [box_to_rle((x, y, x + width, y + height), size)]
    except MaskError as error:
        raise MaskError(f"--box {text}: {error}") from error


def _of_rle(text: str, size: tuple[int, int]) -> list[Any]:
    """Return the RLEs in a JSON text or file: one, or a list."""
    from ureca.regions.rle import check_rles
    from ureca.storage.files import read_bytes

    is_text = text.lstrip().startswith(("{", "["))
    named = "--rle" if is_text else f"--rle {text}"
    try:
        found = json.loads(text if is_text else read_bytes(text))
    except ValueError as error:
        raise MaskError(f"{named}: not JSON ({error}); use a COCO RLE or a file with one") from error
    rles = found if isinstance(found, list) else [found]
    if not all(isinstance(rle, dict) and {"size", "counts"} <= set(rle) for rle in rles):
        raise MaskError(f'{named}: must be {{"size": [height, width], "counts": …}}, or a list of such')
    return check_rles(rles, size, where=[f"{named}: mask {number}" for number in range(1, len(rles) + 1)])


def _of_png(text: str, size: tuple[int, int]) -> list[Any]:
    """Return the mask in a PNG file."""
    from collections import Counter

    from ureca.corpus.images import DEFAULT_MAX_PIXELS
    from ureca.corpus.masks import masks_of_pngs
    from ureca.storage.files import read_bytes

    found = masks_of_pngs([("1", text, read_bytes(text))], size, max_pixels=DEFAULT_MAX_PIXELS, notes=Counter())
    if not found:
        raise MaskError(f"--mask {text}: no pixel is set; the region must be white or opaque")
    return [found[0].segmentation]


_MASKS_OF = {"box": _of_box, "rle": _of_rle, "mask": _of_png}


def _table(tree: Any, captions: list[str], *, width: int) -> str:
    """Format one line per region: number, share of the photo, and caption, indented below its parent."""
    total = tree.size[0] * tree.size[1]
    lines = []

    def add(index: int) -> None:
        region = tree.regions[index]
        head = f"{index + 1:>3}  {100 * region.area / total:>4.1f}%  {'  ' * region.depth}"
        body = textwrap.wrap(captions[index] or "(no caption)", max(20, width - len(head)))
        lines.append(head + body[0])
        lines.extend(" " * len(head) + line for line in body[1:])
        for child in tree.children(index):
            add(child)

    for index, region in enumerate(tree.regions):
        if region.parent < 0:
            add(index)
    return "\n".join(lines)


def _record(options: argparse.Namespace, size: tuple[int, int], tree: Any, answers: _Answers) -> dict[str, Any]:
    return {
        "image": options.photo,
        "height": size[0],
        "width": size[1],
        "model": answers.model,
        "style": options.style,
        "regions": [
            {
                "number": number,
                "region_id": region.region_id,
                "parent": region.parent + 1 or None,
                "depth": region.depth,
                "area": region.area,
                "bbox": list(region.bbox),
                "segmentation": region.segmentation,
                "caption": caption,
            }
            for number, (region, caption) in enumerate(zip(tree.regions, answers.captions, strict=True), start=1)
        ],
        "dropped": [{"region_id": each.region_id, "reason": each.reason} for each in tree.dropped],
    }


def _write_overlay(image: Any, segmentations: list[Any], path: str) -> None:
    from PIL import Image

    from ureca.viewer.draw import draw_regions

    try:
        Image.fromarray(draw_regions(image, dict(enumerate(segmentations, start=1)), longest_px=1000)).save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--out {path}: can't be written ({error}). Name a .png file in an existing folder."
        ) from error


def _be_quiet() -> None:
    """Silence progress bars and notices of libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # otherwise DeepSpeed, imported by a dependency, prints what it found
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def _terminal_width() -> int:
    try:
        return min(os.get_terminal_size(sys.stdout.fileno()).columns, 110)
    except OSError:
        return 100
