# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in a memory as a document and as text, its processes and its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hibernaut.kernel.image_area import device_number
from hibernaut.report.documents import (
    CompletenessDocument,
    DmesgDocument,
    InspectDocument,
    KernelIdentityDocument,
    ListedProcessDocument,
    LogRecordDocument,
    MachineIdentityDocument,
    MountedDocument,
    NetworkDeviceDocument,
    PsDocument,
    SwapInUseDocument,
)
from hibernaut.report.text import columns, counted, hex_or_none, inspection_text, size_text
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from hibernaut.kernel.identity import MachineIdentity
    from hibernaut.kernel.log import LogRecord
    from hibernaut.kernel.processes import Process
    from hibernaut.kernel.swap_areas import SwapAreaInUse
    from hibernaut.swsusp import Image

__all__ = [
    "dmesg_document",
    "dmesg_text",
    "inspection_with_machine_text",
    "machine_document",
    "machine_text",
    "process_documents",
    "ps_document",
    "ps_text",
    "utc",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEYS_IN_IMAGE = "its key is in the image, which opens the volume to everyone that reads it"
LEFT_OUT = "[left out]"
MAX_SHOWN = 40
"""Mounts and network devices of which the text has a line each; the document has all."""


def utc(time_ns: int | None) -> str | None:
    """Return a time as documents have it, ISO 8601 in UTC with microseconds; None for None."""
    if time_ns is None:
        return None
    return (EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def machine_document(
    identity: MachineIdentity, image: Image, processes: Sequence[Process] | None, with_processes: bool
) -> MachineIdentityDocument:
    """Return the document of the machine in an image.

    Args:
        identity: the machine.
        image: the image.
        processes: its processes; None if they are not known.
        with_processes: whether they are asked for.
    """
    clock = identity.clock
    document: MachineIdentityDocument = {
        "kernel": {
            "banner": identity.banner,
            "release": identity.release,
            "build": identity.build,
            "build_date": identity.build_date,
            "build_id": identity.build_id,
            "levels": identity.levels,
            "kaslr_offset": hex_or_none(identity.kaslr_offset),
            "taint": hex_or_none(identity.taint),
            "taint_letters": identity.taint_letters,
        },
        "hostname": identity.hostname,
        "domain": identity.domain,
        "machine_id": identity.machine_id,
        "command_line": identity.command_line,
        "booted_at": utc(clock.booted_ns) if clock else None,
        "hibernated_at": utc(clock.now_ns) if clock else None,
        "uptime_seconds": clock.uptime_ns / 1e9 if clock else None,
        "clock_source": clock.source if clock else None,
        "zone": identity.zone,
        "minutes_west": identity.minutes_west,
        "cpus": identity.cpus,
        "cpu_model": identity.cpu_model,
        "vendor": identity.vendor,
        "product": identity.product,
        "bios": identity.bios,
        "hypervisor": identity.hypervisor,
        "swap": None
        if identity.swap is None
        else [_swap_document(one, identity.image_area, image) for one in identity.swap],
        "modules": None if identity.modules is None else list(identity.modules),
        "mounts": None
        if identity.mounts is None
        else [
            {"path": one.path, "source": one.source, "type": one.type, "options": one.options}
            for one in identity.mounts
        ],
        "network": None
        if identity.network is None
        else [
            {
                "name": one.name,
                "up": one.up,
                "hardware": one.hardware,
                "addresses": None if one.addresses is None else list(one.addresses),
            }
            for one in identity.network
        ],
        "dm_crypt": None if identity.dm_crypt is None else list(identity.dm_crypt),
        "log": None if identity.log is None else _record_documents(identity.log),
        "completeness": _completeness(identity, image),
        "left_out": [],
        "remarks": [*identity.remarks, *_contradictions(identity, image)],
    }
    if with_processes:
        document["processes"] = None if processes is None else process_documents(processes)
    return document


def _swap_document(area: SwapAreaInUse, image_area: int | None, image: Image) -> SwapInUseDocument:
    """Return the document of a swap area; suspend-utils do not write to the kernel's `image_area`."""
    is_known = image_area is not None and image.header.userland is None
    return {
        "number": area.number,
        "path": area.name,
        "device": None if area.device is None else device_number(area.device),
        "slots": area.slots,
        "used_slots": area.used,
        "priority": area.priority,
        "this_area": (area.number == image_area and _fits(area, image)) if is_known else None,
    }


def _fits(area: SwapAreaInUse, image: Image) -> bool:
    return area.fits(image.header.block, image.area.header_block)


def _contradictions(identity: MachineIdentity, image: Image) -> list[str]:
    """Return a remark if the kernel's area for its image is another one than that of the image."""
    return [
        f"the kernel writes its image to swap area {area.number}, whose slots or place are not those of this area"
        for area in identity.swap or ()
        if area.number == identity.image_area and image.header.userland is None and not _fits(area, image)
    ]


def _completeness(identity: MachineIdentity, image: Image) -> CompletenessDocument:
    ram, listed = identity.ram_pages, image.saved_pages
    swap = identity.swap
    return {
        "ram_pages": ram,
        "listed_pages": listed,
        "zero_pages": image.zero_pages,
        "not_saved_pages": ram - listed if ram is not None and ram >= listed else None,
        "swapped_pages": None if swap is None else sum(one.used for one in swap),
    }


def _record_documents(records: Iterable[LogRecord]) -> list[LogRecordDocument]:
    return [
        {
            "sequence": one.sequence,
            "time_ns": one.time_ns,
            "level": one.level,
            "facility": one.facility,
            "text": one.text,
        }
        for one in records
    ]


def process_documents(processes: Iterable[Process]) -> list[ListedProcessDocument]:
    """Return the documents of processes."""
    return [
        {
            "pid": one.pid,
            "ppid": one.ppid,
            "started_at": utc(one.started_ns),
            "uid": one.uid,
            "name": one.name,
            "kernel": one.is_kernel,
            "threads": one.threads,
            "arguments": None if one.arguments is None else list(one.arguments),
            "arguments_cut": one.arguments_cut,
            "resident_pages": one.resident_pages,
            "swapped_pages": one.swapped_pages,
            "lost_pages": one.lost_pages,
        }
        for one in processes
    ]


def inspection_with_machine_text(document: InspectDocument) -> str:
    """Return the text of the document of `inspect` with that of the machine."""
    return inspection_text(document, machine_text(document["machine"]) if "machine" in document else None)


def machine_text(document: MachineIdentityDocument) -> str:
    """Return the text of a machine: a line for each fact; `?` stands for one that is not known."""
    rows = [
        *_kernel_rows(document["kernel"]),
        *_system_rows(document),
        *_completeness_rows(document["completeness"]),
        *_device_rows(document),
        *_secret_rows(document),
    ]
    lines = columns(rows)
    if document["left_out"]:
        lines.append(f"LEFT OUT  {', '.join(document['left_out'])}")
    lines += [f"REMARK  {visible_line(remark)}" for remark in document["remarks"]]
    if "processes" in document:
        processes = document["processes"]
        lines += ["", *(["processes: ?"] if processes is None else _process_lines(processes))]
    return "\n".join(lines)


def _known(value: object) -> str:
    return "?" if value is None else visible_line(str(value))


def _fact(document: MachineIdentityDocument, key: str, value: object) -> str:
    """Return a fact that a document may leave out; `key` is its name in `left_out`."""
    return LEFT_OUT if value is None and key in document["left_out"] else _known(value)


def _kernel_rows(kernel: KernelIdentityDocument) -> list[tuple[str, str]]:
    taint = f"{_known(kernel['taint_letters'])} ({_known(kernel['taint'])})"
    return [
        ("machine", _known(kernel["banner"])),
        ("release", _known(kernel["release"])),
        ("built", f"{_known(kernel['build_date'])}, build ID {_known(kernel['build_id'])}"),
        ("paging", f"{kernel['levels']} levels, KASLR offset {_known(kernel['kaslr_offset'])}"),
        ("tainted", "no" if kernel["taint"] == "0x0" else taint),
    ]


def _system_rows(document: MachineIdentityDocument) -> list[tuple[str, str]]:
    hypervisor = document["hypervisor"]
    hostname, domain = (_fact(document, key, document[key]) for key in ("hostname", "domain"))
    hardware = f"{_known(document['vendor'])}, {_known(document['product'])}, BIOS {_known(document['bios'])}"
    return [
        ("hostname", f"{hostname}, domain {domain}"),
        ("machine-id", _fact(document, "machine_id", document["machine_id"])),
        ("command line", _fact(document, "command_line", document["command_line"])),
        ("booted", _time_text(document["booted_at"])),
        ("hibernated", f"{_time_text(document['hibernated_at'])}, {_uptime_text(document['uptime_seconds'])} after"),
        ("clock", f"{_known(document['clock_source'])}, zone {_zone_text(document)}"),
        ("CPUs", f"{_known(document['cpus'])}, {_known(document['cpu_model'])}"),
        ("hardware", hardware),
        ("hypervisor", "unknown, but CPUID reports one" if hypervisor == "unknown" else _known(hypervisor)),
    ]


def _device_rows(document: MachineIdentityDocument) -> list[tuple[str, str]]:
    swap, modules, mounts, network = document["swap"], document["modules"], document["mounts"], document["network"]
    rows = [("swap", _swap_text(one, _fact(document, "swap.path", one["path"]))) for one in swap or ()]
    if not swap:
        rows.append(("swap", "?" if swap is None else "none in use"))
    rows.append(("modules", "?" if modules is None else f"{len(modules)}: {visible_line(' '.join(modules))}"))
    if mounts is None:
        rows.append(("mounts", "?"))
    elif "mounts" in document["left_out"]:
        kinds = Counter(one["type"] for one in mounts)
        rows.append(("mounts", visible_line(", ".join(f"{number} {kind}" for kind, number in kinds.items()))))
    else:
        rows += [("mount", line) for line in _first([_mounted_text(one) for one in mounts])]
    if network is None:
        rows.append(("network", _fact(document, "network", None)))
    else:
        rows += [("network", line) for line in _first([_network_text(one) for one in network])]
    return rows


def _secret_rows(document: MachineIdentityDocument) -> list[tuple[str, str]]:
    volumes, log = document["dm_crypt"], document["log"]
    rows = [("dm-crypt", f"WARNING: device {visible_line(one)} is open, {KEYS_IN_IMAGE}") for one in volumes or ()]
    if not volumes:
        rows.append(("dm-crypt", "?" if volumes is None else "no open device"))
    if log is None:
        rows.append(("log", _fact(document, "log", None)))
    return rows + [("log", line) for one in log or () for line in _log_lines(one)]


def _mounted_text(one: MountedDocument) -> str:
    return visible_line(f"{_known(one['source'])} on {_known(one['path'])} ({one['type']}, {one['options']})")


def _network_text(one: NetworkDeviceDocument) -> str:
    addresses = ["addresses not known"] if one["addresses"] is None else one["addresses"]
    hardware = one["hardware"]
    words = [one["name"], "up" if one["up"] else "down", *([hardware] if hardware else []), *addresses]
    return visible_line(" ".join(words))


def _first(shown: list[str]) -> list[str]:
    more = len(shown) - MAX_SHOWN
    return [*shown[:MAX_SHOWN], *([f"{more} more, of which the JSON document has all"] if more > 0 else [])]


def _time_text(time: str | None) -> str:
    """Return a time of a document for people: whole seconds."""
    return "?" if time is None else f"{time[:10]} {time[11:19]} UTC"


def _uptime_text(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return str(timedelta(seconds=round(seconds)))


def _zone_text(document: MachineIdentityDocument) -> str:
    west = document["minutes_west"]
    kernels = "?" if west is None else f"{-west:+d} minutes by the kernel" if west else "UTC by the kernel"
    if document["zone"] is None:
        return kernels
    return f"{visible_line(document['zone'])} ({kernels})"


def _completeness_rows(found: CompletenessDocument) -> list[tuple[str, str]]:
    def pages(number: int | None) -> str:
        return "?" if number is None else f"{counted(number, 'page')} ({size_text(number * 4096)})"

    return [
        ("RAM", pages(found["ram_pages"])),
        ("in the image", f"{pages(found['listed_pages'])}, {found['zero_pages']} of them zero"),
        ("not saved", f"{pages(found['not_saved_pages'])}: free, held for the copy itself, or marked nosave"),
        ("swapped out", pages(found["swapped_pages"])),
    ]


def _swap_text(one: SwapInUseDocument, place: str) -> str:
    this = {True: "; this area, by the kernel's resume device", False: "", None: "; whether it is this area: ?"}
    return (
        f"{place} ({_known(one['device'])}): {one['used_slots']} of {counted(one['slots'], 'slot')} in use,"
        f" priority {one['priority']}{this[one['this_area']]}"
    )


def _log_lines(record: LogRecordDocument) -> list[str]:
    """Return the lines of a message as dmesg prints them."""
    seconds, rest = divmod(record["time_ns"], 10**9)
    stamp = f"[{seconds:5d}.{rest // 1000:06d}]"
    return [f"{stamp} {visible_line(line)}" for line in record["text"].split("\n")]


def dmesg_document(release: str, records: Iterable[LogRecord], unread: int) -> DmesgDocument:
    """Return the document of a kernel's log; `unread` is the number of messages that are not in the memory."""
    return {"release": release, "records": _record_documents(records), "unread_records": unread}


def dmesg_text(document: DmesgDocument) -> str:
    """Return a kernel's log as dmesg prints it."""
    return "\n".join(line for one in document["records"] for line in _log_lines(one))


def ps_document(release: str, now_ns: int | None, processes: Iterable[Process], remarks: Sequence[str]) -> PsDocument:
    """Return the document of the processes of a machine."""
    return {
        "release": release,
        "at": utc(now_ns),
        "processes": process_documents(processes),
        "remarks": list(remarks),
    }


def ps_text(document: PsDocument) -> str:
    """Return the processes of a machine as a table."""
    lines = _process_lines(document["processes"])
    return "\n".join([*lines, *(f"REMARK  {visible_line(remark)}" for remark in document["remarks"])])


def _process_lines(processes: Sequence[ListedProcessDocument]) -> list[str]:
    """Return a table of processes; kernel threads are in brackets."""

    def cell(value: int | None, kernel: bool = False) -> str:
        return ("-" if kernel else "?") if value is None else str(value)

    head = ("PID", "PPID", "STARTED (UTC)", "UID", "RSS", "SWAP", "LOST", "COMMAND")
    rows = [
        (
            str(one["pid"]),
            cell(one["ppid"]),
            _time_text(one["started_at"]).removesuffix(" UTC"),
            cell(one["uid"]),
            cell(one["resident_pages"], one["kernel"]),
            cell(one["swapped_pages"], one["kernel"]),
            cell(one["lost_pages"], one["kernel"]),
            _command(one),
        )
        for one in processes
    ]
    return columns([head, *rows], right=frozenset({0, 1, 3, 4, 5, 6}))


def _command(one: ListedProcessDocument) -> str:
    """Return name and arguments; `[...]` for a kernel thread, `(...)` where only the name is in the memory."""
    name = visible_line("?" if one["name"] is None else one["name"])
    if one["kernel"]:
        return f"[{name}]"
    if not one["arguments"]:
        return f"({name})"
    return visible_line(" ".join(one["arguments"])) + (" ..." if one["arguments_cut"] else "")
