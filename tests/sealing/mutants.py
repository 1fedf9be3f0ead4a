# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants: a module of the package with one place of its source changed, and all that imports it made anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

ROOM = "hibernaut.sealing"


@contextmanager
def mutated(name: str, old: str, new: str) -> Iterator[None]:
    """Have imports of the room see a module in which `new` stands for `old`, which its source has once."""
    source = find_spec(f"{ROOM}.{name}")
    assert source is not None
    assert source.origin is not None
    text = Path(source.origin).read_text()
    assert text.count(old) == 1, (name, old)
    saved = {key: sys.modules.pop(key) for key in list(sys.modules) if key.startswith(f"{ROOM}.")}
    try:
        module = ModuleType(f"{ROOM}.{name}")
        module.__file__ = source.origin
        sys.modules[module.__name__] = module
        exec(compile(text.replace(old, new), source.origin, "exec"), module.__dict__)
        yield
    finally:
        for key in [key for key in sys.modules if key.startswith(f"{ROOM}.")]:
            del sys.modules[key]
        sys.modules.update(saved)
        for key, kept in saved.items():  # the package has them as attributes, too
            setattr(sys.modules[ROOM], key.rpartition(".")[2], kept)
