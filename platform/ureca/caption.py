"""`ureca caption PHOTO`: caption regions of one photo in this process, as a table and a picture.

Masks come from a file, from boxes, or, without either, from the photo's colors. Captions come from
transformers' own `generate`: no server, no vLLM, so it starts in seconds.
"""

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from ureca.errors import ConfigError, InputError, MaskError

__all__ = ["caption_photo"]

_REGIONS_AT_A_TIME = 16
_NANO_LIMITS = (
    "nano learned from drawn scenes: it tells color, texture, shape, size and place, not what things are. "
    "Give a larger captioner with --model."
)


def caption_photo(argv: list[str]) -> None:
    """The subcommand; see the module's docstring.

    Raises:
        UrecaError: the photo, a mask, a box or the model can't be used.
    """
    options = _parser().parse_args(argv)
    image, masks, source = _read(options)
    if not masks:
        raise InputError(
            f"{options.photo}: no region stands out by its color. Give --box or --masks to caption it anyway."
        )
    _be_quiet()
    from ureca.model import Captioner
    from ureca.model.presets import shipped
    from ureca.regions.tree import build_mask_tree

    nano = shipped("nano_captioner")
    model_dir = Path(options.model) if options.model else nano
    captioner = Captioner.from_pretrained(model_dir)
    size = (image.shape[0], image.shape[1])
    tree = build_mask_tree(masks, size)
    if not tree.regions:
        raise InputError(f"{options.photo}: every region is smaller than 16 pixels; give larger ones.")
    query = captioner.processor.query(options.style)
    captions: list[str] = []
    segmentations = [region.segmentation for region in tree.regions]
    for first in range(0, len(segmentations), _REGIONS_AT_A_TIME):
        some = segmentations[first : first + _REGIONS_AT_A_TIME]
        captions += captioner.generate(image, some, [query] * len(some))

    overlay = options.out or (None if options.json else f"{Path(options.photo).stem}.regions.png")
    if overlay:
        _write_overlay(image, segmentations, overlay)
    if options.json:
        print(json.dumps(_record(options, size, tree, captions, model_dir), ensure_ascii=False, indent=2))
        return
    height, width = size
    print(f"{options.photo}  {width} x {height}  {len(tree.regions)} regions {source}")
    print(_table(tree, captions, width=_terminal_width()))
    for dropped in tree.dropped:
        print(f"not captioned: region {dropped.region_id}, {dropped.reason.replace('_', ' ')}")
    print(f"\nThe numbers stand in {overlay}.")
    if model_dir.resolve() == nano.resolve():
        print(textwrap.fill(_NANO_LIMITS, _terminal_width()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca caption", description="Caption regions of a photo, as a table and a picture."
    )
    parser.add_argument("photo", help="JPEG, PNG or another image file")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--masks", metavar="FILE.json", help="masks in SA-1B's form; default: found by color")
    given.add_argument("--box", action="append", metavar="X,Y,W,H", help="a box in pixels; may be repeated")
    parser.add_argument("--model", metavar="DIR", help="model directory or export; default: nano, which ships")
    parser.add_argument("--style", choices=("brief", "detailed", "unique"), default="unique")
    parser.add_argument("--out", metavar="FILE.png", help="the picture; default: PHOTO.regions.png here")
    parser.add_argument("--json", action="store_true", help="print JSON instead; a picture only with --out")
    return parser


def _read(options: argparse.Namespace) -> tuple[Any, list[Any], str]:
    """The photo's pixels, its masks, and where they come from in words."""
    import io

    import numpy as np
    from PIL import Image, ImageOps

    from ureca.corpus import read_sa1b
    from ureca.regions.tree import Mask

    photo = read_sa1b(options.photo, options.masks)
    if options.masks:
        return photo.image, photo.masks, f"from {options.masks}"
    with Image.open(io.BytesIO(photo.data)) as stored:  # as a person sees it, whatever the EXIF rotation
        image = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    if options.box:
        size = (image.shape[0], image.shape[1])
        rles = [_box(text, size) for text in options.box]
        return image, [Mask(str(number), rle) for number, rle in enumerate(rles, start=1)], "from --box"
    from ureca.proposals import propose_segments

    return image, propose_segments(image), "found by color (masks of objects come with --masks)"


def _box(text: str, size: tuple[int, int]) -> Any:
    """The RLE of a box given as "x,y,w,h" in an image of `size` (height, width)."""
    from ureca.regions.rle import box_to_rle

    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--box {text}: give four numbers, x,y,width,height in pixels, e.g. 40,30,200,120") from error
    try:
        return box_to_rle((x, y, x + width, y + height), size)
    except MaskError as error:
        raise MaskError(f"--box {text}: {error}") from error


def _table(tree: Any, captions: list[str], *, width: int) -> str:
    """One line a region: its number, its share of the photo, and its caption, indented below its parent."""
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


def _record(
    options: argparse.Namespace, size: tuple[int, int], tree: Any, captions: list[str], model_dir: Path
) -> dict[str, Any]:
    return {
        "image": options.photo,
        "height": size[0],
        "width": size[1],
        "model": str(model_dir),
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
            for number, (region, caption) in enumerate(zip(tree.regions, captions, strict=True), start=1)
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
            f"--out {path}: can't be written ({error}). Name a .png file in a folder that is there."
        ) from error


def _be_quiet() -> None:
    """Keep libraries' progress bars and notices out of a table that a person reads."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, if installed, is imported along and says what it found
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def _terminal_width() -> int:
    try:
        return min(os.get_terminal_size(sys.stdout.fileno()).columns, 110)
    except OSError:
        return 100
