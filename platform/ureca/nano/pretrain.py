"""Pretrain nano's base on synthetic scenes: a small MLLM without mask input.

Two phases, each with a learning-rate schedule:
1. vision: the vision tower and projector, under a temporary head that predicts the content of each cell
   (`dense_head.py`). Dense supervision makes this phase fast.
2. answers: all parameters, on questions by image, point, box and name (`pretrain_questions.py`), all questions of an
   image packed behind one image prefix; the dense head keeps a small weight. Before this phase, the location tokens
   and some attention heads are set from the image tokens, so that a place in words finds the same place in the image
   (`location_init.py`).

One process: on two cores two workers were slower than one. Scenes are drawn by the data loader's process, from seeds
that depend only on the step, so an interrupted run resumes with the same data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ureca.config import config_to_dict
from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.packing import Example, PackedBatch, RegionExample, pack
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import (
    nano_config,
    nano_processor,
    nano_tokenizer,
    new_nano,
    save_nano,
)
from ureca.nano.dense_head import DenseHead, dense_targets
from ureca.nano.location_init import look_up_by_place
from ureca.nano.pretrain_questions import questions, vocabulary_texts
from ureca.nano.scenes.draw import draw_scene
from ureca.runs import Progress, Run

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration

LOOKUP_STEPS = 20
HELDOUT_SEED = 900_000_000
"""Scenes from this seed on are never used for training."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of nano's pretraining."""

    output: str = "runs/pretrain_nano"
    """Run folder: checkpoints, metrics, and `base/`, the HF-native result."""
    width: int = 192
    layers: int = 4
    vision_steps: int = 3000
    """Steps of the vision phase."""
    steps: int = 1500
    """Steps of the answers phase."""
    vision_batch: int = 8
    """Images per step in the vision phase."""
    batch: int = 4
    """Images per step in the answers phase."""
    points: int = 10
    """Point questions per image."""
    boxes: int = 5
    """Box questions per image."""
    wheres: int = 2
    """Maximum questions per image for a named object's box."""
    learning_rate: float = 1.5e-3
    vision_rate: float = 0.1
    """Learning rate of vision tower and projector in the answers phase, relative to the others."""
    weight_decay: float = 0.02
    dense_weight: float = 0.2
    """Weight of the dense head's loss in the answers phase."""
    bf16: bool = True
    """Compute matrix products in bfloat16 (autocast); weights stay float32."""
    threads: int = 1
    seed: int = 0
    checkpoint_every: int = 300
    evaluate_scenes: int = 40
    """Held-out scenes for the scores by question kind."""


class SceneSteps(Dataset[dict[str, Any]]):
    """Item s is the complete batch of step s: images, dense targets and, in the answers phase, packed questions."""

    def __init__(self, config: PretrainConfig, processor_dir: Path, first: int, last: int, *, answers: bool) -> None:
        self.config, self.processor_dir = config, processor_dir
        self.first, self.last, self.answers = first, last, answers
        self._processor: CaptionerProcessor | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, item: int) -> dict[str, Any]:
        step = self.first + item
        config = self.config
        if self._processor is None:
            torch.set_num_threads(1)
            self._processor = CaptionerProcessor.from_pretrained(str(self.processor_dir), tile_limit=1)
        batch = config.batch if self.answers else config.vision_batch
        offset = 1_000_000 * (config.seed + 1) + (400_000_000 if self.answers else 0)
        scenes = [draw_scene(offset + step * batch + i) for i in range(batch)]
        targets = [dense_targets(scene) for scene in scenes]
        out: dict[str, Any] = {name: torch.stack([t[name] for t in targets]) for name in targets[0]}
        if not self.answers:
            out["pixel_values"] = torch.cat([self._processor.image_inputs(scene.image) for scene in scenes])
            return out
        examples = []
        for i, scene in enumerate(scenes):
            rng = np.random.default_rng((config.seed, step, i))
            asked = questions(scene, rng, points=config.points, boxes=config.boxes, wheres=config.wheres)
            regions = tuple(RegionExample(None, q.query, q.answer) for q in asked)
            examples.append(Example(scene.image, regions))
        out["packed"] = pack(examples, self._processor, tokens_per_tile=0, drop_empty=False)
        return out


def first_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


@dataclass
class State:
    """Content of a checkpoint: weights, optimizer and step of each phase."""

    model: InternVLForConditionalGeneration
    head: DenseHead
    phase: str = "vision"
    step: int = 0
    optimizer: torch.optim.Optimizer | None = None
    _loaded: dict[str, Any] | None = field(default=None, repr=False)

    def save(self, path: Path) -> None:
        assert self.optimizer is not None
        record = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "phase": self.phase,
            "step": self.step,
        }
        scratch = path.with_suffix(".tmp")
        torch.save(record, scratch)
        os.replace(scratch, path)

    def load(self, path: Path) -> None:
        record = torch.load(path, weights_only=True)
        try:
            self.model.load_state_dict(record["model"])
            self.head.load_state_dict(record["head"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: made with another width or number of layers ({str(error).splitlines()[0]}); "
                "give another --output or the same sizes"
            ) from error
        self.phase, self.step, self._loaded = record["phase"], record["step"], record["optimizer"]

    def start_optimizer(self, parameters: list[nn.Parameter], config: PretrainConfig, rate: float = 1.0) -> None:
        """Create AdamW over the parameters; vision tower and projector use `rate` times the schedule's rate."""
        towers = (self.model.model.vision_tower, self.model.model.multi_modal_projector)
        vision = {id(p) for tower in towers for p in tower.parameters()}
        groups = []
        for matrix in (True, False):
            for in_vision in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == matrix and (id(p) in vision) == in_vision]
                decay = config.weight_decay if matrix else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "rate": rate if in_vision else 1.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        if self._loaded is not None:
            self.optimizer.load_state_dict(self._loaded)
            self._loaded = None


def pretrain(config: PretrainConfig, run: Run) -> tuple[Path, dict[str, float]]:
    """Train nano's base, or resume an interrupted run.

    Returns:
        The HF-native folder `<run>/base` and its scores by question kind (`score_questions`).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    base_dir, checkpoint = run.directory / "base", run.directory / "checkpoint.pt"
    tokenizer = nano_tokenizer(vocabulary_texts())
    hf_processor = nano_processor(tokenizer)
    hf_processor.save_pretrained(base_dir)
    sizes = nano_config(tokenizer, width=config.width, layers=config.layers)
    state = State(new_nano(sizes, seed=config.seed), DenseHead(config.width))
    # On a CPU the gradient of the fused kernel takes twice as long as explicit products.
    state.model.model.vision_tower.set_attn_implementation("eager")
    if checkpoint.exists():
        state.load(checkpoint)
    processor = CaptionerProcessor(hf_processor, tile_limit=1)
    captioner = as_captioner(state.model, processor)
    if state.phase == "vision":
        vision_phase(config, run, state, base_dir, checkpoint)
        start_lookups(config, state, base_dir)
        state.phase, state.step = "answers", 0
    answers_phase(config, run, state, captioner, base_dir, checkpoint)
    save_nano(state.model.eval(), hf_processor, base_dir)
    scores = score_questions(captioner, config.evaluate_scenes)
    record = {
        "command": "python jobs/pretrain_nano.py",
        "config": config_to_dict(config),
        "seconds": round(run.seconds),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "heldout_scenes": config.evaluate_scenes,
        "scores": scores,
    }
    (base_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return base_dir, scores


def as_captioner(model: InternVLForConditionalGeneration, processor: CaptionerProcessor) -> Captioner:
    """Wrap the base as a captioner, to use its packed forward and its generate; it gets no mask."""
    sizes: Any = model.config
    width = sizes.text_config.hidden_size
    mask = MaskEncoderConfig(tile_px=processor.tile_px, hidden_size=width)
    settings = CaptionerConfig(base="", base_hash="", tile_limit=1, mask=mask)
    return Captioner(model, MaskEncoder(mask), settings, processor)


def batches(config: PretrainConfig, base_dir: Path, first: int, last: int, *, answers: bool) -> Iterator[Any]:
    steps = SceneSteps(config, base_dir, first, last, answers=answers)
    loader = DataLoader(
        steps,
        batch_size=1,
        num_workers=1,
        prefetch_factor=8,
        collate_fn=first_item,
        multiprocessing_context="spawn",
    )
    yield from loader


def schedule(step: int, total: int, *, warmup: int = 100, floor: float = 0.02) -> float:
    """Return the factor of the learning rate: linear warm-up, then cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def update(state: State, loss: Tensor, parameters: list[nn.Parameter], rate: float) -> float:
    """Run one optimizer step; return the gradient's norm before clipping."""
    assert state.optimizer is not None
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
    if not math.isfinite(norm):
        raise CheckpointError(
            f"{state.phase} step {state.step}: the gradient is not finite; start again with a lower learning_rate"
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return norm


def vision_phase(config: PretrainConfig, run: Run, state: State, base_dir: Path, checkpoint: Path) -> None:
    model = state.model.train()
    tower = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    parameters = [*tower, *state.head.parameters()]
    state.start_optimizer(parameters, config)
    progress = Progress("vision", config.vision_steps, unit="steps")
    for batch in batches(config, base_dir, state.step, config.vision_steps, answers=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            tokens = model.get_image_features(pixel_values=batch["pixel_values"], return_dict=True).pooler_output
            loss, right = state.head(tokens.float(), batch)
        norm = update(state, loss, parameters, config.learning_rate * schedule(state.step, config.vision_steps))
        state.step += 1
        if state.step % 50 == 0:
            run.log(phase="vision", step=state.step, loss=loss.item(), grad_norm=norm, **right)
        progress.update(state.step, loss=round(loss.item(), 3), color=round(right["color"], 2))
        if state.step % config.checkpoint_every == 0:
            state.save(checkpoint)
    progress.close()


@torch.no_grad()
def start_lookups(config: PretrainConfig, state: State, base_dir: Path) -> None:
    """Apply `look_up_by_place` with image tokens of the vision phase's first scenes."""
    model = state.model.eval()
    steps = SceneSteps(config, base_dir, 0, LOOKUP_STEPS, answers=False)
    features = [
        model.get_image_features(pixel_values=steps[step]["pixel_values"], return_dict=True).pooler_output
        for step in range(LOOKUP_STEPS)
    ]
    tokenizer = CaptionerProcessor.from_pretrained(str(base_dir), tile_limit=1).tokenizer
    look_up_by_place(model, tokenizer, torch.cat(features), state.head.directions(config.width))


def answers_phase(
    config: PretrainConfig, run: Run, state: State, captioner: Captioner, base_dir: Path, checkpoint: Path
) -> None:
    model = state.model.train()
    parameters = [*model.parameters(), *state.head.parameters()]
    # Slowly, so that the places that four heads were initialized to read stay valid.
    state.start_optimizer(parameters, config, rate=config.vision_rate)
    progress = Progress("answers", config.steps, unit="steps")
    for batch in batches(config, base_dir, state.step, config.steps, answers=True):
        packed: PackedBatch = batch["packed"]
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            tokens = model.get_image_features(pixel_values=packed.pixel_values, return_dict=True).pooler_output
            loss_sum, count = captioner(packed, image_features=tokens)
            dense, right = state.head(tokens.float(), batch)
        loss = loss_sum / count
        rate = config.learning_rate * schedule(state.step, config.steps)
        norm = update(state, loss + config.dense_weight * dense, parameters, rate)
        state.step += 1
        if state.step % 50 == 0:
            run.log(
                phase="answers",
                step=state.step,
                loss=loss.item(),
                dense=dense.item(),
                grad_norm=norm,
                answers=packed.num_regions * state.step,
                color_under_patch=right["color"],
            )
        progress.update(state.step, loss=round(loss.item(), 3), color=round(right["color"], 2))
        if state.step % config.checkpoint_every == 0:
            state.save(checkpoint)
            run.log(phase="check", step=state.step, **score_questions(captioner, min(8, config.evaluate_scenes)))
            model.train()
    progress.close()
    state.save(checkpoint)


@torch.no_grad()
def score_questions(captioner: Captioner, scenes: int) -> dict[str, float]:
    """Return scores on held-out scenes, by question kind.

    `image`, `point`, `box` and `where` are the fraction of exactly correct answers; `point_color`, `box_place` and so
    on the fraction of answers with the correct color, or place and size.
    """
    captioner.eval()
    hits: dict[str, list[bool]] = {}
    for number in range(scenes):
        scene = draw_scene(HELDOUT_SEED + number)
        asked = questions(scene, np.random.default_rng(number), points=8, boxes=8, wheres=3)
        given = captioner.generate(scene.image, [None] * len(asked), [q.query for q in asked], max_new_tokens=48)
        for question, answer in zip(asked, given, strict=True):
            hits.setdefault(question.kind, []).append(answer == question.answer)
            if question.kind in ("point", "box"):
                color = scene.regions[question.region].attributes["color"]
                where, _, what = answer.partition(": ")
                hits.setdefault(f"{question.kind}_color", []).append(what.startswith(color + " "))
                hits.setdefault(f"{question.kind}_place", []).append(where == question.answer.partition(": ")[0])
    return {name: float(np.mean(values)) for name, values in hits.items()}
