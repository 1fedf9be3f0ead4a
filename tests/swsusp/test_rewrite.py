# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting images: only the writes change, and what does not fit or is damaged is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp.codecs import COMPRESSORS, CompressorName
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive
from tests.swsusp.images import PAGES, Pages, changed_by, image_file, plain


@st.composite
def writes_into(draw: st.DrawFn, pages: Pages) -> list[tuple[int, bytes]]:
    """Writes that stay in listed frames; they overlap, cross into the next frame, and some are zeroes."""
    writes = []
    for _ in range(draw(st.integers(0, 4))):
        pfn = draw(st.sampled_from(sorted(pages)))
        at = pfn * 4096 + draw(st.integers(0, 4095))
        room = (pfn + (2 if pfn + 1 in pages else 1)) * 4096 - at
        size = draw(st.sampled_from([1, 8, 4096]))
        data = draw(st.binary(min_size=1, max_size=8)) * size if draw(st.booleans()) else bytes(8 * size)
        writes.append((at, data[:room]))
    if draw(st.booleans()):
        writes.append((draw(st.sampled_from(sorted(pages))) * 4096, bytes(4096)))
    return writes


@given(data=st.data(), pages=saved_pages(), layout=image_layouts(), in_place=st.booleans())
def test_only_what_was_written_changes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, pages: Pages, layout: naive.Layout, in_place: bool
) -> None:
    """By the naive reader, written bytes are there, the later write wins, all others are unchanged, by both ways.

    No block but the old image's changes; with elision exactly the pages that are zero now have no data page.
    """
    compressor: CompressorName | None = data.draw(st.none() | st.sampled_from(COMPRESSORS))
    zero_pages = data.draw(st.none() | st.booleans())
    writes = data.draw(writes_into(pages))
    path = tmp_path_factory.mktemp("rewrite") / "image"
    old = naive.build(pages, layout)
    path.write_bytes(old)
    out = path if in_place else path.with_name("out")
    with open_image(path, offset=layout.header_block) as image:
        try:
            written = rewrite_image(
                image, None if in_place else out, writes=writes, compressor=compressor, zero_pages=zero_pages
            )
        except HibernautError as error:
            told = str(error)
            written = None
    if written is None:
        assert re.search(r"1 block of 4096 bytes is missing|\d+ blocks of 4096 bytes are missing", told)
        assert path.read_bytes() == old
        assert sorted(path.parent.iterdir()) == [path]
        return
    new = out.read_bytes()
    assert in_place or path.read_bytes() == old
    found, used = naive.parse(new, layout.header_block)
    _, old_used = naive.parse(old, layout.header_block)
    assert plain(found) == changed_by(pages, writes)
    assert written.blocks == len(used)
    assert used <= old_used
    for block in range(len(old) // 4096):
        if block not in old_used and block != layout.header_block:
            assert new[block * 4096 : block * 4096 + 4096] == old[block * 4096 : block * 4096 + 4096]
    elided = zero_pages if zero_pages is not None else None in pages.values()
    zeroes = {pfn for pfn, page in changed_by(pages, writes).items() if not any(page)}
    assert {pfn for pfn, page in found.items() if page is None} == (zeroes if elided else set())
    flags = struct.unpack_from("<I", new, layout.header_block * 4096 + 4072)[0]
    assert flags == {"none": 2, "lzo": 4, "lz4": 20}[compressor or layout.compressor]


def test_a_write_outside_the_list_names_the_first_such_frame(tmp_path: Path) -> None:
    """A write that begins well and runs out of the listed frames is refused as a whole, and nothing is written."""
    path = image_file(tmp_path, {5: b"a" * 4096, 6: b"b" * 4096, 8: b"c" * 4096}, naive.Layout())
    before = path.read_bytes()
    cases = [
        (6 * 4096 + 4090, 7, 7),
        (4 * 4096, 1, 4),
        (5 * 4096, 5 * 4096, 7),
        (9 * 4096, 1, 9),
        ((1 << 64) - 1, 9, (1 << 52) - 1),
    ]
    with open_image(path) as image:
        for paddr, size, pfn in cases:
            for out in (None, tmp_path / "out"):
                with pytest.raises(FormatError, match=f"frame {pfn:#x} is not in the image"):
                    rewrite_image(image, out, writes=[(5 * 4096, b"x"), (paddr, bytes(size))])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("in_place", [False, True])
def test_damage_is_not_hidden_by_a_new_crc(tmp_path: Path, in_place: bool) -> None:
    """An image whose CRC is wrong is refused and stays as it is."""
    path = image_file(tmp_path, PAGES, naive.Layout(crc_error=1))
    before = path.read_bytes()
    with open_image(path) as image, pytest.raises(CorruptImage, match="CRC"):
        rewrite_image(image, None if in_place else tmp_path / "out")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_golden_images_fit_or_not_as_counted(golden: Golden, tmp_path: Path) -> None:
    """6.1's LZO image has too few blocks for LZ4 or no compression; the number missing is that of a naive sum."""
    with open_image(golden("swap-6.1-lzo.img")) as image:
        have = len(image.swap_map.blocks)
        entries = image.info.pages  # not compressed, every page has an entry of its own
        needed = entries + -(-entries // 511)
        with pytest.raises(HibernautError, match=f"{needed - have} blocks of 4096 bytes are missing"):
            rewrite_image(image, tmp_path / "none", compressor="none")
        with pytest.raises(HibernautError, match="blocks of 4096 bytes are missing"):
            rewrite_image(image, tmp_path / "lz4", compressor="lz4")
        rewrite_image(image, tmp_path / "lzo", zero_pages=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lzo"]


@pytest.mark.parametrize(
    ("name", "compressor"), [("swap-6.1-lzo.img", "lzo"), ("swap-6.12-lz4.img", "lzo"), ("swap-6.12-lz4.img", "lz4"),
                             ("swap-6.1-low2m.img", "none"), ("swap-6.1-low2m.img", "lz4")]
)  # fmt: skip
def test_real_images_written_again_with_a_change(
    golden: Golden, tmp_path: Path, name: str, compressor: CompressorName
) -> None:
    """The naive reader finds every page of the kernel's image, except for the bytes written across two frames."""
    with open_image(golden(name)) as image:
        pair = next(pfn for pfn in image.pfns.tolist() if pfn + 1 in image.pfns)
        writes = [(pair * 4096 + 4090, b"0123456789ab"), (int(image.pfns[-1]) * 4096, b"\xee" * 4096)]
        rewrite_image(image, tmp_path / "out", writes=writes, compressor=compressor)
    old, _ = naive.parse(golden(name).read_bytes())
    new, _ = naive.parse((tmp_path / "out").read_bytes())
    assert plain(new) == changed_by(old, writes)
