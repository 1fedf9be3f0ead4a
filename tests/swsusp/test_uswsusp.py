# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of suspend-utils (uswsusp), made by a writer of the tests' own: read, converted, refused, and damaged."""

from __future__ import annotations

import dataclasses
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut import open_memory
from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.swsusp import inspect_image, open_image, rewrite_image
from hibernaut.swsusp.writer import ExistingArea, write_image
from hibernaut.volumes.files import open_plain
from tests.cli.run import hibernaut, refused
from tests.swsusp import naive, userland
from tests.swsusp.images import PAGES, image_file
from tests.swsusp.test_hostile import must_stay_ours
from tests.swsusp.userland import PAGE, Laid, Userland

BIG: dict[int, bytes | None] = {
    pfn: None if pfn % 7 == 3 else np.random.default_rng(pfn).bytes(PAGE // 2) + bytes(PAGE // 2)
    for pfn in range(8, 1400)
}
LAYOUTS = {
    "plain": Userland(),
    "plain, ascending": Userland(shuffle_seed=None, extent_pages=10**6),
    "plain, many pages of extents": Userland(extent_pages=1, per_page=9),
    "MD5": Userland(flags=1),
    "LZO": Userland(flags=2),
    "LZO, MD5": Userland(flags=3 | 16, encryption_bytes=4096 - 48 - 12),
    "LZO, buffers of 1 page": Userland(flags=3, buffer_pages=1),
    "LZO, buffers of 7 pages": Userland(flags=3, buffer_pages=7, per_page=20),
    "LZO, buffers of 600 pages": Userland(flags=3, buffer_pages=600),
    "LZO, one buffer": Userland(flags=3, buffer_pages=5000),
    "older kernel": Userland(flags=3, fewer_pages=1),
    "plain, older kernel": Userland(flags=1, fewer_pages=1),
    "last slot used": Userland(flags=3, extent_pages=1, spare=True),
    "swap file": Userland(flags=3, header_block=9),
}


def laid(folder: Path, layout: Userland, pages: dict[int, bytes | None] = BIG) -> tuple[Path, Laid]:
    """Write an image into a folder."""
    made = userland.build(pages, layout)
    path = folder / "area"
    path.write_bytes(made.device)
    return path, made


def damaged(*arguments: object) -> str:
    """Return the one line with which a command refuses a damaged image."""
    return refused(*arguments, status=1)


def inspected(path: Path, *arguments: object) -> dict[str, Any]:
    """Return the document of an inspection."""
    return hibernaut("inspect", path, *arguments, "--json").document


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_as_memory(tmp_path: Path, layout: Userland) -> None:
    """All pages, in order and by frame; the MD5 is compared."""
    path, _ = laid(tmp_path, layout)
    wanted = np.stack([np.frombuffer(BIG[pfn] or bytes(PAGE), dtype=np.uint8) for pfn in sorted(BIG)])
    with open_image(path, offset=layout.header_block) as image:
        assert image.pfns.tolist() == sorted(BIG)
        assert image.zero.tolist() == [BIG[pfn] is None for pfn in sorted(BIG)]
        memory = image.memory()
        assert (memory.gather(image.pfns)[0] == wanted).all()
        assert (np.concatenate([pages for _, pages in memory.blocks()]) == wanted).all()
        assert all((memory.run(pfn, 1)[0] == wanted[pfn - 8]).all() for pfn in range(8, 1400, 13))
        assert (image.read_all() == wanted[~image.zero]).all()
    found = inspected(path, "--offset", layout.header_block)
    assert found["problems"] == []
    assert (found["saved_pages"], found["stored_pages"]) == (len(BIG), sum(page is not None for page in BIG.values()))
    assert found["compressor"] == ("lzo" if layout.flags & 2 else "none")
    assert found["uswsusp"]["md5_ok"] == (True if layout.flags & 1 else None)
    stream = userland.stream_of(BIG, layout.info)
    pages = len(stream) // PAGE
    assert found["uswsusp"]["buffer_pages"] == (min(layout.buffer_pages, pages) if layout.flags & 2 else None)


@pytest.mark.parametrize("ending", ["rfc 1321", "count of zero", "no last block"])
def test_the_md5_may_end_in_three_ways(tmp_path: Path, ending: str) -> None:
    """The digest itself shows which of them a build has."""
    path, _ = laid(tmp_path, Userland(flags=3, md5_ending=ending), PAGES)
    found = inspected(path)["uswsusp"]
    assert (found["md5_ok"], found["md5_ending"]) == (True, ending)
    assert (found["md5_stored"] == found["md5_computed"]) == (ending == "rfc 1321")
    text = hibernaut("inspect", path).out
    assert "suspend-utils (uswsusp)" in text
    assert f"{found['md5_stored']} ok" in text


@pytest.mark.parametrize("flags", [1, 3])
def test_a_wrong_md5_is_a_problem_of_every_command(tmp_path: Path, flags: int) -> None:
    """One bit of the last page, or of the digest."""
    for at in ("data", "md5"):
        made = userland.build(PAGES, Userland(flags=flags if at == "md5" else 1))
        place = made.header + 32 if at == "md5" else made.data[-1] + 5
        made.device[place] ^= 1
        path = tmp_path / "area"
        path.write_bytes(made.device)
        found = inspected(path)
        assert found["uswsusp"]["md5_ok"] is False
        assert [problem["where"] for problem in found["problems"]] == [f"{path}, byte {made.header + 32}"]
        assert "MD5 of the data is wrong" in damaged("convert", path, tmp_path / "out", "--to", "raw")
        assert not (tmp_path / "out").exists()
        with open_image(path) as image, pytest.raises(CorruptImage, match="MD5"):
            image.read_all()
        with open_image(path) as image, pytest.raises(CorruptImage, match="MD5"):
            list(image.chunks())


@pytest.mark.parametrize("to", ["raw", "elf", "lime"])
@pytest.mark.parametrize("flags", [0, 3])
def test_convert_gives_the_file_that_the_kernels_image_gives(tmp_path: Path, flags: int, to: str) -> None:
    """The same machine, hibernated by the kernel."""
    path, _ = laid(tmp_path, Userland(flags=flags), PAGES)
    own = image_file(tmp_path, PAGES, naive.Layout())
    for image, out in ((path, "one"), (own, "other")):
        assert not hibernaut("convert", image, tmp_path / out, "--to", to).status
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with open_memory(path) as source:
        assert (source.kind, source.cr3) == ("uswsusp", 0x1000)


def test_find_lists_it_and_prints_what_opens_it(tmp_path: Path) -> None:
    """State `uswsusp`, with its kind."""
    path, _ = laid(tmp_path, Userland(flags=3), PAGES)
    found = hibernaut("find", path)
    assert (found.status, found.out.count(f"open with: {path}")) == (0, 1)
    (layer,) = hibernaut("find", path, "--json").document["disks"][0]["layers"]
    assert (layer["state"], layer["state_detail"]) == ("uswsusp", "29 pages, LZO, MD5")


@pytest.mark.parametrize(("flags", "words"), [(4, "(uswsusp), which"), (7 | 8, "(uswsusp), with an RSA key, which")])
def test_an_encrypted_one_is_refused_by_name(tmp_path: Path, flags: int, words: str) -> None:
    """By every command, and `find` offers nothing to open."""
    path, _ = laid(tmp_path, Userland(flags=flags), PAGES)
    for command in (("inspect", path), ("map", path), ("convert", path, tmp_path / "out", "--to", "raw")):
        assert f"this is an encrypted image of suspend-utils {words} is not read" in refused(*command)
    found = hibernaut("find", path)
    assert found.status == 1
    assert "encrypted image of suspend-utils" in found.out
    assert "open with" not in found.out


def test_no_kernel_resumes_from_it(tmp_path: Path) -> None:
    """A kernel looks for its own signature."""
    path, _ = laid(tmp_path, Userland(flags=2), PAGES)
    result = hibernaut("inspect", path, "--for-kernel", "6.1", "--json")
    assert result.status == 1
    verdict = result.document["verdict"]
    assert verdict["resumes"] is False
    assert [(check["check"], check["answer"]) for check in verdict["checks"]] == [("signature", "would refuse")]


def test_it_is_not_rewritten(tmp_path: Path) -> None:
    """Neither into a copy, nor in place, nor is its area taken for another image; the line says what to do."""
    path, _ = laid(tmp_path, Userland(flags=2), PAGES)
    before = path.read_bytes()
    for command in (("rewrite", path, tmp_path / "out"), ("rewrite", path, "--in-place")):
        line = refused(*command)
        assert "this is an image of suspend-utils (uswsusp), which is not rewritten" in line
        assert "hibernaut save" in line
    own = image_file(tmp_path, PAGES)
    with open_image(path) as image, open_image(own, offset=2) as other:
        with pytest.raises(FormatError):
            rewrite_image(image)
        with pytest.raises(HibernautError, match="without --like"):
            write_image(
                tmp_path / "out",
                other.memory(),
                other.pfns,
                other.info,
                ExistingArea(image),
                compressor="none",
                zero_pages=False,
            )
    assert path.read_bytes() == before
    assert not (tmp_path / "out").exists()


def patched(made: Laid, at: int, form: str, *values: object) -> bytes:
    """Return the device with fields changed."""
    device = bytearray(made.device)
    struct.pack_into(form, device, at, *values)
    return bytes(device)


def chained(made: Laid, following: int) -> bytes:
    """Return the device with 1 extent in the first page of them, and another next page."""
    one = dataclasses.replace(made, device=bytearray(patched(made, made.map_pages[0] + 16, "<qq", 0, 0)))
    return patched(one, one.map_pages[0] + 4080, "<q", following)


WRONG: dict[str, tuple[Callable[[Laid], bytes], str | None]] = {
    "image beyond": (lambda m: patched(m, 4068, "<q", 1 << 40), "would be at byte 1099511627776"),
    "image negative": (lambda m: patched(m, 4068, "<q", -4096), "would be at byte -4096"),
    "image in the middle of a block": (lambda m: patched(m, 4068, "<q", 4097), "would be at byte 4097"),
    "image is the header": (lambda m: patched(m, 4068, "<q", 0), "would be at byte 0"),
    "no pages": (lambda m: patched(m, m.header, "<Q", 0), "pages is 0"),
    "pages": (lambda m: patched(m, m.header, "<Q", 77), "expected that of 77 pages"),
    "flags": (lambda m: patched(m, m.header + 8, "<I", 0x80), "flags are 0x80"),
    "RSA alone": (lambda m: patched(m, m.header + 8, "<I", 8), "an RSA key without encryption"),
    "map outside": (lambda m: patched(m, m.header + 16, "<q", 1 << 50), "map_start is"),
    "data too long": (lambda m: patched(m, m.header + 24, "<q", 1 << 50), "image_data_size is"),
    "data not whole": (lambda m: patched(m, m.header + 24, "<q", 4097), "image_data_size is"),
    "orig_sig": (lambda m: patched(m, 4076, "<10s", b"ULSUSPEND\0"), "orig_sig is not a swap signature"),
    "extent negative": (lambda m: patched(m, m.map_pages[0], "<qq", -8192, 4096), "extent 0 is bytes -8192 to 4096"),
    "extent beyond": (lambda m: patched(m, m.map_pages[0] + 16, "<q", 1 << 62), None),
    "extent of a part": (lambda m: patched(m, m.map_pages[0] + 8, "<q", m.data[0] + 5), "extent 0 is bytes"),
    "no extents": (lambda m: patched(m, m.map_pages[0], "<qq", 0, 0), "page 1 of the extents would be at byte 0"),
    "chain loops": (lambda m: chained(m, m.map_pages[0]), "of the device again"),
    "chain leaves": (lambda m: chained(m, 1 << 45), "page 1 of the extents would be at byte 35184372088832"),
    "a block twice": (
        lambda m: patched(m, m.map_pages[0] + 16, "<qq", m.data[0], m.data[5]),
        "used twice by the extents",
    ),
    "the map as data": (
        lambda m: patched(m, m.map_pages[0], "<qq", m.map_pages[0], m.map_pages[0] + 5 * PAGE),
        "used twice by the extents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_contradiction_is_named(tmp_path: Path, name: str) -> None:
    """One line, exit status 2, or a problem of the inspection."""
    change, words = WRONG[name]
    made = userland.build(PAGES, Userland())
    path = tmp_path / "area"
    path.write_bytes(change(made))
    must_stay_ours(path)
    line = damaged("convert", path, tmp_path / "out", "--to", "raw")
    assert words is None or words in line
    assert not (tmp_path / "out").exists()


BUFFERS = {
    "length 0": (0, "buffer 0 has a compressed length of 0"),
    "length beyond the data": (1 << 20, "buffer 0 has a compressed length of 1048576"),
    "length of all ones": ((1 << 64) - 1, "buffer 0 has a compressed length of 18446744073709551615"),
    "length too short": (200, "buffer 1 has a compressed length of"),
    "length one less": (-1, "bytes compressed) is one that does not decompress"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_lengths_of_buffers_are_checked(tmp_path: Path, name: str) -> None:
    """The first one's; it decides how many pages a buffer has."""
    value, words = BUFFERS[name]
    made = userland.build(PAGES, Userland(flags=2))
    path = tmp_path / "area"
    if value < 0:
        value += int.from_bytes(made.device[made.data[0] : made.data[0] + 8], "little")
    path.write_bytes(patched(made, made.data[0], "<Q", value))
    assert words in damaged("convert", path, tmp_path / "out", "--to", "raw")


def test_other_layouts_are_named(tmp_path: Path) -> None:
    """The image header of a 32-bit build, and the older one that begins with the kernel's info page."""
    made = userland.build(PAGES, Userland(flags=2))
    pages, flags, start, size = struct.unpack_from("<QI4xqq", made.device, made.header)
    path = tmp_path / "area"
    path.write_bytes(patched(made, made.header, "<IIqq16s24x", pages, flags, start, size, bytes(16)))
    assert "not an x86-64 image: this is an image of suspend-utils (uswsusp) of a 32-bit" in refused("inspect", path)
    made.device[made.header : made.header + PAGE] = naive.info_page(32, 27, naive.Layout())
    path.write_bytes(made.device)
    assert "(uswsusp) by an older version" in refused("inspect", path)


def test_an_image_of_another_architecture_is_named(tmp_path: Path) -> None:
    """The info page tells, as in the kernel's own images; its page tables are not read."""
    made = userland.build(PAGES, Userland())
    names = b"".join(name.ljust(65, b"\0") for name in (b"Linux", b"host", b"4.4.0", b"#1 SMP", b"ppc64le"))
    made.device[made.data[0] : made.data[0] + len(names)] = names
    path = tmp_path / "area"
    path.write_bytes(made.device)
    assert hibernaut("inspect", path, "--json").document["kernel"] == "a ppc64le kernel 4.4.0, #1 SMP"
    assert "its info page is that of a ppc64le kernel 4.4.0" in refused("map", path)


def test_a_truncated_area_is_refused(tmp_path: Path) -> None:
    """Cut anywhere after the headers."""
    path, made = laid(tmp_path, Userland(flags=3), PAGES)
    for end in (max(made.data), max(made.map_pages), made.header + PAGE, 2 * PAGE):
        os.truncate(path, end)
        must_stay_ours(path)
        line = damaged("map", path)
        assert "suspend-utils" in line or "extent" in line


def test_a_sparse_file_is_not_believed(tmp_path: Path) -> None:
    """One extent can claim 4 TiB; the list of frames, which is not there, bounds what is allocated."""
    size = 1 << 42
    made = userland.build(PAGES, Userland(shuffle_seed=None, extent_pages=10**6))
    pages = (size >> 12) - 64
    meta = pages // 513 + 1
    path = tmp_path / "area"
    device = bytearray(patched(made, made.header, "<QI4xqq", pages, 0, made.map_pages[0], pages * PAGE))
    start = made.data[0] + 60 * PAGE
    struct.pack_into("<qq", device, made.map_pages[0], start, start + pages * PAGE)
    info = bytearray(naive.info_page(32, 27, naive.Layout()))
    struct.pack_into("<QQQ", info, 416, pages - 1 - meta, pages, pages * PAGE)
    with path.open("wb") as file:
        file.write(device)
        file.seek(start)
        file.write(info)
        file.truncate(size)
    tracemalloc.start()
    try:
        assert "of the list of frames is all zeroes" in hibernaut("inspect", path).out
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 << 20


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
@given(data=st.data())
def test_bits_flipped_anywhere(tmp_path: Path, flags: int, data: st.DataObject) -> None:
    """One to three flipped bits: refused, reported, or harmless."""
    made = userland.build(PAGES, Userland(flags=flags))
    device = bytearray(made.device)
    for _ in range(data.draw(st.integers(1, 3))):
        aimed = [4068, made.header, made.map_pages[0], made.data[0]]
        near = st.sampled_from(aimed).flatmap(lambda at: st.integers(at, at + 48))
        place = data.draw(st.integers(0, len(device) - 1) | near)
        device[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "area"
    path.write_bytes(device)
    must_stay_ours(path)


@pytest.mark.parametrize("flags", [0, 3])
@given(data=st.data())
def test_words_overwritten(tmp_path: Path, flags: int, data: st.DataObject) -> None:
    """Any u64 of the image's own structures replaced by an unpleasant one."""
    made = userland.build(PAGES, Userland(flags=flags))
    at = data.draw(st.sampled_from([4068, made.header, made.map_pages[0], made.data[0], made.data[0] + 416]))
    value = data.draw(st.sampled_from([0, 1, 4096, 8192, (1 << 64) - 1, 1 << 63, 1 << 40]) | st.integers(0, 1 << 63))
    word = data.draw(st.integers(0, 8))
    path = tmp_path / "area"
    path.write_bytes(patched(made, at if at == 4068 else at + 8 * word, "<Q", value))
    must_stay_ours(path)


def test_inspection_ends_where_reading_does(tmp_path: Path) -> None:
    """Parts read before a problem are kept."""
    made = userland.build(BIG, Userland(flags=2))
    made.device[made.data[-1] + 100] ^= 0xFF
    path = tmp_path / "area"
    path.write_bytes(made.device)
    with open_plain(path) as file:
        found = inspect_image(file)
    assert found.image is not None or found.problems
    assert found.swap_map is not None
    assert len(found.swap_map.entries) == len(made.data)
