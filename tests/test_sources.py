# SPDX-License-Identifier: GPL-2.0-or-later
"""`open_memory`: content decides the format, and a refusal has the reason of each reader."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut import parallel
from hibernaut.errors import FormatError
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.conftest import Golden
from tests.memory.naive import PAGE, Load, elf_core, flattened, kdump, lime, packed_file, page_of, qemu_cpu
from tests.swsusp import naive as images

CONTENTS = {
    "elf": elf_core([Load(5 * PAGE, page_of(5))], qemu_cpu(0x9000)),
    "lime": lime([(5 * PAGE, page_of(5))]),
    "kdump": kdump({5: page_of(5)}),
    "raw": b"".join(page_of(pfn) for pfn in range(6)),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("how", [None, "zstd", "gzip", "xz", "flattened"])
def test_content_decides(tmp_path: Path, kind: str, how: str | None) -> None:
    """Each format is known by its bytes, whatever the file is called and however it is packed."""
    data = CONTENTS[kind]
    path = tmp_path / "misleading.iso"
    path.write_bytes(data if how is None else flattened(data, 5000) if how == "flattened" else packed_file(data, how))
    with open_memory(path) as source:
        assert (source.kind, source.name, source.image) == (kind, str(path), None)
        page = source.memory.page(5)
        assert page is not None
        assert page.tobytes() == page_of(5)
        assert source.memory.page(6) is None
        assert source.cr3 == (0x9000 if kind == "elf" else None)


def mixed_page(pfn: int) -> bytes:
    """A page that packs to a size of its own, and takes its time to unpack: few different bytes, then zeroes."""
    return np.random.default_rng(pfn).integers(1, 13, pfn * 97 % 4000, dtype=np.uint8).tobytes().ljust(PAGE, b"\0")


MIXED: dict[int, bytes] = {pfn: mixed_page(pfn) for pfn in (*range(1, 200), *range(300, 400))}
SHARED = {
    "elf": elf_core([Load(PAGE, b"".join(MIXED[pfn] for pfn in range(1, 200)))]),
    "lime": lime([(PAGE, b"".join(MIXED[pfn] for pfn in range(1, 200)))]),
    "raw": b"".join(MIXED.get(pfn, bytes(PAGE)) for pfn in range(400)),
    **{f"kdump, flags {flags:#x}": kdump(MIXED, flags=flags) for flags in (0, 1, 2, 0x20)},
    **{
        f"image, {name}": images.build(dict(MIXED), images.Layout(compressor=name, shuffle_seed=5))
        for name in ("lzo", "lz4", "none")
    },
}


@pytest.mark.parametrize("kind", SHARED)
def test_threads_read_what_one_thread_reads(tmp_path: Path, kind: str) -> None:
    """Whatever the format, four threads reading one source at once get its bytes, and no false damage."""
    path = tmp_path / "source"
    path.write_bytes(SHARED[kind])
    with open_memory(path) as source:
        memory = source.memory
        frames = memory.ranges.pfns()
        expected, _ = memory.gather(frames)
        assert all(page.tobytes() == MIXED.get(pfn, bytes(PAGE)) for pfn, page in zip(frames, expected, strict=True))

        def read(seed: int) -> bool:
            first, count = np.random.default_rng(seed).integers(0, len(frames) - 64), 64
            pages, present = memory.gather(frames[first : first + count])
            return bool(present.all()) and np.array_equal(pages, expected[first : first + count])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(200)))


def test_image_of_a_zstd_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image written by four threads from a zstd-compressed kdump holds its pages."""
    monkeypatch.setattr(parallel, "worker_count", lambda: 4)
    path = tmp_path / "dump"
    frames = {pfn: mixed_page(pfn) for pfn in range(4096)}
    path.write_bytes(kdump(frames, flags=0x20))
    pfns = np.array(sorted(frames), dtype=np.int64)
    info = ImageInfo.blank(cr3=0, physical_pages=len(pfns))
    with open_memory(path) as source:
        write_image(tmp_path / "out", source.memory, pfns, info, NewArea(), compressor="lzo", zero_pages=True)
    with open_image(tmp_path / "out") as image:
        for first, pages in image.memory().blocks():
            for row, page in enumerate(pages):
                assert page.tobytes() == frames[first + row]


def test_golden_core_opens_packed(golden: Golden) -> None:
    """A RAM dump as it was delivered, compressed: CR3, levels and all its frames."""
    with open_memory(golden.packed("ram-6.1-lzo.elf")) as source:
        assert (source.kind, source.cr3, source.levels) == ("elf", 0x487C000, 4)
        assert source.memory.ranges.total_pages == 160 + 65344 + 4096 + 64


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_golden_image_opens_as_memory(golden: Golden, name: str) -> None:
    """A swap device with an image: the frames that the kernel saved, CR3 from the info page."""
    with open_memory(golden(name)) as source:
        assert source.kind == "swsusp"
        assert source.image is not None
        assert source.cr3 == int(golden.expected[name]["cr3"], 16)
        assert source.memory.ranges.total_pages == golden.expected[name]["saved_pages"]


def test_image_and_dump_of_one_machine_agree(golden: Golden) -> None:
    """Of the pages of the 6.1 image two differ from the RAM dump taken right before the copy loop."""
    with open_memory(golden("swap-6.1-lzo.img")) as image, open_memory(golden("ram-6.1-lzo.elf")) as ram:
        different = [
            first + row
            for first, pages in image.memory.blocks()
            for row in np.flatnonzero((ram.memory.gather(np.arange(first, first + len(pages)))[0] != pages).any(axis=1))
        ]
    assert different == [0x3F88, 0x49EC]


def test_swap_without_an_image_is_refused_by_name(tmp_path: Path) -> None:
    """An ordinary swap area is not raw memory but an image that is missing."""
    area = bytearray(16 * PAGE)
    area[4086:4096] = b"SWAPSPACE2"
    (tmp_path / "swap").write_bytes(area)
    with pytest.raises(FormatError, match="no image: signature is SWAPSPACE2"):
        open_memory(tmp_path / "swap")


def test_offset_means_an_image(tmp_path: Path) -> None:
    """With --offset, --partition or --base nothing but a hibernation image is looked for."""
    (tmp_path / "raw").write_bytes(CONTENTS["raw"])
    places: list[dict[str, Any]] = [{"offset": 3}, {"partition": 4096}, {"base": 4096}]
    for place in places:
        with pytest.raises(FormatError) as caught:
            open_memory(tmp_path / "raw", **place)
        assert "raw memory" not in str(caught.value)


def test_refusal_lists_every_reader_on_one_line(tmp_path: Path) -> None:
    """A file that no reader accepts: one line with each format and its reason."""
    (tmp_path / "hiberfil.sys").write_bytes(b"HIBR" + bytes(8188))
    with pytest.raises(FormatError) as caught:
        open_memory(tmp_path / "hiberfil.sys")
    line = str(caught.value)
    assert "\n" not in line
    for part in ("ELF core: ", "LiME: ", "kdump: ", "hibernation image: ", "raw memory: this is a Windows hibernation"):
        assert part in line


def test_odd_files(tmp_path: Path) -> None:
    """A directory, an empty file and half a page are FormatErrors; a missing file is the system's error."""
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(bytes(2000))
    for name in (".", "empty", "short"):
        with pytest.raises(FormatError):
            open_memory(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_memory(tmp_path / "missing")


def test_refusals_leave_no_descriptor_open(tmp_path: Path) -> None:
    """Files that are refused or damaged are closed again."""
    (tmp_path / "refused").write_bytes(b"PAGEDU64" + bytes(4088))
    (tmp_path / "damaged").write_bytes(CONTENTS["elf"][:-1])
    before = len(os.listdir("/proc/self/fd"))
    for name in ("refused", "damaged"):
        with pytest.raises(FormatError):
            open_memory(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_importing_costs_no_codec(tmp_path: Path) -> None:
    """Importing the module that opens files costs no compression library."""
    codecs = {"lzo", "lz4", "zstandard", "isal", "lzallright"}
    code = f"import sys, hibernaut.sources; print(sorted({codecs} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
