"""From a base as the hub ships it to served captions: both stages, evaluation, export, engine, vLLM describer."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.exports import RunningEngine
from support.families import IMAGE_TOKENS
from support.hub_base import write_hub_base
from support.tiny import drawn_row

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import write_regions
from ureca.engine.chat import ChatEngine, ChatReply
from ureca.evaluation.config import EvaluateConfig
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.variants import variants_of
from ureca.model.captioner import Captioner
from ureca.model.exporting.export import export
from ureca.model.exporting.verify import verify_export
from ureca.regions.rle import box_to_rle
from ureca.training.config import BatchConfig, LoraConfig, OptimizerConfig, Stage1Config, Stage2Config, WorkersConfig
from ureca.training.launch import fit

pytestmark = pytest.mark.slow

SIZE = (300, 640)
"""Two tiles and a thumbnail or more."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_base(tmp_path_factory.mktemp("hub") / "InternVL3-1B-hf", "qwen2")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRow]:
    """Images of several tiles."""
    folder = tmp_path_factory.mktemp("images")
    return [wide_row(folder, number) for number in range(4)]


def wide_row(folder: Path, number: int) -> ImageRow:
    row = drawn_row(folder, number, 2)
    pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(row.image_path)
    regions = []
    for index, region in enumerate(row.regions):
        x, y, w, h = box = (20 + 150 * index, 30, 120, 200)
        rle = box_to_rle((x, y, x + w, y + h), SIZE)
        regions.append(replace(region, segmentation=rle, bbox=box, area=w * h))
    return replace(row, height=SIZE[0], width=SIZE[1], regions=tuple(regions))


@pytest.fixture(scope="module")
def trained(base: Path, rows: list[ImageRow], ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """Model directory after a step of each stage."""
    folder = tmp_path_factory.mktemp("road")
    write_regions(folder / "regions.parquet", rows)
    shared = {
        "table": str(folder / "regions.parquet"),
        "base": str(base),
        "tile_limit": 6,
        "heldout": 0.0,
        "batch": BatchConfig(images_per_step=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3, epochs=1),
        "workers": WorkersConfig(num_workers=1),
    }
    first = fit(Stage1Config(**shared), folder / "stage1")
    second = fit(Stage2Config(**shared, init=first.model, lora=LoraConfig(rank=4)), folder / "stage2")
    return Path(second.model)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = export(trained, tmp_path_factory.mktemp("export") / "export")
    assert "Verified" in verify_export(trained, folder, dtype=Captioner.from_pretrained(folder).base.dtype)
    return folder


def test_evaluation_captions_every_region(trained: Path, rows: list[ImageRow], tmp_path: Path) -> None:
    variants = variants_of(EvaluateConfig(table="t", stage2=str(trained)))
    evaluation = evaluate(variants, rows, output=tmp_path, max_new_tokens=6)
    assert len(evaluation.predictions) == 3 * sum(len(row.regions) for row in rows)


def test_engine_captions_equal_transformers(exported: Path, rows: list[ImageRow]) -> None:
    captioner = Captioner.from_pretrained(exported)
    image = np.asarray(Image.open(rows[0].image_path))
    masks = [region.segmentation for region in rows[0].regions]
    queries = [captioner.processor.query("unique")] * len(masks)
    running = RunningEngine(exported)
    try:
        captions = running.run(running.engine.caption(image, masks, queries, max_tokens=12))
    finally:
        running.close()
    expected = captioner.generate(image, masks, queries, max_new_tokens=12)
    assert [caption.text for caption in captions] == expected


def test_chat_engine_reads_views_of_several_tiles(base: Path) -> None:
    """With crop_to_patches=false vLLM would reserve one tile per image, and refuse one of 12 tiles and a thumbnail."""

    async def ask() -> ChatReply:
        # A step shorter than the image: only vLLM's own count of the image's tokens makes room for it.
        engine = ChatEngine(str(base), max_num_seqs=4, vllm_args={"max_num_batched_tokens": 64})
        await engine.start()
        try:
            return await engine.chat("", [Image.new("RGB", (640, 480), "green"), "What is this?"], max_tokens=4)
        finally:
            engine.close()
            await asyncio.sleep(0.1)

    assert asyncio.run(ask()).prompt_tokens > 13 * IMAGE_TOKENS
