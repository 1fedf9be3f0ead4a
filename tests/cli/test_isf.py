# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut isf` and `hibernaut volatility-plugins`."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel import Kernel
from hibernaut.sources import open_memory
from tests.cli.run import NEXT, hibernaut
from tests.conftest import Golden
from tests.damaged_images import damage, lose_frame
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


def test_a_symbol_file_of_a_used_up_image(golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path) -> None:
    """Byte for byte that of the image: nothing was overwritten, and the CRC proves it; status 0."""
    name = "swap-6.1-lzo.img"
    made, of_image = tmp_path / "made.json", tmp_path / "image.json"
    assert hibernaut("isf", damage(golden_copy(name), "used up"), "--consumed", "-o", made, "-q").status == 0
    assert hibernaut("isf", golden(name), "-o", of_image, "-q").status == 0
    assert made.read_bytes() == of_image.read_bytes()


@pytest.mark.parametrize(
    ("pfn", "what"),
    [
        (0x28DF, "BTF: nothing to read at 0xffffffff828df000"),
        (0x225F, "kallsyms_names: nothing to read at 0xffffffff8225f000"),
        (0x2161, "kallsyms_offsets: nothing to read at 0xffffffff821619c8"),
    ],
)
def test_the_lost_part_is_named(golden_copy: Callable[[str], Path], tmp_path: Path, pfn: int, what: str) -> None:
    """One line names the part of the kernel that a lost unit took, the lost frames and the next step; no file."""
    path = golden_copy("swap-6.1-lzo.img")
    lose_frame(path, pfn)
    made = tmp_path / "made.json"
    result = hibernaut("isf", path, "--salvage", "-o", made)
    *_, line = result.err.splitlines()
    assert result.status == 2
    assert not made.exists()
    assert what in line
    assert line.count(path.name) == 1
    assert line.endswith("; give another image or a dump of this kernel: 32 frames of this one are lost")
    assert NEXT.search(line)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("linux_banner", "kallsyms_offsets"),
        ("kallsyms_token_index", "kallsyms_token_index"),
        ("__start_BTF", "BTF"),
    ],
)
def test_one_page_that_is_lost_is_named(
    golden_copy: Callable[[str], Path], tmp_path: Path, symbol: str, name: str
) -> None:
    """Of an image that is not compressed, one page: that of the banner, where kallsyms begins, of kallsyms, of BTF."""
    path, made = golden_copy("swap-6.1-low2m.img"), tmp_path / "made.json"
    with open_memory(path) as source:
        kernel = Kernel.of(source)
        address = kallsyms_places(kernel)["token_index"] if "token" in symbol else kernel.symbols[symbol].address
        lost = kernel.image_paddr(address) >> 12
    lose_frame(path, lost)
    result = hibernaut("isf", path, "--salvage", "-o", made)
    assert result.status == 2
    line = result.err.splitlines()[-1]
    assert f"{name}: nothing to read at" in line
    assert f"frame {lost:#x} is not in memory" in line
    assert line.endswith("; give another image or a dump of this kernel: a part of this one is lost")
    assert not made.exists()


def test_modules_that_are_lost_are_left_out(golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path) -> None:
    """The file has the rest as the image has it, a remark has the module, and the status is 1."""
    name = "swap-6.1-low2m.img"
    path, made, of_image = golden_copy(name), tmp_path / "made.json", tmp_path / "image.json"
    with open_memory(path) as source:
        kernel = Kernel.of(source)
        place = kernel.modules.place_of_btf(kernel.modules["virtio_blk"].address)
        assert place is not None
        lost = kernel.tables.walk(kernel.u64(place, "struct btf")).pfn
        assert lost is not None
    lose_frame(path, lost)
    result = hibernaut("isf", path, "--salvage", "-o", made, "--json")
    whole = hibernaut("isf", golden(name), "-o", of_image, "--json").document
    assert result.status == 1
    assert set(whole["modules"]) - set(result.document["modules"]) == {"virtio_blk"}
    assert any(remark.startswith("2 modules without types") for remark in result.document["remarks"])
    assert any(remark.startswith("1 module without types") for remark in whole["remarks"])
    content, expected = (json.loads(path.read_text()) for path in (made, of_image))
    assert content["symbols"] == expected["symbols"]
    assert content["user_types"].items() <= expected["user_types"].items()


def test_a_table_whose_end_is_lost_has_no_type(
    golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """The page of `taint_flags` is lost: that variable alone has no type."""
    name = "swap-6.1-low2m.img"
    path, made, of_image = golden_copy(name), tmp_path / "made.json", tmp_path / "image.json"
    with open_memory(path) as source:
        kernel = Kernel.of(source)
        lose_frame(path, kernel.image_paddr(kernel.symbols["taint_flags"].address) >> 12)
    assert hibernaut("isf", path, "--salvage", "-o", made, "-q").status == 1
    assert hibernaut("isf", golden(name), "-o", of_image, "-q").status == 0
    content, expected = (json.loads(path.read_text()) for path in (made, of_image))
    assert content["symbols"].pop("taint_flags")["type"] == {"kind": "base", "name": "void"}
    assert expected["symbols"].pop("taint_flags")["type"]["count"] == 19
    assert content == expected


def test_the_folder_of_plugins_is_printed() -> None:
    """For `vol -p`."""
    folder = Path(hibernaut("volatility-plugins").out.strip())
    assert (folder / "hibernaut_image.py").exists()
    assert hibernaut("volatility-plugins", "--json").document == {"folder": str(folder)}
