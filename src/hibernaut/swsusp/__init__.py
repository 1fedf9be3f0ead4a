# SPDX-License-Identifier: GPL-2.0-or-later
"""The image file of Linux's hibernation: declarations, reader, writer, checker."""

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
