# SPDX-License-Identifier: GPL-2.0-or-later
"""The one writer of all that commands print; text of files cannot control the terminal."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from hibernaut.report.json_text import json_text
from hibernaut.report.visible import visible, visible_line

__all__ = ["STANDARD_OUTPUT", "ReaderGone", "abandon_output", "print_json", "print_text", "print_version", "say"]

STANDARD_OUTPUT = "standard output"
SIGNS = "\u00b7\u2591\u2592\u2593\u2588\u25ab"
"""Signs of pictures that are not ASCII (`report.frame_words`)."""


class ReaderGone(Exception):
    """The program that reads standard output has ended, as `head` does."""


def print_text(text: str) -> None:
    """Write an answer to standard output.

    Raises:
        ReaderGone: nothing reads it any more.
        OSError: it is closed, or the disk is full.
    """
    _write_output(visible(text) + "\n")


def print_version(*, verbose: bool = False) -> None:
    """Print the name and version of the program. Raises as `print_text`.

    Args:
        verbose: also print the libraries of each compressor.
    """
    from hibernaut import __version__  # read from the installed package's files

    lines = [f"hibernaut {__version__}"]
    if verbose:
        from hibernaut.report.codecs import libraries_text

        lines += libraries_text()
    print_text("\n".join(lines))


def print_json(document: Mapping[str, Any]) -> None:
    """Write the one document of `--json`. Raises as `print_text`."""
    _write_output(json_text(document))


def print_styled(lines: Iterable[list[tuple[str, str]]]) -> None:
    """Write lines of (text, style of `rich`), in colour if standard output is a terminal and NO_COLOR is not set.

    FORCE_COLOR colours them everywhere. Raises as `print_text`.
    """
    import io

    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal or None, width=1 << 16, soft_wrap=True, legacy_windows=False)
    for line in lines:
        console.print(Text.assemble(*((visible_line(text), style) for text, style in line)))
    _write_output(out.getvalue())


def prints_ascii_only() -> bool:
    """Return whether the encoding of standard output lacks the signs of pictures."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        SIGNS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def say(line: str, quiet: bool = False) -> None:
    """Write a remark to standard error, where it does not mix with the answer."""
    if not quiet and sys.stderr is not None:
        sys.stderr.write(_encodable(f"hibernaut: {visible_line(line)}\n", sys.stderr))


def abandon_output() -> None:
    """Drop the buffer of standard output, which the interpreter would fail to write when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_output(text: str) -> None:
    if sys.stdout is None:  # as Python leaves it if the descriptor is closed
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), STANDARD_OUTPUT)
    try:
        sys.stdout.write(_encodable(text, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error


def _encodable(text: str, stream: TextIO) -> str:
    """Escape characters that the stream's encoding lacks: a terminal of the C locale must not end the program."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
