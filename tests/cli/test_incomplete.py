# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on a dump that is incomplete: it is read as far as it goes, and everyone hears of it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.cli.run import hibernaut
from tests.memory.naive import PAGE, Load, elf_core, kdump, page_of

REMARK = "the dump is incomplete: 3 of 8 pages were not written"


def incomplete_kdump() -> bytes:
    """Return a dump whose last three descriptors were not written."""
    data = bytearray(kdump({pfn: page_of(pfn) for pfn in range(8)}))
    struct.pack_into("<I", data, 424, 9)
    data[4 * PAGE + 24 * 5 : 4 * PAGE + 24 * 8] = bytes(24 * 3)
    return bytes(data)


def incomplete_elf() -> bytes:
    """Return a core that ends three pages early."""
    data = bytearray(elf_core([Load(0, b"".join(page_of(pfn) for pfn in range(8)))])[: -3 * PAGE])
    struct.pack_into("<I", data, 48, 1)
    return bytes(data)


@pytest.mark.parametrize("content", [incomplete_kdump(), incomplete_elf()], ids=["kdump", "elf"])
@pytest.mark.parametrize("form", ["raw", "lime", "elf"])
def test_an_incomplete_dump_is_converted_with_a_remark(tmp_path: Path, content: bytes, form: str) -> None:
    """On standard error unless --quiet, and in the document; the pages that are there are written."""
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(content)
    result = hibernaut("convert", path, out, "--to", form, "--json")
    assert (result.status, result.document["pages"], result.document["remarks"]) == (0, 5, [REMARK])
    assert f"hibernaut: {path}: {REMARK}" in result.err.splitlines()
    assert REMARK not in hibernaut("convert", path, tmp_path / "again", "--to", form, "--quiet").err
    if form == "raw":
        assert out.read_bytes() == b"".join(page_of(pfn) for pfn in range(5))
