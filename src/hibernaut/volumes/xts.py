# SPDX-License-Identifier: GPL-2.0-or-later
"""AES-XTS with the sector number as the tweak (dm-crypt's aes-xts-plain64), for many sectors at once.

IEEE 1619-2018, 5.3: a block of a sector is XORed with its tweak before and after AES; the tweaks are the encrypted
sector number, multiplied by x once for each block. So one AES call does all sectors, and NumPy the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hibernaut.volumes.extras import need
from hibernaut.volumes.volume import Bytes, Volume

__all__ = ["XtsVolume"]

BLOCK_BYTES = 16
POLYNOMIAL = 0x87
"""x^128 = x^7 + x^2 + x + 1."""
PIECE_BYTES = 1 << 20
"""Bytes decrypted at a time: what is intermediate stays in the cache."""
IV_SECTOR_BYTES = 512
"""Unit of the sector number, whatever the size of the sectors."""


class XtsVolume:
    """A decrypted volume. Several threads may read at a time.

    Args:
        volume: the encrypted volume.
        start: first byte of the data on it, a multiple of 512.
        size_bytes: length of the data.
        key: both AES keys, 32 or 64 bytes.
        sector_bytes: size of a sector, 512 to 4096.
        first_sector: number of the first sector, in units of 512 bytes.
        name: name in messages.
    """

    def __init__(
        self,
        volume: Volume,
        start: int,
        size_bytes: int,
        key: bytes,
        *,
        sector_bytes: int = IV_SECTOR_BYTES,
        first_sector: int = 0,
        name: str,
    ) -> None:
        ciphers = need("cryptography.hazmat.primitives.ciphers")
        half = len(key) // 2
        self._data, self._tweak = (
            ciphers.Cipher(ciphers.algorithms.AES(part), ciphers.modes.ECB()) for part in (key[:half], key[half:])
        )
        self.name = name
        self.size_bytes = size_bytes - size_bytes % sector_bytes
        self._volume = volume
        self._start = start
        self._sector_bytes = sector_bytes
        self._first_sector = first_sector

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume.pread`."""
        out = np.empty(max(min(size_bytes, self.size_bytes - offset), 0), dtype=np.uint8)
        return out[: self.pread_into(offset, out)].tobytes()

    def pread_into(self, offset: int, out: Bytes) -> int:
        """See `Volume.pread_into`."""
        end = min(offset + len(out), self.size_bytes)
        done = 0
        while offset + done < end:
            at = offset + done
            first = at - at % self._sector_bytes
            last = min(first + PIECE_BYTES, -(-end // self._sector_bytes) * self._sector_bytes)
            plain = self._decrypted(first, last - first)
            piece = plain[at - first : end - first]
            if not len(piece):
                break
            out[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def _decrypted(self, first: int, size_bytes: int) -> Bytes:
        """Return whole sectors, shape (n,), fewer at the end of the volume."""
        raw = np.empty(size_bytes, dtype=np.uint8)
        got = self._volume.pread_into(self._start + first, raw)
        words = raw[: got - got % self._sector_bytes].view(np.uint64)
        words ^= (tweaks := self._tweaks(first, len(words) * 8))
        plain = np.frombuffer(self._data.decryptor().update(words.data.cast("B")), dtype=np.uint64)
        return np.bitwise_xor(plain, tweaks, out=words).view(np.uint8)

    def _tweaks(self, first: int, size_bytes: int) -> NDArray[np.uint64]:
        """Return the tweak of each block, two words each, shape (size_bytes // 8,)."""
        sectors = size_bytes // self._sector_bytes
        step = self._sector_bytes // IV_SECTOR_BYTES
        numbers = np.zeros((sectors, 2), dtype=np.uint64)
        numbers[:, 0] = self._first_sector + first // IV_SECTOR_BYTES + step * np.arange(sectors, dtype=np.uint64)
        low, high = (
            np.frombuffer(self._tweak.encryptor().update(numbers.data.cast("B")), dtype=np.uint64)
            .reshape(-1, 2)
            .T.copy()
        )
        tweaks = np.empty((sectors, self._sector_bytes // BLOCK_BYTES, 2), dtype=np.uint64)
        for block in range(tweaks.shape[1]):
            tweaks[:, block, 0], tweaks[:, block, 1] = low, high
            carry = (high >> np.uint64(63)) * np.uint64(POLYNOMIAL)
            high = high << np.uint64(1) | low >> np.uint64(63)
            low = low << np.uint64(1) ^ carry
        return tweaks.reshape(-1)
