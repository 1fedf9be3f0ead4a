# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes: bytes by position, whatever holds them. A part of one, one that a library decodes, and the way back."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.extras import decoding

__all__ = ["Joined", "Mapped", "Slice", "StreamVolume", "Striped", "Volume", "VolumeFile", "close_volume"]

Bytes = NDArray[np.uint8]
"""Shape (n,)."""


@runtime_checkable
class Volume(Protocol):
    """Bytes by position. Several threads may read at a time.

    Attributes:
        name: name in messages.
        size_bytes: length, never 0.
    """

    name: str
    size_bytes: int

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes at a position: fewer than requested only at the end, none beyond it."""

    def pread_into(self, offset: int, out: Bytes) -> int:
        """Read bytes at a position into an array, shape (n,), contiguous, and return their number (see `pread`)."""


def close_volume(volume: Volume) -> None:
    """Close a volume that can be closed."""
    if isinstance(volume, Closing):
        volume.close()


class _Assembled(ABC):
    """A volume that is put together from others, piece by piece."""

    name: str
    size_bytes: int

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume.pread`."""
        out = np.empty(max(min(size_bytes, self.size_bytes - offset), 0), dtype=np.uint8)
        return out[: self.pread_into(offset, out)].tobytes()

    def pread_into(self, offset: int, out: Bytes) -> int:
        """See `Volume.pread_into`."""
        wanted = min(len(out), self.size_bytes - offset)
        done = 0
        while done < wanted:
            volume, start, length = self._piece(offset + done)
            piece = out[done : done + min(length, wanted - done)]
            if volume is None:
                piece[:] = 0
            elif (got := volume.pread_into(start, piece)) < len(piece):
                return done + got
            done += len(piece)
        return done

    @abstractmethod
    def _piece(self, offset: int) -> tuple[Volume | None, int, int]:
        """Return the volume that has a byte (None for zeroes), its position there, and how many bytes follow it."""


class Mapped(_Assembled):
    """A volume that consists of runs of bytes of another one, in order: a logical volume, a file in a file system.

    Args:
        volume: the other volume.
        runs: (first byte, length) of each run; None as the first byte of a run of zeroes.
        name: name in messages.

    Raises:
        FormatError: a run is outside the volume, or there are no bytes at all.
    """

    def __init__(self, volume: Volume, runs: Sequence[tuple[int | None, int]], name: str) -> None:
        self.name = name
        self._volume = volume
        self._runs = [(start, length) for start, length in runs if length > 0]
        self._ends = np.cumsum([length for _, length in self._runs], dtype=np.int64)
        for start, length in self._runs:
            if start is not None and not 0 <= start <= volume.size_bytes - length:
                raise FormatError(
                    f"{name} has {length} bytes at byte {start}",
                    source=volume.name,
                    expected=f"bytes below {volume.size_bytes}",
                    advice="copy the whole disk again: this one is cut",
                )
        if not self._runs:
            raise FormatError(f"{name} is empty", source=volume.name, advice="give another one")
        self.size_bytes = int(self._ends[-1])

    def _piece(self, offset: int) -> tuple[Volume | None, int, int]:
        number = int(np.searchsorted(self._ends, offset, side="right"))
        start, length = self._runs[number]
        inside = offset - (int(self._ends[number]) - length)
        return (None, 0, length - inside) if start is None else (self._volume, start + inside, length - inside)


class Joined(_Assembled):
    """Volumes one after another."""

    def __init__(self, parts: Sequence[Volume], name: str) -> None:
        self.name = name
        self._parts = parts
        self._ends = np.cumsum([part.size_bytes for part in parts], dtype=np.int64)
        self.size_bytes = int(self._ends[-1])

    def _piece(self, offset: int) -> tuple[Volume | None, int, int]:
        number = int(np.searchsorted(self._ends, offset, side="right"))
        left = int(self._ends[number]) - offset
        return self._parts[number], self._parts[number].size_bytes - left, left


class Striped(_Assembled):
    """Volumes of the same length that take turns, so many bytes each. Raises ValueError for stripes without bytes."""

    def __init__(self, parts: Sequence[Volume], stripe_bytes: int, name: str) -> None:
        if stripe_bytes <= 0:
            raise ValueError(f"{name} has stripes of {stripe_bytes} bytes")
        self.name = name
        self._parts = parts
        self._stripe_bytes = stripe_bytes
        self.size_bytes = sum(part.size_bytes for part in parts)

    def _piece(self, offset: int) -> tuple[Volume | None, int, int]:
        stripe, inside = divmod(offset, self._stripe_bytes)
        row, column = divmod(stripe, len(self._parts))
        return self._parts[column], row * self._stripe_bytes + inside, self._stripe_bytes - inside


class Slice(Mapped):
    """A contiguous part of another volume, cut at its end.

    Args:
        volume: the other volume.
        start: its first byte.
        size_bytes: its length.
        name: name in messages.

    Raises:
        FormatError: it begins behind the end of the volume.
    """

    def __init__(self, volume: Volume, start: int, size_bytes: int, name: str) -> None:
        if not 0 <= start < volume.size_bytes:
            raise FormatError(
                f"{name} begins at byte {start}",
                source=volume.name,
                expected=f"below {volume.size_bytes}, the end of the volume",
                advice="copy the whole disk again: this one is cut",
            )
        super().__init__(volume, [(start, min(size_bytes, volume.size_bytes - start))], name)


class _Stream(Protocol):
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes | None: ...


class StreamVolume:
    """A stream of a library that decodes a container. Its position is shared, so threads read one after another.

    Args:
        stream: the stream.
        size_bytes: its length.
        name: name in messages.
        advice: what to do next if it is damaged.
    """

    def __init__(self, stream: _Stream, size_bytes: int, name: str, *, advice: str) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._stream = stream
        self._advice = advice
        self._lock = threading.Lock()

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume.pread`. Raises FormatError if the container is damaged there."""
        size_bytes = min(size_bytes, self.size_bytes - offset)
        if size_bytes <= 0:
            return b""
        with decoding("this part", self.name, offset=offset, advice=self._advice), self._lock:
            self._stream.seek(offset)
            return self._stream.read(size_bytes) or b""

    def pread_into(self, offset: int, out: Bytes) -> int:
        """See `Volume.pread_into`. Raises FormatError if the container is damaged there."""
        data = self.pread(offset, len(out))
        out[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return len(data)


class VolumeFile(io.RawIOBase):
    """A volume as the seekable binary file that libraries read.

    Args:
        volume: the volume; it stays open.
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__()
        self._volume = volume
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._volume.size_bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes from the position on: fewer than requested only at the end."""
        left = max(self._volume.size_bytes - self._at, 0)
        data = self._volume.pread(self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """Return all bytes from the position on."""
        return self.read()

    def readinto(self, buffer: object, /) -> int:
        """Fill a buffer from the position on and return the number of bytes."""
        out = np.frombuffer(buffer, dtype=np.uint8)  # type: ignore[call-overload]
        got = self._volume.pread_into(self._at, out)
        self._at += got
        return int(got)
