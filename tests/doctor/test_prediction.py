# SPDX-License-Identifier: GPL-2.0-or-later
"""The predicted image of a dump against the image that its own kernel wrote."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from hibernaut.doctor import prediction
from hibernaut.doctor.prediction import image_blocks, predict_image
from hibernaut.doctor.source_facts import source_facts
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.sources import open_memory
from hibernaut.swsusp import codecs, open_image
from hibernaut.volumes.files import open_plain
from tests.conftest import Golden


def test_the_image_of_a_real_kernel(golden: Golden) -> None:
    """6.1's guest: the same pages, and the size of the compressed data and its blocks within 2 %."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        pfns = pages_to_save(source).pfns
        assert pfns is not None
        found = predict_image(source.memory, np.asarray(pfns), zero_pages=False, compressor="lzo")
    with open_image(golden("swap-6.1-lzo.img")) as image:
        index = image.stream.index
        written = int(index.compressed_bytes.sum())
        assert found.pages == image.saved_pages
        assert found.stored_pages == image.info.stream_pages
        blocks = len(image.swap_map.entries) + len(image.swap_map.map_blocks)
    if not found.by_kernels_library:
        pytest.skip("liblzo2, which compresses as the kernel does, is not installed")
    assert abs(found.compressed_bytes - written) < written * 0.02
    assert abs(found.blocks - blocks) < blocks * 0.02


def test_another_library_is_told_apart(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lzallright compresses better than the kernel: its sizes are a lower bound, and marked as such."""
    monkeypatch.setattr(prediction, "codec_named", lambda _: codecs._lzallright())
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        found = predict_image(source.memory, np.arange(0x1000, 0x1400), zero_pages=False, compressor="lzo")
    assert not found.by_kernels_library
    assert found.compressed_bytes < 0x400 * 4096


def test_zero_pages_are_left_out(golden: Golden) -> None:
    """Kernels since 6.6 store no page that contains only zeroes, and list it all the same."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        pfns = np.asarray(pages_to_save(source).pfns)
        with_zeroes, without = (
            predict_image(source.memory, pfns, zero_pages=one, compressor="lzo") for one in (False, True)
        )
        zero = int((~source.memory.gather(pfns)[0].view(np.uint64).any(axis=1)).sum())
    assert without.zero_pages == zero > 0
    assert with_zeroes.stored_pages - without.stored_pages == zero
    assert without.pages == with_zeroes.pages


def test_a_sample_is_scaled(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pages a part is compressed: the number of pages is exact, the size near that of all."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        pfns = np.asarray(pages_to_save(source).pfns)
        whole = predict_image(source.memory, pfns, zero_pages=False, compressor="lzo")
        monkeypatch.setattr(prediction, "MOST_UNITS", 200)
        part = predict_image(source.memory, pfns, zero_pages=False, compressor="lzo")
    assert (whole.sampled, part.sampled) == (False, True)
    assert part.pages == whole.pages
    assert abs(part.compressed_bytes - whole.compressed_bytes) < whole.compressed_bytes * 0.1
    twice = whole.scaled(2 * whole.pages)
    assert (twice.pages, twice.blocks) == (2 * whole.pages, 2 * whole.blocks)


def test_blocks_of_an_image() -> None:
    """The header page, and a page of the swap map for each 511 blocks."""
    assert [image_blocks(one) for one in (0, 1, 510, 511)] == [2, 3, 512, 514]


@pytest.mark.parametrize("compressor", ["lz4", "lzo", None])
def test_the_kernels_own_compressor_is_tried(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, compressor: codecs.CompressorName | None
) -> None:
    """The size is that by the compressor that the kernel uses; without a known one there is no prediction."""
    monkeypatch.setattr("hibernaut.doctor.source_facts.image_compressor", lambda _: compressor)
    with ExitStack() as stack, open_plain(golden("ram-6.1-lzo.elf")) as volume:
        found = source_facts(stack, volume).machine.predicted
    assert (None if found is None else found.compressor) == compressor
