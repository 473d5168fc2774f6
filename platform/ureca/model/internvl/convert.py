"""Convert an official InternVL checkpoint to the HF-native folder that training, transformers and vLLM load.

Works shard by shard: each weight is read, renamed or split, and written with its shard, so at most one shard of the
result is in memory. All names and shapes are checked before the first weight is read. Weights keep their dtype.

    convert_base(Path("InternVL2_5-8B"), Path("InternVL2_5-8B-hf"))
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, InternVLConfig

from ureca.errors import CheckpointError, StorageError
from ureca.model.internvl.architectures import skeleton
from ureca.model.internvl.official_layout import native_config, native_parts, native_processor, read_official_config
from ureca.model.internvl.weights import INDEX, SINGLE, open_weights, weight_files
from ureca.storage.local import atomic_folder


def convert_base(
    source: Path,
    output: Path,
    *,
    shard_bytes: int = 4 * 2**30,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the HF-native form of the official checkpoint in `source` to the folder `output`, atomically.

    Args:
        shard_bytes: maximum size of a weights file; also roughly the memory needed.
        progress: called with the number of weights done and in total.

    Raises:
        CheckpointError: `source` is not an official InternVL, or a weight is missing, unexpected, or of another shape.
        StorageError: not enough disk space for the result.
    """
    record = read_official_config(source)
    config = native_config(record, source)
    processor = native_processor(source, record, config)
    weights = weight_files(source)
    _account(weights, config, source)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: already exists; give another --output, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.stat().st_size for file in set(weights.values())), shutil.disk_usage(output.parent).free
    if needed > free:
        raise StorageError(f"{output}: needs {needed / 2**30:.1f} GiB, only {free / 2**30:.1f} are free there")

    # no overwrite: `output` may have received files during the conversion
    with atomic_folder(output, overwrite=False) as scratch:
        config.dtype = _write_weights(weights, config, scratch, shard_bytes, progress)
        tokenizer: Any = processor.tokenizer
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        text: Any = config.text_config
        text.bos_token_id, text.eos_token_id, text.pad_token_id = tokenizer.bos_token_id, end, tokenizer.pad_token_id
        config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        config.save_pretrained(scratch)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(scratch)
        processor.save_pretrained(scratch)
    return output


def _account(weights: dict[str, Path], config: InternVLConfig, source: Path) -> None:
    """Compare names and shapes with transformers' model, without reading a weight."""
    model = skeleton(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)  # stored or not, they are tied to another weight
    found: dict[str, str] = {}
    left_over, misshapen = [], []
    for path in dict.fromkeys(weights.values()):
        with open_weights(path) as file:
            there = set(file.keys())
            for name in (name for name, where in weights.items() if where == path):
                if name not in there:
                    raise CheckpointError(
                        f"{path}: has no {name}, though {INDEX} lists it; download the checkpoint again"
                    )
                parts, split = native_parts(name, config)
                shape = file.get_slice(name).get_shape()
                if any(part not in expected or part in found for part in parts):
                    left_over.append(name)
                    continue
                found |= dict.fromkeys(parts, name)
                try:
                    shapes = [tuple(piece.shape) for piece in split(torch.empty(shape, device="meta"))]
                except RuntimeError:  # not divisible into heads
                    shapes = []
                if shapes != [expected[part] for part in parts]:
                    misshapen.append(f"{name} {shape}")
    missing = sorted(set(expected) - set(found) - tied)
    faults = [
        f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (
            ("unexpected weights:", left_over),
            ("weights missing, in HF-native names:", missing),
            ("weights of another shape than in config.json:", misshapen),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"{source}: {'; '.join(faults)}. Give the checkpoint as it was published")


def _write_weights(
    weights: dict[str, Path],
    config: InternVLConfig,
    folder: Path,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> torch.dtype:
    """Write shards and their index; return the dtype that most of the weights' bytes have."""
    sizes: dict[torch.dtype, int] = {}
    files: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    room = shard_bytes

    def close() -> None:
        save_file(shard, folder / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(shard))
        shard.clear()

    for done, (name, weight) in enumerate(_read(weights)):
        parts, split = native_parts(name, config)
        if shard and weight.nbytes > room:
            close()
            room = shard_bytes
        room -= weight.nbytes
        sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.nbytes
        shard |= {part: piece.contiguous() for part, piece in zip(parts, split(weight), strict=True)}
        if progress is not None:
            progress(done + 1, len(weights))
    close()
    names = [f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))]
    if len(files) == 1:
        names = [SINGLE]
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    weight_map = {part: name for name, parts in zip(names, files, strict=True) for part in parts}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return max(sizes, key=lambda dtype: sizes[dtype])


def _read(weights: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    for path in dict.fromkeys(weights.values()):
        with open_weights(path) as file:
            for name in (name for name, where in weights.items() if where == path):
                yield name, file.get_tensor(name)
