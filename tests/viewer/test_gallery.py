"""The gallery page of a region table, as a file; for its behavior in a browser see test_gallery_in_browser.py."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.sample_gallery import HEIGHT, HOSTILE, NUM_PLAIN, WIDTH, regions, write_sample

from ureca.cli.view import view_table
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ConfigError, InputError, StorageError
from ureca.regions.rle import encode_mask, rle_area, rle_bbox
from ureca.viewer.gallery import write_gallery

NUM_IMAGES = NUM_PLAIN + 5
VOID = {"meta", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed, and collects text, links and the blocks of data."""

    def __init__(self, path):
        super().__init__()
        self.open, self.links, self.text, self.blocks, self.scripts = [], [], "", {}, 0
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert not self.open, f"left open: {self.open}"
        self.records = self.blocks["records"]

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [value for name, value in attributes if name in ("src", "href", "data", "action")]
        if tag == "script":
            self.scripts += "type" not in values
            self.block = values.get("id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and self.block:
            self.blocks[self.block] = json.loads(data)
        elif self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def ids(self):
        return [record["id"] for record in self.records]

    def picture(self, image_id):
        return self.blocks[f"picture-{self.ids().index(image_id)}"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return str(write_sample(tmp_path_factory.mktemp("table")))


@pytest.fixture(scope="module")
def page(table, tmp_path_factory):
    return page_of(table, tmp_path_factory.mktemp("page") / "sub")


def page_of(table, folder, **asked):
    write_gallery(folder / "gallery.html", table, **asked)
    return Page(folder / "gallery.html")


def test_nothing_is_fetched(page):
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"""url\(|@import|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", page.html)


def test_text_from_the_table_is_data(page):
    assert page.scripts == 1, "the page's own"
    hostile = page.records[page.ids().index("hostile")]
    assert {region["caption"] for region in hostile["regions"]} == {HOSTILE}


def test_every_image_is_there_with_its_picture(page):
    assert len(page.ids()) == NUM_IMAGES
    assert {f"picture-{number}" for number in range(NUM_IMAGES)} == set(page.blocks) - {"records"}
    picture = page.picture("plain_03")
    image = Image.open(io.BytesIO(base64.b64decode(picture["jpeg"])))
    assert image.size == (WIDTH, HEIGHT) == (picture["width"], picture["height"])
    assert np.asarray(image).std() > 10
    assert len(picture["paths"]) == 4
    assert all(path.startswith("M") for path in picture["paths"])


def test_all_that_the_table_says_of_a_region_is_there(page):
    region = page.records[page.ids().index("flagged")]["regions"][1]
    true = regions()[1]
    assert (region["short"], region["long"], region["caption"]) == (
        true.short_caption,
        true.long_caption,
        true.caption,
    )
    assert region["distractors"] == [[2, 0.97, "left, not right"], [3, 0.91, None]]
    assert region["flags"] == ["not unique"]
    assert (region["id"], region["merged"], region["parent"], region["depth"]) == ("r1", ["r1b"], 0, 1)
    assert region["share"] == pytest.approx(60 * 40 / (HEIGHT * WIDTH))
    assert region["size"] == "large"
    assert region["attributes"] == [["color", "teal"]]
    assert region["uniqueness"] == 0.5


def test_where_an_image_comes_from_is_there(page):
    facts = dict(page.records[0]["facts"])
    assert facts["describer"] == "chat"
    assert facts["prompt tokens"] == 120
    assert "requests" not in facts, "what is not known is not said"


def test_what_was_set_aside_is_shown_with_its_reason(page):
    cut, without = (page.records[page.ids().index(name)] for name in ("cut", "without_masks"))
    assert (cut["status"], cut["error"]["kind"], cut["regions"]) == ("quarantined", "ImageError", [])
    assert "not an image" in page.picture("cut")["missing"]
    assert without["error"]["message"] == "no masks next to it"
    assert page.picture("without_masks")["jpeg"], "it can be read, so it can be seen"


def test_a_file_that_is_gone_leaves_outlines_and_captions(page):
    picture = page.picture("gone")
    assert "no such file" in picture["missing"]
    assert len(picture["paths"]) == 4


def test_the_table_is_counted_on_top(page):
    text = " ".join(page.text.split())
    assert f"{NUM_IMAGES}images" in text
    assert "2quarantined" in text
    assert f"{(NUM_PLAIN + 3) * 4}regions" in text
    assert "5flagged regions" in text
    assert f"This page shows all {NUM_IMAGES} images of the table." in text


def test_of_a_large_table_an_even_spread_is_shown_and_the_rest_counted(table, tmp_path):
    summary = write_gallery(tmp_path / "few.html", table, images=7)
    page = Page(tmp_path / "few.html")
    ids = [row.image_id for row in iter_images(table)]
    assert page.ids() == [ids[round(number * (NUM_IMAGES - 1) / 6)] for number in range(7)]
    assert f"shows 7 of the {NUM_IMAGES} images, evenly spread" in page.text
    assert f"the other {NUM_IMAGES - 7} are left out. --images {NUM_IMAGES} shows all" in page.text
    assert (summary.shown, summary.matching, summary.images) == (7, NUM_IMAGES, NUM_IMAGES)
    assert summary.num_bytes == (tmp_path / "few.html").stat().st_size


@pytest.mark.parametrize(
    ("only", "shown"),
    [
        ("flagged", ["flagged", "hostile"]),
        ("quarantined", ["cut", "without_masks"]),
        ("plain_0[12]", ["plain_01", "plain_02"]),
        ("go*", ["gone"]),
    ],
)
def test_only_what_is_asked_for_is_shown(table, tmp_path, only, shown):
    page = page_of(table, tmp_path, only=only)
    assert page.ids() == shown
    assert f"shows all {len(shown)} images that are '{only}', of {NUM_IMAGES} in the table" in page.text


def test_nothing_of_the_kind_is_said_with_what_there_is(table, tmp_path):
    with pytest.raises(InputError) as raised:
        write_gallery(tmp_path / "none.html", table, only="flaged")
    assert "no image is 'flaged'. It holds 35 images, 33 labeled, 2 quarantined, 132 regions, 5 flag" in str(
        raised.value
    )
    assert not list(tmp_path.iterdir())


def test_a_page_that_fails_halfway_leaves_the_one_before(table, tmp_path):
    target = tmp_path / "gallery.html"
    write_gallery(target, table, images=1)
    before = target.read_bytes()
    with pytest.raises(InputError):
        write_gallery(target, str(tmp_path))
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_the_page_does_not_grow_with_the_photo(tmp_path):
    mask = np.zeros((1500, 2250), bool)
    mask[100:900, 200:1700] = True
    rle = encode_mask(mask)
    region = RegionRow(region_id="1", parent=-1, depth=0, segmentation=rle, area=rle_area(rle), bbox=rle_bbox(rle))
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).resize((2250, 1500))
    photo.save(tmp_path / "large.jpg", quality=95)
    path = str(tmp_path / "large.jpg")
    row = ImageRow(image_id="large", image_path=path, height=1500, width=2250, status="unlabeled", regions=(region,))
    write_regions(tmp_path / "large.parquet", [row])
    page = page_of(str(tmp_path / "large.parquet"), tmp_path)
    picture = page.picture("large")
    assert (picture["height"], picture["width"]) == (427, 640)
    assert len(picture["jpeg"]) < 150_000
    assert page.records[0]["status"] == "unlabeled"
    assert page.records[0]["regions"][0]["caption"] is None


def test_the_command_writes_the_page_and_says_what_it_left_out(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view_table([table, "--no-open", "--images", "3"])
    assert re.fullmatch(r"gallery\.html  0\.\d MB  3 of 35 images \(all: --images 35\)\n", capsys.readouterr().out)
    assert (tmp_path / "gallery.html").is_file()
    view_table([table, "--no-open", "--filter", "flagged", "--output", "flagged.html"])
    assert capsys.readouterr().out.endswith(" 2 of 2 images\n")


def test_the_page_is_opened_where_there_is_a_screen(table, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    target = tmp_path / "gallery.html"
    arguments = [table, "--images", "1", "--output", str(target)]
    view_table(arguments)
    assert opened == [], "a text browser would take over the terminal"
    monkeypatch.setenv("DISPLAY", ":0")
    view_table([*arguments, "--no-open"])
    assert opened == []
    view_table(arguments)
    assert opened == [target.as_uri()]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["nothing.parquet"], InputError, "nothing.parquet"),
        (["{table}", "--images", "0"], ConfigError, "--images 0"),
        (["{table}", "--output", "{table}/gallery.html"], StorageError, "written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table, tmp_path, monkeypatch, arguments, kind, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised:
        view_table([each.format(table=table) for each in arguments] + ["--no-open"])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_is_part_of_ureca(table, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ureca.cli.main", "view", table, "--no-open", "--images", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gallery.html")
