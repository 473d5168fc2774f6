"""The `ureca caption` command. The model is random: caption texts do not matter here."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.live_server import on_a_port

from ureca.cli.caption import caption_photo
from ureca.client.client import ServiceError
from ureca.corpus.read import photos_directory
from ureca.engine.results import Caption
from ureca.errors import CheckpointError, ConfigError, ImageError, InputError, MaskError, MaskSizeError
from ureca.regions.rle import box_to_rle, rle_area
from ureca.serving.api.app import create_app
from ureca.serving.settings import AccessToken, Limits

COFFEE, CHELSEA = photos_directory() / "coffee.jpg", photos_directory() / "chelsea.json"


@pytest.fixture
def model(tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--model", str(tiny_export)]


def test_without_masks_regions_are_found_captioned_and_drawn(model, capsys, tmp_path):
    caption_photo([str(COFFEE), *model])
    head, *lines = capsys.readouterr().out.splitlines()
    assert "600 x 400" in head
    assert "proposed by color" in head
    assert [line.split()[0] for line in lines if "%" in line[:12]][0] == "1"
    assert "coffee.regions.png" in lines[-1]
    assert Image.open(tmp_path / "coffee.regions.png").size == (1000, 667)


def test_masks_of_a_file_keep_their_ids_and_tree(model, capsys, tmp_path):
    file = json.loads((photos_directory() / "coffee.json").read_text())
    masks = tmp_path / "coffee.json"
    masks.write_text(json.dumps({**file, "annotations": file["annotations"][:20]}))
    caption_photo([str(COFFEE), *model, "--masks", str(masks), "--json", "--style", "brief"])
    record = json.loads(capsys.readouterr().out)
    given = {str(each["id"]) for each in json.loads(masks.read_text())["annotations"]}
    assert {each["region_id"] for each in record["regions"]} <= given
    assert [each["number"] for each in record["regions"]] == list(range(1, len(record["regions"]) + 1))
    assert any(each["parent"] for each in record["regions"])
    assert all(isinstance(each["caption"], str) for each in record["regions"])
    assert not list(tmp_path.glob("*.png")), "with --json a picture only on demand"


def test_boxes_count_pixels_of_the_photo_as_it_is_seen(model, capsys, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: a person sees 60 x 120
    noise = np.random.default_rng(0).integers(0, 255, (60, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "turned.jpg", exif=exif.tobytes())
    caption_photo(["turned.jpg", *model, "--box", "5,70,50,40", "--json", "--out", "turned.png"])
    record = json.loads(capsys.readouterr().out)
    assert (record["height"], record["width"]) == (120, 60)
    assert record["regions"][0]["bbox"] == [5, 70, 50, 40]
    assert (tmp_path / "turned.png").is_file()


RLE = box_to_rle((40, 30, 240, 150), (400, 600))


def test_boxes_rles_and_masks_are_captioned_together_in_their_order(model, capsys, tmp_path):
    (tmp_path / "rles.json").write_text(json.dumps([box_to_rle((300, 20, 400, 90), (400, 600)), RLE]))
    mask = np.zeros((400, 600), dtype=np.uint8)
    mask[200:300, 100:220] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    boxes = {"1": [10, 5, 80, 40], "2": [300, 20, 100, 70], "3": [40, 30, 200, 120], "4": [100, 200, 120, 100]}
    caption_photo([str(COFFEE), *model, "--box", "10,5,80,40", "--rle", "rles.json", "--mask", "mask.png", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert {each["region_id"]: each["bbox"] for each in record["regions"]} == boxes
    caption_photo([str(COFFEE), *model, "--rle", json.dumps(RLE)])
    assert "1 regions from --rle" in capsys.readouterr().out


class Areas:
    """Says the style and the area of each region."""

    async def caption(self, call):
        self.call = call
        return [
            Caption(f"{region.style} {rle_area(region.segmentation)}", "stop", (1,), 300, 0, 1)
            for region in call.regions
        ]

    async def check_health(self):
        pass


def test_a_service_captions_where_it_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = Areas()
    token = AccessToken(name="me", sha256=hashlib.sha256(b"secret").hexdigest())
    asked = [str(COFFEE), "--rle", json.dumps(RLE), "--style", "brief", "--json"]
    with on_a_port(create_app({"areas": backend}, limits=Limits(), access_tokens=[token])) as url:
        monkeypatch.delenv("URECA_TOKEN", raising=False)
        with pytest.raises(ServiceError, match="(?i)token"):
            caption_photo([*asked, "--server", url])
        monkeypatch.setenv("URECA_TOKEN", "secret")
        caption_photo([*asked, "--server", url])
        record = json.loads(capsys.readouterr().out)
        with pytest.raises(ServiceError, match="'another'"):
            caption_photo([*asked, "--server", url, "--model", "another"])
    assert (record["model"], record["regions"][0]["caption"]) == ("areas", "brief 24000")
    assert np.array_equal(backend.call.image, np.asarray(Image.open(COFFEE).convert("RGB")))


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["nothing.jpg"], InputError, r"nothing\.jpg"),
        (["cut.jpg"], ImageError, r"cut\.jpg"),
        (
            ["plain.png"],
            InputError,
            r"plain\.png:.*--box, --rle, --mask.*--masks",
        ),
        ([str(COFFEE), "--masks", str(CHELSEA)], MaskSizeError, r"RLE.*\[300, 451\],.*\[400, 600\]"),
        ([str(COFFEE), "--masks", "nothing.json"], InputError, r"nothing\.json"),
        ([str(COFFEE), "--box", "1,2,3"], ConfigError, "--box 1,2,3"),
        ([str(COFFEE), "--box", "900,2,30,40"], MaskError, "--box 900,2,30,40"),
        ([str(COFFEE), "--box", "1,2,9,9", "--masks", "a.json"], ConfigError, "--masks"),
        ([str(COFFEE), "--rle", "{"], MaskError, "--rle:.*JSON"),
        ([str(COFFEE), "--rle", '{"size": [4, 6]}'], MaskError, r'--rle:.*\{"size": \[height, width\], "counts"'),
        ([str(COFFEE), "--rle", "nothing.json"], InputError, r"nothing\.json"),
        (
            [str(COFFEE), "--rle", '{"size": [4, 6], "counts": [4, 20]}'],
            MaskSizeError,
            r"--rle:.*1.*RLE.*\[4, 6\],.*\[400, 600\]",
        ),
        ([str(COFFEE), "--mask", "plain.png"], MaskSizeError, r"plain\.png"),
        ([str(COFFEE), "--mask", "black.png"], MaskError, "--mask black.png"),
        ([str(COFFEE), "--box", "1,2,30,40", "--model", "."], CheckpointError, r"no captioner_config\.json"),
        (
            [str(COFFEE), "--box", "1,2,90,90", "--out", "nowhere/a.png"],
            ConfigError,
            r"--out nowhere/a\.png",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(model, arguments, kind, said):
    Path("cut.jpg").write_bytes(COFFEE.read_bytes()[:9000])
    Image.new("RGB", (80, 50), "gray").save("plain.png")
    Image.new("L", (600, 400)).save("black.png")
    arguments = arguments if "--model" in arguments else [*arguments, *model]
    with pytest.raises(kind, match=said) as raised:
        caption_photo(arguments)
    assert "\n" not in str(raised.value)


def test_the_command_ends_with_code_2_and_prints_nothing_but_the_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ureca.cli.main", "caption", str(COFFEE), "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}: no captioner_config.json in it")
    assert done.stderr.count("\n") == 1
