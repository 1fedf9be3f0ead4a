# SPDX-License-Identifier: GPL-2.0-or-later
"""The manifest: its bytes as documented, each bound of its parser, and nothing in it believed before its seal."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.sealing.in_window import MOST_CANDIDATES, WINDOW_BLOCKS, manifest_in_area
from hibernaut.sealing.keys import PassphraseKey, ScryptCost, SealKind, make_keys
from hibernaut.sealing.making import make_manifest
from hibernaut.sealing.manifest import MAGIC, MOST_ENTRIES, manifest_bytes, open_manifest
from tests.sealing.mutants import mutated
from tests.sealing.sealed import COST, LAYOUT, PAGES, SECRET, Memory, blocks_of, changed, keys
from tests.swsusp import naive

DEVICE = naive.build(PAGES, LAYOUT)
CHAIN, ENTRIES = blocks_of(DEVICE)
SIGNED, *_ = make_manifest(Memory(DEVICE), keys(), header_block=2, counter=5)
WITH_SECRET, *_ = make_manifest(Memory(DEVICE), SECRET, header_block=2, counter=6, cost=COST)
HEADER = DEVICE[2 * 4096 : 3 * 4096]


def block(number: int) -> bytes:
    """Return a block of the image."""
    return DEVICE[number * 4096 : number * 4096 + 4096]


@pytest.mark.parametrize(("data", "kind"), [(SIGNED, 1), (WITH_SECRET, 2)])
def test_the_bytes_are_those_of_the_documentation(data: bytes, kind: int) -> None:
    """Field by field, from docs/sealed.md, made from the image by struct, hashlib and zlib alone."""
    expected = struct.pack("<16sIIQQ", b"hibernaut-seal\r\n", 1, kind, len(data), {1: 5, 2: 6}[kind])
    expected += struct.pack("<IIQQQ", 4096, 256, 2, len(CHAIN), len(ENTRIES)) + HEADER[-40:]
    salt, cost = (data[112:128], (14, 8, 1)) if kind == 2 else (bytes(16), (0, 0, 0))
    expected += salt + struct.pack("<III", *cost) + bytes(20)
    expected += hashlib.sha256(HEADER[:4064] + bytes(8) + HEADER[4072:]).digest()
    expected += hashlib.sha256(b"".join(map(block, CHAIN))).digest()
    expected += hashlib.sha256(keys().public.raw).digest() if kind == 1 else bytes(32)
    assert len(expected) == 256
    expected += hashlib.sha256(b"".join(map(block, ENTRIES))).digest()
    expected += b"".join(struct.pack("<I", zlib.crc32(block(one))) for one in [*CHAIN, *ENTRIES])
    assert data[: len(expected)] == expected
    seal = data[len(expected) :]
    if kind == 2:
        key = hashlib.scrypt(b"a passphrase", salt=salt, n=1 << 14, r=8, p=1, dklen=32)
        assert seal == hmac.new(key, expected, hashlib.sha256).digest()
    assert len(seal) == {1: 64, 2: 32}[kind]


def test_openssl_verifies_the_signature(tmp_path: Path) -> None:
    """With the key files of make_keys, and over all bytes before the last 64; another manifest does not pass."""
    key = make_keys(tmp_path / "key")
    data, *_ = make_manifest(Memory(DEVICE), key, header_block=2)
    (tmp_path / "body").write_bytes(data[:-64])
    (tmp_path / "seal").write_bytes(data[-64:])
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in", "body"]
    command += ["-sigfile", "seal"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "body").write_bytes(data[:-65] + b"?")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def refusal(data: bytes, key: object = None) -> str:
    """Return the message by which a manifest is refused."""
    with pytest.raises(FormatError) as caught:
        open_manifest(data, keys().public if key is None else key, "file")  # type: ignore[arg-type]
    assert caught.value.advice
    return str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 255, 256, 300, len(SIGNED) - 1, len(SIGNED) - 64])
def test_a_manifest_that_is_cut_is_refused(length: int) -> None:
    """At any length; and so is a longer one."""
    refusal(SIGNED[:length])
    assert "states" in refusal(SIGNED + b"\0")


@settings(max_examples=200)
@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, xor: int) -> None:
    """Under an Ed25519 signature, no byte of a manifest has another value that is accepted."""
    refusal(changed(SIGNED, at, bytes([SIGNED[at] ^ xor])))


@pytest.mark.parametrize("at", [0, 17, 20, 33, 60, 113, 128, 141, 200, 300, len(WITH_SECRET) - 1])
def test_any_changed_byte_is_refused_under_a_passphrase(at: int) -> None:
    """In each field: some by their bounds, the others by the seal."""
    refusal(changed(WITH_SECRET, at, bytes([WITH_SECRET[at] ^ 1])), SECRET)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"hibernaut-seal\n\0", "not the manifest of a seal"),
        (16, struct.pack("<I", 2), "has version 2"),
        (20, struct.pack("<I", 0), "of kind 0"),
        (20, struct.pack("<I", 3), "of kind 3"),
        (24, struct.pack("<Q", 1 << 63), "states"),
        (40, struct.pack("<I", 65536), "blocks of 65536 bytes"),
        (44, struct.pack("<I", 0), "leaves of 0 blocks"),
        (56, struct.pack("<Q", 0), "in 0 map pages"),
        (56, struct.pack("<Q", 1 << 62), f"{len(ENTRIES)} entries in {1 << 62}"),
        (64, struct.pack("<Q", 0), "0 entries"),
        (64, struct.pack("<Q", MOST_ENTRIES + 1), f"{MOST_ENTRIES + 1} entries"),
        (64, struct.pack("<Q", (1 << 64) - 1), "entries"),
        (64, struct.pack("<Q", len(ENTRIES) + 1), "states"),
        (112, b"salt", "no salt and no cost"),
        (128, struct.pack("<I", 14), "no salt and no cost"),
        (159, b"\1", "reserved"),
    ],
)
def test_fields_out_of_bounds_are_refused_by_name(at: int, value: bytes, words: str) -> None:
    """Before the seal is looked at, and before a number sizes anything."""
    assert words in refusal(changed(SIGNED, at, value))


@pytest.mark.parametrize(
    ("at", "value"),
    [(128, 13), (128, 19), (128, 64), (128, 1 << 31), (132, 0), (132, 1 << 20), (136, 0), (136, 1 << 30)],
)
def test_a_cost_out_of_bounds_is_never_paid(at: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt does not run: neither a cheap one nor one that takes more than 256 MiB."""

    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("scrypt runs")

    monkeypatch.setattr(hashlib, "scrypt", refuse)
    assert "cost" in refusal(changed(WITH_SECRET, at, struct.pack("<I", value)), SECRET)
    assert ScryptCost(18).memory_bytes <= (256 << 20) + 1024 * 8
    with pytest.raises(AssertionError, match="scrypt runs"):
        open_manifest(WITH_SECRET, SECRET, "file")


def test_another_key_is_refused(tmp_path: Path) -> None:
    """Another pair, another passphrase, and a key of the other kind."""
    assert "not this key's" in refusal(SIGNED, make_keys(tmp_path / "other").public)
    assert "not this key's" in refusal(WITH_SECRET, PassphraseKey(b"a passphrase "))
    assert "sealed with Ed25519" in refusal(SIGNED, SECRET)
    assert "sealed with passphrase" in refusal(WITH_SECRET)


def test_an_image_of_a_full_last_map_page_is_sealed() -> None:
    """511 entries: the kernel has begun a second map page by then, which is empty; the naive layout has not."""
    for extra in (False, True):
        pages: dict[int, bytes | None] = {pfn: bytes([pfn % 251] * 4096) for pfn in range(509)}
        device = bytearray(naive.build(pages, naive.Layout("none", spare_blocks=1)))
        chain, entries = blocks_of(bytes(device), 0)
        assert (len(chain), len(entries)) == (1, 511)
        if extra:
            struct.pack_into("<Q", device, chain[0] * 4096 + 4088, len(device) // 4096 - 1)
        data, made, *_ = make_manifest(Memory(device), keys())
        assert made.map_pages == 1 + extra
        assert open_manifest(data, keys().public, "file").map_pages == 1 + extra
        assert len(data) == manifest_bytes(SealKind.ED25519, 1 + extra, 511)


def in_window(*placed: tuple[int, bytes], blocks: int = 400) -> Memory:
    """Return the image on a device of so many blocks, with bytes at blocks behind it."""
    device = bytearray(DEVICE.ljust(blocks * 4096, b"\0"))
    for number, data in placed:
        device[number * 4096 : number * 4096 + len(data)] = data
    return Memory(device)


def test_the_manifest_of_the_header_is_found_among_others() -> None:
    """Behind blocks with the magic alone, cut manifests, those of other keys, and one of another image."""
    other = naive.build({**PAGES, 9: bytes(4096)}, LAYOUT)
    another_image, *_ = make_manifest(Memory(other), keys(), header_block=2, counter=9)
    huge = changed(SIGNED, 24, struct.pack("<Q", 1 << 62))
    area = in_window(
        (100, SIGNED), (200, another_image), (210, WITH_SECRET), (220, huge), (230, MAGIC), (399, SIGNED[:200])
    )
    manifest, at = manifest_in_area(area, keys().public, 2)
    assert (manifest.counter, at) == (5, 100)
    only_other = in_window((100, another_image))
    assert manifest_in_area(only_other, keys().public, 2)[1] == 100


def test_without_a_manifest_the_error_has_the_reason() -> None:
    """None at all; or the first one from the end, with what is wrong with it."""
    with pytest.raises(FormatError, match="no manifest in the last 400 blocks"):
        manifest_in_area(in_window(), keys().public, 2)
    with pytest.raises(FormatError, match="the manifest is sealed with passphrase: area, block 100"):
        manifest_in_area(in_window((100, WITH_SECRET)), keys().public, 2)


def test_the_search_is_bounded() -> None:
    """It reads the window alone, and tries no more candidates than documented."""
    blocks = WINDOW_BLOCKS + 500
    area = in_window((100, SIGNED), blocks=blocks)
    with pytest.raises(FormatError, match="no manifest"):
        manifest_in_area(area, keys().public, 2)
    assert min(area.read[1:]) == 500
    crowded = in_window((100, SIGNED), *((number, MAGIC) for number in range(300, 300 + MOST_CANDIDATES)))
    with pytest.raises(FormatError, match="states 0 bytes"):
        manifest_in_area(crowded, keys().public, 2)
    fewer = in_window((100, SIGNED), *((number, MAGIC) for number in range(300, 300 + MOST_CANDIDATES - 1)))
    assert manifest_in_area(fewer, keys().public, 2)[1] == 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    if not key.accepts(seal, body, salt, cost):\n", "    if False:\n"),
        ("    if size_bytes != wanted or len(data) != wanted:\n", "    if size_bytes != len(data):\n"),
        ("    if kind is SealKind.PASSPHRASE and not (cost.is_accepted and has_salt):\n", "    if False:\n"),
    ],
)
def test_mutants_are_caught(old: str, new: str) -> None:
    """Without the seal, the length or the cost, a manifest that is refused above is opened, or fails otherwise."""
    bad = {
        "accepts": (changed(SIGNED, 32, b"\7"), keys().public),
        "wanted": (changed(SIGNED[:-1], 24, struct.pack("<Q", len(SIGNED) - 1)), keys().public),
        "is_accepted": (changed(WITH_SECRET, 128, struct.pack("<I", 3)), SECRET),
    }
    data, key = next(value for name, value in bad.items() if name in old)
    message = refusal(data, key)
    with mutated("manifest", old, new):
        opener = importlib.import_module("hibernaut.sealing.manifest").open_manifest
        kinds = importlib.import_module("hibernaut.sealing.keys")
        same = kinds.PublicKey(keys().public.raw) if key is not SECRET else kinds.PassphraseKey(SECRET.passphrase)
        outcome = "opened"
        try:
            opener(data, same, "file")
        except FormatError as error:
            outcome = str(error)
    assert outcome != message  # opened, or refused by the seal, which lies behind the bounds
