# SPDX-License-Identifier: GPL-2.0-or-later
"""Closing at the end of a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """Base class of objects that a `with` block closes."""

    def close(self) -> None:
        """Release the resources of the object; none by default."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
