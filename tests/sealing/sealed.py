# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed images of a few pages, whose blocks a second reader lists, and areas in memory."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.keys import PassphraseKey, PublicKey, ScryptCost, SigningKey
from hibernaut.sealing.making import make_manifest
from hibernaut.sealing.manifest import SealManifest, open_manifest
from hibernaut.sealing.verification import verify_image
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {
    pfn: None if pfn % 7 == 3 else np.random.default_rng(pfn).bytes(4096) for pfn in range(8, 48)
}
LAYOUT = naive.Layout(compressor="lzo", shuffle_seed=7, header_block=2, spare_blocks=9)
COST = ScryptCost(log2_n=14)
SECRET = PassphraseKey(b"a passphrase")


@functools.cache
def keys() -> SigningKey:
    """Return a pair of keys that stays the same."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = bytes(range(32))
    return SigningKey(raw, PublicKey(Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()))


@dataclass
class Memory:
    """A device in memory, which counts what is read.

    Attributes:
        device: its bytes.
        name: name in messages.
        read: blocks read, in order.
    """

    device: bytes | bytearray
    name: str = "area"
    read: list[int] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """Number of whole blocks."""
        return len(self.device) // 4096

    def read_into(self, block: int, out: memoryview) -> int:
        """Copy bytes, as a file does."""
        found = self.device[block * 4096 : block * 4096 + len(out)]
        out[: len(found)] = found
        self.read += range(block, block + len(found) // 4096)
        return len(found)


class Patched:
    """A device in a file, with some bytes changed.

    Args:
        file: the device.
        at: first byte.
        data: bytes in place of those of the file, within one block.
    """

    def __init__(self, file: BlockFile, at: int, data: bytes) -> None:
        self.name, self.blocks = file.name, file.blocks
        self._file, self._at, self._data = file, at, data

    def read_into(self, block: int, out: memoryview) -> int:
        """Read from the file, then put the change in."""
        got = self._file.read_into(block, out)
        place = self._at - block * 4096
        if 0 <= place < got:
            out[place : place + len(self._data)] = self._data
        return got


def sealed(device: bytes, header_block: int = LAYOUT.header_block, counter: int = 0) -> SealManifest:
    """Return the manifest of an image, sealed and opened again."""
    data, _, _, _ = make_manifest(Memory(device), keys(), header_block=header_block, counter=counter)
    return open_manifest(data, keys().public, "manifest")


def state(device: bytes, manifest: SealManifest, header_block: int = LAYOUT.header_block) -> str:
    """Return the state of an image, or "no image"."""
    try:
        return verify_image(Memory(device), manifest, header_block=header_block, workers=1).state
    except FormatError:
        return "no image"


def blocks_of(device: bytes, header_block: int = LAYOUT.header_block) -> tuple[list[int], list[int]]:
    """Return map pages and entries in order, by struct alone."""
    chain, entries = [], []
    (block,) = struct.unpack_from("<Q", device, header_block * 4096 + 4064)
    while block:
        chain.append(block)
        words = struct.unpack_from("<512Q", device, block * 4096)
        entries += [word for word in words[:511] if word]
        block = words[511]
    return chain, entries


def changed(device: bytes, at: int, data: bytes) -> bytes:
    """Return the device with other bytes at a place."""
    return device[:at] + data + device[at + len(data) :]
