"""training.json: a stage's record is carried on by the next, and names no folder of the machine."""

import json
from dataclasses import replace
from pathlib import Path

from ureca.corpus.row_groups import table_files
from ureca.corpus.schema import Provenance
from ureca.corpus.table import iter_images, write_regions
from ureca.training.checkpoint.provenance import describers_of, last_eval_scores, record_training, shortened
from ureca.training.config import Stage1Config, Stage2Config
from ureca.training.plan import Plan

DATA = {"images": 4, "regions": 9}


def test_a_stage_carries_on_what_its_start_records(tiny_base: Path, region_table: Path, tmp_path: Path) -> None:
    stage1 = Stage1Config(table=str(region_table), base=str(tiny_base))
    first = tmp_path / "stage1" / "model"
    plan = Plan.from_config(stage1, first.parent)
    plan.captioner().save_pretrained(first)
    figures = {"model": str(first), "steps": 3, "loss_last": 1.5, "heldout": {}}
    record_training(
        stage1,
        stage=1,
        table=plan.table,
        init_directory="",
        model=first,
        figures=figures,
        data=DATA,
        eval_scores={"rouge_l": 0.5},
        weights={"step": 3},
    )

    stage2 = Stage2Config(table=str(region_table), base=str(tiny_base), init=str(first))
    second = tmp_path / "stage2" / "model"
    second.mkdir(parents=True)
    plan = Plan.from_config(stage2, second.parent)
    for _ in range(2):  # a finished run that is started again writes it again
        record_training(
            stage2,
            stage=2,
            table=plan.table,
            init_directory=plan.init_directory,
            model=second,
            figures={"steps": 5},
            data=DATA,
            eval_scores={},
            weights={"step": 5},
        )

    text = (second / "training.json").read_text()
    stages = json.loads(text)["stages"]
    assert [stage["stage"] for stage in stages] == [1, 2]
    assert [stage["figures"] for stage in stages] == [{"steps": 3, "loss_last": 1.5}, {"steps": 5}]
    assert stages[0]["eval_scores"] == {"rouge_l": 0.5}
    assert stages[1]["settings"]["init"] == "stage1/model"
    assert stages[1]["data"]["images"] == 4
    assert str(tmp_path) not in text
    assert str(tiny_base.parent) not in text


def test_describers_are_counted_by_labeled_images(region_table: Path, tmp_path: Path) -> None:
    rows = list(iter_images(region_table))
    measured = Provenance(describer="attributes")
    asked = Provenance(describer="chat", model="/models/large/InternVL2_5-38B")
    rows = [
        replace(row, provenance=measured if number < 5 else asked)
        for number, row in enumerate(row for row in rows if row.status == "labeled")
    ]
    write_regions(tmp_path / "table.parquet", rows)
    found = describers_of(table_files(str(tmp_path / "table.parquet")))
    assert found == {"attributes": 5, "chat (large/InternVL2_5-38B)": 2}
    assert describers_of(table_files(str(region_table))) == {"unrecorded describers": 7}


def test_paths_of_the_machine_are_shortened_and_others_kept() -> None:
    settings = {"table": "/data/users/x/runs/label/regions.parquet", "init": "runs/a", "list": ["/a/b/c"], "rank": 4}
    assert shortened(settings) == {"table": "label/regions.parquet", "init": "runs/a", "list": ["b/c"], "rank": 4}
    assert shortened("s3://bucket/a/b.parquet") == "s3://bucket/a/b.parquet"


def test_the_newest_look_counts() -> None:
    lines = [
        {"step": 1, "heldout": {"rouge_l": 0.1, "seconds": 3.0}},
        {"step": 2, "heldout": {"rouge_l": 0.4, "seconds": 3.0}},
        {"step": 3},
    ]
    assert last_eval_scores(lines) == {"rouge_l": 0.4}
    assert last_eval_scores([{"step": 1}]) == {}
