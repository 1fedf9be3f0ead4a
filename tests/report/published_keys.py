# SPDX-License-Identifier: GPL-2.0-or-later
"""The keys of all JSON documents, as paths, and the list of those that have been published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hibernaut.report.schema import schema_of

__all__ = ["PUBLISHED", "keys_of"]

PUBLISHED = Path(__file__).with_suffix(".txt")
"""Every key that has been published: keys are added to it, none is taken away."""


def keys_of(command: str) -> set[str]:
    """Return the paths of the keys in a command's documents, such as `map: holes[].start_pfn`."""
    schema = schema_of(command)
    return {f"{command}: {path}" for path in _paths(schema, schema["$defs"], "", ())}


def _paths(schema: Any, definitions: Any, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in above:
            yield from _paths(definitions[name], definitions, prefix, (*above, name))
    for one in schema.get("anyOf", ()):
        yield from _paths(one, definitions, prefix, above)
    if isinstance(schema.get("items"), dict):
        yield from _paths(schema["items"], definitions, f"{prefix}[]", above)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _paths(schema["additionalProperties"], definitions, f"{prefix}{{}}", above)
    for key, value in schema.get("properties", {}).items():
        path = f"{prefix}.{key}".removeprefix(".")
        yield path
        yield from _paths(value, definitions, path, above)
