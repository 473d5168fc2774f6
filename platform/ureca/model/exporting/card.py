"""Model card of an export: README.md with the hub's front matter, written only from recorded facts.

    base and its license     licenses.py
    data, recipe, figures    training.json, which training writes into the model directory and export copies
    scores with intervals    scores.json of jobs/evaluate.py or jobs/nano_benchmark.py
    how to load it           code that tests/model/exporting/test_card.py and tests/engine/test_parity.py execute

Missing facts are stated as not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ureca.model.captioner import CaptionerConfig
from ureca.model.internvl.licenses import License

TITLES = {
    "bleu_4": "BLEU-4",
    "meteor": "METEOR 1.5",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr / 10",
    "attribute_accuracy": "attribute accuracy",
    "uniqueness": "uniqueness",
}
_GROUPS = {"drawn": "drawn scenes", "photo": "photos"}
_HIDDEN = ("run_directory", "eval", "checkpoints")
"""Settings that do not affect the weights."""


@dataclass(frozen=True, kw_only=True)
class CardText:
    """Text of the card that only the exporting person knows."""

    name: str
    """Name of the export and of its folder, used by the card's code."""
    title: str = ""
    about: str = ""
    """Markdown below the title."""
    license: str = ""
    """License of the export; empty: the base's."""
    data: str = ""
    """One line on the source of the images and their license."""
    limits: str = ""
    """Markdown: further limitations."""
    datasets: Sequence[str] = ()
    """Hub names of the training datasets."""
    language: Sequence[str] = ("en",)
    variant: str = "mask_stage2"
    """Row of the scores that is this model."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    config: CaptionerConfig
    license: License
    training: Mapping[str, Any]
    scores: Mapping[str, Any]
    text: CardText
    dtype: str
    parameters: int
    mask_encoder_parameters: int
    checked: str = ""
    stages: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def model_card(
    config: CaptionerConfig,
    *,
    license: License,  # noqa: A002
    training: Mapping[str, Any],
    scores: Mapping[str, Any],
    text: CardText,
    dtype: str,
    parameters: int,
    mask_encoder_parameters: int,
    checked: str = "",
) -> str:
    """Return the card's Markdown.

    Args:
        training: content of training.json; may be empty.
        scores: content of scores.json; may be empty.
        checked: one sentence on how the export was verified.
    """
    facts = _Facts(
        config=config,
        license=license,
        training=training,
        scores=scores,
        text=text,
        dtype=dtype,
        parameters=parameters,
        mask_encoder_parameters=mask_encoder_parameters,
        checked=checked,
        stages=training.get("stages", ()),
    )
    head = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True, width=110)
    parts = [
        f"# {text.title or text.name}",
        text.about or _about(facts),
        _how_to_load(facts),
        _data(facts),
        _recipe(facts),
        _scores(facts),
        _limits(facts),
        _license(facts),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(facts: _Facts) -> dict[str, Any]:
    license_, text = facts.license, facts.text
    head: dict[str, Any] = {"license": text.license or license_.id}
    if not text.license and license_.id == "other":
        head["license_name"], head["license_link"] = license_.name, license_.link
    if "/" in facts.config.base and not facts.config.base.startswith("/"):
        head["base_model"], head["base_model_relation"] = facts.config.base, "finetune"
    head |= {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "language": list(text.language),
        "tags": ["region-captioning", "segmentation", "internvl", "ray", "deepspeed", "vllm", "ureca"],
    }
    if text.datasets:
        head["datasets"] = list(text.datasets)
    results = [_result(facts, kind, group) for kind, group in facts.scores.get("groups", {}).items()]
    if any(results):
        head["model-index"] = [{"name": text.name, "results": [each for each in results if each]}]
    return head


def _result(facts: _Facts, kind: str, group: Mapping[str, Any]) -> dict[str, Any] | None:
    mine = group["scores"].get(facts.text.variant)
    if not mine:
        return None
    name = f"held-out {_GROUPS.get(kind, kind)}: {group['num_images']:,} images, {group['num_regions']:,} regions"
    return {
        "task": {"type": "image-text-to-text", "name": "region captioning"},
        "dataset": {"type": "ureca-region-table", "name": name},
        "metrics": [
            {"type": metric, "name": title, "value": round(mine[metric]["value"], 4)}
            for metric, title in TITLES.items()
            if metric in mine
        ],
    }


def _about(facts: _Facts) -> str:
    mask, base = facts.config.mask, _base_name(facts)
    tiles = f"{facts.config.tile_limit} tiles and a thumbnail" if facts.config.tile_limit > 1 else "one tile"
    checked = f"\n\n{facts.checked}" if facts.checked else ""
    return f"""
Captions regions of images, each so that no other region of the image fits: an image and a mask go in, a caption comes
out. Trained on {base} with [URECA on Ray](https://arxiv.org/abs/2504.05305), an independent implementation of *URECA:
Unique Region Caption Anything*.

The language and vision parts are a stock HF-native InternVL ({facts.parameters / 1e6:,.1f}M parameters, {facts.dtype},
LoRA merged). Next to them is `mask_encoder.safetensors` ({facts.mask_encoder_parameters / 1e6:,.2f}M): it turns each
tile of a mask into {mask.tokens_per_tile} tokens, which stand between the image and the question. An image is cut into
at most {tiles} of {mask.tile_px} px.{checked}"""


def _how_to_load(facts: _Facts) -> str:
    name = facts.text.name
    return f"""
## How to load it

A region's caption, with transformers:

```python
from PIL import Image

from ureca import Captioner
from ureca.regions.rle import box_to_rle

captioner = Captioner.from_pretrained("{name}")
image = Image.open("photo.jpg").convert("RGB")
box = box_to_rle((40, 30, 120, 140), (image.height, image.width))  # or any mask, as COCO RLE
print(captioner.generate(image, [box], [captioner.processor.query("unique")]))
```

The same with vLLM, all regions of an image behind one cached prefix (`make serve MODEL={name}` puts it behind an API):

```python
import asyncio

from PIL import Image

from ureca.engine.engine import CaptionEngine
from ureca.regions.rle import box_to_rle


async def main():
    engine = CaptionEngine("{name}")
    await engine.start()
    image = Image.open("photo.jpg").convert("RGB")
    box = box_to_rle((40, 30, 120, 140), (image.height, image.width))
    captions = await engine.caption(image, [box], [engine.prompts.processor.query("unique")])
    print([caption.text for caption in captions])
    engine.close()


if __name__ == "__main__":  # vLLM's processes import this file
    asyncio.run(main())
```

The InternVL alone, without masks, is transformers' own class; vLLM serves it without changes (`vllm serve {name}`):

```python
from transformers import AutoProcessor, InternVLForConditionalGeneration

model = InternVLForConditionalGeneration.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
print(sum(p.numel() for p in model.parameters()), processor.__class__.__name__)
```"""


def _data(facts: _Facts) -> str:
    lines = [facts.text.data] if facts.text.data else []
    seen = set()
    for stage in facts.stages:
        data = stage.get("data", {})
        key = (data.get("table"), data.get("images"), data.get("regions"))
        if not data or key in seen:
            continue
        seen.add(key)
        describers = "; ".join(f"{name}: {count:,} images" for name, count in data.get("describers", {}).items())
        lines.append(
            f"- Region table `{data['table']}`: {data['images']:,} labeled images, {data['regions']:,} regions, "
            f"the held-out {data['heldout']:.0%} not among them. Captions by {describers or 'unrecorded describers'}."
        )
    if not seen:
        lines.append("Not recorded: the model directory holds no training.json.")
    elif not facts.text.data:
        lines.append("\nThe table does not name the source of its images or their licenses.")
    return "## Data\n\n" + "\n".join(lines)


def _recipe(facts: _Facts) -> str:
    if not facts.stages:
        return "## Recipe\n\nNot recorded: the model directory holds no training.json."
    parts = ["## Recipe"]
    for stage in facts.stages:
        figures = stage.get("figures", {})
        details = [
            f"{figures[name]:,} {name}" for name in ("images", "steps", "regions") if figures.get(name) is not None
        ]
        if best_by := stage.get("weights", {}).get("best_by"):
            weights = stage["weights"]
            details.append(
                f"weights of step {weights['step']:,}, the best checkpoint by {TITLES.get(best_by, best_by)} on "
                f"held-out images ({weights['score']:.3f})"
            )
        if figures.get("loss_first") is not None:
            details.append(f"loss {figures['loss_first']:.3g} to {figures['loss_last']:.3g}")
        if figures.get("regions_per_second"):
            details.append(f"{figures['regions_per_second']:,} regions a second")
        made = [stage[name] for name in ("machine", "code") if stage.get(name)]
        if scores := stage.get("eval_scores"):
            details.append(
                "while training, on held-out images: "
                + ", ".join(f"{TITLES.get(name, name)} {value:.2f}" for name, value in scores.items() if name in TITLES)
            )
        settings = {key: value for key, value in stage.get("settings", {}).items() if key not in _HIDDEN}
        block = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110).strip()
        parts.append(
            f"**Stage {stage['stage']}**: {'; '.join(details)}. {' '.join(made)}\n\n"
            f"<details><summary>settings</summary>\n\n```yaml\n{block}\n```\n</details>"
        )
    return "\n\n".join(parts)


def _scores(facts: _Facts) -> str:
    groups = facts.scores.get("groups", {})
    if not groups:
        return "## Scores\n\nNone were given at export: measure them with `python jobs/evaluate.py`."
    parts = ["## Scores", "Intervals are 95%, bootstrapped over images; METEOR is METEOR 1.5 (Java)."]
    for kind, group in groups.items():
        table = {**group["scores"], "reference labels": group.get("ceiling") or {}}
        columns = [name for name in TITLES if any(name in scores for scores in table.values())]
        rows = [
            "| | " + " | ".join(TITLES[name] for name in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for variant, scores in table.items():
            mine = variant == facts.text.variant
            cells = [_interval(scores.get(name), bold=mine) for name in columns]
            label = f"**{variant} (this model)**" if mine else variant
            rows.append(f"| {label} | " + " | ".join(cells) + " |")
        where = _GROUPS.get(kind, kind)
        count = f"{group['num_regions']:,} regions of {group['num_images']:,} held-out {where}"
        parts.append(f"{count}:\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _interval(score: Mapping[str, float] | None, *, bold: bool) -> str:
    if not score:
        return ""
    ends = f" [{score['low']:.3f}, {score['high']:.3f}]" if "low" in score and "high" in score else ""
    return f"**{score['value']:.3f}{ends}**" if bold else f"{score['value']:.3f}{ends}"


def _limits(facts: _Facts) -> str:
    lines = [
        "- It describes a given region; it does not find regions.",
        f"- It was trained with at most {facts.config.tile_limit} image tiles and uses the same limit, stored in "
        "`captioner_config.json`.",
        f"- Captions are in {', '.join(facts.text.language)}, in the style of its labels.",
    ]
    if facts.config.base == "nano":
        lines.append(
            "- Its base was trained only on synthetic scenes: colors, textures, shapes, sizes and places, no world "
            "knowledge."
        )
    if not facts.scores.get("groups"):
        lines.append("- Its captions have not been scored on held-out images.")
    if facts.text.limits:
        lines.append(facts.text.limits)
    return "## Limits\n\n" + "\n".join(lines)


def _license(facts: _Facts) -> str:
    license_ = facts.license
    link = f" ({license_.link})" if license_.link else ""
    lines = [
        f"The base, {_base_name(facts)}: **{license_.label}**{link}, according to {license_.source}. {license_.note}"
    ]
    if facts.text.license:
        lines.append(
            f"The additions of training are licensed under **{facts.text.license}**; the base's terms apply too."
        )
    else:
        lines.append("These weights are a derivative of the base and subject to its terms.")
    return "## License\n\n" + "\n".join(line.strip() for line in lines)


def _base_name(facts: _Facts) -> str:
    base = facts.config.base
    named = base.rstrip("/").rsplit("/", 1)[-1] if base.startswith("/") else base
    return f"`{named}` (weights {facts.config.base_hash[:12]})"
