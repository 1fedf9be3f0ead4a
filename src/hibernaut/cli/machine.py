# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that an image is to be resumed on, as `--on-machine` names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hibernaut.errors import FormatError
from hibernaut.kernel.running import running_machine
from hibernaut.kernel.symbol_names import names_in_memory
from hibernaut.sources import open_memory
from hibernaut.swsusp.verdict import ResumingMachine

__all__ = ["machine_named"]

MOST_JSON_BYTES = 1 << 16
THIS = "this"
KEYS = ("e820_checksum", "physical_pages", "hw_sig", "release")


def machine_named(text: str) -> ResumingMachine:
    """A machine by name: `this`; or by file: facts in JSON, a RAM dump of its kernel, a hibernation image of it.

    Raises:
        FormatError: the file does not tell.
        OSError: it cannot be read.
    """
    if text == THIS:
        return running_machine()
    path = Path(text)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(MOST_JSON_BYTES + 1)
        if head.lstrip()[:1] == b"{":
            return _from_json(head, text)
    return _from_memory(path)


def _from_json(content: bytes, name: str) -> ResumingMachine:
    if len(content) > MOST_JSON_BYTES:
        raise FormatError("facts of a machine take no more than a few lines", source=name)
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is no JSON: {error}", source=name) from error
    unknown = sorted(set(facts) - set(KEYS))
    if unknown:
        raise FormatError(f"{unknown[0]!r} is no fact of a machine", source=name, expected=", ".join(KEYS))
    release = facts.get("release")
    if release is not None and not isinstance(release, str):
        raise FormatError("release is not a text", source=name)
    e820_checksum, physical_pages, hw_sig = (_number(facts.get(key), key, name) for key in KEYS[:3])
    return ResumingMachine(name, e820_checksum, physical_pages, hw_sig, release)


def _number(value: Any, key: str, name: str) -> int | None:
    if value is None:
        return None
    try:
        found = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 64:
        raise FormatError(f"{key} is {value!r}", source=name, expected='a number, or a text such as "0xba571fd2"')
    return found


def _from_memory(path: Path) -> ResumingMachine:
    with open_memory(path) as source:
        if source.image is not None:
            info, hw_sig = source.image.info, source.image.header.hw_sig
            return ResumingMachine(source.name, info.e820_checksum, info.physical_pages, hw_sig)
        from hibernaut.kernel.facts import machine_facts

        facts = machine_facts(source.memory, source.vmcoreinfo, name=source.name)
        kernel = names_in_memory(source.memory, source.vmcoreinfo, name=source.name)
    return ResumingMachine(source.name, facts.e820_checksum, facts.physical_pages, release=facts.release, kernel=kernel)
