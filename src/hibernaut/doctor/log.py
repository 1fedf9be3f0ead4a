# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel logs as users attach them: dmesg, kern.log, journalctl's text, its export format and its JSON; by boot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from hibernaut.errors import FormatError

__all__ = ["SLEEP_START", "SLEEP_STOP", "BootLog", "LogLine", "boots_in"]

SLEEP_START = "6bbd95ee977941e497c48be27c254128"
SLEEP_STOP = "8811e6df2a8e40f58a94cea26f8ebf14"
"""`SD_MESSAGE_SLEEP_START` and `SD_MESSAGE_SLEEP_STOP` (src/systemd/sd-messages.h)."""

LEVEL = r"(?:<\d{1,3}>)?"
STAMP = re.compile(rf"^{LEVEL}\[ *(?P<seconds>[0-9]+)[.](?P<fraction>[0-9]+)\](?:\[ *[TC]\d+\])? ?(?P<text>.*)$")
SYSLOG = re.compile(
    r"^(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\d\d-\d\d[T ][\d:.,+Z-]+) \S+ (?P<program>[\w./()-]+?)(?:\[\d+\])?: "
    r"(?P<text>.*)$"
)
READABLE = re.compile(r"^\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d [\d:]{8} \d{4}\] (?P<text>.*)$")
"""dmesg -T."""
FIRST = re.compile(r"^Linux version (?P<release>\S+) ")
COMMAND_LINE = re.compile(r"^Command line: (?P<words>.*)$")
MEMORY = re.compile(r"^Memory: \d+K/(?P<kib>\d+)K available")
"""`mem_init_print_info` (mm/mm_init.c): the second number is `get_num_physpages()`."""
SYSTEMD = ("systemd", "systemd-sleep", "systemd-logind", "systemd-hibernate-resume")


@dataclass(frozen=True)
class LogLine:
    """A line of a log.

    Attributes:
        text: the message.
        number: number of its line in the file, from 1.
        seconds: time since the boot; None if the line does not have it.
        message_id: MESSAGE_ID of the journal; empty if there is none.
        sleep: the journal's field SLEEP, such as hibernate; empty if there is none.
        boot: the journal's boot; empty if there is none.
        program: program that wrote it, as syslog names it; "kernel" for the kernel.
    """

    text: str
    number: int
    seconds: float | None = None
    message_id: str = ""
    sleep: str = ""
    boot: str = ""
    program: str = "kernel"


@dataclass(frozen=True)
class BootLog:
    """The log of one boot.

    Attributes:
        origin: the file.
        lines: its lines, in order.
    """

    origin: str
    lines: tuple[LogLine, ...] = field(repr=False)

    @cached_property
    def kernel_texts(self) -> tuple[str, ...]:
        """Messages of the kernel."""
        return tuple(line.text for line in self.lines if line.program == "kernel")

    @cached_property
    def is_whole(self) -> bool:
        """Whether the log begins with the boot."""
        return any(FIRST.match(text) for text in self.kernel_texts)

    @property
    def release(self) -> str | None:
        """Release of the kernel."""
        return self._first(FIRST, "release")

    @property
    def banner(self) -> str | None:
        """The kernel's first line, `linux_banner`."""
        return next((text for text in self.kernel_texts if FIRST.match(text)), None)

    @property
    def command_line(self) -> str | None:
        """The kernel's command line."""
        return self._first(COMMAND_LINE, "words")

    @property
    def physical_pages(self) -> int | None:
        """`get_num_physpages()`."""
        kib = self._first(MEMORY, "kib")
        return int(kib) // 4 if kib else None

    def is_of_boot(self, other: BootLog) -> bool:
        """Return whether two logs are of one boot: they have a line after its first second in common, time and text."""
        mine, theirs = ({(line.seconds, line.text) for line in log.lines if (line.seconds or 0) > 1} for log in
                        (self, other))  # fmt: skip
        return not mine.isdisjoint(theirs)

    def _first(self, pattern: re.Pattern[str], group: str) -> str | None:
        return next((match[group] for text in self.kernel_texts if (match := pattern.match(text))), None)


def boots_in(text: str, origin: str) -> tuple[BootLog, ...]:
    """Return the boots in a log, in its order.

    A boot begins with the kernel's first line, or where the journal's boot changes.

    Raises:
        FormatError: no line of it is one of a log.
    """
    start = text.lstrip()
    if start.startswith("{"):
        lines = list(_json_lines(text, origin))
    elif start.startswith(("__CURSOR=", "__REALTIME_TIMESTAMP=")):
        lines = list(_export_lines(text))
    else:
        lines = list(_text_lines(text))
    if not lines:
        raise FormatError(
            "not a kernel log: no line has a time stamp or a program",
            source=origin,
            advice="give the output of `dmesg`, `journalctl -k -b -1` or `journalctl -o export`",
        )
    boots: list[list[LogLine]] = []
    for line in lines:
        begins = line.program == "kernel" and FIRST.match(line.text) and not line.boot
        # A banner that follows a single line of its boot does not begin another one.
        if not boots or line.boot != boots[-1][-1].boot or (begins and len(boots[-1]) > 1):
            boots.append([])
        boots[-1].append(line)
    return tuple(BootLog(origin, tuple(boot)) for boot in boots)


def _text_lines(text: str) -> Iterator[LogLine]:
    """Yield the lines of dmesg, of kern.log, or of journalctl; others, such as the rest of a message, are left out."""
    for number, line in enumerate(text.splitlines(), start=1):
        program, said = "kernel", line
        match = SYSLOG.match(line)
        if match:
            program, said = match["program"], match["text"]
        readable = READABLE.match(said)
        if readable:
            yield LogLine(readable["text"].rstrip(), number)
            continue
        stamp = STAMP.match(said)
        if stamp:
            seconds = float(f"{stamp['seconds']}.{stamp['fraction']}")
            yield LogLine(stamp["text"].rstrip(), number, seconds, program=program)
        elif match:
            yield LogLine(said.rstrip(), number, program=program)


def _json_lines(text: str, origin: str) -> Iterator[LogLine]:
    """Yield the records of `journalctl -o json`. Raises FormatError for a line that is not JSON."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"line {number} is not valid JSON: {error}",
                source=origin,
                advice="give the output of `journalctl -o json`, complete",
            ) from error
        if isinstance(fields, dict):
            yield from _record({str(key): _as_text(value) for key, value in fields.items()}, number)


def _as_text(value: object) -> str:
    """Return a field of the journal's JSON: a string, or a list of its bytes if it is not printable."""
    if isinstance(value, list) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return bytes(value).decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _export_lines(text: str) -> Iterator[LogLine]:
    """Yield the records of `journalctl -o export`: fields of a line each, an empty line ends a record."""
    fields: dict[str, str] = {}
    first = 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line:
            name, equals, value = line.partition("=")
            if equals:
                fields[name] = value
            continue
        yield from _record(fields, first)
        fields, first = {}, number + 1


def _record(fields: dict[str, str], number: int) -> Iterator[LogLine]:
    if "MESSAGE" not in fields:
        return
    is_kernel = fields.get("_TRANSPORT") == "kernel" or fields.get("SYSLOG_IDENTIFIER") == "kernel"
    stamp = fields.get("_SOURCE_MONOTONIC_TIMESTAMP") or fields.get("__MONOTONIC_TIMESTAMP", "")
    yield LogLine(
        fields["MESSAGE"].rstrip(),
        number,
        int(stamp) / 1e6 if stamp.isdecimal() else None,
        fields.get("MESSAGE_ID", ""),
        fields.get("SLEEP", ""),
        fields.get("_BOOT_ID", ""),
        "kernel" if is_kernel else fields.get("SYSLOG_IDENTIFIER", fields.get("_COMM", "")),
    )
