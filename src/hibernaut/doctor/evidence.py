# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts with their origin, and the one place that reads files: bounded, never writing, inside a root folder."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hibernaut.errors import FormatError

__all__ = ["NOT_GIVEN", "Evidence", "RootFolder", "attached_text", "unknown"]

SMALL_BYTES = 1 << 20
"""Most bytes of a file of /proc, /sys or /etc."""
LOG_BYTES = 1 << 26
"""Most bytes of an attached file: a kernel's log has some 100 KiB, a journal of two boots some 10 MiB."""
MOST_LINKS = 40
"""`MAXSYMLINKS` (include/linux/namei.h)."""
MOST_NAMES = 1 << 16
NOT_GIVEN = "not given"
"""Reason why a fact is not known where no file for it was named."""
GZIP = b"\x1f\x8b"
JOURNAL = b"LPKSHHRH"
"""First bytes of a journal file of systemd (src/libsystemd/sd-journal/journal-def.h)."""

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True)
class Evidence(Generic[T_co]):
    """A fact, or the reason why it is not known.

    Attributes:
        value: the fact; None if it is not known.
        origin: file that states it, or that would.
        reason: why it is not known; empty if it is.
    """

    value: T_co | None
    origin: str
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a fact."""
        return self.value is not None

    def parsed(self, parse: Callable[[T_co], U | None], problem: str) -> Evidence[U]:
        """Return the fact that a text states; unknown, with this problem, where `parse` returns None or fails."""
        if self.value is None:
            return Evidence(None, self.origin, self.reason)
        try:
            found = parse(self.value)
        except (ValueError, IndexError, KeyError):
            found = None
        return Evidence(found, self.origin, problem if found is None else "")

    def otherwise(self, other: Evidence[U]) -> Evidence[T_co | U]:
        """Return this fact, or the other one if this is not known; of two reasons, that which is not `NOT_GIVEN`."""
        return self if self.known or (not other.known and self.reason != NOT_GIVEN) else other


def unknown(origin: str, reason: str) -> Evidence[Any]:
    """Return a fact that is not known."""
    return Evidence(None, origin, reason)


@dataclass(frozen=True)
class RootFolder:
    """The root of a file system: the running system's, or that of a mounted disk.

    Links are followed inside the folder, as a process would whose root it is.

    Attributes:
        path: the folder.
    """

    path: Path = Path("/")

    @property
    def is_running(self) -> bool:
        """Whether it is the root of the running system."""
        return self.path == Path("/")

    def text(self, name: str, limit: int = SMALL_BYTES) -> Evidence[str]:
        """Return a file of the folder as text.

        Args:
            name: path below the folder, without a slash at its beginning.
            limit: most bytes; the rest of a longer file is not read.
        """
        return self.content(name, limit).parsed(lambda data: data.decode("utf-8", "replace"), "")

    def content(self, name: str, limit: int = SMALL_BYTES) -> Evidence[bytes]:
        """Return the bytes of a file, see `text`."""
        shown = self.shown(name)
        try:
            return Evidence(_read(self._resolved(name), limit), shown)
        except OSError as error:
            return unknown(shown, error.strerror or "it cannot be read")
        except FormatError as error:
            return unknown(shown, error.what)

    def names(self, name: str) -> Evidence[tuple[str, ...]]:
        """Return the names in a folder, ascending, at most `MOST_NAMES`."""
        shown = self.shown(name)
        try:
            with os.scandir(self._resolved(name)) as entries:
                found = [entry.name for _, entry in zip(range(MOST_NAMES), entries, strict=False)]
        except OSError as error:
            return unknown(shown, error.strerror or "it cannot be read")
        return Evidence(tuple(sorted(found)), shown)

    def link(self, name: str) -> str | None:
        """Return the target of a link as it is written; None if it cannot be read, or is not a link."""
        parent, _, last = name.rpartition("/")
        try:
            return os.readlink(self._resolved(parent) / last)
        except OSError:
            return None

    def modified(self, name: str) -> int | None:
        """Return when a file was last written, in s since 1970; None if it is not there."""
        try:
            return int(self._resolved(name).stat().st_mtime)
        except (OSError, FormatError):
            return None

    def shown(self, name: str) -> str:
        """Return a path of the folder for messages."""
        return str(self.path / name)

    def _resolved(self, name: str) -> Path:
        """Return a path with its links followed inside the folder.

        Raises:
            OSError: too many links, or a file of another kernel: /proc and /sys below a mounted root are the running
                kernel's, if anything is mounted there.
        """
        if self.is_running:
            return self.path / name
        parts, done = [part for part in reversed(name.split("/")) if part not in ("", ".")], list[str]()
        links = 0
        while parts:
            part = parts.pop()
            if part == "..":
                done = done[:-1]
                continue
            here = self.path.joinpath(*done, part)
            if not here.is_symlink():
                done.append(part)
                continue
            links += 1
            if links > MOST_LINKS:
                raise OSError(40, "Too many levels of symbolic links", str(here))
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            parts += [one for one in reversed(target.split("/")) if one not in ("", ".")]
        if done and done[0] in ("proc", "sys") and _same_mount(self.path / done[0], Path("/", done[0])):
            raise OSError(0, f"{self.path / done[0]} is that of the running kernel")
        return self.path.joinpath(*done)


def attached_text(path: Path, limit: int = LOG_BYTES) -> str:
    """Return the text of a file that a user names, unpacked if gzip packed it.

    Raises:
        FormatError: it is not a regular file, empty, too large, or not text.
        OSError: it cannot be read.
    """
    content = _read(path, limit + 1)
    if content.startswith(GZIP):
        try:
            content = zlib.decompressobj(wbits=31).decompress(content, limit + 1)
        except zlib.error as error:
            raise FormatError(
                f"damaged gzip data: {error}", source=str(path), advice="copy it again, or unpack it"
            ) from error
    if len(content) > limit:
        raise FormatError(
            "the file is too large", source=str(path), expected=f"at most {limit} bytes", advice="give a part of it"
        )
    if content.startswith(JOURNAL):
        raise FormatError(
            "a journal in systemd's own format",
            source=str(path),
            expected="text",
            advice="export it with `journalctl --file FILE -o export`",
        )
    if b"\0" in content:
        raise FormatError(
            "not a text file: it has a zero byte",
            source=str(path),
            offset=content.index(b"\0"),
            advice="give a file of text",
        )
    if not content.strip():
        raise FormatError("the file is empty", source=str(path), advice="copy it again")
    return content.decode("utf-8", "replace")


def _read(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file.

    Raises:
        FormatError: it is another kind of file.
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe waits for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError("this is not a regular file", source=str(path), advice="give a file")
        parts, left = [], limit
        while left and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _same_mount(one: Path, other: Path) -> bool:
    """Return whether a folder shows what is mounted on another one; nothing is, if that is a folder like its parent."""
    try:
        device = other.stat().st_dev
        return one.stat().st_dev == device != other.parent.stat().st_dev
    except OSError:
        return False
