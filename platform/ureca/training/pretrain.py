"""Pretraining of nano's base on drawn scenes: a small MLLM that has never seen a mask.

Two phases, one schedule each:
1. vision: the vision tower and projector alone, under a head that names color, kind, part, row and column of what
   lies under each patch (thrown away afterwards). Dense supervision makes this the quick part.
2. answers: everything, on questions by image, point, box and name (`questions.py`), all questions of an image packed
   behind one image prefix; the dense head stays on at a small weight. Before it begins the location tokens and two
   attention heads are set from the image tokens, so that a place in words finds the same place in the image
   (`look_up_by_place`).

One process: on two cores two workers were slower than one. Scenes are drawn by the data loader's process, from
seeds that depend on the step alone, so an interrupted run goes on with the same data.
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

from ureca.attributes.vocabulary import SHADES
from ureca.config import config_to_dict
from ureca.errors import CheckpointError
from ureca.model import Captioner, Example, PackedBatch, RegionExample, pack
from ureca.model.captioner import CaptionerConfig
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.nano import (
    IMAGE_TOKENS,
    PATCH_PX,
    nano_config,
    nano_processor,
    nano_tokenizer,
    new_nano,
    save_nano,
)
from ureca.model.processor import GRID, CaptionerProcessor
from ureca.runs import Progress, Run
from ureca.scenes import KIND_WORDS, draw_scene
from ureca.training.questions import questions, region_map, vocabulary_texts

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration

HELDOUT_SEED = 900_000_000
"""Scenes from here on are never trained on."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How nano's base is made."""

    output: str = "runs/pretrain_nano"
    """Run folder: checkpoints, metrics, and `base/`, the HF-native result."""
    width: int = 192
    layers: int = 4
    vision_steps: int = 450
    """Steps of the vision phase."""
    steps: int = 1400
    """Steps of the answers phase."""
    vision_batch: int = 16
    """Images a step in the vision phase."""
    batch: int = 4
    """Images a step in the answers phase."""
    points: int = 10
    """Point questions an image."""
    boxes: int = 5
    """Box questions an image."""
    wheres: int = 2
    """Questions for a named object's box, at most, an image."""
    learning_rate: float = 1.5e-3
    vision_rate: float = 0.1
    """Learning rate of vision tower and projector in the answers phase, as a share of the others'."""
    weight_decay: float = 0.02
    dense_weight: float = 0.2
    """Weight of the dense head's loss in the answers phase."""
    bf16: bool = True
    """Compute matrix products in bfloat16 (autocast); weights stay float32."""
    threads: int = 1
    seed: int = 0
    checkpoint_every: int = 200
    evaluate_scenes: int = 40
    """Held-out scenes for the scores by question kind."""


COLOR_IDS = {name: i + 1 for i, name in enumerate(SHADES)}
WORD_IDS = {name: i + 1 for i, name in enumerate(KIND_WORDS)}


class DenseHead(nn.Module):
    """Names what lies under each patch from its image token. Temporary: it is not part of the base."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        sizes = {"color": len(SHADES) + 1, "kind": len(WORD_IDS) + 1, "part": len(WORD_IDS) + 1}
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in {**sizes, "row": GRID, "column": GRID}.items()})

    def forward(self, tokens: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """`(B, 256, D)` image tokens and `(B, 256)` targets -> mean loss, share right by question."""
        x = self.norm(tokens)
        losses, right = [], {}
        for name, head in self.heads.items():
            logits = head(x).flatten(0, 1)
            target = targets[name].flatten()
            losses.append(nn.functional.cross_entropy(logits, target))
            inside = target > 0 if name in ("color", "kind", "part") else target >= 0
            right[name] = float((logits.argmax(-1) == target)[inside].float().mean())
        return torch.stack(losses).sum(), right


class SceneSteps(Dataset[dict[str, Any]]):
    """Item s is the whole batch of step s: images, dense targets and, in the answers phase, packed questions."""

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


def dense_targets(scene: Any) -> dict[str, Tensor]:
    """What lies under each patch's center: ids of color, kind and part (0 background), row and column; `(256,)`."""
    half = PATCH_PX // 2
    cells = region_map(scene)[half::PATCH_PX, half::PATCH_PX].ravel()
    color, kind, part = (np.zeros(IMAGE_TOKENS, dtype=np.int64) for _ in range(3))
    for cell, index in enumerate(cells):
        if index >= 0:
            region = scene.regions[index]
            color[cell] = COLOR_IDS[region.attributes["color"]]
            kind[cell] = WORD_IDS[region.kind]
            part[cell] = WORD_IDS[region.part or region.kind]
    grid = np.arange(IMAGE_TOKENS)
    arrays = {"color": color, "kind": kind, "part": part, "row": grid // GRID, "column": grid % GRID}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def first_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


@dataclass
class State:
    """What a checkpoint holds: weights, optimizer and the step, phase by phase."""

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
        """AdamW over the parameters; vision tower and projector learn at `rate` times the schedule's rate."""
        towers = (self.model.model.vision_tower, self.model.model.multi_modal_projector)
        vision = {id(p) for tower in towers for p in tower.parameters()}
        groups = []
        for matrix in (True, False):
            for in_vision in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == matrix and (id(p) in vision) == in_vision]
                decay = config.weight_decay if matrix else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "rate": rate if in_vision else 1.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        if self._loaded is not None:
            self.optimizer.load_state_dict(self._loaded)
            self._loaded = None


def pretrain(config: PretrainConfig, run: Run) -> tuple[Path, dict[str, float]]:
    """Train nano's base, or go on where an interrupted run stopped.

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
    if checkpoint.exists():
        state.load(checkpoint)
    processor = CaptionerProcessor(hf_processor, tile_limit=1)
    captioner = as_captioner(state.model, processor)
    if state.phase == "vision":
        vision_phase(config, run, state, base_dir, checkpoint)
        look_up_by_place(config, state, base_dir)
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
    """The base in a captioner's clothes, to use its packed forward and its generate; it gets no mask."""
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
    """Factor of the learning rate: linear warm-up, then cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def update(state: State, loss: Tensor, parameters: list[nn.Parameter], rate: float) -> float:
    """One optimizer step; returns the gradient's norm before clipping."""
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
def look_up_by_place(config: PretrainConfig, state: State, base_dir: Path) -> None:
    """Let the language model start out able to look where a location token points.

    1. Each location token's embedding becomes the mean image token of its cell (over drawn scenes, less the mean of
       all cells) and a mark in the direction that image tokens use least, at the norm of the other embeddings.
    2. Two heads of the first layer get queries and keys that read the place off a token and little else: the
       directions in which the cells' means differ most against what the pictures' content varies (Fisher's linear
       discriminant), on the rotary pairs that turn least over a few hundred tokens; and values that pass on what
       varies from picture to picture. `LOOK_SCORES` are the attention scores that a location token then gives its
       own cell. A linear probe then reads the region's color off the location token after one layer in 0.6 of
       cases (0.12 without, 0.98 off the image token itself).

    Without this the model stayed at guessing colors for 50,000 answers (docs/nano.md).
    """
    model = state.model.eval()
    tokens = []
    for batch in batches(config, base_dir, 0, 20, answers=False):
        features = model.get_image_features(pixel_values=batch["pixel_values"], return_dict=True).pooler_output
        tokens.append(features / features.square().mean(-1, keepdim=True).sqrt())
    x = torch.cat(tokens)
    cells = x.mean(0)
    codes = cells - cells.mean(0)
    codes = codes / codes.square().mean(-1, keepdim=True).sqrt()

    embeddings = model.get_input_embeddings().weight
    tokenizer = CaptionerProcessor.from_pretrained(str(base_dir), tile_limit=1).tokenizer
    ids = tokenizer.convert_tokens_to_ids([f"<p{cell:03d}>" for cell in range(IMAGE_TOKENS)])
    typical = embeddings.norm(dim=1).mean()
    quiet = torch.linalg.eigh(x.flatten(0, 1).T @ x.flatten(0, 1) / x[..., 0].numel()).eigenvectors[:, 0]
    marked = codes / codes.norm(dim=1, keepdim=True) + quiet
    marked = marked / marked.norm(dim=1, keepdim=True)
    embeddings[ids] = marked * typical

    attention = model.model.language_model.layers[0].self_attn
    half = attention.head_dim // 2
    slow = [*range(half // 2, half), *range(half + half // 2, 2 * half)]
    directions = discriminant(x, len(slow) - 1)
    width = math.sqrt(config.width)  # a normed token's length
    own = float(((marked * width @ directions.T) * (x[:64] @ directions.T)).sum(-1).mean())
    unit = math.sqrt(attention.head_dim)  # by which attention divides scores
    for head, score in enumerate(LOOK_SCORES):
        first = head * attention.head_dim
        rows = [first + dim for dim in slow]
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[first : first + attention.head_dim] = 0.0
            projection.weight[rows[:-1]] = directions * math.sqrt(score * unit / own)
        # A location token would be its own best match: whoever asks, marked tokens get a low score.
        attention.k_proj.weight[rows[-1]] = -quiet
        attention.q_proj.weight[rows[-1]] = 0.0
        attention.q_proj.bias[rows[-1]] = 2 * score * unit / float((marked * width @ quiet).mean())
        attention.v_proj.weight[first : first + attention.head_dim] = content(x, attention.head_dim)
        attention.o_proj.weight[:, first : first + attention.head_dim] *= 2


LOOK_SCORES = (16.0, 8.0)


def content(x: Tensor, count: int) -> Tensor:
    """`(count, D)`: what normed image tokens `(images, cells, D)` vary by from picture to picture, most first."""
    rest = x - x.mean(0)
    scatter = torch.einsum("icd,ice->de", rest, rest)
    return torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, :count].T


def discriminant(x: Tensor, count: int) -> Tensor:
    """Fisher's discriminant of cells: normed image tokens `(images, cells, D)` -> `(count, D)`, best first.

    Text embeddings, which vary by about one in every direction when normed, count as what the pictures vary by: the
    heads must not read them either.
    """
    means = x.mean(0)
    within = torch.einsum("icd,ice->de", x - means, x - means) / (x.shape[0] * x.shape[1]) + torch.eye(x.shape[-1])
    centered = means - means.mean(0)
    between = centered.T @ centered / len(centered)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    values, vectors = torch.linalg.eigh(whiten @ between @ whiten.T)
    return (whiten.T @ vectors[:, values.argsort(descending=True)[:count]]).T


def answers_phase(
    config: PretrainConfig, run: Run, state: State, captioner: Captioner, base_dir: Path, checkpoint: Path
) -> None:
    model = state.model.train()
    parameters = [*model.parameters(), *state.head.parameters()]
    # Slowly, so that the places that two heads were set to read stay where they are.
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
    """Scores on held-out scenes, by question kind.

    `image`, `point`, `box` and `where` are the share of answers right to the letter; `point_color`, `box_place` and
    so on the share of answers whose own color, or place and size, is right.
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
