# SPDX-License-Identifier: GPL-2.0-or-later
"""The image that a kernel would write: pages, zero pages, size when compressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hibernaut.memory.page import PAGE_SIZE, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named
from hibernaut.swsusp.declarations import LENGTH_BYTES, MAP_ENTRIES, PFNS_PER_META_PAGE, UNIT_PAGES

__all__ = ["PredictedImage", "image_blocks", "predict_image"]

MOST_UNITS = 1024
"""Units that are compressed: of a larger machine, so many spread evenly over its pages."""
LOOSER_LIBRARY = "lzallright"
"""Library that compresses LZO better than the kernel does (`swsusp.codecs`): 17.0 MB where the kernel wrote 20.7."""


@dataclass(frozen=True)
class PredictedImage:
    """An image before it is written.

    Attributes:
        pages: pages to copy, as the kernel announces them ("Need to copy").
        zero_pages: those that contain only zeroes.
        stored_pages: pages in the stream: those that are stored, and the list of frames.
        compressor: compressor that was tried.
        compressed_bytes: size of the compressed data ("Image size after compression").
        blocks: blocks of the swap area that all of it takes, the swap map and the header page included.
        sampled: whether only a part of the pages was compressed.
        by_kernels_library: whether the kernel's own algorithm compressed them: liblzo2's for LZO, LZ4's own. The other
            library for LZO was seen to need a sixth less.
    """

    pages: int
    zero_pages: int
    stored_pages: int
    compressor: CompressorName
    compressed_bytes: int
    blocks: int
    sampled: bool
    by_kernels_library: bool = True

    def scaled(self, pages: int) -> PredictedImage:
        """Return the image of another number of pages of the same kind."""
        share = pages / self.pages if self.pages else 1.0
        return PredictedImage(
            pages,
            round(self.zero_pages * share),
            round(self.stored_pages * share),
            self.compressor,
            round(self.compressed_bytes * share),
            round(self.blocks * share),
            self.sampled,
            self.by_kernels_library,
        )


def image_blocks(data_blocks: int) -> int:
    """Return the blocks of an image whose data takes so many: these, the header page, the swap map's pages."""
    entries = data_blocks + 1
    return entries + -(-entries // MAP_ENTRIES)


def predict_image(
    memory: PhysicalMemory, pfns: Pfns, *, zero_pages: bool, compressor: CompressorName
) -> PredictedImage:
    """Return the image of some pages of memory.

    Args:
        memory: the memory.
        pfns: frames to save, int64, ascending.
        zero_pages: whether the kernel leaves out pages that contain only zeroes.
        compressor: lzo or lz4.
    """
    codec = codec_named(compressor)
    units = -(-len(pfns) // UNIT_PAGES)
    chosen = np.unique(np.linspace(0, max(units - 1, 0), min(units, MOST_UNITS)).astype(np.int64))
    data, zeroes, seen = _Packed(codec), 0, 0
    for unit in chosen:
        pages, _ = memory.gather(pfns[unit * UNIT_PAGES : (unit + 1) * UNIT_PAGES])
        seen += len(pages)
        if zero_pages:
            filled = pages.view(np.uint64).any(axis=1)
            zeroes += int((~filled).sum())
            pages = pages[filled]
        data.add(pages)
    data.end()
    share = len(pfns) / seen if seen else 1.0
    listed = _Packed(codec)
    words = np.concatenate([pfns.astype("<u8"), np.zeros(-len(pfns) % PFNS_PER_META_PAGE, dtype="<u8")])
    listed.add(words.view(np.uint8).reshape(-1, PAGE_SIZE))
    listed.end()
    return PredictedImage(
        len(pfns),
        round(zeroes * share),
        round(data.pages * share) + listed.pages,
        compressor,
        round(data.compressed_bytes * share) + listed.compressed_bytes,
        image_blocks(round(data.blocks * share) + listed.blocks),
        units > MOST_UNITS,
        codec.library != LOOSER_LIBRARY,
    )


class _Packed:
    """Pages of a stream, compressed unit by unit and counted."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._held = np.empty((0, PAGE_SIZE), dtype=np.uint8)
        self.pages = self.compressed_bytes = self.blocks = 0

    def add(self, pages: Bytes) -> None:
        """Add pages, shape (n, 4096)."""
        self._held = np.concatenate([self._held, pages])
        while len(self._held) >= UNIT_PAGES:
            self._pack(self._held[:UNIT_PAGES])
            self._held = self._held[UNIT_PAGES:]

    def end(self) -> None:
        """Compress the last unit, which may be shorter."""
        if len(self._held):
            self._pack(self._held)
        self._held = self._held[:0]

    def _pack(self, pages: Bytes) -> None:
        length = len(self._codec.compress(np.ascontiguousarray(pages).reshape(-1)))
        self.pages += len(pages)
        self.compressed_bytes += length
        self.blocks += -(-(LENGTH_BYTES + length) // PAGE_SIZE)
