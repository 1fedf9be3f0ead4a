# SPDX-License-Identifier: GPL-2.0-or-later
"""The core of an image in the form that crash wants, and crash itself where it and the kernel's debug package are."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hibernaut.kernel.hibernating_cpu import hibernating_cpu_note
from hibernaut.kernel.kernel import Kernel
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.conftest import Golden

DEBUG_KERNELS = Path("/usr/lib/debug/boot")
"""Folder of Debian's debug packages."""
TASK = re.compile(r"^>?\s+(\d+)\s+\d+\s+\d+\s+[0-9a-f]{16}\s+\S+\s+\S+\s+\d+\s+\d+\s+(.*)$", re.MULTILINE)


@pytest.fixture(params=["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def core(request: pytest.FixtureRequest, golden: Golden, tmp_path: Path) -> tuple[Path, Path]:
    """An image, and its core."""
    image = golden(request.param)
    assert hibernaut("convert", image, tmp_path / "core", "--to", "elf", "--quiet").status == 0
    return image, tmp_path / "core"


def test_the_core_has_the_form_of_a_kdump(core: tuple[Path, Path]) -> None:
    """Notes before the first page, no alignment, one NT_PRSTATUS: of the task that hibernates, at its entry."""
    image, path = core
    with path.open("rb") as file:
        first, *loads = ELFFile(file).iter_segments()
        assert first["p_type"] == "PT_NOTE"
        assert first["p_offset"] + first["p_filesz"] <= min(load["p_offset"] for load in loads)
        assert {load["p_align"] for load in loads} == {0}
        file.seek(first["p_offset"])
        notes = file.read(first["p_filesz"])
    at = notes.index(b"CORE\0") + 8
    assert struct.unpack_from("<III", notes, at - 20) == (5, 336, 1)
    (number,) = struct.unpack_from("<i", notes, at + 32)
    registers = struct.unpack_from("<21Q", notes, at + 112)
    with open_memory(image) as source:
        kernel = Kernel.of(source)
        assert registers[16] == kernel.symbols["swsusp_arch_suspend"].address
        back = kernel.u64(registers[19], "stack")
        row = kernel.symbols.table.row_at(back)
        assert row is not None
        assert kernel.symbols.table.name(row).startswith(("hibernation_snapshot", "create_image"))
        task = kernel.drgn()  # by drgn: the task of that number has the stack that the registers name
        from drgn.helpers.linux.pid import find_task

        stack = find_task(task, number).stack.value_()
        assert stack <= registers[19] < stack + (16 << 10)


def test_memory_that_does_not_hibernate_has_no_registers(golden: Golden) -> None:
    """`saved_context` of a dump is that of an earlier hibernation, if any."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        assert hibernating_cpu_note(source, Kernel.of(source).vmcoreinfo) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "release", "tasks"),
    [("swap-6.1-lzo.img", "6.1.0-56-amd64", 45), ("swap-6.12-lz4.img", "6.12.107+deb13-amd64", 50)],
)
def test_crash_and_drgn_list_the_same_tasks(
    golden: Golden, tmp_path: Path, image: str, release: str, tasks: int
) -> None:
    """Crash 8.0.6 opens the core; drgn's trace of the hibernating task is whole, up to the system call."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    from drgn.helpers.linux.pid import find_task, for_each_task

    crash = os.environ.get("HIBERNAUT_CRASH") or shutil.which("crash")
    debug = Path(os.environ.get("HIBERNAUT_DEBUG_KERNELS") or DEBUG_KERNELS) / f"vmlinux-{release}"
    if crash is None:
        pytest.skip("no crash: apt install crash, or name it in HIBERNAUT_CRASH")
    if not debug.exists():
        pytest.skip(f"no {debug}: apt install linux-image-{release}-dbg, or name its folder in HIBERNAUT_DEBUG_KERNELS")
    path, commands = tmp_path / "core", tmp_path / "commands"
    assert hibernaut("convert", golden(image), path, "--to", "elf", "--quiet").status == 0
    commands.write_text("ps\nbt 1\nquit\n")
    done = subprocess.run(
        [crash, "-s", "-i", commands, debug, path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    listed = {(int(number), name.strip("[] ")) for number, name in TASK.findall(done.stdout) if number != "0"}
    program = drgn.Program()
    program.set_core_dump(str(path))
    program.load_debug_info([str(debug)])
    assert listed == {(task.pid.value_(), task.comm.string_().decode()) for task in for_each_task(program)}
    assert len(listed) == tasks
    assert "hibernation_snapshot" in done.stdout
    frames = [frame.name for frame in program.stack_trace(find_task(program, 1))]
    assert frames[0] == "swsusp_arch_suspend"
    assert {"hibernation_snapshot", "vfs_write", "do_syscall_64"} <= set(frames)
