# SPDX-License-Identifier: GPL-2.0-or-later
"""Generations of the info page: which fields there are, how the memory map is kept, and which kernels take it."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.errors import CorruptImage
from hibernaut.swsusp import inspect_image, open_image, rewrite_image
from hibernaut.swsusp.e820 import E820Sums, trim_page_zero
from hibernaut.swsusp.generations import GENERATIONS
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.verdict import Answer, Check, ResumingMachine, verdict_on
from hibernaut.volumes.files import open_plain
from tests.cli.run import hibernaut
from tests.conftest import Golden
from tests.swsusp import naive
from tests.swsusp.images import PAGES

E820 = [
    (0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xF0000, 0x10000, 2), (0x100000, 0xFEDD000, 1), (0xFFDD000, 0x23000, 2),
    (0xFFFC0000, 0x40000, 2), (0xFD00000000, 0x300000000, 2),
]  # fmt: skip
"""The map of the golden machines."""


def table(entries: list[tuple[int, int, int]]) -> bytes:
    """Return a `struct e820_table`."""
    return struct.pack("<I", len(entries)) + b"".join(struct.pack("<QQI", *entry) for entry in entries)


SUMS = E820Sums.of_table(table(E820))
TRIMMED = zlib.crc32(table([(0x1000, 0x9EC00, 1), *E820[1:]]))
MACHINE = ResumingMachine("the guest", e820=SUMS, physical_pages=65403, hw_sig=0)

OLDEST, PHYS, MD5, CRC, TRIM = (
    0x0123456789ABCDEF, 0x123456789ABCDEF0, 0x23456789ABCDEF01, 0x23456789ABCDEF02, 0x23456789ABCDEF03
)  # fmt: skip
KEPT = {
    OLDEST: b"",
    PHYS: b"",
    MD5: hashlib.md5(table(E820), usedforsecurity=False).digest(),
    CRC: struct.pack("<Q", zlib.crc32(table(E820))),
    TRIM: struct.pack("<Q", TRIMMED),
}


def image(folder: Path, magic: int, **layout: object) -> Path:
    """Write an image of one generation."""
    path = folder / "image"
    kept = KEPT.get(magic, b"\x11" * 16)
    path.write_bytes(naive.build(PAGES, replace(naive.Layout(magic=magic, e820=kept), **layout)))  # type: ignore[arg-type]
    return path


def checks(path: Path, kernel: str, machine: ResumingMachine = MACHINE) -> dict[str, Check]:
    """Return the checks of a kernel on an image by name."""
    with open_plain(path) as file:
        verdict = verdict_on(inspect_image(file), image_rules_for_release(kernel), machine)
    return {check.check: check for check in verdict.checks}


@pytest.mark.parametrize("magic", GENERATIONS)
def test_every_generation_is_read_and_rewritten_with_its_own_magic(tmp_path: Path, magic: int) -> None:
    """The fields lie where that generation has them; a rewrite changes none of the record's bytes."""
    path = image(tmp_path, magic, cr3=0x2A3B000)
    out = tmp_path / "out"
    with open_image(path) as found:
        info = found.info
        assert (info.magic, info.cr3, info.jump_address) == (magic, 0x2A3B000, 0xFFFFFFFF81000000)
        assert info.jump_address_phys == (None if magic == OLDEST else 0x1000000)
        assert info.remark is None
        assert info.e820 == {MD5: E820Sums(md5=SUMS.md5), CRC: E820Sums(crc32=SUMS.crc32),
                             TRIM: E820Sums(trimmed_crc32=TRIMMED)}.get(magic, E820Sums())  # fmt: skip
        rewrite_image(found, out, writes=[(min(PAGES) * 4096, b"changed")])
    with open_image(out) as written:
        assert written.info.page[:392] == info.page[:392]
        assert written.memory().page(min(PAGES))[:7].tobytes() == b"changed"  # type: ignore[index]
    text = hibernaut("inspect", path).out
    assert text.endswith("image is intact\n")
    assert ("(physical 0x1000000)" in text) is (magic != OLDEST)
    assert hibernaut("inspect", path, "--json").document["magic"] == f"{magic:#018x}"
    assert hibernaut("convert", path, tmp_path / "o.raw", "--to", "raw").status == 0


def test_the_pcid_is_taken_off_cr3(tmp_path: Path) -> None:
    """Kernels that do not clear the PCID leave it there."""
    with open_image(image(tmp_path, OLDEST, cr3=0x2A3B801)) as found:
        assert found.info.cr3 == 0x2A3B000


@pytest.mark.parametrize("magic", [0x23456789ABCDEF04, 0x23456789ABCDEF0F])
def test_a_newer_generation_is_read_as_far_as_it_is_known(tmp_path: Path, magic: int) -> None:
    """With a remark, and without a claim on what follows the magic; no known kernel takes it."""
    path = image(tmp_path, magic)
    found = hibernaut("inspect", path, "--no-machine", "--json")
    assert found.status == 0
    assert (found.document["cr3"], found.document["e820_checksum"], found.document["problems"]) == ("0x1000", None, [])
    (remark,) = found.document["remarks"]
    assert f"{magic:#x}, is newer than any that is known" in remark
    assert "REMARK  the info page's magic" in hibernaut("inspect", path).out
    answers = checks(path, "7.3")
    assert answers["magic"].answer is Answer.REFUSES
    assert answers["e820_checksum"].answer is Answer.UNKNOWN


@pytest.mark.parametrize("magic", [0x23456789ABCDEF00, 0x23456789ABCDEF12, 0x23456789ABCDFF04, 0])
def test_other_numbers_do_not_name_a_generation(tmp_path: Path, magic: int) -> None:
    """A flipped bit elsewhere is damage."""
    with pytest.raises(CorruptImage, match="info page: magic is"):
        open_image(image(tmp_path, magic))


@pytest.mark.parametrize(
    ("kernel", "takes", "may_take"),
    [
        ("2.6.24", [OLDEST], []), ("4.7", [OLDEST], []), ("4.8", [PHYS], []), ("4.9.337", [PHYS], []),
        ("4.10", [MD5], []), ("5.4", [MD5], []), ("5.9", [MD5], []), ("5.10", [CRC], [MD5]), ("5.12", [], [MD5, CRC]),
        ("5.13", [CRC], []), ("7.3", [CRC], []), ("7.4", [], [CRC, TRIM]), ("3.10.0-1160.el7", [], [OLDEST, PHYS]),
        ("4.18.0-553.el8", [], [MD5, CRC]),
    ],
)  # fmt: skip
def test_boundaries_between_kernels(tmp_path: Path, kernel: str, takes: list[int], may_take: list[int]) -> None:
    """A kernel takes its own generation; where kernels of one version differ, it is not known which."""
    for magic in (*GENERATIONS, 0x23456789ABCDEF04):
        found = checks(image(tmp_path, magic), kernel)["magic"]
        unknown = magic in may_take or (magic not in GENERATIONS and kernel == "7.4")
        expected = Answer.OK if magic in takes else Answer.UNKNOWN if unknown else Answer.REFUSES
        assert found.answer is expected, (kernel, hex(magic))
        assert "commit" in found.source
        if magic in may_take or (kernel == "5.10" and magic == CRC):
            assert "a kernel of this version takes 0x" in str(found.remark)


@pytest.mark.parametrize("magic", [MD5, CRC, TRIM])
def test_the_memory_map_is_compared_in_the_image_s_own_way(tmp_path: Path, magic: int) -> None:
    """The same table is accepted, another one refused; a checksum made in another way says nothing."""
    path = image(tmp_path, magic)
    kernel = {MD5: "4.19", CRC: "6.12", TRIM: "7.4"}[magic]
    assert checks(path, kernel)["e820_checksum"].answer is Answer.OK
    if magic != MD5:  # kernels with an MD5 know no zero pages
        assert checks(path, kernel)["frames"].answer is Answer.OK
    other = replace(MACHINE, e820=E820Sums.of_table(table([(0, 0x9F800, 1), *E820[1:]])))
    found = checks(path, kernel, other)["e820_checksum"]
    assert found.answer is (Answer.UNKNOWN if magic == MD5 else Answer.REFUSES)  # without MD5 built in, not compared
    elsewise = {MD5: E820Sums(crc32=1), CRC: E820Sums(trimmed_crc32=1), TRIM: E820Sums(crc32=SUMS.crc32)}[magic]
    assert checks(path, kernel, replace(MACHINE, e820=elsewise))["e820_checksum"].answer is Answer.UNKNOWN


def test_generations_without_a_check_and_an_image_without_a_digest(tmp_path: Path) -> None:
    """Nothing to compare: any machine will do."""
    for magic, kernel in ((OLDEST, "4.4"), (PHYS, "4.9")):
        assert checks(image(tmp_path, magic), kernel, ResumingMachine("x"))["e820_checksum"].answer is Answer.OK
    path = image(tmp_path, MD5, e820=bytes(16))
    found = checks(path, "4.19", ResumingMachine("x"))["e820_checksum"]
    assert (found.answer, found.remark) == (Answer.OK, "the image has none: its kernel was built without MD5")
    assert "e820 MD5        none: the kernel was built without MD5" in hibernaut("inspect", path).out


def test_trimming_takes_ram_of_page_zero_alone() -> None:
    """Entries above it and of other types stay; RAM wholly in it goes."""
    kept = [(0, 0x1000, 2), (0x1000, 0x1000, 1), (0x4000, 0, 1)]
    before = [(0, 0x1000, 2), (0x10, 0xFF0, 1), (0x800, 0x1800, 1), (0x4000, 0, 1)]
    assert trim_page_zero(table(before)) == table(kept)
    assert SUMS.trimmed_crc32 == TRIMMED
    with pytest.raises(ValueError, match="7 entries"):
        trim_page_zero(table(E820)[:-1])


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("compressor", ["none", "lzo"])
def test_data_without_a_flag(tmp_path: Path, flags: int, compressor: str) -> None:
    """2.6.36 stores pages as they are, 2.6.37 to 3.1 compress with LZO, both without a flag: the data tells."""
    path = image(tmp_path, OLDEST, compressor=compressor, old_flags=True, extra_flags=flags)
    out = tmp_path / "out"
    with open_image(path) as found:
        assert found.compressor == compressor
        before = {pfn: found.memory().page(pfn).tobytes() for pfn in PAGES}  # type: ignore[union-attr]
        assert before == {pfn: page or bytes(4096) for pfn, page in PAGES.items()}
        rewrite_image(found, out)
    with open_image(out) as written:
        assert (written.header.flags, written.compressor, written.header.crc32) == (flags, compressor, None)
        assert written.header.block[4056:4064] == found.header.block[4056:4064]
    document = hibernaut("inspect", path, "--json").document
    assert (document["compressor"], document["problems"]) == (compressor, [])
    takes, fails = ("2.6.36", "3.1") if compressor == "none" else ("3.1", "2.6.36")
    assert checks(path, takes)["units"].answer is Answer.OK
    assert checks(path, fails)["units"].answer is not Answer.OK


def test_an_image_of_a_kernel_that_trims(golden: Golden, tmp_path: Path) -> None:
    """6.12's image as that kernel would write it: intact; 7.3 refuses it, and takes the one with the magic before."""
    written = golden("swap-6.12-lz4.img")
    with open_image(written) as found:
        at = found.area.offset_of(int(found.swap_map.entries[0]))
        assert found.info.e820.crc32 == SUMS.crc32
    path = tmp_path / "image"
    path.write_bytes(written.read_bytes())
    with path.open("r+b") as file:
        file.seek(at + 24)
        file.write(struct.pack("<QQ", TRIM, TRIMMED))
    document = hibernaut("inspect", path, "--json").document
    assert (document["magic"], document["e820_checksum"]) == ("0x23456789abcdef03", f"{TRIMMED:#x}")
    assert (document["saved_pages"], document["crc32"]["ok"], document["problems"]) == (17244, True, [])
    assert (checks(path, "7.3")["magic"].answer, checks(written, "7.3")["magic"].answer) == ("would refuse", "ok")
    with open_plain(path) as file:
        later = verdict_on(inspect_image(file), image_rules_for_release("7.4"), MACHINE)
    assert later.resumes is None
    assert [check.check for check in later.checks if check.answer is not Answer.OK] == ["magic"]
