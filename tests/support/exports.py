"""A captioner of some thousand random weights as an export, and the one vLLM engine of a test run."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with up to six tiles and a thumbnail, whose captions differ from region to region."""
    import torch

    from ureca.model.captioner import Captioner
    from ureca.model.exporting.export import export
    from ureca.nano.architecture import nano_config, nano_processor, nano_tokenizer, new_nano, save_nano

    folder = tmp_path_factory.mktemp("export")
    tokenizer = nano_tokenizer(["a red round part at the left of the picture."] * 50, num_words=344)
    base = new_nano(nano_config(tokenizer, width=64, layers=2, vision_width=64, vision_layers=1), seed=0)
    with torch.no_grad():  # unscaled, the embedding of the last token dominates
        torch.manual_seed(3)
        for layer in base.model.language_model.layers:
            torch.nn.init.normal_(layer.self_attn.q_proj.weight, std=1.0)
            layer.self_attn.o_proj.weight.mul_(4)
            layer.mlp.down_proj.weight.mul_(4)
    save_nano(base, nano_processor(tokenizer, tile_limit=6), folder / "base")
    captioner = Captioner.from_base(str(folder / "base"), tile_limit=6, tokens_per_tile=4)
    with torch.no_grad():
        captioner.mask_encoder.body.norm.weight.mul_(5)
        captioner.mask_encoder.body.describe[-1].weight.mul_(30)
    captioner.save_pretrained(folder / "model")
    return export(folder / "model", folder / "export")


class RunningEngine:
    """A started CaptionEngine, and the one event loop that it lives in."""

    def __init__(self, export_dir: Path) -> None:
        from ureca.engine.engine import CaptionEngine

        self.engine = CaptionEngine(export_dir)
        self._loop = asyncio.new_event_loop()
        self.run(self.engine.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        async def end() -> None:
            self.engine.close()
            await asyncio.sleep(0.1)  # for the tasks that this cancels

        self.run(end())
        self._loop.close()


@pytest.fixture(scope="session")
def running_engine(tiny_export: Path) -> Iterator[RunningEngine]:
    running = RunningEngine(tiny_export)
    yield running
    running.close()
