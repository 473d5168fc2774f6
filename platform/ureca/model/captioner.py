"""The captioner: InternVL, a mask encoder, and from stage 2 on a LoRA adapter on the language model.

Model directory:
    captioner_config.json        base, its hash, tile limit, mask encoder
    mask_encoder.safetensors     the mask encoder with its delimiters
    adapter/                     peft's LoRA adapter, after stage 2
    tokenizer and processor files
The base's weights are not copied: they are loaded from `base` and refused if their hash differs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, InternVLForConditionalGeneration

from ureca.errors import CheckpointError
from ureca.model.attention import PACKED_ATTENTION, BranchRun, PrefixRun, both_runs
from ureca.model.internvl.architectures import LORA_TARGETS, read_config
from ureca.model.internvl.presets import preset_path
from ureca.model.internvl.weights import open_weights
from ureca.model.loss_head import LossHead
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.packing import IGNORED, PackedBatch
from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import Rle
from ureca.storage.files import file_bytes, read_bytes

CONFIG_FILE = "captioner_config.json"
MASK_ENCODER_FILE = "mask_encoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    base: str
    """Hub name or folder of the HF-native InternVL; `nano` is packaged."""
    base_hash: str
    """SHA-256 of the base's weights (`weights_hash`)."""
    tile_limit: int
    mask: MaskEncoderConfig

    def save(self, directory: Path) -> None:
        (directory / CONFIG_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> CaptionerConfig:
        """Load from a model directory, local or in S3."""
        path = f"{directory}/{CONFIG_FILE}"
        if file_bytes(path) is None:
            raise CheckpointError(
                f"{directory}: no {CONFIG_FILE} in it, so it is not a captioner; use a model directory written by "
                "train_stage1 or train_stage2, or an export"
            )
        try:
            record = json.loads(read_bytes(path))
            return cls(**{**record, "mask": MaskEncoderConfig.from_record(record["mask"])})
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: not in the form training writes ({type(error).__name__}: {error}); copy the model directory "
                "again"
            ) from error


def weights_hash(base: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and a bf16 copy of every weight; independent of the storage dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(base.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_base(base: str, dtype: torch.dtype) -> InternVLForConditionalGeneration:
    """Load an HF-native InternVL. Raises CheckpointError, naming folder or hub name and the remedy."""
    try:
        return InternVLForConditionalGeneration.from_pretrained(
            preset_path(base), config=read_config(base), dtype=dtype
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{base}: no HF-native InternVL could be loaded ({str(error).splitlines()[0]}); use a folder with "
            "config.json and model.safetensors, or a hub name this machine can reach"
        ) from error


class Captioner(nn.Module):
    """The captioner. `base` is transformers' own class, modified only by LoRA layers."""

    def __init__(
        self,
        base: InternVLForConditionalGeneration,
        mask_encoder: MaskEncoder,
        config: CaptionerConfig,
        processor: CaptionerProcessor,
    ) -> None:
        super().__init__()
        processor.check_against(base.config, config.base)
        self.base = base
        self.mask_encoder = mask_encoder
        self.config = config
        self.processor = processor
        base.model.language_model.set_attn_implementation(PACKED_ATTENTION)
        LossHead.convert(base.lm_head)
        self._peft: list[PeftModel] = []  # in a list, so that nn.Module does not register the base twice

    # ---- creating, loading, saving

    @classmethod
    def from_base(
        cls,
        base: str,
        *,
        tile_limit: int,
        tokens_per_tile: int = 8,
        kind: str = "tokens",
        projection: str = "linear",
        input_scale: float = 255.0,
        location_codes: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> Captioner:
        """Create a captioner with a new mask encoder (initialized from `seed`) on an unmodified base."""
        model = load_base(base, dtype)
        processor = CaptionerProcessor.from_pretrained(preset_path(base), tile_limit=tile_limit)
        embeddings: Any = model.get_input_embeddings().weight
        mask = MaskEncoderConfig(
            kind=kind,  # type: ignore[arg-type]
            tokens_per_tile=tokens_per_tile,
            projection=projection,  # type: ignore[arg-type]
            input_scale=input_scale,
            tile_px=processor.tile_px,
            hidden_size=embeddings.shape[1],
            embedding_norm=round(float(embeddings.detach().float().square().mean().sqrt()), 6),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = MaskEncoder(mask).to(dtype)
        if location_codes and (ids := processor.location_ids) is not None:
            encoder.use_location_embeddings(embeddings.detach()[ids])
        config = CaptionerConfig(base=base, base_hash=weights_hash(model), tile_limit=tile_limit, mask=mask)
        return cls(model, encoder, config, processor).to(device).eval()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Captioner:
        """Load a model directory, or an export (which includes the base). Raises CheckpointError."""
        directory = Path(directory)
        config = CaptionerConfig.load(directory)
        exported = (directory / "config.json").is_file()
        base = load_base(str(directory) if exported else config.base, dtype)
        if not exported and (found := weights_hash(base)) != config.base_hash:
            raise CheckpointError(
                f"{directory}: was trained on {config.base} with weights {config.base_hash[:12]}, but the base found "
                f"now has {found[:12]}; restore the base it was trained on, or train again"
            )
        encoder = MaskEncoder(config.mask).to(dtype)
        try:
            encoder.load_state_dict(load_file(directory / MASK_ENCODER_FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{directory / MASK_ENCODER_FILE}: does not match {CONFIG_FILE} next to it ({error}); both must be "
                "from one training run"
            ) from error
        processor = CaptionerProcessor.from_captioner(str(directory), tile_limit=config.tile_limit)
        captioner = cls(base, encoder, config, processor)
        if (directory / "adapter").is_dir():
            captioner._peft.append(_load_adapter(base, directory / "adapter"))
        return captioner.to(device).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a model directory (see the module's docstring)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.save(directory)
        state = {name: value.detach().contiguous() for name, value in self.mask_encoder.state_dict().items()}
        save_file(state, directory / MASK_ENCODER_FILE, metadata={"format": "pt"})
        self.processor.save_pretrained(str(directory))
        for peft_model in self._peft:
            peft_model.save_pretrained(str(directory / "adapter"), selected_adapters=["default"])

    def add_lora(self, *, rank: int, alpha: int | None = None, dropout: float = 0.05) -> None:
        """Add LoRA to the language model's linear layers; alpha defaults to 2 * rank, as in the paper's code."""
        config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=LORA_TARGETS)
        self._peft = [get_peft_model(self.base, config)]
        # peft would record the folder from which this machine loaded the base.
        self._peft[0].peft_config["default"].base_model_name_or_path = self.config.base

    @property
    def lora_rank(self) -> int:
        """LoRA rank; 0 without an adapter."""
        if not self._peft:
            return 0
        config: Any = self._peft[0].peft_config["default"]
        return int(config.r)

    def merge_lora(self) -> InternVLForConditionalGeneration:
        """Merge the adapter, if any, into the base and return the base: a plain HF-native InternVL."""
        if self._peft:
            self.base = self._peft.pop().merge_and_unload()
        return self.base

    def trainable(self, stage: int, *, tune_mask_encoder: bool = False) -> list[str]:
        """Set `requires_grad` for a stage; return the names of trained parameters.

        Stage 1: the mask encoder. Stages 2 and 3: LoRA, and the mask encoder with `tune_mask_encoder`.
        """
        for name, parameter in self.named_parameters():
            in_encoder, in_lora = name.startswith("mask_encoder."), ".lora_" in name
            parameter.requires_grad_(in_encoder if stage == 1 else in_lora or (in_encoder and tune_mask_encoder))
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def cast_frozen_base(self, dtype: torch.dtype) -> None:
        """Store the base's frozen weights in `dtype`, for a forward under autocast to that dtype.

        Their activations then stay in that dtype instead of being cast around each matrix product.
        """
        for parameter in self.base.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        for module in self.base.modules():
            if isinstance(module, BaseTunerLayer):
                # Otherwise it casts to the adapter's float32, and autocast casts back.
                module.cast_input_dtype_enabled = False  # type: ignore[assignment]

    def checkpoint_activations(self) -> None:
        """Enable activation checkpointing: each language-model layer saves only its input and recomputes the rest.

        A third more compute for a fraction of the memory; loss and gradients are unchanged. Keys and values of prefixes
        are kept, because branches read them. Inactive while a module is in evaluation mode.
        """
        language_model: Any = self.base.model.language_model
        # Not `gradient_checkpointing_enable`: it makes embeddings require a gradient, and with them every prefix. Under
        # ZeRO 3, DeepSpeed must leave frozen weights gathered while a layer is recomputed, otherwise torch finds them
        # empty and refuses (transformers issue 47254). DeepSpeed does so since pull request 8148, in the pinned 0.19.8.
        language_model._set_gradient_checkpointing(
            gradient_checkpointing_func=functools.partial(checkpoint, use_reentrant=False)
        )
        for layer in language_model.layers:
            layer.training = (
                True  # the flag of the layer itself, which transformers checks; dropout belongs to its parts
            )

    # ---- forward

    @property
    def drops_empty_tiles(self) -> bool:
        return self.config.mask.kind == "tokens"

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode `(T, 3, tile, tile)` to image tokens `(T, 256, D)`. Frozen in every stage, so without gradient."""
        with torch.no_grad():
            return self.base.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output

    def forward(
        self, batch: PackedBatch, image_features: Tensor | None = None, *, by_branch: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy over caption tokens and their number, `(loss_sum, num_tokens)`, both scalars.

        The caller divides by the count of the entire step, so packing, batching and the number of workers do not change
        the loss. With `by_branch` both are `(R,)`, in the order of the examples: a caption's negative log-probability,
        and its length.
        """
        hidden = self.hidden_states(batch, image_features)
        kept = batch.labels != IGNORED
        losses: Tensor = self.base.lm_head(hidden[kept], batch.labels[kept])
        if not by_branch:
            return losses.sum(), kept.sum()
        numbers, none = batch.branch[kept], losses.new_zeros(batch.num_regions)
        return none.index_add(0, numbers, losses), none.index_add(0, numbers, torch.ones_like(losses))

    def hidden_states(self, batch: PackedBatch, image_features: Tensor | None = None) -> Tensor:
        """Return the last hidden states `(S, D)` of a packed batch's branches."""
        if image_features is None:
            image_features = batch.image_features
        if image_features is None:
            assert batch.pixel_values is not None
            image_features = self.image_features(batch.pixel_values)
        embed = self.base.get_input_embeddings()
        prefix = embed(batch.prefix_ids)
        is_image = batch.prefix_ids == self.processor.image_token_id
        prefix = prefix.masked_scatter(is_image.unsqueeze(-1), image_features.to(prefix.dtype).flatten(0, 1))
        over_prefixes, over_branches = both_runs(batch.layout, prefix.device)
        self._language_model(prefix, batch.prefix_positions, over_prefixes)
        x = embed(batch.input_ids)
        if batch.mask_tiles:
            tokens = torch.cat(self.mask_encoder(batch.mask_tiles)).to(x.dtype)
            x = x.masked_scatter(batch.is_mask.unsqueeze(-1), tokens)
        return self._language_model(x, batch.position_ids, over_branches)

    def _language_model(self, embeddings: Tensor, position_ids: Tensor, run: PrefixRun | BranchRun) -> Tensor:
        """Run the language model: `(S, D)` -> `(S, D)`."""
        return self.base.model.language_model(
            inputs_embeds=embeddings[None],
            # Llama and Qwen2 pass a 4-dimensional mask on unchanged; the effective rule is in `packed_run`.
            attention_mask=embeddings.new_empty(0, 0, 0, 0),
            position_ids=position_ids[None],
            use_cache=False,
            packed_run=run,  # every layer passes it to `packed_attention`
        ).last_hidden_state[0]

    @torch.no_grad()
    def generate(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
        *,
        max_new_tokens: int = 96,
    ) -> list[str]:
        """Caption regions of one image in one batch, with transformers' greedy `generate`.

        The image prefix is computed once; its keys and values serve every region. Under DeepSpeed ZeRO 3, all workers
        must call this together, each with its own image.
        """
        prefix, branches = self._embedded_prompts(image, segmentations, queries)
        language_model = self.base.model.language_model
        cache = DynamicCache(config=language_model.config)
        language_model(inputs_embeds=prefix[None], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(branches))
        rows, mask = _left_padded(branches)
        # generate() skips cached positions, here the prefix, so these embeddings are never read.
        embeddings = torch.cat([prefix.expand(len(rows), -1, -1), rows], dim=1)
        base: Any = self.base  # its generate() has one type for all call forms
        ids = base.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.cat([mask.new_ones(len(rows), len(prefix)), mask], dim=1),
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.processor.end_token_id,
            pad_token_id=self.processor.end_token_id,
            # A worker whose captions are done keeps computing, because weights are gathered collectively.
            synced_gpus=hasattr(self.base.lm_head.weight, "ds_id"),
        )
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [re.sub(r"\s+", " ", text).strip() for text in texts]

    @torch.no_grad()
    def prompt_embeddings(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
    ) -> tuple[Tensor, Tensor]:
        """Return embedded prompts `(R, S, D)`, left-padded, and their attention mask `(R, S)`."""
        prefix, branches = self._embedded_prompts(image, segmentations, queries)
        return _left_padded([torch.cat([prefix, branch]) for branch in branches])

    def _embedded_prompts(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the embedded image prefix `(P, D)`, and each region's remaining prompt `(L, D)`."""
        processor, device = self.processor, self.base.device
        pixels = processor.image_inputs(image).to(device, self.base.dtype)
        features = self.image_features(pixels).flatten(0, 1)
        embed = self.base.get_input_embeddings()
        prefix_ids = torch.tensor(processor.prefix_ids(len(pixels)), device=device)
        prefix = embed(prefix_ids)
        prefix = prefix.masked_scatter((prefix_ids == processor.image_token_id)[:, None], features.to(prefix))
        given = [s for s in segmentations if s is not None]
        tokens = iter(self.mask_encoder([processor.mask_tiles(s) for s in given]))
        ids = [processor.branch_ids(query) for query in queries]
        # One call for all regions: under ZeRO 3 all workers must call the same number of modules.
        branches = embed(torch.tensor(sum(ids, []), device=device)).split(list(map(len, ids)))
        rows = [
            branch if segmentation is None else torch.cat([next(tokens).to(prefix), branch])
            for segmentation, branch in zip(segmentations, branches, strict=True)
        ]
        return prefix, rows

    def pack_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `pack` for this captioner."""
        return {"tokens_per_tile": self.config.mask.tokens_per_tile, "drop_empty": self.drops_empty_tiles}


def _load_adapter(base: InternVLForConditionalGeneration, folder: Path) -> PeftModel:
    """Add an adapter to the base. Raises CheckpointError if its file has other weights than its configuration asks."""
    adapted = PeftModel.from_pretrained(base, str(folder))  # only warns about missing weights
    with open_weights(folder / "adapter_model.safetensors") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    if stored != wanted:
        name = sorted(stored ^ wanted)[0]
        raise CheckpointError(
            f"{folder}: its weights do not match adapter_config.json: {name} is "
            f"{'missing' if name in wanted else 'unknown'}; restore both files from one training run"
        )
    return adapted


def _left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Left-pad rows `(L, D)` to `(R, max L, D)` with zeros; return them with the mask `(R, max L)`."""
    length = max(len(row) for row in rows)
    padded = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=padded.device)
    for number, row in enumerate(rows):
        padded[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return padded, mask
