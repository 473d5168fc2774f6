from pathlib import Path

import pytest

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images
from ureca.errors import InputError
from ureca.model.processor import CaptionerProcessor
from ureca.training.data.examples import region_examples
from ureca.training.data.sampler import STYLES, Visit


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> CaptionerProcessor:
    return CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=1)


@pytest.fixture
def row(region_table: Path) -> ImageRow:
    return next(row for row in iter_images(region_table) if row.image_id == "image03")


@pytest.mark.parametrize("cue", ["mask", "box", "none"])
def test_each_region_stands_with_the_caption_of_its_style(
    row: ImageRow, processor: CaptionerProcessor, cue: str
) -> None:
    shown = region_examples(row, Visit(3, 0, (0, 2, 3)), [0, 1, 2], processor, cue=cue)  # type: ignore[arg-type]
    for place, style, example in zip((0, 2, 3), STYLES, shown, strict=True):
        region = row.regions[place]
        captions = {"brief": region.short_caption, "detailed": region.long_caption, "unique": region.caption}
        assert example.caption == captions[style]
        assert example.query.endswith(processor.query(style))
        assert (processor.box_text(region.bbox, (64, 96)) in example.query) == (cue == "box")
        assert example.segmentation == (region.segmentation if cue == "mask" else None)


def test_missing_caption_names_its_row(row: ImageRow, processor: CaptionerProcessor) -> None:
    bare = type(row.regions[0])(**{**vars(row.regions[0]), "caption": None})
    with pytest.raises(InputError, match="'image03',.*'0'"):
        region_examples(ImageRow(**{**vars(row), "regions": (bare,)}), Visit(0, 0, (0,)), [2], processor, cue="mask")
