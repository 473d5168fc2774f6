"""Training record of a model directory (training.json): data, settings and results, stage by stage.

    {"stages": [{"stage", "settings", "data", "figures", "weights", "eval_scores", "machine", "code"}, ...]}

The driver writes it after each stage; a stage that starts from a model directory extends that directory's record.
Export renders the model card from it, so paths are shortened to their last two parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ureca.config import config_to_dict
from ureca.corpus.row_groups import RowGroups, TableFile, table_files
from ureca.hardware import capture_context
from ureca.model.exporting.export import TRAINING_FILE, read_training
from ureca.storage.files import write_json
from ureca.training.config import StageConfig, WorkersConfig


def record_training(
    config: StageConfig,
    *,
    stage: int,
    table: str,
    init_directory: str,
    model: Path,
    figures: Mapping[str, Any],
    data: Mapping[str, Any],
    eval_scores: Mapping[str, float],
    weights: Mapping[str, Any],
) -> None:
    """Write the record of a finished stage into its model directory.

    Args:
        stage: 1, 2 or 3.
        table: absolute path of the region table.
        init_directory: model directory that the stage started from; empty for the base.
        figures: figures of the run's summary.
        data: numbers of images and regions trained on.
        eval_scores: scores of the last in-loop evaluation; may be empty.
        weights: `step` of the weights; for a best checkpoint also `best_by` and `score`.
    """
    before = read_training(init_directory).get("stages", []) if init_directory else []
    record = {
        "stage": stage,
        "settings": shortened(config_to_dict(config)),
        "data": {
            "table": shortened(table),
            **data,
            "heldout": config.heldout,
            "describers": describers_of(table_files(table)),
        },
        "figures": {name: value for name, value in figures.items() if name not in ("model", "heldout", "best")},
        "weights": dict(weights),
        "eval_scores": dict(eval_scores),
        **_made_with(config.workers),
    }
    write_json(model / TRAINING_FILE, {"stages": [*before, record]})


def describers_of(files: list[TableFile]) -> dict[str, int]:
    """Count the labeled images of a table by the describer of their captions."""
    groups, found = RowGroups(files), Counter[str]()
    leaves = {"status", "provenance.describer", "provenance.model"}
    for number in range(len(files)):
        for table in groups.scan(number, lambda name: name in leaves):
            for row in table.to_pylist():
                if row["status"] == "labeled":
                    found[_describer(row.get("provenance") or {})] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def last_eval_scores(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return the newest in-loop scores among a run's metrics; empty without any."""
    scores: dict[str, float] = next((line["heldout"] for line in reversed(lines) if line.get("heldout")), {})
    return {name: value for name, value in scores.items() if name != "seconds"}


def shortened(value: Any) -> Any:
    """Shorten absolute paths in settings to their last two parts."""
    if isinstance(value, Mapping):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(each) for each in value]
    if isinstance(value, str | Path) and str(value).startswith("/"):
        return "/".join(Path(value).parts[-2:])
    return value


def _describer(provenance: Mapping[str, Any]) -> str:
    name, model = provenance.get("describer"), provenance.get("model")
    if not name:
        return "unrecorded describers"
    return f"{name} ({shortened(model)})" if model else str(name)


def _made_with(workers: WorkersConfig) -> dict[str, str]:
    context = capture_context()
    each = "each with a GPU" if workers.use_gpu else f"each with {workers.threads} CPU threads"
    kind = ", ".join(context["gpus"]) or context["cpu"]
    commit = context["commit"]
    changes = " with changes" if context["dirty"] else ""
    return {
        "machine": f"{workers.num_workers} workers, {each}; the driver's machine: {kind}, {context['cores']} cores.",
        "code": f"Code: {commit[:12]}{changes}." if commit else "",
    }
