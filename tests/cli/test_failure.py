# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that fail: one line, the right exit status, nothing that controls the terminal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.cli import app as app_module
from hibernaut.errors import CorruptImage, HibernationRefused, HibernautError, MachineFault, OutOfMemory
from hibernaut.report.visible import visible, visible_line
from tests.cli.run import hibernaut, refused

PYTHON = [sys.executable, "-c"]
RUN = "from hibernaut.cli import main; main()"
INTERRUPT_ON_IMPORT = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from hibernaut.cli import main
main()
"""


def run(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run Python code with arguments; what it prints on standard error is kept."""
    return subprocess.run([*PYTHON, *map(str, command)], text=True, stderr=subprocess.PIPE, check=False, **more)  # type: ignore[call-overload,no-any-return]


# ---- interrupts ----


@pytest.mark.parametrize("module", ["hibernaut.cli.app", "typer", "numpy", "hibernaut.cli.failure"])
def test_an_interrupt_while_modules_are_imported(module: str) -> None:
    """Status 130 and one line, from the first import on."""
    done = run(INTERRUPT_ON_IMPORT.format(module=module), "map", "/no such file")
    assert (done.returncode, done.stderr) == (130, "hibernaut: interrupted\n")


def _opened_once_read(fifo: Path, reader: subprocess.Popen[bytes]) -> int:
    """Open a pipe for writing once a process waits for it; fail if that ends before."""
    while reader.poll() is None:
        with suppress(OSError):  # ENXIO: there is no reader
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    pytest.fail(f"the command ended with status {reader.returncode} before it waited")


def test_an_interrupt_of_a_command(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a command that waits: status 130 and one line."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    waits = f"import hibernaut.cli.options as one; one.open_plain = lambda path: open({str(fifo)!r}).read()"
    with subprocess.Popen([*PYTHON, f"{heeded}; {waits}; {RUN}", "inspect", "x"], stderr=subprocess.PIPE) as process:
        writer = _opened_once_read(fifo, process)
        try:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            os.close(writer)  # ends a command that did not heed the signal
    assert (process.returncode, err) == (130, b"hibernaut: interrupted\n")


# ---- the output ----


def test_output_that_is_closed_or_full() -> None:
    """One line that names standard output, status 2."""
    closed = run(f"import os; os.close(1); import sys; sys.stdout = None; {RUN}", "--version")
    assert closed.returncode == 2
    assert closed.stderr.startswith("hibernaut: Bad file descriptor: standard output; ")
    assert closed.stderr.count("\n") == 1
    with Path("/dev/full").open("w") as full:
        done = run(RUN, "lab", "variants", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "hibernaut: No space left on device: standard output; free space there, or write elsewhere\n"


@pytest.mark.parametrize("command", [["lab", "variants"], ["--help"], ["lab", "variants", "--json"]])
def test_output_that_nothing_reads(command: list[str]) -> None:
    """Like a program that SIGPIPE ends: no output, and status 141, distinct from an answer."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(RUN, *command, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_output_does_not_matter_to_a_quiet_command() -> None:
    """With --quiet nothing is printed, so nothing fails."""
    assert run(f"import sys; sys.stdout = None; {RUN}", "lab", "variants", "--quiet").returncode == 0


def test_a_terminal_that_knows_no_unicode(tmp_path: Path) -> None:
    """Characters that the terminal's encoding lacks are escaped; the command does not fail."""
    path = tmp_path / "größe"
    done = run(RUN, "map", path, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2
    assert r"gr\xf6\xdfe" in done.stderr


# ---- statuses ----


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (HibernautError("bad", advice="try again"), 2, "bad; try again"),
        (CorruptImage("bad", source="x"), 1, "bad: x; `hibernaut inspect` lists all that is damaged"),
        (HibernationRefused("secret memory", errno="EPERM"), 1, "hibernation refused: secret memory (-EPERM)"),
        (OutOfMemory(3, injected=True), 1, "page allocation 3 failed (injected)"),
        (
            MachineFault("page fault", address=4096, entry=0, pfn=1, doing="copying"),
            1,
            "page fault: address 0x1000, entry 0x0, frame 0x1, while copying",
        ),
        (OSError(errno.EIO, "Input/output error", "x"), 2, "Input/output error: x; look into the kernel log"),
        (OSError("odd"), 2, "odd"),
        (MemoryError(), 2, "not enough memory; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "not enough memory; "),
        (ImportError("core.so: failed to map segment from shared object"), 2, "not enough memory; "),
        (
            ImportError("core.so: failed to map segment from shared object"),
            2,
            "not enough memory; or the file system is mounted noexec: core.so: failed to map segment from shared "
            "object; free some, or raise the limit of this process (ulimit -v), or install elsewhere",
        ),
        (
            ModuleNotFoundError("No module named 'elftools.elf'", name="elftools.elf"),
            2,
            "the Python package pyelftools is",
        ),
    ],
)
def test_each_error_has_its_status(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str) -> None:
    """1 where the error is an answer about an image or a modelled machine, else 2."""

    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(app_module, "run", fail)
    assert refused(status=status).startswith(f"hibernaut: {line}")


def test_a_fault_of_this_program_differs_from_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 70, the traceback, and a last line that asks for a report."""

    def fail(_: list[str]) -> int:
        raise KeyError("this\x1b[31m")

    monkeypatch.setattr(app_module, "run", fail)
    result = hibernaut("map", "x")
    assert (result.status, result.out) == (70, "")
    assert result.err.startswith("Traceback")
    last = result.err.splitlines()[-1]
    assert last.startswith("hibernaut: internal error: KeyError: ")
    assert "please report it" in last
    assert "\x1b" not in result.err


# ---- control characters ----


@given(text=st.text())
def test_nothing_shown_controls_a_terminal(text: str) -> None:
    """Whatever the text, only printable characters come out, line ends and tabs aside; ordinary text stays."""
    assert all(char.isprintable() or char in "\n\t" for char in visible(text))
    assert visible_line(text).isprintable()
    assert visible(visible(text)) == visible(text)
    if text.isprintable():
        assert visible(text) == visible_line(text) == text


def test_file_names_are_made_visible(tmp_path: Path) -> None:
    """An escape sequence, a line end and a reversal of direction in a file's name are shown, not obeyed."""
    line = refused("map", tmp_path / "a\x1b[2Jb\nc\u202ed")
    assert r"a\x1b[2Jb\nc\u202ed" in line
