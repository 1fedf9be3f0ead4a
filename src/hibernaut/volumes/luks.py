# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypted volumes (LUKS1, LUKS2). dissect.fve reads headers and key slots; AES-XTS is decrypted here, faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hibernaut.errors import FormatError
from hibernaut.volumes.extras import decoding, need
from hibernaut.volumes.volume import StreamVolume, Volume, VolumeFile
from hibernaut.volumes.xts import XtsVolume

__all__ = ["LUKS_MAGIC", "is_luks", "unlock"]

LUKS_MAGIC = b"LUKS\xba\xbe"
FAST = ("aes-xts-plain64", "aes-xts-plain")
PLAIN_LIMIT_BYTES = 512 << 32
"""Up to here, `plain` (a sector number of 32 bits) and `plain64` are the same."""
MOST_MEMORY_KIB = 8 << 20
MOST_TIME = 1 << 10
MOST_ITERATIONS = 1 << 30
MOST_KEY_BYTES = 512
MOST_STRIPES = 1 << 16
"""cryptsetup always makes 4000."""
CHECK = "check the volume with `cryptsetup luksDump`"


def is_luks(volume: Volume) -> bool:
    """Return whether a volume begins with a LUKS header."""
    return volume.pread(0, len(LUKS_MAGIC)) == LUKS_MAGIC


def unlock(volume: Volume, passphrases: Sequence[bytes]) -> Volume:
    """Return the decrypted volume.

    Args:
        volume: the encrypted volume.
        passphrases: tried one after another.

    Raises:
        FormatError: no passphrase fits, the header is damaged, or asks for too much.
        HibernautError: a library is not installed.
    """
    with decoding("the LUKS header", volume.name, advice=CHECK):
        luks = need("dissect.fve.luks").LUKS(VolumeFile(volume))
        _check(volume, luks)
    if not any(_fits(volume, luks, passphrase) for passphrase in passphrases):
        tried = (
            f"none of {len(passphrases)} passphrases fits" if len(passphrases) > 1 else "the passphrase does not fit"
        )
        raise FormatError(
            f"an encrypted volume (LUKS{luks.header.version}, UUID {luks.uuid}): "
            + (tried if passphrases else "a passphrase is needed"),
            source=volume.name,
            advice="give it with --passphrase-file" if not passphrases else "give another one",
        )
    with decoding("the LUKS header", volume.name, advice=CHECK):
        stream = luks.open()
        (segment,) = luks.metadata.segments.values()
        size_bytes, name = int(stream.size), f"{volume.name}, decrypted"
        if segment.encryption in FAST and (segment.encryption == FAST[0] or size_bytes <= PLAIN_LIMIT_BYTES):
            return XtsVolume(
                volume,
                int(stream.offset),
                size_bytes,
                stream.cipher.key,
                sector_bytes=int(stream.sector_size),
                first_sector=int(stream.iv_tweak),
                name=name,
            )
        return StreamVolume(stream, size_bytes, name, advice=CHECK)


def _check(volume: Volume, luks: Any) -> None:
    """Raise FormatError for a volume that is being encrypted, or whose header would have us compute for ever."""
    required = getattr(getattr(luks.metadata, "config", None), "requirements", None)
    if len(luks.metadata.segments) != 1 or required:
        raise FormatError(
            "the LUKS volume is in the midst of a reencryption, or needs a feature that is not read",
            source=volume.name,
            advice="run `cryptsetup reencrypt` to its end first",
        )
    for number, slot in luks.keyslots.items():
        kdf = slot.kdf
        memory, time, iterations = (getattr(kdf, name, None) or 0 for name in ("memory", "time", "iterations"))
        if memory > MOST_MEMORY_KIB or time > MOST_TIME or iterations > MOST_ITERATIONS:
            raise FormatError(
                f"key slot {number} asks for {memory} KiB of memory and {time or iterations} iterations",
                source=volume.name,
                expected=f"at most {MOST_MEMORY_KIB} KiB, {MOST_TIME} or {MOST_ITERATIONS}",
                advice=CHECK,
            )
        if not 0 < slot.key_size <= MOST_KEY_BYTES or not 0 < slot.af.stripes <= MOST_STRIPES:
            raise FormatError(
                f"key slot {number} has a key of {slot.key_size} bytes in {slot.af.stripes} stripes",
                source=volume.name,
                expected=f"at most {MOST_KEY_BYTES} bytes, {MOST_STRIPES} stripes",
                advice=CHECK,
            )


def _fits(volume: Volume, luks: Any, passphrase: bytes) -> bool:
    """Unlock with a passphrase and return whether it fits."""
    with decoding("the LUKS key slots", volume.name, advice=CHECK):
        try:
            luks.unlock_with_passphrase(passphrase)
        except ValueError as error:
            if "errors for" in str(error):
                raise
            return False
    return True
