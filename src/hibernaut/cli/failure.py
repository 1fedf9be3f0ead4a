# SPDX-License-Identifier: GPL-2.0-or-later
"""Report of a command that fails, and its exit status: one line with the next step."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from types import MappingProxyType

import typer

from hibernaut.cli.terminal import STANDARD_OUTPUT, ReaderGone, abandon_output, say
from hibernaut.cli.whole_images import SALVAGE_OPTIONS, WHOLE_ONLY
from hibernaut.errors import (
    ContradictoryMemory,
    CorruptImage,
    FormatError,
    HibernationRefused,
    HibernautError,
    LabError,
    MachineFault,
    OutOfMemory,
    how_to_install,
)
from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.visible import visible

__all__ = ["BAD_NEWS", "INTERNAL_ERROR", "READER_GONE", "UNUSABLE", "report_failure"]

BAD_NEWS = 1
UNUSABLE = 2
INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h."""
NO_BISECTION = 255
"""Exit status of a command for `git bisect run` that cannot be run as it is: it ends the bisection (git-bisect(1))."""
READER_GONE = 141
"""Exit status that a shell reports for a program that SIGPIPE ends."""

INSPECT = "`hibernaut inspect` lists all that is damaged"
CHECK_FILE = "check that the file is complete and of the right kind"
CHECK_PLACE = "check the path, its file system and its device"
OTHER_WAY = "try another way, such as --via fixmap"
LAB = "`hibernaut lab doctor` checks the laboratory"

PACKAGES = MappingProxyType({"elftools": "pyelftools"})
"""Packages that have another name than their module."""

OS_ADVICE = MappingProxyType(
    {
        errno.EACCES: "check its permissions; a device may need root",
        errno.EBADF: "do not close it, or give --quiet",
        errno.EBUSY: "end the program that uses it",
        errno.EDQUOT: "free space in your quota, or write elsewhere",
        errno.EEXIST: "remove it, or give another name",
        errno.EFBIG: "write to a file system that takes larger files",
        errno.EIO: "look into the kernel log for errors of the device",
        errno.EISDIR: "give a file in it",
        errno.ENOENT: "check the path",
        errno.ENOSPC: "free space there, or write elsewhere",
        errno.ENOTDIR: "check the path",
        errno.EPERM: "check its permissions; a device may need root",
        errno.EROFS: "write elsewhere",
    }
)
"""Next step by error number."""


def _is_lack_of_memory(error: Exception) -> bool:
    """Return whether memory lacks: for Python or a mapping; for a library perhaps, whose error has no number."""
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) and "not permitted" not in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def report_failure(error: Exception) -> int:
    """Print one line on standard error and return the exit status; for a fault of this program, its traceback too."""
    usage_error = typer.BadParameter.__bases__[0]  # has no public name in all versions of Typer
    if isinstance(error, usage_error):
        say(_usage_line(error))
    elif isinstance(error, HibernautError):
        say(str(error) if error.advice else f"{error}; {_advice_on(error)}")
        if isinstance(error, ContradictoryMemory | CorruptImage | MachineFault | OutOfMemory | HibernationRefused):
            return BAD_NEWS
    elif isinstance(error, ReaderGone | BrokenPipeError):
        abandon_output()
        return READER_GONE
    elif _is_lack_of_memory(error):
        advice = "free some, or raise the limit of this process (ulimit -v)"
        if isinstance(error, ImportError):
            say(f"not enough memory; or the file system is mounted noexec: {error}; {advice}, or install elsewhere")
        else:
            say(f"not enough memory; {advice}")
    elif isinstance(error, OSError):
        if error.filename == STANDARD_OUTPUT:
            abandon_output()
        say(_os_line(error))
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "hibernaut").startswith("hibernaut"):
        module = (error.name or "").split(".")[0]
        package = PACKAGES.get(module, module)
        say(f"the Python package {package} is not installed, and this needs it; try: {how_to_install(package)}")
    else:
        sys.stderr.write(visible("".join(traceback.format_exception(error))))
        say(
            f"internal error: {type(error).__name__}: {error}; this is a fault of hibernaut: please report it with "
            "the lines above, the command, and `hibernaut --version`"
        )
        return INTERNAL_ERROR
    return NO_BISECTION if sys.argv[1:3] == ["lab", "judge"] else UNUSABLE


def _advice_on(error: HibernautError) -> str:
    """Return what to do next where the error itself does not know it."""
    if isinstance(error, CorruptImage):
        return INSPECT
    if isinstance(error, MachineFault | OutOfMemory | HibernationRefused):
        return OTHER_WAY
    if isinstance(error, LabError):
        return LAB
    if isinstance(error, FormatError) and error.source is not None:
        return CHECK_FILE
    words = [word for word in sys.argv[1:3] if not word.startswith("-")]
    known = next((name for name in (" ".join(words), *words[:1]) if name in DOCUMENTS), "")
    return f"see `{' '.join(filter(None, ('hibernaut', known, '--help')))}`"


def _os_line(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    place = f": {error.filename}" if error.filename else ""
    other = f" and {error.filename2}" if error.filename2 else ""
    return f"{what}{place}{other}; {OS_ADVICE.get(error.errno or 0, CHECK_PLACE)}"


def _usage_line(error: Exception) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    message = re.sub(r"\.? Did you mean (.*)\?", r" (did you mean \1?)", message)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hibernaut"
    option, reason = getattr(error, "option_name", None), WHOLE_ONLY.get(command.partition(" ")[2])
    if option in SALVAGE_OPTIONS and reason is not None:
        what = f"`{command}` takes whole images alone, and has no {option}: {reason}"
        return f"{what}; take out what is left of one with `hibernaut convert {option}`"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"
