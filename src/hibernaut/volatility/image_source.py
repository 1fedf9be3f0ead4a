# SPDX-License-Identifier: GPL-2.0-or-later
"""A hibernation image as Volatility's layer reads it: found by the location that Volatility names, read by address.

Knows nothing of volatility3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.sources import Source, open_memory

__all__ = [
    "OPTIONS_VARIABLE",
    "ImagePlace",
    "image_at",
    "plugins_folder",
    "present_pieces",
    "read_physical",
    "source_options",
]

OPTIONS_VARIABLE = "HIBERNAUT_SOURCE_OPTIONS"
"""Environment variable that says where in its file an image lies: "offset=34816", "partition=2", "base=1048576"."""
OPTION_NAMES = ("offset", "partition", "base")
KEPT_PAGES = 8192


@dataclass(frozen=True)
class ImagePlace:
    """A hibernation image in a file.

    Attributes:
        path: path of the file or device.
        offset: as for `open_memory`.
        partition: as for `open_memory`.
        base: as for `open_memory`.
    """

    path: str
    offset: int = 0
    partition: int | None = None
    base: int | None = None

    @staticmethod
    def of(location: str, options: str) -> ImagePlace | None:
        """Return the place that a URL and the words of `OPTIONS_VARIABLE` name; None if the URL is not of a file.

        Raises:
            HibernautError: a word is not an option with a number.
        """
        url = urlsplit(location)
        if url.scheme != "file":
            return None
        given: dict[str, int] = {}
        for word in options.split():
            name, _, value = word.partition("=")
            try:
                given[name] = int(value, 0)
            except ValueError:
                name = ""
            if name not in OPTION_NAMES or given[name] < 0:
                raise HibernautError(
                    f"{OPTIONS_VARIABLE}: {word!r} is not an option; expected {', '.join(OPTION_NAMES)}, each with "
                    "= and a number",
                    advice=f"give {OPTIONS_VARIABLE} as in offset=34816",
                )
        return ImagePlace(url2pathname(url.path), **given)


@lru_cache(maxsize=8)
def image_at(place: ImagePlace) -> Source | None:
    """Return the open memory of the image at a place; None if the file holds no image and none was asked for.

    Raises:
        HibernautError: the image is damaged, or there is none where the options say.
        OSError: the file cannot be read.
    """
    source = open_memory(place.path, offset=place.offset, partition=place.partition, base=place.base)
    if source.image is None:
        source.close()
        return None
    return source


@lru_cache(maxsize=KEPT_PAGES)
def _page(place: ImagePlace, pfn: int) -> bytes | None:
    source = image_at(place)
    page = None if source is None else source.memory.page(pfn)
    return None if page is None else page.tobytes()


def read_physical(place: ImagePlace, address: int, size_bytes: int) -> bytes:
    """Return bytes of an image's memory, zeroes where a frame is absent.

    Raises:
        FormatError: a unit of the image is damaged.
        OSError: the file cannot be read.
    """
    first, within = divmod(address, PAGE_SIZE)
    if within + size_bytes <= PAGE_SIZE:
        page = _page(place, first)
        return bytes(size_bytes) if page is None else page[within : within + size_bytes]
    source = image_at(place)
    assert source is not None, "the layer has an image"
    pages, _ = source.memory.gather(np.arange(first, (address + size_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT))
    return pages.reshape(-1)[within : within + size_bytes].tobytes()


def present_pieces(source: Source, start: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the address and the length in bytes of each contiguous piece of memory between two addresses."""
    end = start + size_bytes
    for pfn, nr_pages in source.memory.ranges:
        first, last = max(start, pfn << PAGE_SHIFT), min(end, (pfn + nr_pages) << PAGE_SHIFT)
        if first < last:
            yield first, last - first


def plugins_folder() -> Path:
    """Return the folder that Volatility loads plug-ins from, for `vol -p`."""
    return Path(__file__).parent / "plugins"


def source_options() -> str:
    """Return the words of `OPTIONS_VARIABLE`."""
    return os.environ.get(OPTIONS_VARIABLE, "")
