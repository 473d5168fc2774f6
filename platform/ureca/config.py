"""Configuration: a tree of frozen dataclasses, filled from YAML and the command line, and validated before use.

    @dataclass(frozen=True, kw_only=True)
    class PackingConfig:
        token_budget: int = 16_384
        \"\"\"Tokens per device and step.\"\"\"        <- the help text of the field

    python jobs/train_stage2.py --config nano_stage2 --packing.token_budget=4096

Precedence, lowest first: the field's default, the YAML file, the overrides from left to right. An unknown key, or a
value that does not match the field's type, raises `ConfigError` before anything starts; checks across fields belong in
the dataclass's `__post_init__`. Types: bool, int, float, str, Path, Literal, Optional and unions of these, list, tuple,
dict, nested dataclasses.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import os
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from ureca.errors import ConfigError
from ureca.storage.files import exists, read_bytes, write_bytes

T = TypeVar("T")

_CONFIG_FOLDER = Path("jobs") / "configs"
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


class _Text(str):
    """A value from the command line: its type comes from the field, while YAML values have their own types."""


def load_config(cls: type[T], argv: list[str] | None = None, *, description: str = "") -> T:
    """Fill `cls` from `--config FILE` and `--section.key=value` (or `--section.key value`) arguments.

    Args:
        cls: a dataclass.
        argv: the arguments after the program's name; None: those of this process.
        description: description of the job at the top of `--help`.

    Raises:
        ConfigError: unknown key, missing or invalid value, unreadable file.
        SystemExit: with code 0, after `--help`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(_help(cls, description))
        raise SystemExit(0)
    file, overrides = _split_arguments(arguments)
    mapping: dict[str, Any] = {}
    where = "command line"
    if file is not None:
        path = find_config(file)
        where = path
        mapping = read_config(path)
    for key, text in overrides:
        _override(cls, mapping, key, text)
    return config_from_dict(cls, mapping, where=where)


def find_config(name: str) -> str:
    """Return the file that `name` refers to: a path, or a file of jobs/configs; `.yaml` may be omitted."""
    folders = [_CONFIG_FOLDER, Path(__file__).resolve().parents[2] / _CONFIG_FOLDER]
    candidates = [name, *(str(folder / name) for folder in folders)]
    for candidate in [*candidates, *(f"{candidate}.yaml" for candidate in candidates)]:
        if exists(candidate) and not os.path.isdir(candidate):
            return candidate
    shipped = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigError(f"--config {name}: no such file{_nearest(Path(name).stem, shipped, 'In jobs/configs')}")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file is an empty mapping."""
    try:
        content = yaml.safe_load(read_bytes(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; a configuration is a mapping of keys to values.")
    return content


def config_from_dict(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Build `cls` from a mapping as read from YAML. `where` starts error messages.

    Raises:
        ConfigError: unknown key, missing or invalid value, or an error of `__post_init__`.
    """
    return _build(cls, mapping, where=where, prefix="", base=None)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration in YAML's types, such that `config_from_dict` restores an equal one."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Write the complete configuration, defaults included, as YAML for `--config`."""
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True, width=110)
    write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{below}": inner for below, inner in flatten(value).items()})
        else:
            flat[key] = value
    return flat


# ------------------------------------------------------------------ arguments


def _split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    file: str | None = None
    overrides: list[tuple[str, str]] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(f"{argument!r}: arguments are --config FILE or --section.key=value; --help lists them.")
        key, separator, value = argument[2:].partition("=")
        if not separator:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"--{key}: needs a value, as --{key}=VALUE or --{key} VALUE.")
            value = following
        if key == "config":
            file = value
        else:
            overrides.append((key, value))
    return file, overrides


def _override(cls: type, mapping: dict[str, Any], key: str, text: str) -> None:
    *sections, name = key.split(".")
    here, known = mapping, cls
    for depth, section in enumerate(sections):
        prefix = ".".join(sections[: depth + 1])
        _check_key(known, section, prefix=".".join(sections[:depth]), where="command line")
        inner = dataclass_in(field_types(known)[section])
        if inner is None:
            raise ConfigError(f"command line: --{key}: {prefix} is a value, not a section. Set --{prefix} itself.")
        if not isinstance(here.get(section), dict):
            here[section] = {}
        here, known = here[section], inner
    _check_key(known, name, prefix=".".join(sections), where="command line")
    here[name] = _Text(text)


# ------------------------------------------------------------------ values


def _keys(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def _check_key(cls: type, name: str, *, prefix: str, where: str) -> None:
    names = _keys(cls)
    if name not in names:
        full = f"{prefix}.{name}" if prefix else name
        raise ConfigError(f"{where}: unknown key {full!r}{_nearest(name, names, 'It has')}")


def _nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f". Did you mean {' or '.join(close)}?"
    return f". {otherwise}: {', '.join(names) or 'nothing'}."


def _build(cls: type[T], mapping: Mapping[str, Any], *, where: str, prefix: str, base: Any) -> T:
    """Build `cls` over `base`, the field's default: a section given in part keeps its other values."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: {prefix or 'the file'} is a section, it can't be {mapping!r}.")
    values: dict[str, Any] = {}
    if base is not None:
        values = {name: getattr(base, name) for name in _keys(cls)}
    defaults = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, raw in mapping.items():
        _check_key(cls, str(name), prefix=prefix, where=where)
        full = f"{prefix}.{name}" if prefix else name
        default = values[name] if name in values else default_of(defaults[name])
        values[name] = _convert(field_types(cls)[name], raw, where=where, key=full, default=default)
    for name, field in defaults.items():
        if field.init and name not in values and default_of(field) is dataclasses.MISSING:
            full = f"{prefix}.{name}" if prefix else name
            raise ConfigError(f"{where}: {full} is missing and has no default. Set it there or with --{full}=VALUE.")
    return cls(**values)


def _convert(annotation: Any, raw: Any, *, where: str, key: str, default: Any = dataclasses.MISSING) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return yaml.safe_load(raw) if isinstance(raw, _Text) else raw
    if dataclasses.is_dataclass(annotation):
        base = default if isinstance(default, typing.cast(type, annotation)) else None
        mapping = _container(raw, where=where, key=key)
        return _build(typing.cast(type, annotation), mapping, where=where, prefix=key, base=base)
    if origin in (Union, types.UnionType):
        return _convert_union(annotation, raw, where=where, key=key, default=default)
    if annotation is type(None):
        if raw is None or (isinstance(raw, _Text) and raw.lower() in ("null", "none", "~")):
            return None
    elif origin is Literal:
        for choice in arguments:
            if raw == (str(choice) if isinstance(raw, _Text) else choice):
                return choice
        choices = [str(choice) for choice in arguments]
        raise ConfigError(f"{where}: {key}={raw}: not one of the choices{_nearest(str(raw), choices, 'Choices')}")
    elif origin in (list, tuple):
        return _convert_sequence(annotation, raw, where=where, key=key)
    elif origin is dict:
        mapping = _container(raw, where=where, key=key)
        if isinstance(mapping, Mapping):
            return {k: _convert(arguments[1], v, where=where, key=f"{key}.{k}") for k, v in mapping.items()}
    else:
        value = _convert_scalar(annotation, raw)
        if value is not None:
            return value
    raise ConfigError(f"{where}: {key}={raw!s}: expected {type_name(annotation)}, got {_shown(raw)}.")


def _convert_scalar(annotation: Any, raw: Any) -> Any:
    """Convert the value to the annotation's type; None if that is impossible."""
    if annotation is bool:
        if isinstance(raw, _Text):
            return True if raw.lower() in _TRUE else False if raw.lower() in _FALSE else None
        return raw if isinstance(raw, bool) else None
    if annotation is str:
        return str(raw) if isinstance(raw, str) else None
    if annotation is Path:
        return Path(raw) if isinstance(raw, str | os.PathLike) else None
    if annotation in (int, float) and not isinstance(raw, bool):
        # PyYAML reads 1e-4 as text because it has no dot.
        try:
            number = float(raw) if annotation is float or "e" in str(raw).lower() else int(raw)
        except (TypeError, ValueError):
            return None
        return annotation(number) if annotation(number) == float(raw) or annotation is float else None
    return None


def _convert_union(annotation: Any, raw: Any, *, where: str, key: str, default: Any) -> Any:
    members = sorted(get_args(annotation), key=lambda member: (member is not type(None), member is str))
    if isinstance(raw, Mapping):
        members = [m for m in members if dataclasses.is_dataclass(m) or get_origin(m) is dict] or members
    error: ConfigError | None = None
    for member in members:
        try:
            return _convert(member, raw, where=where, key=key, default=default)
        except ConfigError as refused:
            error = refused if member is not type(None) else error
    plain = [member for member in members if member is not type(None)]
    if len(plain) == 1 and error is not None:
        raise error
    raise ConfigError(f"{where}: {key}={raw!s}: expected {type_name(annotation)}, got {_shown(raw)}.")


def _convert_sequence(annotation: Any, raw: Any, *, where: str, key: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(raw, _Text) and not raw.lstrip().startswith("["):
        items: Any = [_Text(item.strip()) for item in raw.split(",")] if raw.strip() else []
    else:
        items = _container(raw, where=where, key=key)
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{where}: {key}={raw!s}: expected {type_name(annotation)}, got {_shown(raw)}.")
    fixed = origin is tuple and arguments[-1] is not Ellipsis
    if fixed and len(items) != len(arguments):
        raise ConfigError(f"{where}: {key}={raw!s}: expected {len(arguments)} values, got {len(items)}.")
    kinds = arguments if fixed else [arguments[0]] * len(items)
    pairs = enumerate(zip(kinds, items, strict=True))
    return origin(_convert(kind, item, where=where, key=f"{key}[{i}]") for i, (kind, item) in pairs)


def _container(raw: Any, *, where: str, key: str) -> Any:
    """Parse a list or mapping written on the command line as YAML, `{a: 1}` or `[1, 2]`."""
    if not isinstance(raw, _Text):
        return raw
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {key}={raw}: not valid YAML ({' '.join(str(error).split())}).") from error


def _shown(raw: Any) -> str:
    return f"the text {str(raw)!r}" if isinstance(raw, str) else f"{type(raw).__name__} {raw!r}"


# ------------------------------------------------------------------ fields


def field_types(cls: Any) -> dict[str, Any]:
    """Return each field's resolved annotation."""
    return typing.get_type_hints(cls)


def dataclass_in(annotation: Any) -> type | None:
    """Return the dataclass that a field holds, seen through Optional; None for a plain value."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return next((typing.cast(type, arg) for arg in get_args(annotation) if dataclasses.is_dataclass(arg)), None)
    return None


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the field's default, from its factory if it has one; `dataclasses.MISSING` if none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def type_name(annotation: Any) -> str:
    """Return the type's name for help texts and errors."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in arguments)
    if origin is Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (list, tuple, dict):
        return f"{origin.__name__}[{', '.join('...' if a is Ellipsis else type_name(a) for a in arguments)}]"
    return getattr(annotation, "__name__", str(annotation)).lower()


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each field, from the class's source; base classes included."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):  # created at run time: no source, no help texts
            continue
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for statement, following in zip(body, body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                docs[statement.target.id] = inspect.cleandoc(following.value.value)
    return docs


# ------------------------------------------------------------------ help


def _help(cls: type, description: str) -> str:
    lines = [description.strip()] if description.strip() else []
    lines += ["usage: [--config FILE.yaml] [--key=value] [--section.key=value] ...", ""]
    lines += _help_fields(cls, prefix="", base=None)
    return "\n".join(lines)


def _help_fields(cls: type, *, prefix: str, base: Any) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        key = f"{prefix}{field.name}"
        annotation = field_types(cls)[field.name]
        default = getattr(base, field.name) if base is not None else default_of(field)
        doc = field_docs(cls).get(field.name, "")
        inner = dataclass_in(annotation)
        if inner is not None:
            if doc:
                lines += [f"  {key}: {' '.join(doc.split())}"]
            lines += _help_fields(inner, prefix=f"{key}.", base=default if isinstance(default, inner) else None)
            continue
        shown = "required" if default is dataclasses.MISSING else f"default {_flow(default)}"
        lines.append(f"  --{key}  {type_name(annotation)}, {shown}")
        lines += textwrap.wrap(doc, width=100, initial_indent="      ", subsequent_indent="      ")
    return lines


def _flow(value: Any) -> str:
    """Return a default in command-line syntax."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
