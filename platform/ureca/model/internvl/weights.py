"""Weight files of a checkpoint folder, checked for completeness."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ureca.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_files(source: Path) -> dict[str, Path]:
    """Return the file of each weight, grouped by file.

    Raises:
        CheckpointError: the folder has no safetensors, or lacks one that its index lists.
    """
    index = source / INDEX
    if index.is_file():
        try:
            files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: can't be read ({error}); download the checkpoint again") from error
        absent = sorted({name for name in files.values() if not (source / name).is_file()})
        if absent:
            raise CheckpointError(
                f"{source}: {INDEX} lists {', '.join(absent)}, which are missing; download the checkpoint again"
            )
        return {name: source / file for name, file in sorted(files.items(), key=lambda item: item[1])}
    if (source / SINGLE).is_file():
        with open_weights(source / SINGLE) as file:
            return dict.fromkeys(file.keys(), source / SINGLE)
    raise CheckpointError(f"{source}: has neither {SINGLE} nor {INDEX}; only safetensors are supported")


def open_weights(path: Path) -> Any:
    """Open a safetensors file as a context. Raises CheckpointError if it is truncated or not safetensors."""
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); download the checkpoint again") from error
