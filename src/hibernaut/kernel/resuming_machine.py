# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that an image would be resumed on: this one, or one by a file that states its facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hibernaut.errors import FormatError
from hibernaut.kernel.facts import machine_facts
from hibernaut.kernel.own_vmcoreinfo import with_own_vmcoreinfo
from hibernaut.kernel.running import running_machine
from hibernaut.kernel.symbol_names import names_in_memory
from hibernaut.memory.gaps import MemoryGap
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp.e820 import E820Sums
from hibernaut.swsusp.verdict import ResumingMachine

__all__ = ["THIS_MACHINE", "resuming_machine"]

MAX_JSON_BYTES = 1 << 16
THIS_MACHINE = "this"
FACTS = 'give facts such as {"e820_checksum": "0xba571fd2", "physical_pages": 65403}'
NUMBERS = ("e820_checksum", "e820_trimmed_checksum", "physical_pages", "hw_sig")
TEXTS = {"release": "6.1.0-56-amd64", "build": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-13)"}
"""Facts that are strings, with an example of each."""
KEYS = (*NUMBERS, "e820_md5", *TEXTS)
MD5 = re.compile(r"[0-9a-f]{32}")


def resuming_machine(
    name: str,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    gaps: Sequence[MemoryGap] | None = None,
    settle: Callable[[Source], Source] = lambda source: source,
) -> ResumingMachine:
    """Return the facts that a resuming kernel compares, of the machine that is named.

    Args:
        name: "this" for the running machine; or a file: its facts as a JSON object, a RAM dump of its kernel,
            or a hibernation image of it.
        offset: block of the swap header, of an image in a swap file, see `open_memory`.
        partition: partition with an image.
        base: byte at which the device with an image begins.
        gaps: gaps that a raw dump leaves out, see `open_memory`.
        settle: returns a source of raw memory with its gaps put back.

    Raises:
        FormatError: the file does not state them.
        OSError: the file cannot be read.
    """
    if name == THIS_MACHINE:
        return running_machine()
    path = Path(name)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(MAX_JSON_BYTES + 1)
        if head.lstrip()[:1] == b"{":
            return _from_json(head, name)
    with open_memory(path, offset=offset, partition=partition, base=base, gaps=gaps) as source:
        return _from_memory(source if source.undecided is None else settle(source))


def _from_json(content: bytes, name: str) -> ResumingMachine:
    if len(content) > MAX_JSON_BYTES:
        raise FormatError(
            "file of facts is too large", source=name, expected=f"at most {MAX_JSON_BYTES} bytes", advice=FACTS
        )
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {error}", source=name, advice=FACTS) from error
    unknown = sorted(set(facts) - set(KEYS))
    if unknown:
        raise FormatError(f"unknown fact {unknown[0]!r}", source=name, expected=", ".join(KEYS), advice=FACTS)
    for key, example in TEXTS.items():
        value = facts.get(key)
        if value is not None and not isinstance(value, str):
            raise FormatError(
                f"{key} is {value!r}", source=name, expected=f'a string such as "{example}"', advice=FACTS
            )
    md5 = facts.get("e820_md5")
    if md5 is not None and not (isinstance(md5, str) and MD5.fullmatch(md5)):
        raise FormatError(f"e820_md5 is {md5!r}", source=name, expected="32 hexadecimal digits", advice=FACTS)
    crc32, trimmed_crc32, physical_pages, hw_sig = (_number(facts.get(key), key, name) for key in NUMBERS)
    sums = E820Sums(md5, crc32, trimmed_crc32)
    return ResumingMachine(name, sums, physical_pages, hw_sig, facts.get("release"), facts.get("build"))


def _number(value: Any, key: str, name: str) -> int | None:
    if value is None:
        return None
    try:
        found = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 64:
        raise FormatError(
            f"{key} is {value!r}", source=name, expected='a number, or a string such as "0xba571fd2"', advice=FACTS
        )
    return found


def _from_memory(source: Source) -> ResumingMachine:
    if source.image is not None:
        info, hw_sig = source.image.info, source.image.header.hw_sig
        made_by = info.architecture
        release, build = (made_by.release, made_by.build) if made_by else (None, None)
        return ResumingMachine(source.name, info.e820, info.physical_pages, hw_sig, release, build)
    source, _ = with_own_vmcoreinfo(source)
    facts = machine_facts(source.memory, source.vmcoreinfo, name=source.name)
    kernel = names_in_memory(source.memory, source.vmcoreinfo, name=source.name)
    return ResumingMachine(source.name, facts.e820, facts.physical_pages, release=facts.release, kernel=kernel)
