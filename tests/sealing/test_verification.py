# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict: exactly what a kernel reads is covered, whole blocks in their order; each change is seen and named."""

from __future__ import annotations

import dataclasses
import importlib
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.sealing.blocks import BlockFile, read_block
from hibernaut.sealing.making import make_manifest
from hibernaut.sealing.manifest import HEAD, LEAF_BLOCKS, SealManifest, open_manifest
from hibernaut.sealing.reading_order import BrokenMap, header_of_image, reading_order
from hibernaut.sealing.verification import verify_image
from hibernaut.swsusp import open_image
from tests.conftest import Golden
from tests.sealing.mutants import mutated
from tests.sealing.sealed import COST, LAYOUT, PAGES, SECRET, Memory, Patched, blocks_of, changed, keys, sealed, state
from tests.swsusp import naive

DEVICE = naive.build(PAGES, LAYOUT)
MANIFEST = sealed(DEVICE)
HEADER_AT = LAYOUT.header_block * 4096
CHAIN, ENTRIES = blocks_of(DEVICE)
COVERED = {LAYOUT.header_block, *CHAIN, *ENTRIES}
MANY = naive.build(
    {pfn: random.Random(pfn).randbytes(4096) for pfn in range(600)}, naive.Layout("none", shuffle_seed=3)
)


@pytest.mark.parametrize("compressor", ["none", "lzo", "lz4"])
def test_the_blocks_of_the_image_are_read_once_in_the_order_of_the_map(compressor: str) -> None:
    """Those that the second reader lists, the header first, the map pages before all entries, and no other."""
    layout = naive.Layout(compressor=compressor, shuffle_seed=5, header_block=2)
    device = naive.build(PAGES, layout)
    chain, entries = blocks_of(device)
    _, used = naive.parse(device, layout.header_block)
    assert {*chain, *entries} == used
    area = Memory(device)
    verdict = verify_image(area, sealed(device), header_block=2, workers=1)
    assert verdict.state == "whole"
    assert area.read == [2, *chain, *entries]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img"])
def test_images_of_kernels_are_covered_as_the_other_reader_has_them(golden: Golden, name: str) -> None:
    """Map pages and entries of the reader of images, and as many map pages as counted by another program."""
    area = BlockFile(str(golden(name)))
    order = reading_order(area, 0, header_of_image(area, 0))
    with open_image(golden(name)) as image:
        assert order.map_blocks == image.swap_map.map_blocks.tolist()
        assert list(order.entries) == image.swap_map.entries.tolist()
    assert len(order.map_blocks) == golden.expected[name]["map_pages"]
    data, _, _, _ = make_manifest(area, keys())
    manifest = open_manifest(data, keys().public, "manifest")
    assert verify_image(area, manifest).state == "whole"
    unit_end = order.entries[-1] * 4096 + 4095  # behind the last compressed byte, or the last page's last byte
    last = read_block(area, order.entries[-1])[-1]
    assert verify_image(Patched(area, unit_end, bytes([last ^ 1])), manifest).state == "touched"
    assert verify_image(Patched(area, unit_end, bytes([last])), manifest).state == "whole"
    area.close()


def test_digests_are_those_of_coreutils() -> None:
    """The leaf of a small image is what sha256sum makes of its blocks one after another; so is the map's digest."""
    made = {}
    for name, blocks in (("leaf", ENTRIES), ("map", CHAIN)):
        content = b"".join(DEVICE[block * 4096 : block * 4096 + 4096] for block in blocks)
        done = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True)
        made[name] = bytes.fromhex(done.stdout.split()[0].decode())
    assert made == {"leaf": MANIFEST.leaf(0), "map": MANIFEST.map_digest}
    assert len(ENTRIES) < LEAF_BLOCKS


def changes(number: int, seed: int) -> list[tuple[int, int]]:
    """Return (byte of the device, XOR) of single-byte changes in covered blocks, each block hit."""
    pick = random.Random(seed)
    blocks = sorted(COVERED)
    places = [*blocks, *pick.choices(blocks, k=number - len(blocks))]
    return [(block * 4096 + pick.randrange(4096), pick.randrange(1, 256)) for block in places]


def unseen(verdict_of: Callable[[bytes], str], number: int = 1000) -> list[int]:
    """Return the bytes whose change leaves an image whole, of single changes in covered blocks."""
    return [
        at
        for at, xor in changes(number, 1)
        if verdict_of(changed(DEVICE, at, bytes([DEVICE[at] ^ xor]))) not in ("touched", "no image")
    ]


def test_each_of_1000_single_byte_changes_is_seen() -> None:
    """In every block that a kernel reads: header, map pages, info page, units and the rest of their last blocks."""
    assert len(set(changes(1000, 1))) > 990
    assert unseen(lambda device: state(device, MANIFEST)) == []


def test_a_change_elsewhere_is_not_seen() -> None:
    """A block that no kernel reads on the way back is not covered: swapped-out pages among them, as documented."""
    others = [block for block in range(len(DEVICE) // 4096) if block not in COVERED]
    assert len(others) >= 9
    for block in others:
        assert state(changed(DEVICE, block * 4096 + 17, b"other"), MANIFEST) == "whole"


@settings(max_examples=60)
@given(st.integers(0, len(DEVICE) - 1), st.binary(min_size=1, max_size=9000))
def test_any_change_of_covered_bytes_is_seen(at: int, data: bytes) -> None:
    """Longer ones, too, wherever they lie; the state is whole exactly if every covered block is as it was."""
    device = changed(DEVICE, at, data)[: len(DEVICE)]
    same = all(device[b * 4096 : b * 4096 + 4096] == DEVICE[b * 4096 : b * 4096 + 4096] for b in COVERED)
    assert (state(device, MANIFEST) == "whole") == same


@pytest.mark.parametrize(
    ("at", "what", "block"),
    [
        (HEADER_AT + 100, "the swap header before the fields of hibernation", LAYOUT.header_block),
        (HEADER_AT + 4056, "field hw_sig of the header", LAYOUT.header_block),
        (HEADER_AT + 4060, "field crc32 of the header", LAYOUT.header_block),
        (HEADER_AT + 4072, "field flags of the header", LAYOUT.header_block),
        (HEADER_AT + 4076, "field orig_sig of the header", LAYOUT.header_block),
        (CHAIN[0] * 4096 + 4000, "map page 1 of 1", CHAIN[0]),
        (ENTRIES[0] * 4096 + 400, "info page", ENTRIES[0]),
        (ENTRIES[1] * 4096, f"data block 1 of {len(ENTRIES) - 1}", ENTRIES[1]),
        (ENTRIES[-1] * 4096 + 4095, f"data block {len(ENTRIES) - 1} of {len(ENTRIES) - 1}", ENTRIES[-1]),
    ],
)
def test_the_first_difference_is_named(at: int, what: str, block: int) -> None:
    """By its block on the device, and by the place that it has for the kernel; a later change does not matter."""
    device = changed(DEVICE, at, bytes([DEVICE[at] ^ 0x40]))
    later = changed(device, ENTRIES[-1] * 4096 + 4094, bytes([DEVICE[ENTRIES[-1] * 4096 + 4094] ^ 1]))
    for one in (device, later):
        verdict = verify_image(Memory(one), MANIFEST, header_block=LAYOUT.header_block)
        assert (verdict.state, verdict.what, verdict.block) == ("touched", what, block)
        assert f"touched: block {block}, {what}, is not as sealed" in verdict.sentence


def test_a_change_that_keeps_the_marks_is_seen_and_said_to_be_in_its_leaf() -> None:
    """CRC-32 can be forged: with marks of the forged block in place of its own, the digest still differs."""
    at = ENTRIES[5] * 4096
    device = changed(DEVICE, at, b"forged")
    mark = zlib.crc32(device[at : at + 4096]).to_bytes(4, "little")
    place = 4 * (len(CHAIN) + 5)
    marks = MANIFEST.marks[:place] + mark + MANIFEST.marks[place + 4 :]
    verdict = verify_image(Memory(device), dataclasses.replace(MANIFEST, marks=marks), header_block=2)
    assert (verdict.state, verdict.block) == ("touched", None)
    assert verdict.what == "one of 256 blocks from the info page on"


def test_an_image_moved_block_by_block_differs_from_another_one() -> None:
    """The same data from other blocks is moved, also with the info page in another place; other data is touched."""
    for seed in (8, 9, None):
        other = naive.build(PAGES, naive.Layout("lzo", shuffle_seed=seed, header_block=2, spare_blocks=9))
        verdict = verify_image(Memory(other), MANIFEST, header_block=2)
        assert (verdict.state, verdict.what) == ("moved", "field image of the header")
        changed_data = changed(other, blocks_of(other)[1][3] * 4096 + 9, b"other")
        assert state(changed_data, MANIFEST) == "touched"


def swapped_entries(device: bytes, move_content: bool) -> bytes:
    """Return the image with entries 3 and 7 of its map exchanged, and, on request, the content of their blocks."""
    one, other = ENTRIES[3], ENTRIES[7]
    found = bytearray(device)
    struct.pack_into("<Q", found, CHAIN[0] * 4096 + 24, other)
    struct.pack_into("<Q", found, CHAIN[0] * 4096 + 56, one)
    if move_content:
        found[one * 4096 : one * 4096 + 4096] = device[other * 4096 : other * 4096 + 4096]
        found[other * 4096 : other * 4096 + 4096] = device[one * 4096 : one * 4096 + 4096]
    return bytes(found)


def test_the_order_of_blocks_counts() -> None:
    """Two entries of the map exchanged: the kernel reads something else, although every data block is as it was."""
    assert state(swapped_entries(DEVICE, move_content=False), MANIFEST) == "touched"
    assert state(swapped_entries(DEVICE, move_content=True), MANIFEST) == "moved"


def exchanged_content() -> bytes:
    """Return the image with the content of two data blocks exchanged."""
    found = bytearray(DEVICE)
    one, other = ENTRIES[3] * 4096, ENTRIES[7] * 4096
    found[one : one + 4096], found[other : other + 4096] = DEVICE[other : other + 4096], DEVICE[one : one + 4096]
    return bytes(found)


def test_two_blocks_that_exchange_their_content_are_seen() -> None:
    """The map stays, the data comes in another order."""
    assert state(exchanged_content(), MANIFEST) == "touched"


def test_several_map_pages_and_leaves() -> None:
    """An image of more than 511 entries: each map page and each leaf is compared, and the difference named."""
    chain, entries = blocks_of(MANY, 0)
    manifest = sealed(MANY, 0)
    assert (len(chain), manifest.map_pages, len(entries)) == (2, 2, 603)
    assert state(MANY, manifest, 0) == "whole"
    for place, what in ((chain[1], "map page 2 of 2"), (entries[600], "data block 600 of 602")):  # behind its entries
        at = place * 4096 + 3000
        verdict = verify_image(Memory(changed(MANY, at, bytes([MANY[at] ^ 8]))), manifest)
        assert (verdict.state, verdict.what, verdict.block) == ("touched", what, place)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (CHAIN[0], "again"),
        (LAYOUT.header_block, "the header"),
        (1 << 40, "beyond the device"),
        ((1 << 64) - 1, "beyond the device"),
        (ENTRIES[0], "one more than sealed"),
    ],
)
def test_a_map_that_leads_elsewhere_ends_the_reading(value: int, what: str) -> None:
    """A loop, the header, a block that is not there, a further page: touched, and never read to where it leads."""
    device = changed(DEVICE, CHAIN[0] * 4096 + 4088, struct.pack("<Q", value))
    verdict = verify_image(Memory(device), MANIFEST, header_block=2)
    assert verdict.state == "touched"
    assert verdict.what == "map page 1 of 1"
    keeps_mark = sealed_as(device)
    again = verify_image(Memory(device), keeps_mark, header_block=2)
    assert again.state == "touched"
    assert what in (again.what or "")


def sealed_as(device: bytes) -> SealManifest:
    """Return the manifest with the mark of the first map page as a device has it."""
    mark = zlib.crc32(device[CHAIN[0] * 4096 : CHAIN[0] * 4096 + 4096]).to_bytes(4, "little")
    return dataclasses.replace(MANIFEST, marks=mark + MANIFEST.marks[4:])


def test_never_more_is_read_than_was_sealed() -> None:
    """A map page that names many more blocks, each of them on the device: no entry of it is read."""
    device = DEVICE + bytes(4096 * 600)
    entries = [*ENTRIES, *range(len(DEVICE) // 4096, len(DEVICE) // 4096 + 400)]
    device = changed(device, CHAIN[0] * 4096, struct.pack(f"<{len(entries)}Q", *entries))
    area = Memory(device)
    assert verify_image(area, MANIFEST, header_block=2, workers=1).state == "touched"
    assert area.read == [2, *CHAIN]


def test_an_entry_beyond_the_device_is_touched_and_named() -> None:
    """As where the file is cut."""
    last = max(ENTRIES)
    verdict = verify_image(Memory(DEVICE[: last * 4096 + 100]), MANIFEST, header_block=2)
    assert (verdict.state, verdict.block) == ("touched", last)
    assert "beyond the device" in (verdict.what or "")


def test_without_an_image_there_is_a_refusal() -> None:
    """Plain swap, another header block, a header beyond the device: no verdict, but an error."""
    swap = changed(DEVICE, HEADER_AT + 4086, b"SWAPSPACE2")
    for device, block, words in (
        (swap, 2, "not an image"),
        (DEVICE, 0, "header at block 2"),
        (DEVICE[:4096], 2, "header would be block 2"),
    ):
        with pytest.raises(FormatError, match=words):
            verify_image(Memory(device), MANIFEST, header_block=block)


def test_a_counter_below_the_least_is_older() -> None:
    """Only its counter shows an older image with its own whole seal."""
    manifest = sealed(DEVICE, counter=7)
    area = Memory(DEVICE)
    assert verify_image(area, manifest, header_block=2, least=7).state == "whole"
    older = verify_image(Memory(DEVICE), manifest, header_block=2, least=8)
    assert older.sentence == "older: counter 7, and at least 8 is asked for"


def test_images_that_cannot_be_read_are_not_sealed() -> None:
    """A loop in the map, an entry beyond the device, a map without an entry: refused, with the reason."""
    first = CHAIN[0] * 4096
    for device, words in (
        (changed(DEVICE, first + 4088, struct.pack("<Q", CHAIN[0])), "again"),
        (changed(DEVICE, first + 8, struct.pack("<Q", 1 << 50)), "is not on the device"),
        (changed(DEVICE, first, bytes(8)), "no entry"),
    ):
        with pytest.raises(CorruptImage, match=words):
            make_manifest(Memory(device), keys(), header_block=2)
    with pytest.raises(BrokenMap, match="the header"):
        reading_order(Memory(DEVICE), 2, changed(DEVICE[HEADER_AT : HEADER_AT + 4096], 4064, struct.pack("<Q", 2)))


def mutant_manifest() -> Any:
    """Return the manifest of the image by the modules that are imported now."""
    manifest = importlib.import_module("hibernaut.sealing.manifest")
    making = importlib.import_module("hibernaut.sealing.making")
    keys_module = importlib.import_module("hibernaut.sealing.keys")
    key = keys_module.PassphraseKey(b"a passphrase")
    data, _, _, _ = making.make_manifest(Memory(DEVICE), key, header_block=2, cost=keys_module.ScryptCost(14))
    return manifest.open_manifest(data, key, "manifest")


def mutant_verdict(device: bytes) -> str:
    """Return the state of an image by the modules that are imported now."""
    verification = importlib.import_module("hibernaut.sealing.verification")
    try:
        found = verification.verify_image(Memory(device), mutant_manifest(), header_block=2, workers=1)
    except FormatError:
        return "no image"
    return str(found.state)


def one_byte(at: int) -> bytes:
    """Return the image with one byte changed."""
    return changed(DEVICE, at, bytes([DEVICE[at] ^ 1]))


LAST_BLOCK, PADDING = one_byte(ENTRIES[-1] * 4096), one_byte(ENTRIES[-1] * 4096 + 4095)
MUTANTS = {
    "skips the last block": (
        "leaves",
        "    read_blocks(area, blocks, content)\n    return content",
        "    read_blocks(area, blocks[:-1], content)\n    return content",
        LAST_BLOCK,
    ),
    "skips the end of each block": (
        "leaves",
        "    read_blocks(area, blocks, content)\n    return content",
        "    read_blocks(area, blocks, content)\n"
        "    for end in range(4096, len(content) + 1, 4096):\n"
        "        content[end - 64 : end] = bytes(64)\n"
        "    return content",
        PADDING,
    ),
    "ignores the order of blocks": (
        "leaves",
        "    read_blocks(area, blocks, content)\n    return content",
        "    read_blocks(area, blocks, content)\n"
        "    parts = sorted(bytes(content[at : at + 4096]) for at in range(0, len(content), 4096))\n"
        "    return memoryview(b''.join(parts))",
        exchanged_content(),
    ),
    "ignores the header's fields": (
        "verification",
        "    field = _header_field(header, manifest)\n",
        "    field = None\n",
        one_byte(HEADER_AT + 4056),
    ),
    "ignores the bytes before them": (
        "verification",
        "    if header_digest(header) != manifest.header_digest:\n",
        "    if False:\n",
        one_byte(HEADER_AT + 100),
    ),
    "ignores the digests of the data": (
        "leaves",
        "            if hashlib.sha256(content).digest() == manifest.leaf(number):\n",
        "            if manifest.leaf(number):\n",
        LAST_BLOCK,
    ),
    "takes moved for whole": (
        "verification",
        '"moved" if has_same_data else "touched"',
        '"whole" if has_same_data else "touched"',
        swapped_entries(DEVICE, move_content=True),
    ),
    "ignores what follows the entries": (
        "verification",
        "    return None if has_rest and difference.what is not None else entries\n",
        "    difference.what = None\n    return entries\n",
        one_byte(CHAIN[0] * 4096 + 4000),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str) -> None:
    """A verifier that skips a part takes a changed image for whole, which the one under test does not."""
    module, old, new, device = MUTANTS[name]
    assert mutant_verdict(device) in ("touched", "moved")
    with mutated(module, old, new):
        assert mutant_verdict(device) == "whole"


def test_the_1000_changes_catch_the_mutants() -> None:
    """Each mutant that skips bytes leaves some of the same 1000 changes unseen."""
    for name in ("skips the last block", "skips the end of each block", "ignores the header's fields"):
        module, old, new, _ = MUTANTS[name]
        with mutated(module, old, new):
            verification = importlib.import_module("hibernaut.sealing.verification")
            fresh = mutant_manifest()

            def verdict_of(device: bytes, verification: Any = verification, fresh: Any = fresh) -> str:
                try:
                    found = verification.verify_image(Memory(device), fresh, header_block=2, workers=1)
                except FormatError:
                    return "no image"
                return str(found.state)

            assert unseen(verdict_of), name


def test_a_passphrase_seals_as_well() -> None:
    """The same manifest, another seal; another passphrase is refused."""
    data, _, _, _ = make_manifest(Memory(DEVICE), SECRET, header_block=2, cost=COST)
    assert verify_image(Memory(DEVICE), open_manifest(data, SECRET, "m"), header_block=2).state == "whole"
    assert HEAD.size == 256
