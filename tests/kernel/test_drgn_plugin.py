# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn opens a core of ours by itself and has symbols and types, by the plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.kernel.btf import BtfKind
from hibernaut.kernel.btf_finders import BtfFinders
from hibernaut.kernel.drgn_plugin import drgn_prog_set
from hibernaut.kernel.globals import GLOBALS
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.program import drgn_program
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.conftest import Golden

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

SCRIPT = """
from drgn.helpers.linux.pid import for_each_task
print(len(list(for_each_task(prog))), prog["init_uts_ns"].name.release.string_().decode())
print(prog.symbol("swsusp_save").name, prog.symbol(prog.symbol("orig_bm").address).name)
"""


@pytest.fixture
def core(golden: Golden, tmp_path: Path) -> Path:
    """A core of an image."""
    out = tmp_path / "core"
    assert hibernaut("convert", golden("swap-6.1-lzo.img"), out, "--to", "elf").status == 0
    return out


def run_drgn(core: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run drgn's own command on a core."""
    script = core.with_name("script.py")
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "-m", "drgn.cli", "-q", "-c", core, script]
        if not (Path(sys.executable).parent / "drgn").exists()
        else [Path(sys.executable).parent / "drgn", "-q", "-c", core, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_drgn_has_types_and_symbols_of_a_core(core: Path) -> None:
    """Tasks, an object, symbols by name and by address; without the plug-in, drgn knows no type."""
    if "hibernaut" not in {one.name for one in entry_points(group="drgn.plugins")}:
        pytest.skip("the package is installed without its entry points: pip install .")
    with_it = run_drgn(core)
    assert with_it.stdout.splitlines() == ["45 6.1.0-56-amd64", "swsusp_save orig_bm"], with_it.stderr
    without = run_drgn(core, DRGN_DISABLE_PLUGINS="hibernaut")
    assert without.returncode != 0
    assert "could not find" in without.stderr


@pytest.fixture
def opened(core: Path) -> Iterator[tuple[Any, SymbolicKernel, Overlay]]:
    """A program on the memory of a core, with the plug-in, all symbols and types, and changes to that memory."""
    with open_memory(core) as source:
        assert source.vmcoreinfo is not None
        kernel = SymbolicKernel(source.memory, source.vmcoreinfo)
        overlay = Overlay(source.memory)
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        program.set_linux_kernel_custom(source.vmcoreinfo, is_live=False)

        def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
            found = overlay.read(address, count)
            if found is None:
                raise drgn.FaultError("not in memory", address)
            return found

        program.add_memory_segment(0, 1 << 46, read, physical=True)
        drgn_prog_set(program)
        yield program, kernel, overlay


def destroy(kernel: SymbolicKernel, overlay: Overlay, vaddr: int) -> None:
    """Fill a page with ones."""
    pfn = kernel.tables.walk(vaddr).pfn
    assert pfn is not None
    overlay.write_page(pfn, np.full(PAGE_SIZE, 0xFF, dtype=np.uint8))


def test_damage_behind_what_is_asked_for_is_met_when_it_is_read(
    opened: tuple[Any, SymbolicKernel, Overlay], caplog: pytest.LogCaptureFixture
) -> None:
    """Types in the middle are damaged: those before are found, and one that is not is unknown, with a warning.

    The same holds for symbols.
    """
    program, kernel, overlay = opened
    destroy(kernel, overlay, kernel.symbols["__start_BTF"].address + (1 << 20))
    places = kallsyms_places(kernel)
    destroy(kernel, overlay, places["names"] + (3 << 18))
    assert program.type("struct task_struct").size == 9792
    assert program["init_pid_ns"].type_.type_name() == "struct pid_namespace"
    assert program.symbol("init_task").address == kernel.symbols["init_task"].address
    assert caplog.text == ""
    for _ in range(2):
        with pytest.raises(LookupError):
            program.type("struct no_such_structure")
        with pytest.raises(LookupError):
            program.symbol("no_such_symbol")
    warned = [line for line in caplog.messages if "cannot be read" in line]
    assert len(warned) == len(set(warned))
    assert any("BTF" in line for line in warned)
    assert any("kallsyms" in line for line in warned)
    assert program.type("struct task_struct").size == 9792


def test_objects_are_those_of_the_whole(opened: tuple[Any, SymbolicKernel, Overlay]) -> None:
    """Every variable whose type the table declares has the type and the address that all symbols and types give."""
    program, kernel, _ = opened
    whole = drgn_program(kernel)
    known = 0
    for name in GLOBALS:
        try:
            expected = whole[name]
        except (LookupError, TypeError) as error:  # absent, or an array of arrays of unknown length
            with pytest.raises(type(error)):
                program[name]
            continue
        found = program[name]
        assert (found.type_.type_name(), found.address_) == (expected.type_.type_name(), expected.address_)
        assert kernel.btf is not None
        assert not kernel.btf.find(name, BtfKind.VAR)
        assert kernel.btf.find_enumerator(name) is None
        known += 1
    assert known > 100


def test_a_declaration_that_the_size_contradicts_is_not_taken_first(
    opened: tuple[Any, SymbolicKernel, Overlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A structure as large as the symbol, but for the padding up to the next one, is; another one waits for BTF."""
    _, kernel, _ = opened
    program = drgn_program(kernel)
    assert kernel.btf is not None
    finders = BtfFinders(program, kernel, kernel.btf)
    assert finders._declared_structure("init_pid_ns") is not None
    for declared in ("struct pid", "struct task_struct", "int", "struct pid_namespace *"):
        monkeypatch.setitem(GLOBALS, "init_pid_ns", (declared,))
        assert finders._declared_structure("init_pid_ns") is None
    assert finders._declared_structure("nr_swapfiles") is None  # static
    assert finders._declared_structure("jiffies") is None


def test_other_programs_are_left_alone() -> None:
    """A program that is not a kernel's core gets no finder."""
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    before = program.registered_type_finders()
    drgn_prog_set(program)
    assert program.registered_type_finders() == before


def test_a_core_without_kallsyms_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A VMCOREINFO that names no page tables: one warning, and no type is found, as without the plug-in."""
    program: Any = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.set_linux_kernel_custom(
        b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82610000\nKERNELOFFSET=0\n"
        b"NUMBER(phys_base)=0\nSYMBOL(_stext)=ffffffff81000000\n",
        is_live=False,
    )
    program.add_memory_segment(0, 1 << 46, lambda _address, count, _offset, _physical: bytes(count), physical=True)
    drgn_prog_set(program)
    with pytest.raises(LookupError):
        program.type("struct task_struct")
    assert "no symbols and types of the kernel" in caplog.text
