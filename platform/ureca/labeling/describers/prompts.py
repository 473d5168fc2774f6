"""Prompts of a model describer: text files that users can replace, and the views that belong to each.

A prompt set is a folder, packaged (`default`, `paper`) or a user's:

    set.yaml      name, views of each pass and their labels, how views are cut, sampling
    system.txt    system message of every request
    short.txt long.txt unique.txt choose.txt judge.txt

The texts are Jinja templates. Each pass has fixed placeholders, some of them required (`_FACTS`), so a misspelled or
forgotten placeholder is an error before the job starts. A set's version is its name and a hash of its files, of how
views are drawn and of the requested answer form; every image's provenance records it. Source of the prompts: URECA
(arXiv 2504.05305) section 3 and tables A to C, in our own words.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml
from PIL import Image

from ureca.config import config_from_dict
from ureca.errors import ConfigError
from ureca.labeling.describers.answers import answer_form, json_schema, phrases_of
from ureca.labeling.describers.base import DescribeRequest, Pass
from ureca.labeling.describers.views import DRAWING_VERSION, ViewConfig, context_view, crop_view, image_view, marks_view

View = Literal["image", "context", "crop", "marks"]

_PASSES: tuple[Pass, ...] = get_args(Pass)
_SHIPPED = ("default", "paper")

_FACTS: dict[Pass, tuple[set[str], set[str]]] = {
    # required placeholders, optional placeholders
    "short": ({"parent_caption", "sibling_captions", "problem"}, set()),
    "long": ({"caption", "child_captions", "problem"}, {"parent_caption"}),
    "unique": ({"caption", "distractors", "confused_with", "problem"}, {"parent_caption"}),
    "choose": ({"caption", "problem"}, {"num_candidates"}),
    "judge": ({"caption", "problem"}, set()),
}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Content of set.yaml."""

    name: str
    views: dict[str, tuple[str, ...]]
    """Pass -> its views, in order."""
    labels: dict[str, str]
    """View -> its label in the request."""
    cut: ViewConfig = field(default_factory=ViewConfig)
    temperature: float = 0.2
    """Sampling temperature of the writing passes; choose and judge decode greedily."""
    max_tokens: int = 512
    """Maximum tokens of an answer."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request for any model that reads text and images."""

    system: str
    views: tuple[tuple[str, Image.Image], ...]
    """Label and picture of each view; views precede the text."""
    text: str
    pass_name: Pass
    temperature: float
    max_tokens: int
    seed: int | None
    """Sampling seed, so that the same request gets the same answer. None in repeated requests, for another sample."""
    marked: tuple[int, ...]
    """Regions that the view's numbers refer to (see `read_answer`)."""
    phrases: frozenset[str]
    """Word sequences of the instructions, which an answer must not repeat."""

    def text_for(self, *, structured: bool) -> str:
        """Return the text with the answer's form: JSON, or plain text if the endpoint can't enforce a schema."""
        return f"{self.text}\n\n{answer_form(self.pass_name, structured=structured)}"

    @property
    def schema(self) -> dict[str, object]:
        """JSON schema of the answer."""
        return json_schema(self.pass_name)


class PromptSet:
    """A loaded prompt set."""

    def __init__(self, contents: Mapping[str, str], where: str, longest_px: int | None = None) -> None:
        """Check a set given as file contents; `load` reads them from a folder.

        Args:
            contents: file name -> text.
            where: the folder, for errors.
            longest_px: as in `load`.
        """
        self._made_of = (contents, where, longest_px)
        path = f"{where}/set.yaml"
        self._settings = _settings(contents["set.yaml"], path)
        _check_views(self._settings, path)
        self._cut = self._settings.cut
        if longest_px is not None:
            self._cut = replace(self._cut, longest_px=longest_px)
        environment = jinja2.sandbox.SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        self._system = contents["system.txt"].strip()
        self._templates = {
            each: _template(environment, each, contents[f"{each}.txt"], f"{where}/{each}.txt") for each in _PASSES
        }
        self._phrases = {each: self._phrases_of(environment, each, contents[f"{each}.txt"]) for each in _PASSES}
        forms = [answer_form(each, structured=structured) for each in _PASSES for structured in (True, False)]
        digest = hashlib.sha256(f"{DRAWING_VERSION} {self._cut} {forms}".encode())
        for file, text in sorted(contents.items()):
            digest.update(f"{file}\0{text}\0".encode())
        self.version = f"{self._settings.name}-{digest.hexdigest()[:12]}"
        """Name and hash, as recorded in the provenance."""

    @classmethod
    def load(cls, name: str = "default", *, longest_px: int | None = None) -> Self:
        """Read and check a packaged set or a folder.

        Args:
            name: default, paper, or a folder.
            longest_px: longest side of a view; None: the set's value.

        Raises:
            ConfigError: the folder or a file is missing, or a text has unknown placeholders or lacks required ones.
        """
        folder = _folder(name)
        return cls({file: _read(folder, file) for file in _file_names()}, str(folder), longest_px)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as file contents, because other machines need not have the folder."""
        return type(self), self._made_of

    @property
    def max_views(self) -> int:
        """Maximum number of images in a request of this set."""
        return max(len(views) for views in self._settings.views.values())

    def prompt(self, request: DescribeRequest) -> Prompt:
        """Render the text and cut the views: some ten milliseconds of work.

        Raises:
            MaskError: a region's mask can't be decoded.
        """
        pass_name = request.pass_name
        marked = _marked(request)
        text = self._templates[pass_name].render(_facts(request, marked)).strip()
        writes = pass_name not in ("choose", "judge")
        again = request.problem is not None or bool(request.confused_with)
        asked = f"{self.version}\0{pass_name}\0{text}\0{request.segmentation['counts']!r}"
        return Prompt(
            system=self._system,
            views=tuple(self._views(request, marked)),
            text=text,
            pass_name=pass_name,
            temperature=self._settings.temperature if writes else 0.0,
            max_tokens=self._settings.max_tokens if writes else 32,
            seed=None if again else int.from_bytes(hashlib.sha256(asked.encode()).digest()[:4], "big") >> 1,
            marked=marked,
            phrases=self._phrases[pass_name],
        )

    def _views(self, request: DescribeRequest, marked: tuple[int, ...]) -> list[tuple[str, Image.Image]]:
        names = self._settings.views[request.pass_name]
        around = self._around(request)
        if around is None and "image" in names:  # at the top level the context is the entire image
            names = tuple(name for name in names if name != "context")
        pictures = []
        for number, name in enumerate(names, 1):
            label = self._settings.labels["image" if name == "context" and around is None else name]
            pictures.append((f"Image-{number}: {label}", self._picture(name, request, around, marked)))
        return pictures

    def _picture(self, name: str, request: DescribeRequest, around: int | None, marked: tuple[int, ...]) -> Image.Image:
        if name == "marks":
            regions = [request.segmentations[index] for index in marked]
            return marks_view(request.image, regions, self._cut, target_first=request.pass_name == "unique")
        if name == "crop":
            return crop_view(request.image, request.segmentation, self._cut)
        if name == "context" and around is not None:
            return context_view(request.image, request.segmentation, request.segmentations[around], self._cut)
        return image_view(request.image, request.segmentation, self._cut)

    def _around(self, request: DescribeRequest) -> int | None:
        """Return the region to cut the context around; None at the top level."""
        parent = request.parents[request.index]
        if parent < 0:
            return None
        while self._cut.context == "top" and request.parents[parent] >= 0:
            parent = request.parents[parent]
        return parent

    def _phrases_of(self, environment: jinja2.Environment, pass_name: Pass, text: str) -> frozenset[str]:
        """Return the word sequences that all requests of a pass share."""
        fixed = "".join(value if kind == "data" else "\0" for _, kind, value in environment.lex(text))
        return phrases_of(
            [
                self._system,
                *fixed.split("\0"),
                *self._settings.labels.values(),
                *(answer_form(pass_name, structured=each) for each in (True, False)),
            ]
        )


def _settings(text: str, where: str) -> _Settings:
    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where}: holds {type(mapping).__name__}; it must hold name, views and labels")
    return config_from_dict(_Settings, mapping, where=where)


def _check_views(settings: _Settings, where: str) -> None:
    views = settings.views
    if set(views) != set(_PASSES):
        raise ConfigError(f"{where}: views has the passes {', '.join(views)}; it must have {', '.join(_PASSES)}")
    known = get_args(View)
    for pass_name, names in views.items():
        if not names or not set(names) <= set(known):
            raise ConfigError(f"{where}: views.{pass_name} is {list(names)}; choose from {', '.join(known)}")
        if "marks" in names and pass_name not in ("unique", "choose"):
            raise ConfigError(f"{where}: views.{pass_name} has marks, which only unique and choose can have")
    if "marks" not in views["choose"]:
        raise ConfigError(f"{where}: views.choose needs marks, because the choice is among numbered regions")
    unlabeled = {name for names in views.values() for name in names} - set(settings.labels)
    if unlabeled:
        raise ConfigError(f"{where}: labels lacks {', '.join(sorted(unlabeled))}; label each view")


def _file_names() -> list[str]:
    return ["set.yaml", "system.txt", *(f"{each}.txt" for each in _PASSES)]


def _folder(name: str) -> Path:
    if name in _SHIPPED:
        return Path(str(files("ureca.labeling.describers").joinpath("prompt_texts", name)))
    if not Path(name).is_dir():
        raise ConfigError(
            f"prompts={name}: no such folder; use {', '.join(_SHIPPED)} or a folder with {', '.join(_file_names())}"
        )
    return Path(name)


def _read(folder: Path, file: str) -> str:
    try:
        return (folder / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = _folder("default")
        raise ConfigError(f"{folder / file}: can't be read ({error}); start from a copy of {shipped}") from error


def _template(environment: jinja2.Environment, pass_name: Pass, text: str, where: str) -> jinja2.Template:
    try:
        named = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{where}, line {error.lineno}: {error.message}; the texts are Jinja templates") from error
    must, may = _FACTS[pass_name]
    unknown, missing = named - must - may, must - named
    if unknown:
        raise ConfigError(
            f"{where}: unknown placeholder {', '.join(sorted(unknown))}; pass {pass_name} has "
            f"{', '.join(sorted(must | may))}"
        )
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(sorted(missing))}, which pass {pass_name} requires")
    return template


def _marked(request: DescribeRequest) -> tuple[int, ...]:
    """Return the regions numbered in the view: the candidates, or the target, its distractors and confused regions."""
    if request.pass_name == "choose":
        return request.candidates
    if request.pass_name == "unique":
        return tuple(
            dict.fromkeys([request.index, *(each.index for each in request.distractors), *request.confused_with])
        )
    return ()


def _facts(request: DescribeRequest, marked: tuple[int, ...]) -> dict[str, Any]:
    """Return the values of the placeholders. Numbers are those of the view."""
    captions = {
        each.index: caption for each, caption in zip(request.distractors, request.distractor_captions, strict=False)
    }
    return {
        "caption": request.own_caption or "",
        "parent_caption": request.parent_caption or "",
        "sibling_captions": list(request.sibling_captions),
        "child_captions": list(request.child_captions),
        "distractors": [
            {"number": number, "caption": captions.get(index, "")} for number, index in enumerate(marked) if number
        ],
        "confused_with": [marked.index(index) for index in request.confused_with if index in marked],
        "num_candidates": len(request.candidates),
        "problem": request.problem or "",
    }
