# SPDX-License-Identifier: GPL-2.0-or-later
"""Test data from real kernels: images, RAM dumps, and the facts that a reader must find in them.

The facts come from the guest and its kernel: its log, /proc, kallsyms, QEMU's registers; never from our own reader.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from hibernaut.errors import FormatError, LabError, LabUnavailable
from hibernaut.kernel.running import running_machine
from hibernaut.kernel.symbol_names import names_of_vmlinuz
from hibernaut.lab.guest_state import RunningGuest, direct_map_counters
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.laboratory import DumpPoints, Hibernated, Lab
from hibernaut.lab.record import IMAGE_NAME
from hibernaut.lab.variants import Variant, variant_named
from hibernaut.lab.vm.port import facts_of
from hibernaut.linux import DirectMap
from hibernaut.linux.formula import formula_pages
from hibernaut.paging.spans import Stop
from hibernaut.sources import open_memory
from hibernaut.swsusp import inspect_image
from hibernaut.swsusp.verdict import ResumingMachine
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.output import replacing, write_file

__all__ = ["check_golden", "make_golden"]

Tell = Callable[[str], None]

DOCUMENTED_BASE = 0xFFFF_8880_0000_0000
"""Base of the direct map with 4 levels and without KASLR (Documentation/arch/x86/x86_64/mm.rst)."""
MEMMAP = "/sys/firmware/memmap"
MEMFD_SECRET = "__x64_sys_memfd_secret"  # nosec B105 # no password: a name of the kernel's
"""The system call's function, of kernels with CONFIG_SECRETMEM."""


def make_golden(lab: Lab, folder: Path, workshop: Path, tell: Tell) -> dict[str, Any]:
    """Make the files `swap-LINE-*.img.zst`, `ram-LINE-*.elf.zst` and `expected.json` in a folder.

    Args:
        lab: laboratory with the kernel.
        folder: folder for the files; facts of other kernels in its expected.json are kept.
        workshop: empty folder for disks and dumps.
        tell: called after each guest, and for one that this kernel cannot be.

    Returns:
        The facts added to expected.json.

    Raises:
        LabUnavailable, LabError: see `Lab.hibernate`.
    """
    name = lab.kernel.name
    expected: dict[str, Any] = {}
    for kind, dump_too in (("lzo", True), ("lz4", False), ("hole-2m", True)):
        variant = variant_named(kind)
        if kind == "lz4" and not _knows_lz4(lab):
            continue
        try:
            expected |= _hibernated(lab, variant, workshop, folder, dump_too)
        except LabUnavailable as error:
            if not variant.regions:
                raise
            tell(f"{name}: {kind} is left out: {error}")
            continue
        tell(f"{name}: {kind}")
    if names_of_vmlinuz(lab.kernel.vmlinuz).has_function(MEMFD_SECRET):
        expected |= _secret(lab, workshop, folder)
        tell(f"{name}: secret")
    else:
        tell(f"{name}: secret is left out: the kernel has no memfd_secret")
    path = folder / "expected.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps({**known, **expected}, indent=1) + "\n"
    write_file(path, text.encode(), public=True)
    return expected


def check_golden(folder: Path, expected: Mapping[str, Any]) -> list[str]:
    """Return the differences between what our readers find in a set of files and its expected facts, one line each.

    Args:
        folder: folder with the files.
        expected: facts as `make_golden` returns them.

    Raises:
        FormatError, OSError: a file cannot be read.
    """
    wrong = []
    for name, facts in expected.items():
        found = (_read_image if name.startswith("swap-") else _read_dump)(folder / f"{name}.zst", facts)
        wrong += [
            f"{name}: {key} is {str(found[key])[:80]}, expected {str(wanted)[:80]}"
            for key, wanted in facts.items()
            if found[key] != wanted
        ]
    return wrong


def _read_image(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an image by our reader; marker frames that hold other pages are left out."""
    with open_plain(path) as file:
        found = inspect_image(file)
        image = found.image
        if image is None or found.problems:
            raise FormatError(found.problems[0].what if found.problems else "no image", source=str(path))
        own = []
        for first, count in facts["marker_frames"]:
            pages, present = image.memory().gather(int(first, 16) + np.arange(count))
            if present.all() and all(page.tobytes().startswith(b"hibernaut lab: page ") for page in pages):
                own.append([first, count])
        zero = int(image.zero.sum())
        return {
            "cr3": f"{image.info.cr3:#x}",
            "compressor": image.compressor,
            "saved_pages": len(image.pfns),
            "zero_pages": zero,
            "stored_pages": len(image.pfns) - zero,
            "image_pages": image.info.image_pages,
            "e820_checksum": f"{image.info.e820_checksum:#x}",
            "physical_pages": image.info.physical_pages,
            "jump_address": f"{image.info.jump_address:#x}",
            "marker_frames": own,
        }


def _read_dump(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a dump by our reader.

    The kernel's counters are compared by their sum, since each of them also counts splits of the kernel text mapping.
    """
    with open_memory(path) as source:
        if source.cr3 is None:
            raise FormatError("the dump has no CR3", source=str(path))
        direct_map = DirectMap.find(source.memory, source.cr3, source.levels)
        hidden = [hole for hole in direct_map.holes if hole.kind is Stop.NOT_PRESENT]
        runs = [[f"{one.start_pfn:#x}", one.pages, one.level.size, f"{one.entry:#x}"] for one in hidden]
        mapped_kib = sum(direct_map.present_bytes.values()) // 1024 + 4 * sum(one.pages for one in hidden)
        expected = facts["direct_map_kib"]
        found = {
            "cr3": f"{source.cr3:#x}",
            "direct_map_base": f"{direct_map.base:#x}",
            "direct_map_kib": expected if mapped_kib == sum(expected.values()) else mapped_kib,
        }
        if "secret_frames" in facts:
            frames = [f"{pfn:#x}" for one in hidden for pfn in range(one.start_pfn, one.start_pfn + one.pages)]
            return {**found, "secret_frames": frames}
        for one in hidden:  # every page of the module's blocks holds its own addresses
            frames_of = np.arange(one.start_pfn, one.start_pfn + one.pages)
            if not np.array_equal(source.memory.gather(frames_of)[0], formula_pages(frames_of)):
                runs.append([f"{one.start_pfn:#x}", "holds other data than the module wrote"])
        return {**found, "not_present_runs": runs}


def _knows_lz4(lab: Lab) -> bool:
    return "lz4" in image_rules_of(lab.kernel).compressors


def _hibernated(lab: Lab, variant: Variant, workshop: Path, folder: Path, dump_too: bool) -> dict[str, Any]:
    """Make the image of a guest, and optionally the dump of its RAM right before the copy; return their facts."""
    facts: dict[str, Any] = {}
    dump = workshop / "before.elf"
    saved = lab.hibernate(
        variant, workshop, DumpPoints(before=dump) if dump_too else None, ask=lambda guest: facts.update(_facts(guest))
    )
    if saved.outcome != "hibernated":
        raise LabError(f"the guest did not hibernate: {saved.summary}")
    file = f"swap-{lab.kernel.name}-{variant.name}.img"
    made = {file: {**({"cr3": saved.cr3} if saved.cr3 else {}), **_of_image(saved, variant, facts)}}
    _pack(workshop / IMAGE_NAME, folder / f"{file}.zst")
    if dump_too:
        file = f"ram-{lab.kernel.name}-{variant.name}.elf"
        blocks = [[one["block"], 512, "2M", f"{int(one['pmd'], 16):#x}"] for one in saved.record.regions]
        made[file] = {"cr3": saved.cr3, **_of_dump(facts), "not_present_runs": blocks}
        _pack(dump, folder / f"{file}.zst")
    return made


def _of_image(saved: Hibernated, variant: Variant, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of an image, from the kernel's log and the guest."""
    log = saved.log
    created = re.search(r"Image created \((\d+) pages copied(?:, (\d+) zero pages)?\)", log)
    if created is None:
        raise LabError("the kernel did not log how many pages it copied")
    stored, zero = int(created[1]), int(created[2] or 0)
    return {
        "compressor": variant.compressor,
        "saved_pages": saved.record.saved_pages,
        "zero_pages": zero,
        "stored_pages": stored,
        "image_pages": stored,
        **{key: facts[key] for key in ("e820_checksum", "physical_pages", "jump_address")},
        "marker_frames": [[f"{frame:#x}", count] for _, frame, count in saved.record.frames],
    }


def _of_dump(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of any dump of a guest."""
    return {key: facts[key] for key in ("direct_map_base", "direct_map_kib")}


def _secret(lab: Lab, workshop: Path, folder: Path) -> dict[str, Any]:
    """Make the dump of a guest with secret memory; return its facts, with the secret frames that the guest reports."""
    variant = variant_named("secret")
    facts: dict[str, Any] = {}
    dump = workshop / "secret.elf"

    def ask(guest: RunningGuest) -> None:
        facts.update(_facts(guest))
        runs = [facts_of(line) for line in guest.port.run("!frames secret")]
        frames = sorted(int(one["first"], 16) + n for one in runs for n in range(int(one["count"])))
        facts["secret_frames"] = [f"{frame:#x}" for frame in frames]
        guest.qemu.execute("stop")
        guest.qemu.dump(dump)

    lab.ready(variant, workshop, ask)
    file = f"ram-{lab.kernel.name}-secretmem.elf"
    _pack(dump, folder / f"{file}.zst")
    return {file: {**_of_dump(facts), "secret_frames": facts["secret_frames"]}}


def _facts(guest: RunningGuest) -> dict[str, Any]:
    """Return the facts that a guest reports of its machine."""
    run = guest.port.run
    (symbol,) = run("grep -w restore_registers /proc/kallsyms")
    machine = _machine(guest)
    return {
        "jump_address": f"{int(symbol.split()[0], 16):#x}",
        "direct_map_base": f"{DOCUMENTED_BASE:#x}",
        "physical_pages": machine.physical_pages,
        "e820_checksum": f"{machine.e820.crc32:#x}",
        "direct_map_kib": {name.removeprefix("DirectMap"): kib for name, kib in direct_map_counters(guest).items()},
    }


def _machine(guest: RunningGuest) -> ResumingMachine:
    """Return the guest as it sees itself, from copies of its /sys/firmware/memmap and /proc/zoneinfo."""
    with tempfile.TemporaryDirectory() as root:
        listing = guest.port.run(f"cd {MEMMAP} && for n in *; do echo $n $(cat $n/start $n/end $n/type); done")
        for number, start, end, kind in (line.split(maxsplit=3) for line in listing):
            folder = Path(root + MEMMAP) / number
            folder.mkdir(parents=True)
            for name, text in (("start", start), ("end", end), ("type", kind)):
                (folder / name).write_text(text)
        zones = Path(root) / "proc" / "zoneinfo"
        zones.parent.mkdir()
        zones.write_text("\n".join(guest.port.run("cat /proc/zoneinfo")))
        return running_machine(Path(root))


def _pack(source: Path, target: Path) -> None:
    """Compress a file; the result appears complete or not at all."""
    with source.open("rb") as plain, replacing(target) as fd, os.fdopen(fd, "wb", closefd=False) as packed:
        zstandard.ZstdCompressor(level=3, threads=-1).copy_stream(plain, packed)
