from pathlib import Path

import pytest

from ureca.corpus import ImageRow, split_heldout, write_regions
from ureca.errors import ImageError, InputError
from ureca.model import CaptionerProcessor
from ureca.training.examples import LabeledImages, make_example
from ureca.training.index import Visit, choose_style


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> CaptionerProcessor:
    return CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=1)


def test_labeled_images_in_the_order_of_their_ids(region_table: Path) -> None:
    images = LabeledImages(str(region_table))
    assert [images[i].image_id for i in range(len(images))] == [f"image{i:02d}" for i in range(7)]


def test_heldout_images_are_not_learned_from_and_are_those_that_evaluation_takes(region_table: Path) -> None:
    heldout = split_heldout([f"image{i:02d}" for i in range(7)], 0.3, seed=4).heldout
    images = LabeledImages(str(region_table), heldout=0.3, heldout_seed=4)
    learned = [images[i].image_id for i in range(len(images))]
    assert heldout
    assert sorted([*learned, *heldout]) == [f"image{i:02d}" for i in range(7)]


def test_table_without_labels_is_refused(tmp_path: Path) -> None:
    write_regions(tmp_path / "t.parquet", [ImageRow.quarantined("a", None, "read", ValueError("cut"))])
    with pytest.raises(InputError, match=r"none of its 1 images is labeled and not held out.*jobs/label_corpus\.py"):
        LabeledImages(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("cue", ["mask", "box", "none"])
def test_example_shows_each_region_with_the_caption_of_its_style(
    region_table: Path, processor: CaptionerProcessor, cue: str
) -> None:
    row = LabeledImages(str(region_table))[3]
    seen = set()
    for epoch in range(12):
        example = make_example(row, Visit(3, epoch), processor, cue=cue, regions_per_image=9, seed=5)  # type: ignore[arg-type]
        assert example.image.shape == (64, 96, 3)
        for region, shown in zip(row.regions, example.regions, strict=True):
            style = choose_style(seed=5, epoch=epoch, image_id="image03", region_id=region.region_id)
            seen.add(style)
            captions = {
                "brief": region.short_caption,
                "detailed": region.long_caption,
                "unique": region.caption,
            }
            assert shown.caption == captions[style]
            assert shown.query.endswith(processor.query(style))
            assert (processor.box_text(region.bbox, (64, 96)) in shown.query) == (cue == "box")
            assert shown.segmentation == (region.segmentation if cue == "mask" else None)
    assert seen == {"brief", "detailed", "unique"}


def test_missing_image_and_missing_caption_name_their_row(region_table: Path, processor: CaptionerProcessor) -> None:
    row = LabeledImages(str(region_table))[0]
    lost = ImageRow(**{**vars(row), "image_path": "/nowhere/lost.png"})
    with pytest.raises(ImageError, match=r"image 'image00'.*/nowhere/lost\.png"):
        make_example(lost, Visit(0, 0), processor, cue="mask", regions_per_image=9, seed=0)
    bare = type(row.regions[0])(
        **{**vars(row.regions[0]), "short_caption": None, "long_caption": None, "caption": None}
    )
    with pytest.raises(InputError, match=r"image 'image00', region '0'.*no caption for the style"):
        make_example(
            ImageRow(**{**vars(row), "regions": (bare,)}),
            Visit(0, 0),
            processor,
            cue="mask",
            regions_per_image=9,
            seed=0,
        )
