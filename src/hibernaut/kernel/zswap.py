# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that zswap keeps compressed in memory, whose slots on disk are empty or older.

`zswap_trees` (mm/zswap.c) has a tree of `struct zswap_entry` for each area: a red-black tree by slot, or XArrays of
2^14 slots. An entry of length 0 stands for a page of one repeated word, one of 4096 in kernels that count such pages
for a page that is not compressed; in others compressed data may have that length, too.
The data lie in zbud (mm/zbud.c), where the handle is their address, or in zsmalloc (mm/zsmalloc.c): the handle leads to
page frame and number of an object, which begins with the handle and may continue in the next page.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.lzo_rle import decompress_lzo_rle
from hibernaut.kernel.program import ask, each
from hibernaut.kernel.reading import rb_objects
from hibernaut.kernel.swap_areas import SwapAreaInUse
from hibernaut.kernel.xarray import read_xarray
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.codecs import codec_named

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import BoolArray, Bytes

__all__ = ["DECOMPRESSORS", "ZswapPages"]

TREE_SLOTS = 1 << 14
"""`SWAP_ADDRESS_SPACE_PAGES` (mm/swap.h)."""
MAX_ENTRIES = 1 << 24
PFN_BITS = 40
"""`_PFN_BITS` (mm/zsmalloc.c) on x86-64: 52 bits of physical address."""
OBJECT_LAYOUTS = ((1, 23, 23), (0, 24, 24), (0, 24, 15))
"""Layouts of the place in a handle: bits to drop, bits below the page frame, bits of the object's number. The
first is 6.1's, the others are those of 6.12 and 7.3; the one is taken by which the object begins with its handle."""
ALLOCATED = 1
HANDLE_BYTES = 8
KEEPS_INCOMPRESSIBLE = "zswap_stored_incompressible_pages"
"""A counter of the kernels that keep pages as they are if they do not get smaller."""
ZBUD_HEADER = "struct zswap_header"
ALGORITHM_BYTES = 128


class ZswapPages:
    """The pages of one swap area that zswap has.

    Args:
        kernel: the kernel.
        area: the area.

    Raises:
        FormatError: zswap's trees are damaged or not in the memory.
    """

    def __init__(self, kernel: Kernel, area: SwapAreaInUse) -> None:
        self._kernel = kernel
        slots, entries = _entries(kernel, area)
        order = np.argsort(slots, kind="stable")
        self._slots, self._entries = slots[order], entries[order]

    def has(self, slots: npt.NDArray[np.int64]) -> BoolArray:
        """Return which slots it has, shape as `slots`."""
        return np.isin(slots, self._slots)

    def page(self, slot: int) -> Bytes:
        """Return the page of a slot that it has, uint8, shape (4096,).

        Raises:
            FormatError: its data are not in the memory or damaged, or compressed in a way that cannot be read here.
        """
        address = int(self._entries[np.searchsorted(self._slots, slot)])
        entry = ask(self._kernel, "zswap entry", lambda: self._kernel.object("struct zswap_entry", address).read_())
        return ask(self._kernel, "zswap entry", lambda: self._content(entry))

    def _content(self, entry: Any) -> Bytes:
        length = int(entry.length)
        if length == 0 and hasattr(entry, "value"):
            return np.full(PAGE_SIZE // 8, int(entry.value), dtype=np.uint64).view(np.uint8)
        if not 0 < length <= PAGE_SIZE:
            raise self._kernel.damaged(f"a page in zswap has {length} bytes", f"1 to {PAGE_SIZE}")
        packed = self._packed(entry, length)
        if length == PAGE_SIZE and self._kernel.symbols.get(KEEPS_INCOMPRESSIBLE) is not None:
            return np.frombuffer(packed, dtype=np.uint8)
        algorithm = entry.pool.tfm_name.string_()[:ALGORITHM_BYTES].decode("ascii", "backslashreplace")
        return _decompress(self._kernel, algorithm, packed)

    def _packed(self, entry: Any, length: int) -> bytes:
        """Return the compressed bytes of an entry."""
        handle = int(entry.handle)
        pool = "zsmalloc"
        if hasattr(entry.pool, "zpool"):
            pool = entry.pool.zpool.driver.type.string_()[:32].decode("ascii", "backslashreplace")
        if pool == "zsmalloc":
            return self._of_zsmalloc(handle, length)
        if pool == "zbud":
            # Pages that zswap may write back begin with their swap entry.
            header_bytes = self._kernel.drgn().type(ZBUD_HEADER).size
            return self._kernel.read(handle + header_bytes, length, "page in zbud")
        raise self._kernel.damaged(f"its pool is {pool}", "zsmalloc or zbud")

    def _of_zsmalloc(self, handle: int, length: int) -> bytes:
        from drgn.helpers.linux.mm import pfn_to_page

        kernel = self._kernel
        program = kernel.drgn()
        stored = kernel.u64(handle, "handle of zsmalloc")
        for dropped, below, bits in OBJECT_LAYOUTS:
            location = stored >> dropped
            pfn, number = location >> below & (1 << PFN_BITS) - 1, location & (1 << bits) - 1
            page = pfn_to_page(program, pfn)
            try:
                zspage, following = ask(kernel, "zspage", lambda page: _zspage(kernel, page), page)
                size = int(zspage.pool.size_class[int(zspage.member_("class"))].size)
            except FormatError:
                continue
            if not 0 < size <= PAGE_SIZE:
                continue
            data = kernel.memory.page(pfn)
            if data is None:
                continue
            start = size * number & PAGE_SIZE - 1
            if int(zspage.huge):
                return data[:length].tobytes()
            joined = data[start:].tobytes()
            if len(joined) < HANDLE_BYTES:
                continue  # objects begin with their handle, and are a multiple of its size
            if int.from_bytes(joined[:HANDLE_BYTES], "little") == handle | ALLOCATED:
                if len(joined) < HANDLE_BYTES + length:
                    joined += self._page_of(following)
                return joined[HANDLE_BYTES : HANDLE_BYTES + length]
        raise kernel.damaged(f"the handle {handle:#x} of zsmalloc leads to no object that begins with it")

    def _page_of(self, page: Any) -> bytes:
        from drgn.helpers.linux.mm import page_to_pfn

        found = self._kernel.memory.page(int(page_to_pfn(page))) if page else None
        if found is None:
            raise self._kernel.damaged("the second page of an object of zsmalloc is not in memory")
        return found.tobytes()


def _zspage(kernel: Kernel, page: Any) -> tuple[Any, Any]:
    """Return the `struct zspage` that a page belongs to, and the page after it in that."""
    import drgn

    program = kernel.drgn()
    try:
        zpdesc = drgn.cast("struct zpdesc *", page)
        return zpdesc.zspage, drgn.cast("struct page *", zpdesc.next)
    except LookupError:
        zspage = drgn.Object(program, "struct zspage *", int(page.member_("private")))
        return zspage, drgn.Object(program, "struct page *", int(page.index))


def _entries(kernel: Kernel, area: SwapAreaInUse) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return slot and address of the `struct zswap_entry` of each page of an area."""
    nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    if kernel.symbols.get("zswap_trees") is None:
        return nothing
    trees = ask(kernel, "zswap_trees", lambda: kernel["zswap_trees"][area.number])
    if not trees:
        return nothing
    if kernel.symbols.get("nr_zswap_trees") is None:
        return _of_red_black_tree(kernel, trees)
    found = [nothing]
    for number in range(-(-area.slots // TREE_SLOTS)):
        tree = read_xarray(kernel, ask(kernel, "zswap_trees", lambda number: int(trees[number].address_of_()), number))
        # The index is the slot's, in the area or in these 2^14.
        slots = number * TREE_SLOTS + (tree.indices.astype(np.int64) & TREE_SLOTS - 1)
        found.append((slots, tree.entries))
        if len(tree.missing):
            raise kernel.damaged("a part of zswap's trees is not in memory")
    slots, entries = (np.concatenate(column) for column in zip(*found, strict=True))
    return slots, entries


def _of_red_black_tree(kernel: Kernel, tree: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    def entries() -> Iterator[tuple[int, int]]:
        offset = "offset" if hasattr(kernel.object("struct zswap_entry", 0), "offset") else "swpentry"
        for entry in rb_objects(tree.rbroot, "struct zswap_entry", "rbnode"):
            value = entry.member_(offset)
            yield int(value) if offset == "offset" else int(value.val) & (1 << 58) - 1, int(entry)

    found: list[tuple[int, int]] = []
    for slot, entry in each(kernel, "zswap's tree", entries(), MAX_ENTRIES):
        if found and slot <= found[-1][0]:
            raise kernel.damaged("zswap's tree is not in the order of its slots")
        found.append((slot, entry))
    slots, addresses = zip(*found, strict=True) if found else ((), ())
    return np.array(slots, dtype=np.int64), np.array(addresses, dtype=np.uint64)


def _decompress(kernel: Kernel, algorithm: str, packed: bytes) -> Bytes:
    """Return a page that the kernel's crypto API compressed. Raises FormatError."""
    unpack = DECOMPRESSORS.get(algorithm)
    if unpack is None:
        raise kernel.damaged(f"it is compressed by {algorithm}", " or ".join(DECOMPRESSORS))
    page = np.zeros(PAGE_SIZE, dtype=np.uint8)
    try:
        unpack(packed, page)
    except (ValueError, HibernautError) as error:
        raise kernel.damaged(f"it does not decompress by {algorithm}: {error}") from error
    return page


def _by_codec(name: str) -> Callable[[bytes, Bytes], None]:
    def unpack(packed: bytes, page: Bytes) -> None:
        codec_named(name).decompress_into(np.frombuffer(packed, dtype=np.uint8), page)  # type: ignore[arg-type]

    return unpack


def _exactly(plain: bytes, page: Bytes) -> None:
    if len(plain) != PAGE_SIZE:
        raise ValueError(f"it has {len(plain)} bytes then")
    page[:] = np.frombuffer(plain, dtype=np.uint8)


def _zstd(packed: bytes, page: Bytes) -> None:
    import cramjam

    room = bytearray(PAGE_SIZE + 1)
    try:
        count = cramjam.zstd.decompress_into(packed, room)
    except cramjam.DecompressionError as error:
        raise ValueError(str(error)) from error
    _exactly(bytes(room[:count]), page)


def _deflate(packed: bytes, page: Bytes) -> None:
    try:
        _exactly(zlib.decompressobj(-15).decompress(packed, PAGE_SIZE + 1), page)
    except zlib.error as error:
        raise ValueError(str(error)) from error


DECOMPRESSORS: dict[str, Callable[[bytes, Bytes], None]] = {
    "lzo": _by_codec("lzo"),
    "lzo-rle": lambda packed, page: _exactly(decompress_lzo_rle(packed, PAGE_SIZE), page),
    "lz4": _by_codec("lz4"),
    "lz4hc": _by_codec("lz4"),
    "zstd": _zstd,
    "deflate": _deflate,
}
"""By the kernel's name of the algorithm. 842 has no library here."""
