# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON Schema (draft 2020-12) of the typed documents."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from hibernaut.errors import HibernautError
from hibernaut.report.documents import DOCUMENTS, Pattern

__all__ = ["SCHEMA_DIALECT", "schema_of"]

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}


def schema_of(command: str) -> dict[str, Any]:
    """Return the JSON Schema of a command's document.

    Args:
        command: the words of the command: "map", "lab prove".

    Raises:
        HibernautError: the command has no document.
    """
    if command not in DOCUMENTS:
        raise HibernautError(
            f"no command with a JSON document is called {command!r}; expected {', '.join(DOCUMENTS)}",
            advice="`hibernaut schema` lists them",
        )
    definitions: dict[str, Any] = {}
    shapes = [_schema(shape, definitions) for shape in DOCUMENTS[command]]
    return {
        "$schema": SCHEMA_DIALECT,
        "title": f"hibernaut {command} --json",
        **(shapes[0] if len(shapes) == 1 else {"anyOf": shapes}),
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those of typed dictionaries go to `definitions`."""
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = _schema(arguments[0], definitions)
        for note in arguments[1:]:
            found |= {"pattern": note.pattern} if isinstance(note, Pattern) else {"description": note}
        return found
    if origin is NotRequired:
        return _schema(arguments[0], definitions)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, definitions) for one in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if not is_typeddict(kind):
        raise TypeError(f"no JSON Schema for {kind!r}")
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # a place for a type that names itself
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": {name: _schema(hint, definitions) for name, hint in hints.items()},
        "required": [name for name in hints if get_origin(hints[name]) is not NotRequired],
        "additionalProperties": False,
    }
