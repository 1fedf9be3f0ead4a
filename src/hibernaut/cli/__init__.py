# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one thin module a command."""

from __future__ import annotations

import os
import sys

from hibernaut.errors import CorruptImage, HibernautError, MachineFault, OutOfMemory

__all__ = ["main"]

BAD_NEWS = 1
UNUSABLE = 2


def main() -> None:
    """Run the command line; ends the process: 0 fine, 1 the answer is bad news, 2 usage or unreadable input."""
    from hibernaut.cli.app import app

    try:
        app()
    except (CorruptImage, MachineFault, OutOfMemory) as error:
        _stop(str(error), BAD_NEWS)
    except HibernautError as error:
        _stop(str(error), UNUSABLE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BAD_NEWS)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"{place}{error.strerror or error}", UNUSABLE)
    except MemoryError:
        _stop("not enough memory", UNUSABLE)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(line: str, status: int) -> None:
    """One line on standard error, then the end. Line breaks and control characters from a file must not pass."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    sys.stderr.write(f"hibernaut: {clean}\n")
    sys.exit(status)
