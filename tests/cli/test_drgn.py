# SPDX-License-Identifier: GPL-2.0-or-later
"""The ELF core that `convert` writes, opened by drgn: an independent witness that it is a kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.swsusp import open_image
from tests.cli.run import hibernaut
from tests.conftest import Golden

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_drgn_finds_the_kernels_symbols(golden: Golden, tmp_path: Path, name: str) -> None:
    """`swsusp_save` is in kallsyms, and `restore_registers` is where the image's own info page says (KASLR or not)."""
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    out = tmp_path / "core"
    result = hibernaut("convert", golden(name), out, "--to", "elf", "--json")
    assert result.document["vmcoreinfo"] is True
    program = drgn.Program()
    program.set_core_dump(str(out))
    program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    assert program.symbol("swsusp_save").size > 0
    with open_image(golden(name)) as image:
        info = image.info
    assert program.symbol("restore_registers").address == info.jump_address
    # Through drgn's own translation: `restore_cr3` holds the root that the info page names.
    (restored,) = (program.read_u64(program.symbol("restore_cr3").address),)
    assert restored & ~0xFFF == info.cr3


def test_crash_and_drgn_need_the_note(golden: Golden, tmp_path: Path) -> None:
    """QEMU's own dump, which lacks VMCOREINFO, becomes one that drgn takes for a Linux kernel's."""
    with pytest.raises(Exception, match="unrecognized"):
        drgn.Program().set_core_dump(str(golden("ram-6.1-lzo.elf")))
    out = tmp_path / "core"
    assert hibernaut("convert", golden("ram-6.1-lzo.elf"), out, "--to", "elf", "--quiet").status == 0
    program = drgn.Program()
    program.set_core_dump(str(out))
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
