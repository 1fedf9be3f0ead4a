# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other machines, read and converted: pages of 4 to 64 KiB, `unsigned long` of 32 and 64 bits."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut import open_image, open_memory
from hibernaut.swsusp.checker import inspect_image
from hibernaut.swsusp.checks import Answer, Check, ResumingMachine
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.verdict import verdict_on
from hibernaut.volumes.files import open_plain
from tests.cli.run import hibernaut, refused
from tests.swsusp.elsewhere import ARM64, BUILD, I386, I386_MD5, RISCV, Elsewhere, build, info_page, utsname

X86_64_OLD = utsname(b"x86_64", b"2.6.18-419.el5")
MACHINES = {
    "arm64": Elsewhere(ARM64),
    "arm64-16k": Elsewhere(ARM64, page=16384, compressor="lz4"),
    "arm64-64k": Elsewhere(ARM64, page=65536),
    "arm64-64k-plain": Elsewhere(ARM64, page=65536, compressor="none"),
    "riscv": Elsewhere(RISCV, compressor="lz4"),
    "loongarch": Elsewhere(utsname(b"loongarch64", b"6.12"), page=16384),
    "ppc64le": Elsewhere(utsname(b"ppc64le", b"5.10"), page=65536, compressor="none"),
    "i386": Elsewhere(I386, long=4),
    "i386-plain": Elsewhere(I386, long=4, compressor="none"),
    "i386-md5": Elsewhere(I386_MD5, long=4, compressor="none"),
    "i386-small-sectors": Elsewhere(I386, long=4, sector=4),
    "i686-old": Elsewhere(utsname(b"i686"), long=4, sector=4, compressor="none", flags=0),
    "i686-old-lzo": Elsewhere(utsname(b"i686"), long=4, sector=4, flags=0),
    "mips": Elsewhere(utsname(b"mips", b"5.4"), long=4),
    "mips64": Elsewhere(utsname(b"mips64", b"5.4"), page=16384),
    "unknown": Elsewhere(utsname(b"newarch", b"9.1"), page=8192),
    "x86-64-old": Elsewhere(X86_64_OLD, compressor="none", flags=0),
}
EM = {
    "arm64": 183,
    "riscv": 243,
    "loongarch": 258,
    "ppc64le": 21,
    "i386": 3,
    "i686": 3,
    "mips": 8,
    "mips64": 8,
    "x86": 62,
}


def pages_of(machine: Elsewhere, count: int = 130, seed: int = 3) -> dict[int, bytes | None]:
    """Return pages of a machine, some of them zero, at numbers with gaps."""
    source = random.Random(seed)
    numbers = sorted(source.sample(range(16, 16 + 2 * count), count))
    old = machine.flags is not None
    return {pfn: None if pfn % 7 == 3 and not old else source.randbytes(machine.page) for pfn in numbers}


def frames_of(pages: dict[int, bytes | None], page: int) -> dict[int, bytes]:
    """Return the page frames of 4096 bytes."""
    return {
        pfn * page // 4096 + part: (content or bytes(page))[part * 4096 : part * 4096 + 4096]
        for pfn, content in pages.items()
        for part in range(page // 4096)
    }


def image(folder: Path, machine: Elsewhere, pages: dict[int, bytes | None] | None = None) -> Path:
    """Write an image of a machine into a folder."""
    path = folder / "image"
    path.write_bytes(build(pages_of(machine) if pages is None else pages, machine))
    return path


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_is_read(tmp_path: Path, name: str) -> None:
    """Each frame has its bytes, whichever way it is read; the counts are those of the machine's pages."""
    machine = MACHINES[name]
    pages = pages_of(machine)
    path = image(tmp_path, machine, pages)
    expected = frames_of(pages, machine.page)
    with open_image(path) as found:
        assert found.pfns.tolist() == sorted(expected)
        memory = found.memory()
        assert {pfn: memory.page(pfn).tobytes() for pfn in expected} == expected  # type: ignore[union-attr]
        assert memory.page(2) is None
        gathered, present = memory.gather(sorted(expected))
        assert present.all()
        assert gathered.tobytes() == b"".join(expected[pfn] for pfn in sorted(expected))
        read = {first + row: page.tobytes() for first, run in memory.blocks(7) for row, page in enumerate(run)}
        assert read == expected
        stored = {pfn: page for pfn, page in expected.items() if pages[pfn * 4096 // machine.page] is not None}
        chunked = {
            pfn: page.tobytes() for pfns, run in found.chunks() for pfn, page in zip(pfns.tolist(), run, strict=True)
        }
        assert chunked == stored
        assert found.read_all().tobytes() == b"".join(stored[pfn] for pfn in sorted(stored))
    result = hibernaut("inspect", path, "--json")
    document = result.document
    assert (result.status, document["problems"]) == (0 if document["architecture"] == "x86-64" else 2, [])
    zero = sum(page is None for page in pages.values())
    counts = (document["page_bytes"], document["saved_pages"], document["zero_pages"], document["stored_pages"])
    assert counts == (machine.page, len(pages), zero, len(pages) - zero)
    assert (document["physical_pages"], document["image_pages"]) == (65403, len(pages) - zero)
    assert document["meta_pages"] == -(-len(pages) * machine.long // machine.page)


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_is_converted(tmp_path: Path, name: str) -> None:
    """Frame n is at byte 4096 n; an ELF core names the machine."""
    machine = MACHINES[name]
    pages = pages_of(machine)
    path = image(tmp_path, machine, pages)
    expected = frames_of(pages, machine.page)
    raw = bytearray((max(expected) + 1) * 4096)
    for pfn, page in expected.items():
        raw[pfn * 4096 : pfn * 4096 + 4096] = page
    assert hibernaut("convert", path, tmp_path / "raw", "--to", "raw").status == 0
    assert (tmp_path / "raw").read_bytes() == raw
    assert hibernaut("convert", path, tmp_path / "lime", "--to", "lime").status == 0
    with open_memory(tmp_path / "lime") as dump:
        assert {pfn: dump.memory.page(pfn).tobytes() for pfn in expected} == expected  # type: ignore[union-attr]
    out = tmp_path / "elf"
    if name == "unknown":
        line = refused("convert", path, out, "--to", "elf")
        assert "a core names its machine, and the number for newarch is not known; give --to lime or --to raw" in line
        return
    result = hibernaut("convert", path, out, "--to", "elf")
    assert result.status == 0
    core = out.read_bytes()
    assert struct.unpack_from("<H", core, 18)[0] == EM[name.split("-")[0]]
    loads = {}
    for number in range(struct.unpack_from("<H", core, 56)[0]):
        kind, _, offset, vaddr, paddr, size = struct.unpack_from("<IIQQQQ", core, 64 + 56 * number)
        if kind == 1:
            assert vaddr == 0
            loads.update({(paddr + at) // 4096: core[offset + at : offset + at + 4096] for at in range(0, size, 4096)})
    assert loads == expected


def numbered(pfn: int, page: int) -> bytes:
    """A page whose parts of 4096 bytes all differ."""
    parts = page // 4096
    return b"".join(struct.pack("<I", 1 + pfn * parts + part) * 1024 for part in range(parts))


@given(
    page=st.sampled_from([4096, 8192, 16384, 65536]),
    words=st.sampled_from([(8, 8), (4, 8), (4, 4)]),
    compressor=st.sampled_from(["lzo", "lz4", "none"]),
    zero=st.sets(st.integers(0, 400)),
    listed=st.sets(st.integers(1, 400), min_size=1, max_size=70),
    seed=st.integers(0, 1000),
)
def test_any_list_of_pages(
    tmp_path_factory: pytest.TempPathFactory,
    page: int,
    words: tuple[int, int],
    compressor: str,
    zero: set[int],
    listed: set[int],
    seed: int,
) -> None:
    """Any pages of any size, at least one of them with data: every frame is what was written."""
    record = ARM64 if words[0] == 8 else utsname(b"armv7l", b"6.6.1")
    machine = Elsewhere(record, page, *words, compressor=compressor, seed=seed)
    first = min(listed)
    pages = {pfn: None if pfn in zero and pfn != first else numbered(pfn, page) for pfn in sorted(listed)}
    path = image(tmp_path_factory.mktemp("any"), machine, pages)
    with open_image(path) as found:
        expected = frames_of(pages, page)
        assert found.pfns.tolist() == sorted(expected)
        got, _ = found.memory().gather(found.pfns)
        assert got.tobytes() == b"".join(expected[pfn] for pfn in sorted(expected))
        memory = found.memory()
        for pfn in expected:
            run = memory.run(pfn, 20)
            assert len(run) >= 1
            assert run.tobytes() == b"".join(expected[pfn + at] for at in range(len(run)))
        if compressor == "none":
            first_unit = found.stream.decode(0, 1).pages
            assert (found.stream.read_rows(1, len(first_unit) - 2) == first_unit[1:-1]).all()
        assert found.computed_crc() is not None


def test_more_pages_than_a_map_page_and_a_list_page(tmp_path: Path) -> None:
    """Chains of map pages and of meta pages, with words of 4 bytes."""
    machine = Elsewhere(I386, long=4, sector=4, compressor="none")
    pages: dict[int, bytes | None] = {pfn: struct.pack("<I", pfn) * 1024 for pfn in range(5000, 7500)}
    path = image(tmp_path, machine, pages)
    with open_image(path) as found:
        assert (len(found.swap_map.map_blocks), found.info.meta_pages) == (3, 3)
        rows = found.read_all().view(np.uint32)
        assert rows[:, 0].tolist() == rows[:, 1023].tolist() == list(range(5000, 7500))


def test_the_kernel_and_its_record_are_shown(tmp_path: Path) -> None:
    """In place of CR3 and the jump address, which are x86-64's."""
    text = hibernaut("inspect", image(tmp_path, MACHINES["arm64-64k"])).out
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert ["kernel", f"an arm64 kernel, {BUILD.decode()}"] in lines
    assert ["page", "size           65536 bytes"] in lines
    assert ["ttbr1_el1", "0x41a00000"] in lines
    assert ["sleep_cpu_mpidr", "0x80000000"] in lines
    assert "CR3" not in text
    assert "e820" not in text
    kernel = f"an arm64 kernel, {BUILD.decode()}"
    assert text.endswith(f"not an x86-64 image: its info page is that of {kernel}; its data are whole\n")
    document = hibernaut("inspect", image(tmp_path, MACHINES["i386"]), "--json").document
    assert (document["architecture"], document["kernel"], document["cr3"]) == ("i386", "an i386 kernel", None)
    assert {"name": "cr3", "value": "0x2a00000"} in document["record"]
    assert document["e820_checksum"] == "0x11223344"
    document = hibernaut("inspect", image(tmp_path, MACHINES["i386-md5"]), "--json").document
    assert document["e820_md5"] == bytes(range(16)).hex()


@pytest.mark.parametrize("name", ["arm64", "arm64-64k", "i386", "i686-old"])
def test_commands_that_need_page_tables_refuse(tmp_path: Path, name: str) -> None:
    """One line with the kernel, and what can be done."""
    path = image(tmp_path, MACHINES[name])
    out = tmp_path / "out"
    for command in (
        ("map", path),
        ("walk", path, "0xffff888000000000"),
        ("map", path, "--cr3", "0x10000"),
        ("audit", path),
        ("explore", path),
        ("save", path, out, "--via", "fixmap"),
    ):
        line = refused(*command)
        assert "not an x86-64 image: its info page is that of an " in line
        assert ", whose page tables are not read: " in line
        assert line.endswith("or take its memory out with `hibernaut convert`")
        assert not out.exists()


@pytest.mark.parametrize("compressor", ["lzo", "none"])
def test_a_kernel_of_32_bits_over_data_of_64(tmp_path: Path, compressor: str) -> None:
    """The data decide, and a remark tells; damaged data are those of the kernel that the page names."""
    wide, narrow = Elsewhere(ARM64, compressor=compressor), Elsewhere(I386, long=4, compressor=compressor)
    pages = pages_of(wide)
    path = image(tmp_path, wide, pages)
    device = bytearray(path.read_bytes())
    (first_map,) = struct.unpack_from("<Q", device, 4064)
    (info,) = struct.unpack_from("<Q", device, first_map * 4096)
    stored = sum(page is not None for page in pages.values())
    device[info * 4096 : info * 4096 + 4096] = info_page(stored, 2 + stored, narrow)
    path.write_bytes(device)
    document = hibernaut("inspect", path, "--json").document
    assert (document["architecture"], document["problems"], document["saved_pages"]) == ("i386", [], len(pages))
    assert document["remarks"] == ["the info page is that of a kernel of 32 bits, and the data have words of 64 bits"]
    assert hibernaut("inspect", image(tmp_path, narrow), "--json").document["remarks"] == []
    (second,) = struct.unpack_from("<Q", device, first_map * 4096 + 8)
    device[second * 4096 + 8 : second * 4096 + 200] = b"\xff" * 192
    path.write_bytes(device)
    damaged = hibernaut("inspect", path)
    assert damaged.status == 2
    assert "PROBLEM" in damaged.out
    last = "not an x86-64 image: its info page is that of an i386 kernel; its data do not agree with it"
    assert damaged.out.splitlines()[-1] == last


def test_problems_of_other_machines_have_their_places(tmp_path: Path) -> None:
    """The same checks as on x86-64, at the bytes of that machine's structures."""
    machine = MACHINES["arm64-16k"]
    found = hibernaut("inspect", image(tmp_path, replace(machine, crc_error=1)), "--json").document
    (problem,) = found["problems"]
    assert "CRC of the data is wrong" in problem["what"]
    assert problem["where"].endswith(f"byte {16384 - 36}")
    path = image(tmp_path, machine)
    device = bytearray(path.read_bytes())
    (first_map,) = struct.unpack_from("<Q", device, 16384 - 32)
    (info,) = struct.unpack_from("<Q", device, first_map * 16384)
    struct.pack_into("<Q", device, info * 16384 + 432, 4096)
    path.write_bytes(device)
    (problem,) = hibernaut("inspect", path, "--json").document["problems"]
    assert "info page: size is 4096; expected pages * 16384" in problem["what"]
    assert problem["where"].endswith(f"byte {info * 16384 + 432}")
    device[info * 16384 : info * 16384 + 100] = bytes(100)
    path.write_bytes(device)
    (problem,) = hibernaut("inspect", path, "--json").document["problems"]
    assert "info page: it names no known kernel" in problem["what"]


def test_an_area_of_large_pages_without_an_image(tmp_path: Path) -> None:
    """Plain swap, and an image that a resume has used up."""
    path = image(tmp_path, MACHINES["arm64-64k"])
    device = bytearray(path.read_bytes())
    device[65526:65536] = b"SWAPSPACE2"
    path.write_bytes(device)
    line = refused("inspect", path)
    assert "no image: signature is SWAPSPACE2 (pages of 65536 bytes); an image was here" in line
    assert "; give the area that the kernel hibernated to" in line
    assert "is read as a whole or not at all" in refused("inspect", path, "--consumed")
    device[65536 - 32 : 65536 - 10] = bytes(22)
    path.write_bytes(device)
    assert "no image: signature is SWAPSPACE2 (pages of 65536 bytes): " in refused("inspect", path)


def test_a_damaged_image_of_another_machine(tmp_path: Path) -> None:
    """Page tables that are not read are named, as of the whole image; a core names its machine; the page is refused."""
    path = image(tmp_path, MACHINES["arm64"])
    device = bytearray(path.read_bytes())
    device[4086:4096] = b"SWAPSPACE2"
    path.write_bytes(device)
    for words in (("map",), ("ps",), ("isf",), ("report", "-o", tmp_path / "page.html")):
        result = hibernaut(*words, path, "--consumed")
        assert result.status == 2
        assert "whose page tables are not read" in result.err.splitlines()[-1]
    assert hibernaut("convert", path, tmp_path / "core", "--to", "elf", "--consumed", "-q").status == 0
    assert struct.unpack_from("<H", (tmp_path / "core").read_bytes(), 18)[0] == EM["arm64"]


@pytest.mark.parametrize("block", [3, 48])
def test_a_swap_file_of_large_pages(tmp_path: Path, block: int) -> None:
    """`resume_offset` counts pages of the machine; one in pages of 4096 bytes is understood as well."""
    path = image(tmp_path, replace(MACHINES["arm64-64k"], header_block=3))
    document = hibernaut("inspect", path, "--offset", block, "--json").document
    assert (document["page_bytes"], document["problems"]) == (65536, [])


@pytest.mark.parametrize("name", MACHINES)
def test_images_that_can_be_written_are_rewritten_with_their_record(tmp_path: Path, name: str) -> None:
    """The info page and the kind of pages stay; sizes that are not written are refused in one line."""
    machine = MACHINES[name]
    pages = pages_of(machine)
    path, out = image(tmp_path, machine, pages), tmp_path / "out"
    first = min(pfn for pfn, page in pages.items() if page is not None)
    if machine.page != 4096 or machine.long != 8:
        assert "is read, not written; take its memory out with `hibernaut convert`" in refused("rewrite", path, out)
        assert not out.exists()
        return
    assert hibernaut("rewrite", path, out, "--write", f"{first * 4096:#x}=c0ffee").status == 0
    with open_image(path) as old, open_image(out) as new:
        assert new.info.page == old.info.page
        assert new.header.flags == old.header.flags
        before, after = old.memory(), new.memory()
        assert new.pfns.tolist() == old.pfns.tolist()
        assert after.page(first).tobytes() == b"\xc0\xff\xee" + before.page(first).tobytes()[3:]  # type: ignore[union-attr]
        rest = old.pfns[old.pfns != first]
        assert (after.gather(rest)[0] == before.gather(rest)[0]).all()
    assert hibernaut("inspect", out).status == hibernaut("inspect", path).status


@pytest.mark.parametrize("size", [4096, 65536])
def test_big_endian_images_are_named(tmp_path: Path, size: int) -> None:
    """By `struct new_utsname`, which is text; what cannot be followed leaves the kernel out."""
    device = bytearray(8 * size)
    struct.pack_into(">I", device, 1024, 1)
    struct.pack_into(">QI10s10s", device, size - 32, 3, 4, b"SWAPSPACE2", b"S1SUSPEND\0")
    struct.pack_into(">Q", device, 3 * size, 5)
    device[5 * size : 5 * size + 390] = utsname(b"s390x", b"4.12.14-122")
    path = tmp_path / "image"
    path.write_bytes(device)
    named = "not an x86-64 image: its header is that of a big-endian kernel"
    assert f"{named}, an s390x kernel 4.12.14-122, #1 SMP Debian: " in refused("inspect", path)
    struct.pack_into(">Q", device, 3 * size, 8)
    path.write_bytes(device)
    assert f"{named}: " in refused("convert", path, tmp_path / "out", "--to", "raw")


def checks(path: Path, kernel: str, machine: ResumingMachine) -> dict[str, Check]:
    """Return the checks of a kernel on an image by name."""
    with open_plain(path) as file:
        verdict = verdict_on(inspect_image(file), image_rules_for_release(kernel), machine)
    return {check.check: check for check in verdict.checks}


def test_the_verdict_has_no_check_of_x86(tmp_path: Path) -> None:
    """arm64 takes an image of the same build alone; the CPU is not known."""
    path = image(tmp_path, MACHINES["arm64"])
    mine = ResumingMachine("m", physical_pages=65403, build=BUILD.decode())
    found = checks(path, "6.12", mine)
    assert list(found) == [
        "signature", "hw_sig", "compressor", "swap_map", "build", "cpu", "physical_pages", "frames", "units", "crc32",
    ]  # fmt: skip
    assert {name for name, check in found.items() if check.answer is not Answer.OK} == {"cpu", "frames"}
    assert "sleep_cpu_mpidr 0x80000000" in str(found["cpu"].remark)
    other = checks(path, "6.12", replace(mine, build="#2 SMP"))["build"]
    assert (other.answer, other.message) == (
        Answer.REFUSES,
        "hibernate: Hibernate image not generated by this kernel!",
    )
    unknown = checks(path, "6.12", ResumingMachine("m"))["build"]
    assert (unknown.answer, unknown.remark) == (
        Answer.UNKNOWN,
        f"only the kernel that wrote it resumes: {BUILD.decode()}",
    )


def test_the_verdict_on_machines_without_a_record(tmp_path: Path) -> None:
    """They compare release and build; x86-64 before 2.6.24 has no magic, which later kernels refuse."""
    path = image(tmp_path, MACHINES["loongarch"])
    same = ResumingMachine("m", release="6.12", build="#1 SMP Debian")
    assert checks(path, "6.12", same)["build"].answer is Answer.OK
    newer = checks(path, "6.12", replace(same, release="6.13"))["build"]
    assert (newer.answer, newer.message) == (Answer.REFUSES, "PM: hibernation: Image mismatch: kernel release")
    assert "e820_checksum" not in checks(path, "6.12", same)
    old = checks(image(tmp_path, MACHINES["x86-64-old"]), "6.1", same)
    assert old["magic"].answer is Answer.REFUSES
    assert "an x86_64 kernel 2.6.18-419.el5" in str(old["magic"].remark)
    assert checks(image(tmp_path, MACHINES["i386"]), "6.1", same)["magic"].answer is Answer.UNKNOWN


def test_facts_of_the_machine_from_its_other_image_and_from_json(tmp_path: Path) -> None:
    """The build string is one of them."""
    path = image(tmp_path, MACHINES["riscv"])
    (tmp_path / "facts.json").write_text('{"build": "#9 SMP", "release": "6.12"}')
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    for machine, answer in ((tmp_path / "facts.json", "would refuse"), (other, "ok")):
        found = hibernaut("inspect", path, "--for-kernel", "6.12", "--on-machine", machine, "--json").document
        (build_check,) = [check for check in found["verdict"]["checks"] if check["check"] == "build"]
        assert build_check["answer"] == answer
    (tmp_path / "facts.json").write_text('{"build": 9}')
    line = refused("inspect", path, "--for-kernel", "6.12", "--on-machine", tmp_path / "facts.json")
    assert "build is 9" in line
