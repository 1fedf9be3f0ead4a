# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that take an image as a whole or not at all, and why."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SALVAGE_OPTIONS", "WHOLE_ONLY"]

SALVAGE_OPTIONS = ("--consumed", "--salvage", "--map-block")
"""Options of the commands that read damaged and used-up images as far as they go."""

WHOLE_ONLY: Mapping[str, str] = MappingProxyType(
    {
        "save": "a kernel would resume from an image that lacks what is lost",
        "rewrite": "a kernel would resume from an image that lacks what is lost",
        "lab resume": "a kernel resumes from a whole image alone",
    }
)
"""Reason by command."""
