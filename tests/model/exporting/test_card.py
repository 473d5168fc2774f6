"""The model card: it says what is recorded, its front matter is the hub's, its code runs as it stands."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.exporting.card import CardText
from ureca.model.exporting.export import CARD_FILE, TRAINING_FILE, export
from ureca.model.exporting.verify import probe, verify_export
from ureca.model.internvl.licenses import front_matter, license_of
from ureca.regions.rle import box_to_rle

TRAINING = {
    "stages": [
        {
            "stage": 1,
            "settings": {"table": "runs/label_corpus/regions.parquet", "optimizer": {"learning_rate": 2e-4}},
            "figures": {"images": 12, "steps": 30, "regions": 700, "loss_first": 10.4, "loss_last": 8.61},
            "data": {
                "table": "label_corpus/regions.parquet",
                "images": 12,
                "regions": 211,
                "heldout": 0.1,
                "describers": {"attributes (measured)": 12},
            },
        },
        {
            "stage": 2,
            "settings": {"lora": {"rank": 4}},
            "figures": {"steps": 60},
            "weights": {"step": 40, "best_by": "rouge_l", "score": 0.5},
            "eval_scores": {"rouge_l": 0.5},
        },
    ]
}
SCORES = {
    "groups": {
        "drawn": {
            "num_images": 128,
            "num_regions": 2472,
            "scores": {
                "none": {"rouge_l": {"value": 0.07, "low": 0.06, "high": 0.08}},
                "mask_stage2": {
                    "rouge_l": {"value": 0.919, "low": 0.914, "high": 0.924},
                    "uniqueness": {"value": 0.852, "low": 0.836, "high": 0.869},
                },
            },
            "ceiling": {"uniqueness": {"value": 1.0, "low": 1.0, "high": 1.0}},
        }
    }
}


@pytest.fixture(scope="module")
def model_dir(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a record of its training, whose captions differ from region to region."""
    folder = tmp_path_factory.mktemp("recorded") / "model"
    captioner = Captioner.from_pretrained(tiny_export.parent / "model")
    captioner.add_lora(rank=4)
    torch.manual_seed(0)
    for name, parameter in captioner.base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    captioner.save_pretrained(folder)
    (folder / TRAINING_FILE).write_text(json.dumps(TRAINING))
    return folder


@pytest.fixture(scope="module")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "captioner"
    Image.fromarray(probe().image).save(folder.parent / "photo.jpg")
    card = CardText(name="captioner", title="A captioner of boxes", data="Drawn here; Apache-2.0.", datasets=("a/b",))
    return export(model_dir, folder, card=card, scores=SCORES, verify=lambda _: "Verified by a test.")


@pytest.fixture(scope="module")
def card(exported: Path) -> str:
    return (exported / CARD_FILE).read_text()


def python_blocks(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_says_what_is_recorded(card: str) -> None:
    head = front_matter(card)
    assert head["library_name"] == "transformers"
    assert head["datasets"] == ["a/b"]
    assert head["language"] == ["en"]
    [result] = head["model-index"][0]["results"]
    assert {each["name"]: each["value"] for each in result["metrics"]} == {"ROUGE-L": 0.919, "uniqueness": 0.852}
    assert "# A captioner of boxes" in card
    assert "Drawn here; Apache-2.0." in card
    assert "12 labeled images, 211 regions" in card
    assert "Captions by attributes (measured): 12 images." in card
    assert "30 steps; 700 regions; loss 10.4 to 8.61" in card
    assert "60 steps; weights of step 40, the best checkpoint by ROUGE-L on held-out images (0.500)" in card
    assert "ROUGE-L 0.50" in card
    assert "| **mask_stage2 (this model)** | **0.919 [0.914, 0.924]** | **0.852 [0.836, 0.869]** |" in card
    assert "| reference labels |  | 1.000 [1.000, 1.000] |" in card
    assert "Verified by a test." in card
    settings = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", card, re.DOTALL | re.MULTILINE)]
    assert settings == [stage["settings"] for stage in TRAINING["stages"]]


def test_what_nobody_recorded_is_said_to_be_unrecorded(tiny_export: Path) -> None:
    card = (tiny_export / CARD_FILE).read_text()
    assert card.count("Not recorded: the model directory holds no training.json.") == 2
    assert "None were given" in card
    assert "model-index" not in front_matter(card)
    assert front_matter(card)["license"] == "unknown"


def test_an_export_carries_the_record_on(exported: Path, tmp_path: Path) -> None:
    assert json.loads((exported / TRAINING_FILE).read_text()) == TRAINING
    again = export(exported, tmp_path / "again")
    assert json.loads((again / TRAINING_FILE).read_text()) == TRAINING


def test_a_record_that_is_cut_off_is_named(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in model_dir.iterdir():
        (broken / file.name).symlink_to(file)
    (broken / TRAINING_FILE).unlink()
    (broken / TRAINING_FILE).write_text('{"stages": [')
    with pytest.raises(CheckpointError, match=r"training\.json:.*JSON"):
        export(broken, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.slow  # a new process imports torch and transformers
def test_its_code_for_transformers_gives_the_model_s_caption(card: str, exported: Path, model_dir: Path) -> None:
    region, _, plain = python_blocks(card)
    captioner = Captioner.from_pretrained(model_dir)
    image = Image.open(exported.parent / "photo.jpg").convert("RGB")
    box = box_to_rle((40, 30, 120, 140), (image.height, image.width))
    expected = captioner.generate(image, [box], [captioner.processor.query("unique")])
    assert expected != [""]
    # One process for both: it takes longest to import what they need.
    said, counted = run(region + plain, exported.parent).splitlines()
    assert said == str(expected)
    count, kind = counted.split()
    assert kind == "InternVLProcessor"
    assert int(count) == sum(p.numel() for p in Captioner.from_pretrained(exported).base.parameters())


@pytest.mark.slow  # a new process imports torch and transformers
def test_an_export_captions_in_a_new_process_as_its_model(model_dir: Path, tmp_path: Path) -> None:
    rounded = partial(verify_export, model_dir, dtype=torch.bfloat16)
    export(model_dir, tmp_path / "export", dtype=torch.bfloat16, verify=rounded)
    assert "gives the same 4 captions as the model" in (tmp_path / "export" / CARD_FILE).read_text()
    assert len(set(probe().ask(Captioner.from_pretrained(model_dir)))) > 2, "alike captions would prove nothing"


@pytest.mark.slow  # a new process imports torch and transformers
def test_an_export_that_captions_otherwise_is_refused_and_never_appears(model_dir: Path, tmp_path: Path) -> None:
    def spoil(folder: Path) -> str:
        from safetensors.torch import load_file, save_file

        path = folder / "mask_encoder.safetensors"
        state = {name: value + 0.3 for name, value in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
        return verify_export(model_dir, folder, dtype=torch.float32)

    with pytest.raises(CheckpointError, match="captions"):
        export(model_dir, tmp_path / "export", verify=spoil)
    assert list(tmp_path.iterdir()) == []


def test_the_probe_is_always_the_same() -> None:
    assert np.array_equal(probe().image, probe().image)
    assert probe().regions == probe().regions


@pytest.mark.parametrize(
    ("base", "license_id", "name", "note"),
    [
        ("nano", "apache-2.0", "", ""),
        ("OpenGVLab/InternVL2_5-8B-MPO-hf", "mit", "", "internlm2_5-7b-chat (Apache-2.0)"),
        ("OpenGVLab/InternVL2_5-4B-MPO-hf", "other", "qwen-research", "no commercial use"),
        ("OpenGVLab/InternVL3-8B-hf", "other", "qwen", "Qwen2.5-7B (Apache-2.0)"),
        ("somebody/else", "unknown", "", ""),
        ("/folder/of/another/machine", "unknown", "", ""),
    ],
)
def test_licenses_of_known_bases(base: str, license_id: str, name: str, note: str) -> None:
    found = license_of(base)
    assert (found.id, found.name) == (license_id, name)
    assert note in found.note
    assert bool(found.link) == (license_id == "other")


def test_every_preset_has_a_license() -> None:
    from ureca.model.internvl.presets import PRESETS

    assert [name for name, preset in PRESETS.items() if license_of(preset.base).id == "unknown"] == []


def test_the_base_s_own_card_goes_before_the_table(tmp_path: Path) -> None:
    base = tmp_path / "InternVL3-8B-hf"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Base\n")
    found = license_of(str(base))
    assert (found.id, found.name, found.link) == ("other", "mine", "LICENSE")
    assert found.source == "InternVL3-8B-hf/README.md"
    (base / "README.md").write_text("# No front matter\n")
    assert license_of(str(base)).name == "qwen"
