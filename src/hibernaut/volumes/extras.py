# SPDX-License-Identifier: GPL-2.0-or-later
"""Libraries of the extra `disk`, imported on use, and what they raise on damaged input."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hibernaut.errors import FormatError, HibernautError, how_to_install

__all__ = ["decoding", "need"]

PACKAGES = (
    "dissect.btrfs",
    "dissect.evidence",
    "dissect.extfs",
    "dissect.fve",
    "dissect.hypervisor",
    "dissect.volume",
    "dissect.xfs",
    "cryptography",
)
"""The extra `disk`. dissect's packages are AGPL-3.0-or-later."""


def need(name: str) -> Any:
    """Import a module of the extra `disk`. Raises HibernautError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise HibernautError(
            f"{name.rsplit('.', 1)[0] if name.count('.') > 1 else name} is not installed: virtual disks, logical "
            "volumes, encrypted volumes and file systems are read with it",
            advice=how_to_install(*PACKAGES),
        ) from error


@contextmanager
def decoding(what: str, name: str, *, offset: int | None = None, advice: str) -> Iterator[None]:
    """Turn any exception of a library that reads untrusted bytes into one line. Ours, and the system's, stay.

    Args:
        what: what is read, for the message.
        name: name of the volume.
        offset: byte at which it is read.
        advice: what to do next.

    Raises:
        FormatError: the library failed.
    """
    try:
        yield
    except (HibernautError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
        raise FormatError(
            f"{what} is damaged, or of a kind that is not read ({reason})",
            source=name,
            offset=offset,
            advice=advice,
        ) from error
