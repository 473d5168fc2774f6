"""An export in vLLM: the captions of transformers, and the model card's code as it stands."""

import re
from typing import Any

import pytest
from PIL import Image

from ureca.engine.engine import CaptionEngine
from ureca.engine.parity import ask_engine
from ureca.model.captioner import Captioner
from ureca.model.exporting.export import CARD_FILE
from ureca.model.exporting.verify import probe
from ureca.regions.rle import box_to_rle

pytestmark = pytest.mark.slow


class Started:
    """The engine of the test run, for code that would start one."""

    def __init__(self, engine: CaptionEngine) -> None:
        self._engine = engine
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        await self._engine.check_health()

    def close(self) -> None:
        self.closed = True


def test_vllm_captions_an_export_as_transformers_does(running_engine, tiny_export):
    found = running_engine.run(ask_engine(running_engine.engine, Captioner.from_pretrained(tiny_export), probe()))
    assert found.requests == 4
    assert found.holds, found.differing
    assert found.equal >= 3


def test_another_export_s_captions_are_noticed(running_engine, tiny_export):
    import torch

    other = Captioner.from_pretrained(tiny_export)
    with torch.no_grad():
        other.mask_encoder.start.add_(1.0)
    assert not running_engine.run(ask_engine(running_engine.engine, other, probe())).holds


def test_the_card_s_code_for_vllm_runs(running_engine, tiny_export, tmp_path, monkeypatch, capsys):
    card = (tiny_export / CARD_FILE).read_text()
    [code] = [
        each for each in re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE) if "asyncio" in each
    ]
    picture = Image.fromarray(probe().image)
    picture.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / tiny_export.name).symlink_to(tiny_export)
    started = []

    def start(folder: str) -> Started:
        assert (tmp_path / folder / "config.json").is_file()
        started.append(Started(running_engine.engine))
        return started[-1]

    monkeypatch.setattr("ureca.engine.engine.CaptionEngine", start)
    names: dict[str, Any] = {"__name__": "card"}
    exec(compile(code, CARD_FILE, "exec"), names)
    running_engine.run(names["main"]())
    with Image.open("photo.jpg") as stored:
        box = box_to_rle((40, 30, 120, 140), (stored.height, stored.width))
        query = running_engine.engine.prompts.processor.query("unique")
        [caption] = running_engine.run(running_engine.engine.caption(stored.convert("RGB"), [box], [query]))
    assert capsys.readouterr().out == f"{[caption.text]}\n"
    assert [each.closed for each in started] == [True]
