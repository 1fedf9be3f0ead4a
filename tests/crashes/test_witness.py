# SPDX-License-Identifier: GPL-2.0-or-later
"""An independent witness of the recorder: strace sees the same calls of the same process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.crashes.scenarios import SCENARIOS, small_image

CALLS = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,ftruncate,truncate,"
    "fallocate,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,"
    "fdatasync,sync_file_range,sync,syncfs,mmap"
)
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?:\(deleted\))?(?: \(.*\))?$")
WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2"}
NAMES = {
    "fsync": "sync", "fdatasync": "sync", "sync": "sync all", "syncfs": "sync all", "rename": "rename",
    "renameat": "rename", "renameat2": "rename", "link": "link", "linkat": "link", "symlink": "symlink",
    "symlinkat": "symlink", "mkdir": "folder", "mkdirat": "folder", "rmdir": "rmdir",
}  # fmt: skip


def whole_lines(text: str) -> list[str]:
    """Return the lines of strace, those that another thread interrupted put together."""
    begun: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        thread, _, rest = line.partition(" ")
        if rest.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", rest.lstrip()):
            lines.append(begun.pop(thread) + resumed[1])
        else:
            lines.append(line)
    return lines


def seen_by_strace(text: str, folder: Path, present: set[str]) -> list[tuple[str, int]]:
    """Return the calls below a folder: kind, and bytes written or the new size.

    Args:
        text: output of `strace -f -y`.
        folder: the folder.
        present: files that were there before.
    """
    found: list[tuple[str, int]] = []
    known = set(present)
    for line in whole_lines(text):
        match = LINE.match(line)
        if match is None or int(match[3]) < 0:
            continue
        name, arguments, returned = match[1], match[2], int(match[3])
        first = arguments.split(", ")[0]
        if str(folder) not in (first if name in WRITES | {"sendfile", "fsync", "fdatasync", "syncfs"} else arguments):
            continue
        if name in ("open", "openat", "openat2", "creat"):
            path = re.search(r'"([^"]*)"', arguments)
            assert path is not None
            if "O_TMPFILE" in arguments or ("O_CREAT" in arguments and path[1] not in known):
                known.add(path[1])
                found.append(("make", 0))
        elif name in WRITES or name == "sendfile":
            if returned:
                found.append(("write", returned))
        elif name == "mmap":
            assert "MAP_SHARED" not in arguments or "PROT_WRITE" not in arguments, line
        elif name == "ftruncate":
            found.append(("size", int(arguments.split(", ")[-1])))
        elif name == "fallocate":
            found.append(("size", -1))
        elif name in ("unlink", "unlinkat"):
            found.append(("rmdir" if "AT_REMOVEDIR" in arguments else "unlink", 0))
        elif name == "sync_file_range":
            raise AssertionError(f"the recorder does not know {name}")
        else:
            known.update(re.findall(r'"([^"]*)"', arguments))  # the new name of a rename exists
            found.append((NAMES[name], 0))
    return found


@pytest.fixture(scope="module")
def strace() -> str:
    """The program, where it may trace."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed (Debian: the package strace)")
    tried = subprocess.run([path, "-f", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip().splitlines()[-1]}")
    return path


FEW = ("save", "rewrite --in-place", "explore --results, command", "lab build")


@pytest.mark.parametrize("name", FEW)
def test_strace_sees_the_same_calls(strace: str, tmp_path: Path, name: str) -> None:
    """No call that changes a file passes the recorder, and it invents none; in the same order, but for threads."""
    compare(strace, tmp_path, name)


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS if scenario.name not in FEW])
def test_strace_sees_the_same_calls_of_all_others(strace: str, tmp_path: Path, name: str) -> None:
    """The same, of every other command."""
    compare(strace, tmp_path, name)


def test_a_write_past_the_recorder_is_seen(strace: str, tmp_path: Path) -> None:
    """A program that the recorder does not know writes beside it: the two differ."""
    with pytest.raises(AssertionError):
        compare(strace, tmp_path, "lab cache", "open({!r} + '/kernels/passed', 'x').close()")


def compare(strace: str, tmp_path: Path, name: str, beside: str = "") -> None:
    """Run a command under strace and the recorder, and compare; `beside` is Python run by another process."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    folder = tmp_path / "watched"
    folder.mkdir()
    image = small_image(tmp_path)
    scenario.prepare(folder)
    present = {str(path) for path in folder.rglob("*")}
    beside = (
        beside and f"import subprocess, sys; subprocess.run([sys.executable, '-c', {beside.format(str(folder))!r}])"
    )
    words = [
        sys.executable,
        "-m",
        "tests.crashes.recorded",
        name,
        str(folder),
        str(image),
        str(tmp_path / "calls"),
        beside,
    ]
    log = tmp_path / "log"
    subprocess.run(
        [strace, "-f", "--seccomp-bpf", "-y", "-s", "0", "-e", f"trace={CALLS}", "-o", str(log), *words],
        check=True,
        cwd=REPOSITORY,
    )
    seen = seen_by_strace(log.read_text(), folder, present)
    sizes = {what: [size for kind, size in seen if kind == what] for what in ("size",)}
    recorded = [
        (what, size if what in ("write", "size") else 0) for what, size in json.loads((tmp_path / "calls").read_text())
    ]
    if -1 in sizes["size"]:  # of an allocation strace shows the part, and the recorder the size of the file
        recorded = [(what, -1 if what == "size" else size) for what, size in recorded]
        seen = [(what, -1 if what == "size" else size) for what, size in seen]
    assert Counter(seen) == Counter(recorded)
    assert [what for what, _ in seen if what != "write"] == [what for what, _ in recorded if what != "write"]
    assert any(what in ("sync", "sync all") for what, _ in seen)
