# SPDX-License-Identifier: GPL-2.0-or-later
"""Families and bounds in words (`regions=0,1,2`, `kinds=2m`, `failures=1`), and families in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.families import Family, region_named
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.search import Bounds

__all__ = [
    "BOUND_WORDS",
    "FAMILY_WORDS",
    "bounds_of_words",
    "family_from_json",
    "family_json",
    "family_of_words",
    "words_of_family",
]

SIDES = {side.word: side for side in Side}

NUMBERS = ("regions", "cpus", "min_mark", "batch")
"""The fields of a family whose values are numbers."""
OPTIONAL = ("second_root", "min_mark", "batch")
"""The fields of a family that ask nothing where they are empty."""

FAMILY_WORDS = {
    "regions": "0,1,2,3,4",
    "kinds": "4k,2m,1g,mixed,none,no-table,kfence,kfence-at-boot,vmalloc,unmapped,unmapped-free",
    "tables": "above,below",
    "root": "above,below",
    "mem-map": "above,below",
    "zone": "above,below",
    "pcp": "above,below",
    "free": "above,below",
    "cpus": "1,2,3,4",
    "remembered": "no,yes",
    "free-pages": "N",
    "second-root": "above,below",
    "min-mark": "N,...",
    "batch": "N,...",
}
"""The keys of a family, and their values."""

BOUND_WORDS = {
    "failures": "most allocations that fail in a run",
    "frames": "classes of free frames to try; 0: each frame",
    "states": "distinct states of a machine and way",
}
"""The keys of bounds, and their meaning."""


def family_of_words(words: Iterable[str]) -> Family:
    """Return the family that `KEY=VALUE[,VALUE...]` describe; the defaults are those of `Family`.

    Raises:
        HibernautError: an unknown key or value, or a family that is not possible.
    """
    fields: dict[str, Any] = {}
    for key, values in _pairs(words, FAMILY_WORDS):
        name = key.replace("-", "_")
        if key == "kinds":
            fields[name] = tuple(map(region_named, values))
        elif name in NUMBERS:
            fields[name] = tuple(_number(key, value) for value in values)
        elif key == "free-pages":
            fields[name] = _number(key, ",".join(values))
        elif key == "remembered":
            fields[name] = tuple(_one_of(key, value, {"no": False, "yes": True}) for value in values)
        else:
            fields[name] = tuple(_one_of(key, value, SIDES) for value in values)
    return Family(**fields)


def words_of_family(family: Family) -> list[str]:
    """Return the words from which `family_of_words` makes a family."""
    values = family_json(family) | {"remembered": ["yes" if one else "no" for one in family.remembered]}
    names = {key: key.replace("-", "_") for key in FAMILY_WORDS}
    return [f"{key}={_joined(values[name])}" for key, name in names.items() if name in values]


def _joined(values: Any) -> str:
    return ",".join(map(str, values)) if isinstance(values, list) else str(values)


def bounds_of_words(words: Iterable[str]) -> Bounds:
    """Return the bounds that `KEY=NUMBER` describe. Raises HibernautError."""
    return Bounds(**{key: _number(key, ",".join(values)) for key, values in _pairs(words, BOUND_WORDS)})


def family_json(family: Family) -> dict[str, Any]:
    """Return a family's fields, in words; those of `OPTIONAL` only if they are not empty."""
    found: dict[str, Any] = {}
    for name, value in vars(family).items():
        if name in OPTIONAL and not value:
            continue
        words = (
            [one.word if isinstance(one, RegionKind | Side) else one for one in value]
            if name != "free_pages"
            else value
        )
        found[name] = words
    return found


def family_from_json(found: Any) -> Family:
    """Return the family of `family_json`. Raises FormatError."""
    try:
        fields: dict[str, Any] = {}
        for name, value in found.items():
            fields[name] = _field(name, value)
        return Family(**fields)
    except (AttributeError, TypeError, ValueError, HibernautError) as error:
        raise FormatError(f"not a family of machines: {error}") from None


def _pairs(words: Iterable[str], known: dict[str, str]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known or not value:
            raise HibernautError(f"{word!r} is not a key with values; expected {', '.join(f'{one}=' for one in known)}")
        if key in found:
            raise HibernautError(f"{key} is given twice", advice=f"give all values at once: {key}=A,B")
        found[key] = value.split(",")
    return list(found.items())


def _number(key: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise HibernautError(f"{key}: {text!r} is not a number; expected decimal digits")
    return int(text)


def _one_of(key: str, word: str, known: dict[str, Any]) -> Any:
    if word not in known:
        raise HibernautError(f"{key}: {word!r} is not known; expected {', '.join(known)}")
    return known[word]


def _field(name: str, value: Any) -> Any:
    if name == "free_pages":
        return _typed(int, value)
    if name == "kinds":
        words = {kind.word: kind for kind in RegionKind}
        return tuple(words[_known(word, words)] for word in value)
    if name in NUMBERS:
        return tuple(_typed(int, one) for one in value)
    if name == "remembered":
        return tuple(_typed(bool, one) for one in value)
    return tuple(SIDES[_known(word, SIDES)] for word in value)


def _typed(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is not of type {kind.__name__}")
    return value


def _known(word: Any, words: Iterable[str]) -> str:
    if word not in list(words):
        raise ValueError(f"{word!r} is not one of {', '.join(words)}")
    return str(word)
