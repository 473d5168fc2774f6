"""License of a base, which applies to everything trained on it.

Read from the base's model card if available (its folder, or the hub's cache), else from a table of the bases that have
a preset. InternVL's checkpoints build on other models: the table also names the language model and its license, which
may be more restrictive.

Source of the table: front matter and license sections of the model cards of OpenGVLab's and Qwen's repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ureca.model.internvl.presets import preset_path

_QWEN_LINK = "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE"
_RESEARCH_LINK = "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE"
_APACHE = "Apache-2.0"

# size -> language model, its license
_LANGUAGE_MODELS = {
    "InternVL2_5": {
        "1B": ("Qwen2.5-0.5B-Instruct", _APACHE),
        "2B": ("internlm2_5-1_8b-chat", _APACHE),
        "4B": ("Qwen2.5-3B-Instruct", "Qwen Research License, no commercial use"),
        "8B": ("internlm2_5-7b-chat", _APACHE),
        "26B": ("internlm2_5-20b-chat", _APACHE),
        "38B": ("Qwen2.5-32B-Instruct", _APACHE),
        "78B": ("Qwen2.5-72B-Instruct", "Qwen License"),
    },
    "InternVL3": {
        "1B": ("Qwen2.5-0.5B", _APACHE),
        "2B": ("Qwen2.5-1.5B", _APACHE),
        "8B": ("Qwen2.5-7B", _APACHE),
        "9B": ("internlm3-8b-instruct", _APACHE),
        "14B": ("Qwen2.5-14B", _APACHE),
        "38B": ("Qwen2.5-32B", _APACHE),
        "78B": ("Qwen2.5-72B", "Qwen License"),
    },
    "InternVL3_5": {
        "1B": ("Qwen3-0.6B", _APACHE),
        "2B": ("Qwen3-1.7B", _APACHE),
        "4B": ("Qwen3-4B", _APACHE),
        "8B": ("Qwen3-8B", _APACHE),
        "14B": ("Qwen3-14B", _APACHE),
        "38B": ("Qwen3-32B", _APACHE),
    },
}
_OWN_LICENSES = {"InternVL2_5": "MIT", "InternVL3": "MIT", "InternVL3_5": _APACHE}
_CHECKPOINT = re.compile(r"(InternVL2_5|InternVL3_5|InternVL3)-(\d+B)\b")


@dataclass(frozen=True, kw_only=True)
class License:
    """A license as named in the front matter of a model card."""

    id: str
    """`mit`, `apache-2.0`, ...; `other` with a name and a link; `unknown` if not stated."""
    name: str = ""
    link: str = ""
    source: str
    """Source of this information, in words."""
    note: str = ""
    """Further terms: the license of a part."""

    @property
    def label(self) -> str:
        return self.name or self.id


def license_of(base: str) -> License:
    """Return the license of a base, by its folder or hub name."""
    card = _card_of(base)
    stated = front_matter(card.read_text(encoding="utf-8")) if card else {}
    note = _note(base)
    if card and stated.get("license"):
        where = f"{card.parent.name}/{card.name}" if Path(preset_path(base)).is_dir() else f"the model card of {base}"
        return License(
            id=str(stated["license"]),
            name=str(stated.get("license_name") or ""),
            link=str(stated.get("license_link") or ""),
            source=where,
            note=note,
        )
    if base == "nano":
        return License(id="apache-2.0", source="this package")
    if match := _CHECKPOINT.search(base):
        family, size = match[1], match[2]
        source = f"the model cards of {family.replace('_', '.')}"
        language_license = _LANGUAGE_MODELS[family].get(size, ("", ""))[1]
        if "Research" in language_license:
            return License(id="other", name="qwen-research", link=_RESEARCH_LINK, source=source, note=note)
        if "Qwen" in language_license or (family == "InternVL3" and size != "9B"):
            return License(id="other", name="qwen", link=_QWEN_LINK, source=source, note=note)
        return License(id=_OWN_LICENSES[family].lower(), source=source, note=note)
    return License(id="unknown", source="neither a model card nor the table names it: ask the publisher of the base")


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML block at the top of a model card; empty if there is none."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _card_of(base: str) -> Path | None:
    folder = Path(preset_path(base))
    if folder.is_dir():
        card = folder / "README.md"
        return card if card.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(base, "README.md")
    except HFValidationError:  # a folder name from another machine
        return None
    return Path(cached) if isinstance(cached, str) else None


def _note(base: str) -> str:
    match = _CHECKPOINT.search(base)
    part = _LANGUAGE_MODELS[match[1]].get(match[2]) if match else None
    if match is None or part is None:
        return ""
    return (
        f"{match[0].replace('_', '.')} itself is released under {_OWN_LICENSES[match[1]]} by its authors; its language "
        f"model is {part[0]} ({part[1]})."
    )
