# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut rewrite`: what it writes and prints, and being killed while it writes in place."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run import hibernaut, refused
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn % 251]) * 4096 for pfn in range(16, 80)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An uncompressed image of `PAGES`."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor="none")))
    return path


def test_writes_by_hex_and_by_file(tmp_path: Path, image: Path) -> None:
    """Bytes are at their physical addresses, files after the others, the later one on top; every key of the JSON."""
    (tmp_path / "part").write_bytes(b"from a file")
    out = tmp_path / "out"
    result = hibernaut(
        "rewrite", image, out, "--write-file", f"0x14003={tmp_path / 'part'}", "--write", "0x14ffe=00112233",
        "--write", "81923=0xff", "--write", "0x14003=aa", "--compressor", "lz4", "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    found, used = naive.parse(out.read_bytes())
    expected = bytearray(b"".join(page or bytes(4096) for page in PAGES.values()))
    at = 0x14000 - 16 * 4096
    expected[at + 3 : at + 14] = b"from a file"
    expected[at + 4094 : at + 4098] = bytes.fromhex("00112233")
    assert b"".join(page or b"" for page in found.values()) == expected
    document = result.document
    assert document.pop("crc32").startswith("0x")
    assert document.pop("compressed_bytes") > 0
    assert document == {
        "compressor": "lz4",
        "in_place": False,
        "saved_pages": 64,
        "zero_pages": 0,
        "stored_pages": 64,
        "meta_pages": 1,
        "map_pages": 1,
        "units": 3,
        "blocks": len(used),
        "writes": [
            {"paddr": "0x14ffe", "bytes": 4},
            {"paddr": "0x14003", "bytes": 1},
            {"paddr": "0x14003", "bytes": 1},
            {"paddr": "0x14003", "bytes": 11},
        ],
    }


def test_in_place(image: Path) -> None:
    """The image itself is changed, and elides the page that became zero."""
    result = hibernaut("rewrite", image, "--in-place", "--zero-pages", "yes", "--write", "0x14000=" + "00" * 4096)
    assert result.status == 0
    assert result.out == (
        f"{image}: 64 pages saved, 63 stored, not compressed (264 KiB in the swap area), 4096 bytes of memory written\n"
    )
    assert naive.parse(image.read_bytes())[0] == {**PAGES, 0x14: None}
    assert hibernaut("inspect", image).status == 0


def test_refusals_write_nothing(tmp_path: Path, image: Path) -> None:
    """Unlisted frames, payloads that cannot be, no room: one line, status 2, both files as they were."""
    before = image.read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 42)
    for where in (("--in-place",), (tmp_path / "out",)):
        assert "frame 0x50 is not in the image" in refused("rewrite", image, *where, "--write", "0x4ffff=1122")
        assert "frame 0x50 is not" in refused("rewrite", image, *where, "--write-file", f"0x10000={large}")
        assert "missing" in refused("rewrite", image, *where, "--write-file", f"0x10000={tmp_path / 'missing'}")
        for name in ("empty", "."):
            result = hibernaut("rewrite", image, *where, "--write-file", f"0x10000={tmp_path / name}")
            assert result.status == 2
            assert "Traceback" not in result.err
        assert image.read_bytes() == before
        assert not (tmp_path / "out").exists()
    noise: dict[int, bytes | None] = {pfn: np.random.default_rng(pfn).bytes(4096) for pfn in range(600)}
    image.write_bytes(naive.build(noise, naive.Layout(compressor="none")))
    before = image.read_bytes()
    assert "blocks of 4096 bytes are missing" in refused("rewrite", image, "--in-place", "--compressor", "lz4")
    assert image.read_bytes() == before
    assert hibernaut("rewrite", image, image).status == 2
    assert image.read_bytes() == before


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """SIGKILL anywhere, half of the times while the area is being written: the old image, none, or the new one."""
    path = tmp_path / "image"
    pages: dict[int, bytes | None] = {pfn: np.random.default_rng(pfn).bytes(4096) for pfn in range(256, 6000)}
    device = naive.build(pages, naive.Layout(compressor="none", shuffle_seed=3))
    command = [sys.executable, "-c", "from hibernaut.cli import main; main()", "rewrite", str(path), "--in-place"]
    command += ["--write", "0x100000=" + "ab" * 4096]

    def signature() -> bytes:
        with path.open("rb") as file:
            file.seek(4086)
            return file.read(10)

    def run(delay: float, after_giving_up: bool) -> tuple[float, float]:
        """Start on a fresh copy and kill; returns seconds until the old image was given up, and until the end."""
        path.write_bytes(device)
        begun = time.monotonic()
        given_up = 0.0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                now = time.monotonic() - begun
                if not given_up and signature() == b"SWAPSPACE2":
                    given_up = now
                if now - (given_up if after_giving_up else 0) > delay and (given_up or not after_giving_up):
                    process.kill()
                    break
                time.sleep(0.0002)
        return given_up, time.monotonic() - begun

    given_up, whole = run(1e9, False)
    assert signature() == b"S1SUSPEND\0"
    writing = whole - given_up if given_up else 0.02
    rng = random.Random(5)
    states = []
    for number in range(20):
        late = number % 2 == 1
        run(writing * rng.random() ** 4 if late else rng.uniform(0, whole), late)
        result = hibernaut("inspect", path, "--json")
        if result.status == 2:
            assert "no image: signature is SWAPSPACE2" in result.err
            states.append("none")
            continue
        assert result.status == 0, result.out
        found, _ = naive.parse(path.read_bytes())
        first = found.pop(256)
        assert found == {pfn: page for pfn, page in pages.items() if pfn != 256}
        assert first in (pages[256], b"\xab" * 4096)
        states.append("old" if first == pages[256] else "new")
    assert "old" in states


def test_in_place_inside_a_whole_disk(tmp_path: Path) -> None:
    """Through --base only the bytes of the area change."""
    area = naive.build(PAGES, naive.Layout(compressor="none", header_block=3))
    before, behind = random.Random(1).randbytes(63 * 512), random.Random(2).randbytes(9000)
    disk = tmp_path / "disk"
    disk.write_bytes(before + area + behind)
    result = hibernaut(
        "rewrite", disk, "--in-place", "--base", len(before), "--offset", 3, "--write", "0x14000=abcd", "--quiet"
    )
    assert (result.status, result.out) == (0, "")
    new = disk.read_bytes()
    assert (new[: len(before)], new[-len(behind) :]) == (before, behind)
    found, _ = naive.parse(new[len(before) : -len(behind)], 3)
    assert (found.pop(0x14) or b"")[:3] == b"\xab\xcd\x14"
    assert found == {pfn: page for pfn, page in PAGES.items() if pfn != 0x14}
