# SPDX-License-Identifier: GPL-2.0-or-later
"""`expected.json` in full, through the command line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hibernaut.swsusp import open_image
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden

IMAGES = ("swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img")
DUMPS = ("ram-6.1-lzo.elf", "ram-6.1-secretmem.elf", "ram-6.1-low2m.elf")


@pytest.mark.parametrize("name", IMAGES)
def test_inspect_finds_what_was_expected(golden: Golden, name: str) -> None:
    """Every count, address, CRC and digest of an image is the one computed by an independent reader."""
    result = hibernaut("inspect", golden(name), "--digests", "--json")
    assert result.status == 0
    found = result.document
    expected = dict(golden.expected[name])
    crc = expected.pop("crc32")
    assert found["crc32"] == {"stored": crc, "computed": crc or found["crc32"]["computed"], "ok": True if crc else None}
    assert {key: found[key] for key in expected} == expected
    assert found["problems"] == []
    assert found["offset_pages"] == 0


@pytest.mark.parametrize("name", DUMPS)
def test_map_finds_what_was_expected(golden: Golden, name: str) -> None:
    """Direct map and not-present runs of a dump, by CR3 of QEMU's note; secret pages are those the guest printed."""
    expected = golden.expected[name]
    found = hibernaut("map", golden(name), "--json").document
    assert found["cr3"] == expected["cr3"]
    assert found["base"] == expected["direct_map_base"]
    assert found["present_bytes"] == expected["present_bytes"]
    runs = [hole for hole in found["holes"] if hole["kind"] == "not-present"]
    assert [
        [run["start_pfn"], run["pages"], run["level"], run["entry"]][: len(wanted)]
        for run, wanted in zip(runs, expected["not_present_runs"], strict=True)
    ] == expected["not_present_runs"]
    printed = expected.get("secret_pages_as_printed_by_the_guest", [])
    if printed:
        assert [[run["start_pfn"], run["pages"]] for run in runs] == printed
    assert all(run["in_source"] for run in runs)
    assert found["mismatches"] == []


def test_map_of_the_kernels_own_image_shows_the_lost_table(golden: Golden) -> None:
    """The kernel split the 2 MiB block while copying: its image names a table, frame 0xaac8, that is not in it."""
    found = hibernaut("map", golden("swap-6.1-low2m.img"), "--json").document
    assert found["holes"] == [
        {
            "start_pfn": "0x400",
            "pages": 512,
            "level": "2M",
            "kind": "table-missing",
            "entry": "0xaac8063",
            "plain": False,
            "in_source": True,
        }
    ]


def test_map_finds_the_direct_map_of_a_kernel_with_kaslr(golden: Golden) -> None:
    """6.12 with KASLR, no symbols: another base, 1 GiB aligned, all of the same RAM present."""
    found = hibernaut("map", golden("swap-6.12-lz4.img"), "--json").document
    assert found["base"] != "0xffff888000000000"
    assert int(found["base"], 16) % (1 << 30) == 0
    assert found["present_bytes"] == golden.expected["ram-6.1-lzo.elf"]["present_bytes"]


def test_walk_shows_the_not_present_block(golden: Golden) -> None:
    """PMD entry 0x800fffffffbff062 in table frame 0x4402 (the kernel module printed both)."""
    found = hibernaut("walk", golden("ram-6.1-low2m.elf"), "0xffff888000400000", "--json").document
    assert found["stop"] == "not-present"
    assert found["paddr"] is None
    last = found["levels"][-1]
    assert (last["level"], last["table_pfn"], last["index"], last["entry"]) == (
        "PMD",
        "0x4402",
        2,
        "0x800fffffffbff062",
    )
    assert [step["level"] for step in found["levels"]] == ["PGD", "PUD", "PMD"]


def test_walk_to_a_present_address(golden: Golden) -> None:
    """The direct map's address of a frame leads to that frame."""
    found = hibernaut("walk", golden("ram-6.1-lzo.elf"), hex(0xFFFF888000000000 + 0x1234567), "--json").document
    assert found["stop"] == "present"
    assert (found["pfn"], found["paddr"]) == ("0x1234", "0x1234567")


def raw_of(path: Path, tmp_path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A source converted to raw, mapped, shape (frames, 4096)."""
    out = tmp_path / "raw"
    assert hibernaut("convert", path, out, "--to", "raw", "--quiet").status == 0
    return np.memmap(out, dtype=np.uint8, mode="r").reshape(-1, 4096)


@pytest.mark.parametrize("name", IMAGES)
def test_convert_puts_every_stored_page_in_its_place(golden: Golden, tmp_path: Path, name: str) -> None:
    """The raw file's frames, in the order of the list, have the digest of the image's pages; zero pages are zeroes."""
    raw = raw_of(golden(name), tmp_path)
    with open_image(golden(name)) as image:
        stored, zero = image.stored_pfns, image.pfns[image.zero]
    digest = hashlib.sha256()
    for first in range(0, len(stored), 1024):
        digest.update(raw[stored[first : first + 1024]].data)
    assert digest.hexdigest() == golden.expected[name]["sha256_stored_pages"]
    assert not raw[zero].any()


def test_save_through_the_fixmap_like_the_kernels_image(golden: Golden, tmp_path: Path) -> None:
    """Pages equal the RAM dump's for every listed frame, counts and CRC are right, no block but the old image's."""
    dump, old_path, new_path = golden("ram-6.1-lzo.elf"), golden("swap-6.1-lzo.img"), tmp_path / "new.img"
    assert hibernaut("save", dump, new_path, "--via", "fixmap", "--like", old_path, "--quiet").status == 0
    inspected = hibernaut("inspect", new_path, "--json").document
    expected = golden.expected["swap-6.1-lzo.img"]
    for key in ("image_pages", "pages", "saved_pages", "stored_pages", "meta_pages", "cr3", "e820_checksum", "flags"):
        assert inspected[key] == expected[key]
    assert inspected["crc32"]["ok"] is True
    ram = raw_of(dump, tmp_path)
    with open_image(old_path) as old, open_image(new_path) as new:
        assert (new.pfns == old.pfns).all()
        assert (new.read_all() == ram[new.pfns]).all()
        assert np.isin(new.swap_map.blocks, old.swap_map.blocks).all()
        unused = np.setdiff1d(np.arange(1, old.area.blocks), old.swap_map.blocks)
        differing = [
            block for block in unused.tolist() if old.area.read_block(block, "") != new.area.read_block(block, "")
        ]
        assert differing == []
        # facts: of the kernel's own pages two differ from the dump (the bitmaps' cursors and the stack in use)
        kernels = old.read_all()
        assert old.pfns[(kernels != ram[old.pfns]).any(axis=1)].tolist() == [0x3F88, 0x49EC]


def test_remap_with_a_failing_allocation_crashes_like_the_real_kernel(golden: Golden, tmp_path: Path) -> None:
    """`Failed to remap page`, then a page fault at the block's first address; nothing is written."""
    out = tmp_path / "never.img"
    arguments = ("save", golden("ram-6.1-low2m.elf"), out, "--via", "remap", "--fail-allocation", 1)
    result = hibernaut(*arguments, "--json")
    assert result.status == 1
    fault, log = result.document["fault"], result.document["log"]
    assert (fault["address"], fault["entry"], fault["pfn"]) == ("0xffff888000400000", "0x800fffffffbff062", "0x400")
    assert log.index("PM: hibernation: Failed to remap page") < log.index(
        "BUG: unable to handle page fault for address: ffff888000400000"
    )
    assert list(tmp_path.iterdir()) == []
    with_list = hibernaut(*arguments, "--like", golden("swap-6.1-low2m.img"), "--json")
    assert with_list.document["fault"] == fault
    assert "BUG: unable to handle page fault for address: ffff888000400000" in hibernaut(*arguments).out


@pytest.mark.parametrize("like", [False, True])
def test_fixmap_saves_all_of_the_block(golden: Golden, tmp_path: Path, like: bool) -> None:
    """All 512 pages of frames 0x400-0x5ff hold what the kernel module wrote there (its formula)."""
    out = tmp_path / "new.img"
    more = ("--like", golden("swap-6.1-low2m.img")) if like else ()
    result = hibernaut(
        "save", golden("ram-6.1-low2m.elf"), out, "--via", "fixmap", "--fail-allocation", 1, *more, "--json"
    )
    assert result.status == 0
    assert result.document["allocations"] == []
    with open_image(out) as image:
        pages, present = image.memory().gather(np.arange(0x400, 0x600))
    assert present.all()
    seed = np.uint64(1 << 56)
    page, word = np.arange(512, dtype=np.uint64)[:, None], np.arange(512, dtype=np.uint64)[None, :]
    formula = (np.uint64(0x4E50524547494F4E) ^ seed) + (page << np.uint64(32)) + word
    assert (pages.view("<u8") == formula).all()
    if like:
        found = hibernaut("map", out, "--json").document
        assert [(hole["kind"], hole["entry"]) for hole in found["holes"]] == [("not-present", "0x800fffffffbff062")]


def test_remap_gives_the_same_garbage_as_the_real_kernel(golden: Golden, tmp_path: Path) -> None:
    """Without a failure the saved PMD entry names a table that is not in the image, as in the kernel's own image."""
    out = tmp_path / "new.img"
    like = golden("swap-6.1-low2m.img")
    assert hibernaut("save", golden("ram-6.1-low2m.elf"), out, "--via", "remap", "--like", like, "--quiet").status == 0
    ours = hibernaut("map", out, "--json").document["holes"]
    kernels = hibernaut("map", like, "--json").document["holes"]
    same = ("start_pfn", "pages", "level", "kind")
    assert [[hole[key] for key in same] for hole in ours] == [[hole[key] for key in same] for hole in kernels]
    assert int(ours[0]["entry"], 16) & 0xFFF == int(kernels[0]["entry"], 16) & 0xFFF


def test_map_without_cr3_finds_the_same_direct_map(golden: Golden, tmp_path: Path) -> None:
    """The dump as a raw file, which knows no CR3: the root is found and the map is the one that QEMU's CR3 gives."""
    raw_of(golden("ram-6.1-low2m.elf"), tmp_path)
    found = hibernaut("map", tmp_path / "raw", "--json").document
    expected = golden.expected["ram-6.1-low2m.elf"]
    assert found["base"] == expected["direct_map_base"]
    assert found["present_bytes"] == expected["present_bytes"]
    told = hibernaut("map", tmp_path / "raw", "--cr3", expected["cr3"], "--json").document
    assert told["holes"] == found["holes"]


@pytest.mark.parametrize("format_", ["elf", "lime"])
def test_converted_dumps_hold_the_same_memory(golden: Golden, tmp_path: Path, format_: str) -> None:
    """ELF core and LiME made from an image, read again, hold every page at its frame."""
    out = tmp_path / "out"
    assert hibernaut("convert", golden("swap-6.12-lz4.img"), out, "--to", format_, "--quiet").status == 0
    again = raw_of(out, tmp_path)
    with open_image(golden("swap-6.12-lz4.img")) as image:
        assert (again[image.stored_pfns] == image.read_all()).all()
        assert not again[image.pfns[image.zero]].any()
        assert len(again) == image.pfns[-1] + 1


def test_an_image_of_another_machine_is_refused(golden: Golden, tmp_path: Path) -> None:
    """A dump of 6.1 like an image of 6.12: no image that mixes two kernels is written."""
    out = tmp_path / "mixed.img"
    like = golden("swap-6.12-lz4.img")
    line = refused("save", golden("ram-6.1-lzo.elf"), out, "--via", "fixmap", "--like", like)
    assert "not an image of the machine" in line
    assert list(tmp_path.iterdir()) == []


def test_an_image_saved_into_a_new_area_is_the_same_image(golden: Golden, tmp_path: Path) -> None:
    """An image as SOURCE brings its list, info page, compressor and zero pages along; the kernel's CRC comes out."""
    out = tmp_path / "new.img"
    assert hibernaut("save", golden("swap-6.12-lz4.img"), out, "--via", "fixmap", "--quiet").status == 0
    found = hibernaut("inspect", out, "--json").document
    expected = golden.expected["swap-6.12-lz4.img"]
    assert found["crc32"]["stored"] == expected["crc32"]
    for key in ("flags", "jump_address", "e820_checksum", "physical_pages", "pages", "zero_pages", "units"):
        assert found[key] == expected[key]
