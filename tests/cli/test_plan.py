"""`ureca plan`: what it answers, and what it refuses."""

import json
import re
import subprocess
import sys

import pytest

from ureca.cli.plan import plan
from ureca.corpus.split import split_heldout
from ureca.corpus.table import iter_images
from ureca.errors import UrecaError
from ureca.model.captioner import CaptionerConfig
from ureca.model.mask_encoder import MaskEncoderConfig
from ureca.training.sizing.estimate import HEADROOM


def planned(capsys, *arguments: str) -> tuple[int, dict]:
    code = plan([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_eight_large_gpus_train_the_paper_s_base_and_a_small_one_does_not(capsys):
    recomputing = "--workers.activation_checkpointing=true"
    code, answer = planned(capsys, "--base=internvl2.5-8b", "--gpus=8xA100-80GB", "--regions=1000000", recomputing)
    assert code == 0
    assert [stage["fits"] for stage in answer["stages"]] == [True, True]
    assert all(stage["hours"] > 0 for stage in answer["stages"])
    code, answer = planned(capsys, "--base=internvl2.5-8b", "--gpus=1xA10G", "--stage=2")
    (stage,) = answer["stages"]
    assert code == 1
    assert not stage["fits"]
    assert stage["hours"] is None
    assert stage["changes"]
    needs = [stage["bytes"], *(change["together_bytes"] for change in stage["changes"])]
    assert needs == sorted(needs, reverse=True)


def test_advice_taken_fits(capsys):
    asked = ["--base=internvl2.5-2b", "--gpus=2xA10G", "--stage=2", "--batch.tokens_per_device=12288"]
    code, answer = planned(capsys, *asked)
    assert code == 1
    changes = answer["stages"][0]["changes"]
    assert changes[-1]["fits"]
    options = [option for change in changes for option in change["change"].split() if option.startswith("--")]
    # Of tokens_per_device the last one holds.
    code, again = planned(capsys, *asked, *options)
    assert code == 0
    assert again["stages"][0]["bytes"] == pytest.approx(changes[-1]["together_bytes"])


def test_twice_the_gpus_take_half_the_time_and_twice_the_regions_twice(capsys):
    def hours(gpus: str, regions: int) -> float:
        return planned(capsys, "--base=internvl2.5-1b", f"--gpus={gpus}", f"--regions={regions}", "--stage=2")[1][
            "stages"
        ][0]["hours"]

    assert hours("16xH100-80GB", 2_000_000) == pytest.approx(hours("8xH100-80GB", 1_000_000))
    assert hours("8xH100-80GB", 2_000_000) == pytest.approx(2 * hours("8xH100-80GB", 1_000_000))


def test_a_table_says_how_many_regions_and_how_long(capsys, region_table):
    code, answer = planned(capsys, "--base=nano", "--gpus=none", f"--table={region_table}", "--memory_gb=16")
    assert code == 0
    rows = list(iter_images(region_table))
    out = split_heldout([row.image_id for row in rows], 0.1).heldout
    learned = [len(row.regions) for row in rows if row.status == "labeled" and row.image_id not in out]
    assert 0 < sum(learned) < 16
    assert answer["data"]["regions"] == sum(learned)
    assert answer["data"]["regions_per_image"] == pytest.approx(sum(learned) / len(learned))
    everything = planned(
        capsys, "--base=nano", "--gpus=none", f"--table={region_table}", "--memory_gb=16", "--heldout=0"
    )[1]
    assert everything["data"]["regions"] == 16


def mask_of(answer: dict) -> tuple[str, int, str]:
    (stage,) = answer["stages"]
    return stage["settings"]["mask_encoder"], stage["settings"]["tokens_per_tile"], stage["mask_source"]


def test_a_later_stage_takes_the_mask_encoder_of_the_recipe_beside_its_own(capsys):
    asked = ["--config=paper_stage2", "--gpus=4xA100-80GB", "--regions=138160"]
    paper = planned(capsys, *asked)[1]
    assert mask_of(paper) == ("channels", 16, "of paper_stage1")
    other = planned(capsys, *asked, "--mask.kind=tokens", "--mask.tokens_per_tile", "8")[1]
    assert mask_of(other) == ("tokens", 8, "--mask.kind=tokens --mask.tokens_per_tile 8")
    # `channels` shows all tiles, `tokens` those that a region touches.
    assert paper["stages"][0]["hours"] > other["stages"][0]["hours"]
    assert plan(["--base=internvl2.5-8b", "--gpus=8xH200", "--stage=2"]) == 0
    assert re.search("tokens .*assumed.*LoRA 128", capsys.readouterr().out)
    both = planned(capsys, "--base=internvl2.5-1b", "--gpus=8xH200", "--mask.kind=channels")[1]["stages"]
    assert [stage["settings"]["mask_encoder"] for stage in both] == ["channels", "channels"]
    assert both[1]["mask_source"] == "of stage 1"


def test_a_later_stage_takes_the_mask_encoder_of_the_model_that_it_starts_from(capsys, tmp_path):
    mask = MaskEncoderConfig(kind="channels", tokens_per_tile=5, tile_px=256, hidden_size=192)
    asked = ["--base=nano", "--gpus=none", "--memory_gb=16", f"--init={tmp_path}"]
    CaptionerConfig(base="nano", base_hash="", tile_limit=3, mask=mask).save(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    for stage in (2, 3):
        answer = planned(capsys, *asked, f"--stage={stage}")[1]
        assert mask_of(answer) == ("channels", 5, f"of {tmp_path}")
        assert answer["stages"][0]["settings"]["tiles"] == 4
        assert answer["stages"][0]["settings"]["lora_rank"] == (32 if stage == 2 else 4)
    # One of another base, left by another training at the same place, says nothing.
    CaptionerConfig(base="other", base_hash="", tile_limit=3, mask=mask).save(tmp_path)
    assert mask_of(planned(capsys, *asked, "--stage=2")[1]) == ("tokens", 8, "assumed: set --init or --mask.kind")


def test_stage_3_is_sized_without_dropout_which_it_switches_off(capsys):
    asked = ["--base=internvl2.5-8b", "--gpus=8xH200", "--batch.regions_per_visit=1", "--batch.tokens_per_device=2200"]
    drawn, none, third = (
        planned(capsys, *asked, *more)[1]["stages"][0]["memory"]["activations"]
        for more in (["--stage=2"], ["--stage=2", "--lora.dropout=0"], ["--stage=3"])
    )
    assert none < third < drawn  # its pass has a few branches more


def test_a_pass_is_as_full_as_its_tokens_allow(capsys):
    """Some images have more regions than usual, so a pass of whole usual ones is not the fullest."""
    asked = ["--base=internvl2.5-8b", "--gpus=8xH200", "--stage=1"]
    settings = planned(capsys, *asked)[1]["stages"][0]["settings"]
    branch = 16 * 3 + 2 + 24 + 32
    assert (settings["images_per_pass"], settings["regions_per_pass"]) == (2, (8192 - 2 * 1798) // branch)
    settings = planned(capsys, *asked, "--batch.regions_per_visit=1")[1]["stages"][0]["settings"]
    assert (settings["images_per_pass"], settings["regions_per_pass"]) == (4, 4)


def test_what_is_said_to_fit_fits_where_the_formula_says_the_most_too_little():
    """10.5%, of the 26 peaks that benchmarks/memory.py measured."""
    assert (1 - HEADROOM) / (1 - 0.105) < 1


def test_words_name_the_parts_and_the_assumptions(capsys):
    assert plan(["--base=internvl2.5-8b", "--gpus=1xA10G", "--regions=1000", "--stage=1"]) == 1
    text = capsys.readouterr().out
    for part in ("weights", "optimizer", "activations", "most", "of 22.0", "too much", "assumed", "does not fit"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus=8xA1000"], "A1000.*B200"),
        (["--gpus=8xA100"], "A100-80GB.*A100-40GB"),
        (["--gpus=8xL4", "--base=internvl9-8b"], r"'internvl9-8b';.*internvl2\.5-1b"),
        (["--gpus=8xL4", "--regions=0"], "--regions=0:.*1"),
        (["--gpus=8xL4", "--mfu=35"], r"--mfu=35\.0"),
        (["--gpus=8xL4", "--batch.tokens_per_device=100"], "tokens_per_device=100:.*7"),
        (["--gpus=8xT4"], r"T4.*bfloat16\..*--workers\.bf16=false"),
        (["--gpus=8xL4", "--config=no_such"], "--config no_such"),
        (["--gpus=8xL4", "--worker.zero_stage=2"], "'worker'"),
        (["--gpus=8xL4", "--table=nowhere.parquet"], r"nowhere\.parquet"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(arguments, message):
    base = [] if any(argument.startswith("--base") for argument in arguments) else ["--base=internvl2.5-8b"]
    with pytest.raises(UrecaError, match=message):
        plan([*base, *arguments])


def test_a_folder_without_an_internvl_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UrecaError, match="InternVL"):
        plan([f"--base={tmp_path}", "--gpus=8xL4"])


def test_a_gpu_of_one_s_own(capsys):
    code, answer = planned(capsys, "--base=internvl2.5-1b", "--gpus=4xMine", "--memory_gb=64", "--tflops=200")
    assert code == 0
    assert answer["machine"] == {"name": "Mine", "num": 4, "memory_bytes": 64 * 2**30, "flops": 2e14}


def test_the_command_ends_with_the_answer_as_its_code():
    command = [sys.executable, "-m", "ureca.cli.main", "plan", "--base=internvl2.5-8b", "--gpus=T5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --gpus=T5: ")
    assert done.stderr.count("\n") == 1
