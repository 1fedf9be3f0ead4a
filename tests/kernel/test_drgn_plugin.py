# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn opens a core of ours by itself and has symbols and types, by the plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from hibernaut.kernel.drgn_plugin import drgn_prog_set
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
