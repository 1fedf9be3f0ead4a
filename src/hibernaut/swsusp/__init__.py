# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's hibernation image: declarations, reader, writer, checker, verdict."""

from __future__ import annotations

from hibernaut.swsusp.checker import Inspection, Problem, inspect_image
from hibernaut.swsusp.header import looks_like_swap
from hibernaut.swsusp.image import Image, ImageMemory, open_image
from hibernaut.swsusp.rewrite import rewrite_image

__all__ = [
    "Image",
    "ImageMemory",
    "Inspection",
    "Problem",
    "inspect_image",
    "looks_like_swap",
    "open_image",
    "rewrite_image",
]
