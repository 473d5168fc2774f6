import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.sample_report import HOSTILE, NOTE, drawn_image, photo, region, sample

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.regions.rle import encode_mask, rle_area, rle_bbox
from ureca.viewer.plots import Curve
from ureca.viewer.report import (
    curve_from_metrics,
    report_image,
    write_report,
)
from ureca.viewer.report_data import ReportImage, ReportRegion
from ureca.viewer.report_html import ROWS_SHOWN

VOID = {"meta", "link", "img", "br", "path"}


class Page(HTMLParser):
    """Checks that every tag is closed, and collects text and links."""

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], "", []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def page_of(data, tmp_path):
    return Page(write_report(tmp_path / "sub" / "report.html", data).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(sample(), tmp_path_factory.mktemp("report"))


def test_nothing_is_fetched(page):
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed")]


def test_text_from_data_is_shown_as_text(page):
    assert [tag for tag, _ in page.tags].count("script") == 1, "the page's own"
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert page.text.count(HOSTILE) >= 6


def test_photos_come_first_and_drawn_scenes_last(page):
    headings = ("Real photos", "What nano does not know", "Scores on held-out images", "Training", "Drawn scenes")
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    articles = [values["id"] for tag, values in page.tags if tag == "article"]
    assert articles == ["image-0", "image-1"]


def test_each_region_has_a_row_and_an_outline_of_the_same_number(page):
    rows = [values["data-region"] for tag, values in page.tags if values.get("class") == "region"]
    paths = [values["data-region"] for tag, values in page.tags if tag == "path"]
    assert rows[:3] == ["1", "2", "3"]
    count = len(photo().regions) + len(drawn_image().regions)
    assert len(rows) == len(paths) == count
    targets = {values["id"] for tag, values in page.tags if tag == "path"}
    badges = {values["href"][1:] for tag, values in page.tags if values.get("class") == "badge"}
    assert badges == targets


def test_label_before_and_after_and_the_captioner_are_shown(page):
    for text in ("box 2", "long 2; it has a part", "short 2", "mask_stage2 says 2", "tuned_none says 2"):
        assert text in page.text
    assert "fits only this" in page.text
    assert "fits another as well or better" in page.text
    assert "not unique" in page.text


def test_scores_have_intervals_and_meteor_its_full_name(page):
    assert "METEOR 1.5 (Java)" in page.text
    assert "0.600" in page.text
    assert "0.500 – 0.700" in page.text
    assert "stage 2, mask against stage 2 without region+0.200+0.100 to +0.300" in page.text
    assert "0.987" in page.text, "the labels' own uniqueness"


def test_accuracy_by_size_and_scores_by_kind_of_region_are_tables(page):
    assert "colorplace in parent" in page.text.split("Attribute accuracy by region size")[1]
    assert "tiny0.5000.250–" in page.text
    assert "large0.875–0.750" in page.text
    assert "depth: 01,234–0.375" in page.text


def test_the_shipped_captioner_goes_before_the_one_trained_in_the_run(tmp_path):
    image = drawn_image()
    first = dataclasses.replace(
        image.regions[0], captions={"mask_stage2": "trained now", "shipped": "from the package"}
    )
    page = page_of(sample(images=[dataclasses.replace(image, regions=(first,))]), tmp_path)
    assert "captionerfrom the package" in page.text


def test_page_says_what_nano_does_not_know(page):
    assert "What nano does not know" in page.text
    assert NOTE in page.text


def test_regions_beyond_the_first_are_folded_and_counted(tmp_path):
    image = drawn_image()
    extra = len(image.regions) - ROWS_SHOWN
    assert extra > 0
    page = page_of(sample(images=[image]), tmp_path)
    assert f"{extra} more, smaller regions" in page.text
    folded = [index for index in range(ROWS_SHOWN, len(image.regions)) if image.regions[index].parent >= 0]
    inside = [index for index in folded if image.regions[index].parent < ROWS_SHOWN]
    assert len(re.findall(r"part of \d+", page.text)) == len(inside)


def test_one_region_no_captions_no_scores(tmp_path):
    one = ReportRegion(region_id="0", parent=-1, segmentation=encode_mask(np.ones((20, 30), bool)))
    black = np.zeros((20, 30, 3), np.uint8)
    image = ReportImage(image_id="bare", kind="photo", image=black, regions=(one,))
    page = page_of(sample(images=[image], scores={}, curves=[], facts=[], notes=()), tmp_path)
    assert "1 region" in page.text
    assert "no words" in page.text
    assert "Scores on" not in page.text
    assert "Training" not in page.text


def test_size_of_the_page_does_not_follow_the_photo(tmp_path):
    small, large = (
        write_report(tmp_path / f"{scale}.html", sample(images=[scaled_photo(scale)])).stat().st_size
        for scale in (2, 6)
    )
    assert large < 1.3 * small
    assert large < 1_000_000


def scaled_photo(scale):
    pixels = np.asarray(Image.fromarray(photo().image).resize((450 * scale, 300 * scale)))
    mask = np.zeros(pixels.shape[:2], bool)
    mask[100:500, 200:700] = True
    regions = (region(0, -1, encode_mask(mask), "a box"),)
    return ReportImage(image_id="large", kind="photo", image=pixels, regions=regions)


def test_report_image_takes_a_row_of_the_table_and_captions_by_region(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(tmp_path / "a.png")
    rle = encode_mask(np.ones((20, 30), bool))
    stored = RegionRow(
        region_id="r",
        parent=-1,
        depth=0,
        segmentation=rle,
        area=rle_area(rle),
        bbox=rle_bbox(rle),
        caption="the unique one",
        long_caption="the long one",
        flags=("not unique",),
    )
    path = str(tmp_path / "a.png")
    row = ImageRow(image_id="a", image_path=path, height=20, width=30, status="labeled", regions=(stored,))
    image = report_image(
        row,
        kind="photo",
        captions={"mask_stage2": {"r": "said", "other": "of another"}},
        picks_own={"mask_stage2": {"r": False}},
        credit="by someone",
    )
    assert (image.image == 7).all()
    (shown,) = image.regions
    assert (shown.caption, shown.long_caption, shown.flags) == (
        "the unique one",
        "the long one",
        ("not unique",),
    )
    assert shown.captions == {"mask_stage2": "said"}
    assert shown.picks_own == {"mask_stage2": False}


def test_curve_reads_a_run_s_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n{"note": "resumed"}\n{"step": 2, "loss": 2.0}\n')
    assert curve_from_metrics(path, "stage 1") == Curve("stage 1", [1.0, 2.0], [2.5, 2.0])
