# SPDX-License-Identifier: GPL-2.0-or-later
"""Shells that complete a command line of `hibernaut`, as a person would have them do it."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["completed_by"]

PROGRAM = """#!/bin/sh
[ -n "$_HIBERNAUT_COMPLETE" ] && exec {python} -m hibernaut "$@"
printf '%s\\n' "$@" > {result}.new
mv {result}.new {result}
"""
"""The command that the shell runs: it completes as hibernaut does, and writes its arguments to a file if it is run."""

INSERT_ALL = b"\x1b*"
"""Keys to which every shell here binds: insert all completions into the line."""

START = {
    "bash": """
        bind 'set bell-style none'
        bind '"\\e*": insert-completions'
        source {script}
    """,
    "zsh": """
        unsetopt beep
        autoload -Uz compinit && compinit -u -D
        zle -C insert-all complete-word _generic
        zstyle ':completion:insert-all:*' completer _all_matches _complete
        zstyle ':completion:insert-all:*' insert yes
        bindkey '\\e*' insert-all
        source {script}
    """,
}
"""Commands that an interactive shell reads first."""


def completed_by(shell: str, script: Path, line: str, folder: Path, seconds: float = 60) -> list[str]:
    """Return the words that a shell puts in place of the last word of a line, if it is asked for all of them.

    Args:
        shell: "bash", "zsh" or "fish".
        script: its script.
        line: words after `hibernaut`, up to the cursor.
        folder: an empty or prepared folder; it is the current one and the home folder.
        seconds: longest time.
    """
    programs, result = folder.parent / "bin", folder.parent / "arguments"
    programs.mkdir(exist_ok=True)
    program = programs / "hibernaut"
    program.write_text(PROGRAM.format(python=shlex.quote(sys.executable), result=shlex.quote(str(result))))
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder.parent / "config"),
        "XDG_DATA_HOME": str(folder.parent / "data"),
        "ZDOTDIR": str(folder.parent),
        "TERM": "dumb",
        "PS1": "",
    }
    if shell == "fish":
        return _completed_by_fish(script, line, folder, environment, seconds)
    rc = folder.parent / (".zshrc" if shell == "zsh" else "bashrc")
    rc.write_text(START[shell].format(script=shlex.quote(str(script))))
    options = ["--noprofile", "--rcfile", str(rc), "-i"] if shell == "bash" else ["-d", "-i"]
    keys = f"hibernaut {line}".encode() + INSERT_ALL + b"\n"
    result.unlink(missing_ok=True)
    _type(shell, options, keys, folder, environment, result, seconds)
    return result.read_text().splitlines()


def _completed_by_fish(
    script: Path, line: str, folder: Path, environment: Mapping[str, str], seconds: float
) -> list[str]:
    """Return the completions that fish itself prints for a line, without their help."""
    asked = f"source {shlex.quote(str(script))}; complete --do-complete {shlex.quote(f'hibernaut {line}')}"
    done = subprocess.run(
        ["fish", "--private", "-c", asked],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds,
    )
    return [one.partition("\t")[0] for one in done.stdout.splitlines()]


def _type(
    shell: str,
    options: list[str],
    keys: bytes,
    folder: Path,
    environment: Mapping[str, str],
    result: Path,
    seconds: float,
) -> None:
    """Type keys at a shell's prompt, and wait until the file with the result is there. Raises TimeoutError."""
    program = shutil.which(shell)
    assert program is not None
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [program, *options],
        cwd=folder,
        env={**environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen, limit = b"", time.monotonic() + seconds
    try:
        os.write(ours, keys)
        while not result.exists():
            if time.monotonic() > limit:
                raise TimeoutError(f"{shell} does not complete: {seen!r}")
            if select.select([ours], [], [], 0.05)[0]:
                with suppress(OSError):
                    seen += os.read(ours, 4096)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
