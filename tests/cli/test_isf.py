# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut isf` and `hibernaut volatility-plugins`."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from tests.cli.run import NEXT, hibernaut
from tests.conftest import Golden
from tests.swsusp import naive


def test_a_symbol_file_of_an_image(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the kernel unless a name is given, private, counted; an existing one is not replaced unasked."""
    monkeypatch.chdir(tmp_path)
    found = hibernaut("isf", golden("swap-6.1-lzo.img"), "--json").document
    made = Path("linux-6.1.0-56-amd64.json.xz")
    assert found["file"] == str(made)
    assert made.stat().st_mode & 0o777 == 0o600
    content = json.loads(lzma.decompress(made.read_bytes()))
    assert found["file_bytes"] == made.stat().st_size
    assert (found["types"], found["enums"], found["symbols"]) == (
        len(content["user_types"]),
        len(content["enums"]),
        len(content["symbols"]),
    )
    assert found["typed_symbols"] > 400
    assert found["modules"][0] == "virtio_blk"
    assert len(found["modules"]) == 6
    assert "virtblk_req" in content["user_types"]
    assert found["banner"].startswith("Linux version 6.1.0-56-amd64 ")
    assert (found["levels"], found["kaslr_shift"]) == (4, "0x0")
    again = hibernaut("isf", golden("swap-6.1-lzo.img"))
    assert again.status == 2
    assert f"{made} exists; give a name with --out" in again.err
    given = hibernaut("isf", golden("swap-6.1-lzo.img"), "--out", made)
    assert given.status == 0
    assert given.out.startswith(f"{made}: ")
    assert "Linux version 6.1.0-56-amd64 " in given.out


def test_another_ending_is_refused(tmp_path: Path) -> None:
    """Volatility would not see the file; the source is not even looked at."""
    result = hibernaut("isf", tmp_path / "none", "-o", tmp_path / "symbols.xz")
    assert result.status == 2
    assert "symbols.xz has no ending of a symbol file; expected .json, " in result.err


def test_an_image_without_a_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with advice, and no file."""
    monkeypatch.chdir(tmp_path)
    Path("swap.img").write_bytes(naive.build({5: bytes(4096)}, naive.Layout()))
    result = hibernaut("isf", "swap.img", "-q")
    assert result.status == 2
    assert "no VMCOREINFO in memory" in result.err
    assert NEXT.search(result.err.strip())
    assert [path.name for path in tmp_path.iterdir()] == ["swap.img"]


def test_the_folder_of_plugins_is_printed() -> None:
    """For `vol -p`."""
    folder = Path(hibernaut("volatility-plugins").out.strip())
    assert (folder / "hibernaut_image.py").exists()
    assert hibernaut("volatility-plugins", "--json").document == {"folder": str(folder)}
