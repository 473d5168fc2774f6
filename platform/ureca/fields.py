"""What a dataclass says about its fields: types, defaults, help texts. Serves `ureca.config`."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["dataclass_in", "default_of", "field_docs", "field_types", "type_name"]


def field_types(cls: Any) -> dict[str, Any]:
    """Each field's annotation, resolved."""
    return typing.get_type_hints(cls)


def dataclass_in(annotation: Any) -> type | None:
    """The dataclass that a field holds, seen through Optional; None for a plain value."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return next((typing.cast(type, arg) for arg in get_args(annotation) if dataclasses.is_dataclass(arg)), None)
    return None


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The field's default, made anew where a factory makes it; `dataclasses.MISSING` where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def type_name(annotation: Any) -> str:
    """The type as help texts and errors name it."""
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
    """The docstring under each field, from the class's source; base classes included."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):  # made at run time: no source, no help texts
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
