# SPDX-License-Identifier: GPL-2.0-or-later
"""Kallsyms found in a kernel image that has no symbol table, and a bzImage unpacked. Witness: a writer of both."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.kernel import kallsyms
from hibernaut.kernel.bzimage import bzimage_release, unpack_bzimage
from hibernaut.kernel.kallsyms import decode_names, names_in_image
from tests.kernel.vmlinux import bzimage, compressed_names, kernel_image

NAMES = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_0123456789."), min_size=1, max_size=200)
SYMBOLS = st.builds(
    lambda some: [b"T" + name.encode() for name in some] + [b"tpadding_%d" % number for number in range(1100)],
    st.lists(NAMES, max_size=40),
)


@given(symbols=SYMBOLS, align=st.sampled_from([4, 8]), seqs=st.booleans())
def test_symbols_are_found_without_their_addresses(symbols: list[bytes], align: int, seqs: bool) -> None:
    """Whatever the alignment, and with a table between markers and tokens as 6.1.192 has it; long names too."""
    assert names_in_image(kernel_image(symbols, align=align, seqs=seqs)) == symbols


@given(
    names=st.lists(st.sampled_from([0, 1, 2, 3, 7, 0x80, 0x81, 0xFF]), min_size=20, max_size=60).map(bytes),
    walks=st.permutations(range(20)),
    symbols=st.integers(0, 12),
)
def test_walks_that_meet(names: bytes, walks: list[int], symbols: int) -> None:
    """Walks from any bytes, in any order, end where each does on its own: one symbol after another."""
    walk = kallsyms._Walk(memoryview(names), [b"a"] * 256)
    for start in walks:
        at: int | None = start
        for _ in range(symbols):
            at = naive_next(names, at)
        assert walk.after(start, symbols) == at


def naive_next(names: bytes, at: int | None) -> int | None:
    """The byte behind the symbol at a byte; None if the bytes end before."""
    if at is None or at >= len(names):
        return None
    length, at = names[at], at + 1
    if length >= 128:
        if at >= len(names):
            return None
        length, at = length - 128 + 128 * names[at], at + 1
    return at + length if at + length <= len(names) else None


def test_an_image_without_kallsyms() -> None:
    """Noise, and tables whose markers or token index do not fit."""
    symbols = [b"Tfunction_%d" % number for number in range(1100)]
    image = kernel_image(symbols)
    names, positions, _ = compressed_names(symbols)
    broken = image.replace(positions[512].to_bytes(4, "little"), (positions[512] + 1).to_bytes(4, "little"))
    cut = image[: image.index(names) + len(names) // 2]
    for wrong in (b"\x7fELF" + bytes(4096), broken, cut, b""):
        with pytest.raises(FormatError, match="no kallsyms in the kernel image"):
            names_in_image(wrong)


@given(count=st.integers(0, 20), cut=st.integers(1, 5))
def test_a_table_that_ends_early_is_noticed(count: int, cut: int) -> None:
    """No symbol is made of bytes that are not there."""
    symbols = [b"Tsymbol_%d" % number for number in range(20)]
    names, _, tokens = compressed_names(symbols)
    assert decode_names(names, tokens, count) == symbols[:count]
    with pytest.raises(ValueError, match="ends early"):
        decode_names(names[:-cut], tokens, 20)


def lz4_legacy(data: bytes) -> bytes:
    """Return the output of `lz4 -l`, which the kernel's build uses."""
    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    packed = b"".join(len(block).to_bytes(4, "little") + block for block in blocks)
    return b"\x02\x21\x4c\x18" + packed


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        bz2.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lzma.compress,
        lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
        lz4_legacy,
    ],
    ids=["gzip", "bzip2", "lzma", "xz", "zstd", "lz4"],
)
def test_a_bzimage_is_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Any compressor of CONFIG_KERNEL_*; bytes after the stream, such as the length, are not part of it."""
    image = kernel_image([b"Tfunction_%d" % number for number in range(1100)]) + bytes(9 << 20)
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(pack(image) + len(image).to_bytes(4, "little")))
    assert bzimage_release(path) == "6.7.8-mine"
    assert unpack_bzimage(path) == image


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a bzImage: .*vmlinuz, byte 514; expected HdrS"),
        (bzimage(b"", magic=b"HDRS"), "not a bzImage: .*vmlinuz, byte 514; expected HdrS"),
        (bzimage(gzip.compress(b"\x7fELF"), version=0x207), "does not say where its payload is"),
        (
            bzimage(b"\x89LZO"),
            "payload cannot be unpacked: .*vmlinuz, byte 2080; expected gzip, bzip2, lzma, xz, zstd, lz4",
        ),
        (bzimage(gzip.compress(b"\x7fELF" * 99)[:-20] + bytes(20)), "payload is damaged"),
        (bzimage(gzip.compress(b"MZ")), "payload is not an ELF file"),
    ],
)
def test_payloads_that_cannot_be_unpacked(tmp_path: Path, content: bytes, told: str) -> None:
    """Each reason is reported, without a traceback."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=told):
        unpack_bzimage(path)


def test_a_bzimage_without_a_release(tmp_path: Path) -> None:
    """The header says where the release lies; something else lies there."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(b"", release=b"\x00"))
    with pytest.raises(FormatError, match=r"the bzImage has no release: .*vmlinuz, byte 1280"):
        bzimage_release(path)
