# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaving a `with` block closes."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """A context manager for whatever has a `close`."""

    def close(self) -> None:
        """Release what is held; nothing by default."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
