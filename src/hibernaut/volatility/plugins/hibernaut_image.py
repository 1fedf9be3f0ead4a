# SPDX-License-Identifier: GPL-2.0-or-later
"""Layers by which Volatility 3 reads a hibernation image in place, with symbols out of the image itself.

Volatility loads this module (`vol -p "$(hibernaut volatility-plugins)"`), and its LayerStacker asks the two stackers:
the first recognises an image, the second makes the kernel's symbol file and lays the kernel's page tables over it.
It imports volatility3, whose licence is the Volatility Software License 1.0.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from volatility3 import schemas, symbols
from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.automagic.linux import LinuxSymbolFinder
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel
from volatility3.framework.layers.physical import FileLayer

from hibernaut import __version__
from hibernaut.errors import HibernautError
from hibernaut.kernel.isf import isf_bytes, isf_digest, isf_document, own_banner
from hibernaut.kernel.kernel import Kernel
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.volatility.image_source import ImagePlace, image_at, present_pieces, read_physical, source_options
from hibernaut.volumes.output import write_file

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.sources import Source

log = logging.getLogger(__name__)

join = interfaces.configuration.path_join
ENDING = ".json.gz"


class HibernationImageLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Physical memory of a hibernation image.

    A frame that the image lacks is not valid, so a virtual address in it is none. Read by its physical address it is
    zero, as plug-ins that scan physical memory expect: they stop at an exception.
    """

    def __init__(self, context: Any, config_path: str, name: str, metadata: Any = None) -> None:
        super().__init__(context=context, config_path=config_path, name=name, metadata=metadata)
        place = ImagePlace.of(self.config["location"], self.config.get("options", None) or "")
        if place is None:
            raise exceptions.LayerException(name, f"not the URL of a file: {self.config['location']}")
        self.place = place
        _ = self.source  # refuses what is not an image

    @property
    def source(self) -> Source:
        """The open image."""
        found = image_at(self.place)
        if found is None:
            raise exceptions.LayerException(self.name, f"{self.place.path}: no hibernation image")
        return found

    @property
    def minimum_address(self) -> int:
        """First address."""
        return 0

    @property
    def maximum_address(self) -> int:
        """Last address of the last frame of the image."""
        return (self.source.memory.ranges.end << PAGE_SHIFT) - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Return whether all frames of a piece of memory are in the image."""
        if offset < 0 or length <= 0:
            return False
        first, last = offset >> PAGE_SHIFT, (offset + length - 1) >> PAGE_SHIFT
        return self.source.memory.ranges.end_of(first) > last

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Return bytes at a physical address.

        Raises:
            InvalidAddressException: the address is beyond the last frame, or a unit of the image is damaged.
        """
        end = self.maximum_address + 1
        if offset < 0 or (offset + length > end and not pad):
            raise exceptions.InvalidAddressException(self.name, max(offset, end), f"memory ends at {end:#x}")
        try:
            return read_physical(self.place, offset, length)
        except (HibernautError, OSError) as error:
            raise exceptions.InvalidAddressException(self.name, offset, str(error)) from error

    def write(self, offset: int, data: bytes) -> None:
        """Raise NotImplementedError: the image stays what it is."""
        raise NotImplementedError("a hibernation image is only read")

    def _scan_iterator(self, scanner: Any, sections: Iterable[tuple[int, int]]) -> Iterable[Any]:
        """Yield the pieces of memory to scan: those that are in the image, each contiguous."""
        pieces = [piece for start, length in sections for piece in present_pieces(self.source, start, length)]
        found: Iterable[Any] = super()._scan_iterator(scanner, pieces)
        return found

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Return the parts of its configuration."""
        return [
            requirements.StringRequirement(name="location", description="URL of the image's file", optional=False),
            requirements.StringRequirement(name="options", description="place in the file", optional=True),
        ]


class LinuxIntel32e5Level(intel.LinuxIntel32e):  # type: ignore[misc]
    """Page tables of 5 levels (CONFIG_X86_5LEVEL), which Volatility's own layers lack."""

    _maxphyaddr = 52
    _maxvirtaddr = 57
    _structure: ClassVar = [("page map layer 5", 9, False), *intel.Intel32e._structure]


class HibernationImageStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Recognises a hibernation image in a file."""

    stack_order = 5
    exclusion_list: ClassVar = ["mac", "windows"]

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:  # noqa: ARG003
        """Return the layer of the image in a file's layer; None if it holds none."""
        below = context.layers[layer_name]
        if not isinstance(below, FileLayer):
            return None
        options = source_options()
        try:
            place = ImagePlace.of(below.location, options)
            if place is None or image_at(place) is None:
                return None
        except (HibernautError, OSError) as error:
            log.log(logging.WARNING if options else logging.INFO, "hibernaut: %s", error)
            return None
        name = context.layers.free_layer_name("HibernationImageLayer")
        path = join("HibernationImage", name)
        context.config[join(path, "location")] = below.location
        context.config[join(path, "options")] = options
        return HibernationImageLayer(context, path, name)


class HibernatedKernelStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Lays the kernel's page tables over a hibernation image, and gives Volatility the symbol file of the image."""

    stack_order = 6
    exclusion_list: ClassVar = ["mac", "windows"]

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        """Return the layer of the kernel's address space; None if the layer is not an image of x86-64."""
        below = context.layers[layer_name]
        if not isinstance(below, HibernationImageLayer):
            return None
        try:
            kernel = Kernel.of(below.source)
            identifier = _identifier_in_cache(kernel, progress_callback)
        except (HibernautError, OSError) as error:
            log.warning("hibernaut: %s", error)
            return None
        name = context.layers.free_layer_name("primary")
        path = join("HibernatedKernel", name)
        context.config[join(path, "memory_layer")] = layer_name
        context.config[join(path, "page_map_offset")] = kernel.tables.root_pfn << PAGE_SHIFT
        context.config[join(path, "kernel_virtual_offset")] = kernel.kaslr_shift
        context.config[join(path, LinuxSymbolFinder.banner_config_key)] = str(identifier, "latin-1")
        layer = LinuxIntel32e5Level if kernel.levels == 5 else intel.LinuxIntel32e
        return layer(context, config_path=path, name=name, metadata={"os": "Linux"})


def _identifier_in_cache(kernel: Kernel, progress_callback: Any) -> bytes:
    """Return the identifier under which Volatility's cache has a symbol file of a kernel, made if there is none.

    A file that the user has for this banner is taken as it is. One that is made here is kept under the banner followed
    by a digest of all that it is made of: an image whose types or symbols were forged has a file of its own.
    """
    cache = symbol_cache.load_cache_manager()
    banner = own_banner(kernel)
    for known in cache.get_identifier_dictionary(operating_system="linux"):
        if known and known.rstrip(b"\0\n") == banner.rstrip(b"\0\n"):
            return bytes(known)
    digest = isf_digest(kernel)
    identifier = banner + digest.encode()
    if cache.find_location(identifier, "linux"):
        return identifier
    if progress_callback is not None:
        progress_callback(0, "Making the symbol file out of the image")
    document = isf_document(kernel, __version__)
    document["symbols"]["linux_banner"]["constant_data"] = base64.b64encode(identifier).decode()
    # Volatility's own check of a file takes minutes where jsonschema is installed; the tests of this package run it.
    schemas.cached_validations.add(schemas.create_json_hash(document))
    schemas.record_cached_validations(schemas.cached_validations)
    folder = Path(constants.CACHE_PATH) / "symbols" / "hibernaut"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write_file(folder / f"{digest}{ENDING}", isf_bytes(document, ENDING))
    parent = str(folder.parent.absolute())
    if parent not in symbols.__path__:
        symbols.__path__.append(parent)
    cache.update(progress_callback)
    return identifier
