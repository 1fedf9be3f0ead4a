# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a guest: our program as init, busybox, and the modules in the order in which they load."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import zstandard

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.programs import program, run
from hibernaut.lab.host.trees import builtin_modules, modules_of_tree

__all__ = [
    "GUEST_FOLDER",
    "cpio",
    "guest_program",
    "initramfs",
    "module_bytes",
    "module_order",
    "modules_with_dependencies",
]

GUEST_FOLDER = Path(__file__).parent

NEEDED = ("virtio_pci", "virtio_blk")
OPTIONAL = ("ext4", "crc32c", "crc32c_generic", "lzo", "lz4")
"""Modules that some guests use: the file system of a swap file, the compressors of images. A missing one is built in,
or the kernel lacks it and the guest that needs it fails."""

COMPRESSED = r"\.(?:xz|zst|gz)$"

DIRECTORY, LINK, FILE = 0o040755, 0o120777, 0o100755


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return an archive in cpio's `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst).

    Args:
        files: path -> (mode with type, content); folders before their content.
    """
    out = bytearray()
    trailer = {"TRAILER!!!": (0, b"")}
    for number, (name, (mode, data)) in enumerate([*files.items(), *trailer.items()], start=1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def guest_program(cache: Cache) -> bytes:
    """Return the guests' user space (guest.c), built as a static program. Raises LabUnavailable."""
    source = GUEST_FOLDER / "guest.c"

    def build(folder: Path) -> None:
        run(
            [program("gcc"), "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", folder / "guest", source],
            doing="building the guest's program",
        )

    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    with cache.locked():
        return (cache.folder(f"guest/{digest}", build) / "guest").read_bytes()


def initramfs(cache: Cache, kernel: GuestKernel, extra: Iterable[Path] = ()) -> bytes:
    """Return a compressed initramfs.

    Args:
        cache: cache for the guest's program.
        kernel: kernel whose modules it contains.
        extra: further modules and other files, which the guest finds in /modules, decompressed.

    Raises:
        LabUnavailable: a program or a needed module is missing.
    """
    modules = module_order(kernel.modules)
    files = dict.fromkeys(("bin", "dev", "modules"), (DIRECTORY, b""))
    files["init"] = (FILE, guest_program(cache))
    files["bin/busybox"] = (FILE, Path(program("busybox")).read_bytes())
    files["bin/sh"] = (LINK, b"busybox")
    for name, path in modules.items():
        files[f"modules/{name}.ko"] = (FILE, module_bytes(path))
    for path in extra:
        files[f"modules/{re.sub(COMPRESSED, '', path.name)}"] = (FILE, module_bytes(path))
    files["modules/order"] = (FILE, "".join(f"{name}.ko\n" for name in modules).encode())
    return gzip.compress(cpio(files), compresslevel=1, mtime=0)


def module_order(folder: Path) -> dict[str, Path]:
    """Return the modules that a guest loads, by name, each after its dependencies, without those that are built in.

    Args:
        folder: lib/modules/RELEASE, or a kernel's build tree, where its modules.order lists them. Dependencies come
            from the modules themselves (`depends` and `softdep` in `.modinfo`), since Debian's packages and build trees
            lack modules.dep.

    Raises:
        LabUnavailable: a needed one is neither there nor built in.
    """
    order = modules_with_dependencies(folder, (*NEEDED, *OPTIONAL))
    builtin = builtin_modules(folder)
    for name in NEEDED:
        if name not in order and name not in builtin:
            raise LabUnavailable(
                f"{folder}: the kernel has no {name}",
                advice=f"set CONFIG_{name.upper()}=y and build it again" if _is_tree(folder) else None,
            )
    return order


def modules_with_dependencies(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return modules by name, each after its dependencies, without those that the kernel lacks or has built in.

    Args:
        folder: see `module_order`.
        names: names of the modules, with underscores.
    """
    # Only a build tree has it; a search would find leftovers of other configurations there.
    paths = modules_of_tree(folder) if _is_tree(folder) else sorted(folder.rglob("*.ko*"))
    there = {_name_of(path): path for path in paths}
    order: dict[str, Path] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        path = there.get(name)
        if path is None or name in order or name in above:
            return
        for other in _dependencies(path):
            add(other, (*above, name))
        order[name] = path

    for name in names:
        add(name, ())
    return order


def _is_tree(folder: Path) -> bool:
    return (folder / ".config").is_file()


def _name_of(path: Path) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_")


def _dependencies(path: Path) -> list[str]:
    """Return the modules that a module needs, from its `.modinfo`."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(BytesIO(module_bytes(path))).get_section_by_name(".modinfo")
    except ELFError as error:
        raise FormatError(f"not a kernel module: {error}", source=str(path)) from error
    lines = section.data().decode("ascii", "replace").split("\0") if section else []
    info = [line.split("=", 1) for line in lines if "=" in line]
    needs = [name for key, value in info if key == "depends" for name in value.split(",") if name]
    soft = [
        match[1] for key, value in info if key == "softdep" and (match := re.search(r"pre: (.*?)(?:post:|$)", value))
    ]
    return [name.replace("-", "_") for name in [*needs, *" ".join(soft).split()]]


def module_bytes(path: Path) -> bytes:
    """Return a module decompressed, since not every kernel decompresses modules itself."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return data
