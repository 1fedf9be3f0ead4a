# SPDX-License-Identifier: GPL-2.0-or-later
"""The manifest of an image: its bytes, read with all bounds checked, and sealed. `docs/sealed.md` has it byte by byte.

All numbers are little-endian. `HEAD`, then 32 bytes for each leaf, 4 for each mark, and the seal, which is made on all
bytes before it. A leaf is the SHA-256 of 256 blocks of entries (the last of those left), one after another. A mark is
the CRC-32 of a block: it names the block that differs in a leaf that does, and proves nothing by itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import BLOCK_BYTES
from hibernaut.sealing.keys import SALT_BYTES, SEAL_BYTES, SEAL_WORDS, CheckingKey, ScryptCost, SealingKey, SealKind
from hibernaut.sealing.reading_order import MAP_ENTRIES, TAIL_BYTES

__all__ = ["LEAF_BLOCKS", "MAGIC", "MOST_BYTES", "SealManifest", "manifest_bytes", "open_manifest", "pack_manifest"]

MAGIC = b"hibernaut-seal\r\n"
VERSION = 1
LEAF_BLOCKS = 256
"""Blocks of a leaf: 1 MiB."""
MOST_ENTRIES = 1 << 26
"""Most entries of an image that is sealed: 256 GiB of blocks, and a manifest of 265 MiB."""
HEAD = struct.Struct(f"<16sIIQQIIQQQ{TAIL_BYTES}s{SALT_BYTES}sIII20s32s32s32s")
"""magic, version, kind, size_bytes, counter, block_bytes, leaf_blocks, header_block, map_pages, entries, tail, salt,
log2_n, r, p, reserved, header_digest, map_digest, key_id."""
MOST_BYTES = HEAD.size + 4 * (MOST_ENTRIES + MOST_ENTRIES // MAP_ENTRIES + 1) + MOST_ENTRIES // 8 + 64
RESERVED = bytes(20)


@dataclass(frozen=True)
class SealManifest:
    """The content of a manifest.

    Attributes:
        kind: kind of its seal.
        counter: number that the sealing side raises, against older images.
        header_block: block of the swap header on the device.
        map_pages: number of map pages.
        entries: number of entries, the info page included.
        tail: last 40 bytes of the header block.
        header_digest: SHA-256 of the header block, its field `image` as zeroes.
        map_digest: SHA-256 of the map pages in chain order.
        leaves: SHA-256 of each leaf, 32 bytes each.
        marks: CRC-32 of each map page and each entry, 4 bytes each.
        key_id: SHA-256 of the public key; zeroes for a passphrase.
    """

    kind: SealKind
    counter: int
    header_block: int
    map_pages: int
    entries: int
    tail: bytes
    header_digest: bytes
    map_digest: bytes
    leaves: bytes = field(repr=False)
    marks: bytes = field(repr=False)
    key_id: bytes = bytes(32)

    @property
    def covered_blocks(self) -> int:
        """Number of blocks that a kernel reads."""
        return 1 + self.map_pages + self.entries

    def mark(self, number: int) -> int:
        """Return the CRC-32 of a block: map pages first, then entries."""
        return int.from_bytes(self.marks[4 * number : 4 * number + 4], "little")

    def leaf(self, number: int) -> bytes:
        """Return the digest of a leaf."""
        return self.leaves[32 * number : 32 * number + 32]


def manifest_bytes(kind: SealKind, map_pages: int, entries: int) -> int:
    """Return the length of a manifest."""
    return HEAD.size + 32 * -(-entries // LEAF_BLOCKS) + 4 * (map_pages + entries) + SEAL_BYTES[kind]


def _fits(pages: int, entries: int) -> bool:
    """Return whether an image may have so many map pages and entries.

    `swap_write_page` (kernel/power/swap.c) takes the next map page as soon as one is full: the last one may be empty.
    """
    return 0 < entries <= MOST_ENTRIES and -(-entries // MAP_ENTRIES) <= pages <= entries // MAP_ENTRIES + 1


def pack_manifest(manifest: SealManifest, key: SealingKey, salt: bytes, cost: ScryptCost) -> bytes:
    """Return the bytes of a manifest with its seal.

    Args:
        manifest: the content.
        key: key that seals it.
        salt: 16 random bytes, for a passphrase; zeroes for others.
        cost: cost of the passphrase's key.

    Raises:
        FormatError: the image has more entries than a manifest holds.
    """
    if not _fits(manifest.map_pages, manifest.entries):
        raise FormatError(
            f"the image has {manifest.entries} entries in {manifest.map_pages} map pages",
            expected=f"at most {MOST_ENTRIES} entries, and no map page without need",
            advice="give an image that a kernel wrote, and a smaller one",
        )
    is_scrypt = manifest.kind is SealKind.PASSPHRASE
    body = HEAD.pack(
        MAGIC,
        VERSION,
        manifest.kind,
        manifest_bytes(manifest.kind, manifest.map_pages, manifest.entries),
        manifest.counter,
        BLOCK_BYTES,
        LEAF_BLOCKS,
        manifest.header_block,
        manifest.map_pages,
        manifest.entries,
        manifest.tail,
        salt if is_scrypt else bytes(SALT_BYTES),
        cost.log2_n if is_scrypt else 0,
        cost.r if is_scrypt else 0,
        cost.p if is_scrypt else 0,
        RESERVED,
        manifest.header_digest,
        manifest.map_digest,
        manifest.key_id,
    )
    body += manifest.leaves + manifest.marks
    return body + key.seal(body, salt, cost)


def open_manifest(data: bytes, key: CheckingKey, name: str) -> SealManifest:
    """Return the content of a manifest, its seal checked before anything else in it is used.

    Args:
        data: its bytes, and no other.
        key: key that must have sealed it.
        name: name of the file in messages.

    Raises:
        FormatError: it is not a manifest, is damaged, or was not sealed by this key.
    """

    def refusal(what: str, expected: str | None = None, at: int | None = None) -> FormatError:
        return FormatError(what, source=name, offset=at, expected=expected, advice="give the manifest of this image")

    if len(data) < HEAD.size or not data.startswith(MAGIC):
        raise refusal("not the manifest of a seal", f"{HEAD.size} bytes or more that begin with {MAGIC[:14].decode()}")
    (
        _,
        version,
        kind_number,
        size_bytes,
        counter,
        block_bytes,
        leaf_blocks,
        header_block,
        pages,
        entries,
        tail,
        salt,
        log2_n,
        r,
        p,
        reserved,
        header_digest,
        map_digest,
        key_id,
    ) = HEAD.unpack_from(data)
    if version != VERSION:
        raise refusal(f"the manifest has version {version}", str(VERSION), 16)
    if kind_number not in list(SealKind):
        raise refusal(f"the manifest has a seal of kind {kind_number}", "1 or 2", 20)
    kind, cost = SealKind(kind_number), ScryptCost(log2_n, r, p)
    if (block_bytes, leaf_blocks) != (BLOCK_BYTES, LEAF_BLOCKS):
        raise refusal(f"leaves of {leaf_blocks} blocks of {block_bytes} bytes", f"{LEAF_BLOCKS} of {BLOCK_BYTES}", 40)
    if not _fits(pages, entries):
        raise refusal(f"the manifest has {entries} entries in {pages} map pages", f"at most {MOST_ENTRIES} entries", 56)
    wanted = manifest_bytes(kind, pages, entries)
    if size_bytes != wanted or len(data) != wanted:
        raise refusal(f"the manifest states {size_bytes} bytes and has {len(data)}", f"{wanted} bytes", 24)
    if reserved != RESERVED:
        raise refusal("reserved bytes are set", "zeroes", 140)
    has_salt = salt != bytes(SALT_BYTES)
    if kind is SealKind.PASSPHRASE and not (cost.is_accepted and has_salt):
        raise refusal("the cost of the passphrase's key is out of bounds", "2^14 to 2^18, 8, 1, and a salt", 112)
    if kind is not SealKind.PASSPHRASE and (has_salt or any((log2_n, r, p))):
        raise refusal("a signature has no salt and no cost", "zeroes", 112)
    if kind is not key.kind:
        raise FormatError(
            f"the manifest is sealed with {SEAL_WORDS[kind]}",
            source=name,
            expected=SEAL_WORDS[key.kind],
            advice="give the key of this seal: --key for Ed25519, --secret for a passphrase",
        )
    body, seal = data[: -SEAL_BYTES[kind]], data[-SEAL_BYTES[kind] :]
    if not key.accepts(seal, body, salt, cost):
        raise FormatError(
            "the seal is not this key's, or the manifest was changed",
            source=name,
            advice="give the key that sealed it, and with that key, take the image for touched",
        )
    ends = HEAD.size + 32 * -(-entries // LEAF_BLOCKS)
    return SealManifest(
        kind=kind,
        counter=counter,
        header_block=header_block,
        map_pages=pages,
        entries=entries,
        tail=tail,
        header_digest=header_digest,
        map_digest=map_digest,
        leaves=data[HEAD.size : ends],
        marks=data[ends : -SEAL_BYTES[kind]],
        key_id=key_id,
    )
