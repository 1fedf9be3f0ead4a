# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON documents of `--json`, one type a command: names, types and units of their keys.

`hibernaut schema COMMAND` publishes them as JSON Schema (`report.schema`). Keys keep their names and meaning from
release to release; new keys may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

__all__ = [
    "DOCUMENTS",
    "AddressRegionDocument",
    "AnswersDocument",
    "AuditDocument",
    "BootDocument",
    "CheckedTraceDocument",
    "CodecLibraryDocument",
    "ComparedMapDocument",
    "CompletenessDocument",
    "CompletionDocument",
    "CompressionDocument",
    "ConfirmDocument",
    "ContentsDocument",
    "ConvertDocument",
    "CrashedSaveDocument",
    "DemoDocument",
    "DepletedGuestDocument",
    "DepletionDocument",
    "DiagnosisDocument",
    "DiagnosisFindingDocument",
    "DifferenceDocument",
    "DigestDocument",
    "DiskDocument",
    "DmesgDocument",
    "DoctorDocument",
    "DumpDocument",
    "ExplainDocument",
    "ExploreDocument",
    "FindDocument",
    "FrameClassDocument",
    "HibernateDocument",
    "ImageAreaDocument",
    "ImageChangeDocument",
    "InspectDocument",
    "KernelIdentityDocument",
    "LayerDocument",
    "ListedProcessDocument",
    "LogRecordDocument",
    "MachineIdentityDocument",
    "ManifestAreaDocument",
    "ManifestDocument",
    "MapDocument",
    "MountDocument",
    "MountedDocument",
    "NetworkDeviceDocument",
    "OwnerDifferenceDocument",
    "ParserDocument",
    "Pattern",
    "ProcessDocument",
    "ProveDocument",
    "PsDocument",
    "RefusedSaveDocument",
    "RegionInOrderDocument",
    "ReplayDocument",
    "ReportDocument",
    "ResumeDocument",
    "RewriteDocument",
    "SaveDocument",
    "SealDocument",
    "SealKeyDocument",
    "SentenceDocument",
    "SourceReportDocument",
    "SwapInUseDocument",
    "TakeoverDocument",
    "TraceDocument",
    "TriedImageDocument",
    "UswsuspDocument",
    "VariantsDocument",
    "VerdictDocument",
    "VerifyDocument",
    "WalkDocument",
]


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a text matches."""

    pattern: str


Hex = Annotated[str, Pattern("^0x[0-9a-f]+$")]
Sha256 = Annotated[str, Pattern("^[0-9a-f]{64}$")]
LeafSize = Annotated[str, "size of the entry's level: 4K, 2M, 1G, 512G or 256T"]
Pages = Annotated[int, "number of pages of 4096 bytes"]
RulesFromText = Annotated[
    Literal["probed", "line"], "probed if the kernel itself answered for any of its rules, else its line"
]
Log = Annotated[list[str], "lines of the kernel's log, oldest first; [model] marks remarks of the model"]


class CrcDocument(TypedDict):
    """CRC-32 of the pages of a compressed image."""

    stored: Annotated[Hex | None, "value in the swap header"]
    computed: Annotated[Hex | None, "value computed over the pages; null if they were not read to the end"]
    ok: Annotated[bool | None, "whether both are equal; null if the image has none or it was not computed"]


class ProblemDocument(TypedDict):
    """A fault of an image."""

    what: Annotated[str, "the fault"]
    where: Annotated[str | None, "its place in the file"]


class CheckDocument(TypedDict):
    """A check that a kernel makes before it resumes."""

    check: Annotated[
        str,
        "signature, hw_sig, compressor, swap_map, magic, e820_checksum, physical_pages, frames, units or crc32",
    ]
    answer: Annotated[str, "ok, would refuse, would crash, depends (it refuses or resumes, see remark) or not known"]
    message: Annotated[str | None, "the kernel's message if it refuses; ? stands for a number that is not known"]
    remark: Annotated[str | None, "reason for the answer"]
    where: Annotated[str | None, "function and file of the kernel"]
    source: Annotated[str, "commits that brought the rule, or the source that it was read in"]


class VerdictDocument(TypedDict):
    """Whether a kernel would resume from an image on a machine."""

    kernel: Annotated[str, "version of the kernel, or the line of its rules"]
    rules_from: RulesFromText
    machine: Annotated[str, "machine whose facts apply"]
    checks: Annotated[list[CheckDocument], "the checks, in the kernel's order"]
    resumes: Annotated[bool | None, "whether the kernel resumes; null if unknown"]


class LayerDocument(TypedDict):
    """Something on a disk: a container, a partition, a file system, a swap area."""

    volume: Annotated[str, "specification of it, for the option volume; empty for the disk itself"]
    kind: Annotated[
        str,
        "swap, partition, luks, lvm, logical volume, damaged, not looked into; format of a virtual disk or file system",
    ]
    size_bytes: Annotated[int, "its length"]
    detail: Annotated[str, "type and label of a partition, path of a swap file, page size of a swap area"]
    problem: Annotated[str | None, "why nothing inside it is listed"]
    offset_pages: Annotated[int | None, "of a swap area: block of its header on its device"]
    state: Annotated[
        Literal["image", "uswsusp", "used up", "swap", "damaged", "other"] | None,
        "of a swap area: with an image; with one of suspend-utils; with one that a resume has used up; plain; damaged; "
        "of another program",
    ]
    state_detail: Annotated[str | None, "of a swap area: what its header says"]
    kernel: Annotated[str | None, "of an image: the banner of its kernel, `Linux version ...`, if it is found"]
    options: Annotated[str | None, "of a swap area: what opens it, after the name of a command"]


class DiskDocument(TypedDict):
    """The layers of a disk."""

    disk: Annotated[str, "file or device"]
    size_bytes: Annotated[int, "its length, unpacked"]
    layers: Annotated[list[LayerDocument], "what lies in it, those inside after those that hold them"]


class FindDocument(TypedDict):
    """`hibernaut find`: swap areas and images, and the layers they lie in."""

    disks: Annotated[list[DiskDocument], "the disks, as given"]


class UswsuspDocument(TypedDict):
    """The part of an image of suspend-utils (uswsusp) that the kernel's images do not have."""

    buffer_pages: Annotated[int | None, "pages that are compressed together; null if the image is not compressed"]
    md5_stored: Annotated[str | None, "MD5 of the stream with its info page; null if the image has none"]
    md5_computed: Annotated[str | None, "MD5 of the data by RFC 1321; null if there is none to compare, or no end"]
    md5_ok: Annotated[bool | None, "whether the stored one is of this data, however it ends; null as before"]
    md5_ending: Annotated[
        Literal["rfc 1321", "count of zero", "no last block"] | None, "the last block of the stored one that fits"
    ]


class RecordFieldDocument(TypedDict):
    """A field of the record that an architecture keeps in the info page."""

    name: Annotated[str, "name in the kernel's source"]
    value: Annotated[Hex, "value"]


class LostPartDocument(TypedDict):
    """Neighbouring units of an image that cannot be read or placed; rows, if it is not compressed."""

    first_unit: Annotated[int | None, "number of the first unit; null if it is not known, or not compressed"]
    units: Annotated[int | None, "number of units; null likewise"]
    first_row: Annotated[int | None, "first page of the stream, from 0; null if it is not known"]
    rows: Annotated[int | None, "pages of the stream; null if their number is not known"]
    block: Annotated[int | None, "block of the device at which it begins; null if it is not known"]
    what: Annotated[str, "the fault"]


class FrameRangeDocument(TypedDict):
    """A range of page frames."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages


class SalvageDocument(TypedDict):
    """The parts of a damaged or used-up image that can be read, and those that cannot."""

    used_up: Annotated[bool, "whether the signature is that of plain swap again"]
    whole: Annotated[bool, "whether the image has no fault; of a used-up one, only if its CRC proves it"]
    findings: Annotated[list[str], "the evidence for the data, and the parts that are lost"]
    units: Annotated[int | None, "units of the image; null if not known, or not compressed"]
    whole_units: Annotated[int | None, "units that decompress; null if not compressed"]
    lost: Annotated[list[LostPartDocument], "parts that cannot be read or placed"]
    readable_pages: Annotated[int, "page frames that can be read"]
    missing_pages: Annotated[int, "page frames of the list that cannot"]
    missing: Annotated[list[FrameRangeDocument], "these page frames"]
    unlisted_pages: Annotated[int | None, "page frames whose numbers are lost; null if it is not known how many"]
    unplaced_pages: Annotated[int, "pages of data that can be read, and whose page frames are not known"]
    problems: Annotated[list[ProblemDocument], "faults of the header, swap map, info page and list of frames"]


class OrphanMapDocument(TypedDict):
    """A swap map that a scan found, or a part of one, as its links prove it."""

    first_block: Annotated[int, "block of its first page"]
    map_pages: Annotated[int, "number of its pages"]
    ended: Annotated[bool, "whether the last page of the map is among them"]
    entries: Annotated[int, "blocks that it lists"]
    named: Annotated[bool, "whether the header of the area names it"]
    info_block: Annotated[int | None, "block of the info page, its first entry; null if that is none"]
    cr3: Annotated[Hex | None, "physical address of the root of the page tables, of the info page"]
    pages: Annotated[int | None, "pages of the image, of the info page"]
    whole_units: Annotated[int, "units that begin at its entries; 0 for data that is not compressed"]


class InfoPageDocument(TypedDict):
    """An info page that no swap map lists first."""

    block: Annotated[int, "its block"]
    cr3: Annotated[Hex, "physical address of the root of the page tables"]
    pages: Annotated[int, "pages of its image"]
    image_pages: Annotated[int, "of them, pages of data"]


class UnitRunDocument(TypedDict):
    """Units that follow one another, and that no swap map lists."""

    block: Annotated[int, "first block"]
    end_block: Annotated[int, "one past the last block"]
    units: Annotated[int, "number of units"]
    compressor: Annotated[str, "lzo or lz4"]
    lists: Annotated[int, "units among them that begin with a part of a list of frames"]


class FrameListDocument(TypedDict):
    """Neighbouring blocks of ascending page frames, that no swap map lists."""

    block: Annotated[int, "first block"]
    pages: Annotated[int, "number of blocks"]
    first_pfn: Annotated[Hex, "first page frame"]
    last_pfn: Annotated[Hex, "last page frame"]


class RemainsDocument(TypedDict):
    """`hibernaut inspect --scan`: remains of images in an area, whatever its header names."""

    blocks: Annotated[int, "blocks that were read"]
    maps: Annotated[list[OrphanMapDocument], "swap maps, by first block"]
    info_pages: Annotated[list[InfoPageDocument], "info pages, by block"]
    runs: Annotated[list[UnitRunDocument], "runs of units, by block"]
    lists: Annotated[list[FrameListDocument], "lists of page frames, by block"]


class KernelIdentityDocument(TypedDict):
    """The kernel of a machine; null for a fact that is not in the memory."""

    banner: Annotated[str | None, "`Linux version ...`"]
    release: Annotated[str | None, "release, as `uname -r` prints it"]
    build: Annotated[str | None, "version, as `uname -v` prints it"]
    build_date: Annotated[str | None, "the date in it, as it is written there"]
    build_id: Annotated[str | None, "build ID of vmlinux, in hexadecimal"]
    levels: Annotated[int, "levels of paging"]
    kaslr_offset: Annotated[Hex | None, "offset of the kernel image from its linked address"]
    taint: Annotated[Hex | None, "mask of taints"]
    taint_letters: Annotated[str | None, "their letters; empty if the kernel is not tainted"]


class SwapInUseDocument(TypedDict):
    """A swap device or file in use."""

    number: Annotated[int, "its type in swap entries"]
    path: Annotated[str | None, "path of the device or file"]
    device: Annotated[str | None, "block device that it is on, MAJOR:MINOR"]
    slots: Annotated[int, "slots, one page each, the header's included"]
    used_slots: Annotated[int, "slots in use when memory was copied"]
    priority: Annotated[int, "priority"]
    this_area: Annotated[
        bool | None,
        "whether the kernel writes its image there and it has the slots of this area; null if the former is not known",
    ]


class MountedDocument(TypedDict):
    """A mounted file system of process 1."""

    path: Annotated[str | None, "where it is mounted"]
    source: Annotated[str | None, "device or name that was mounted"]
    type: Annotated[str, "type of the file system"]
    options: Annotated[str, "rw or ro"]


class NetworkDeviceDocument(TypedDict):
    """A network device of the initial namespace."""

    name: Annotated[str, "its name"]
    up: Annotated[bool, "whether it is up"]
    hardware: Annotated[str | None, "hardware address; empty if it has none"]
    addresses: Annotated[list[str] | None, "IPv4 and IPv6 addresses, with the length of their prefix"]


class LogRecordDocument(TypedDict):
    """A message of the kernel's log."""

    sequence: Annotated[int, "its number, from 0 at boot"]
    time_ns: Annotated[int, "nanoseconds of the local clock, about the time since boot without time of suspend"]
    level: Annotated[int, "0 (emergency) to 7 (debug)"]
    facility: Annotated[int, "0 for the kernel's own"]
    text: Annotated[str, "the message; it may have several lines"]


class ListedProcessDocument(TypedDict):
    """A process; null for a fact that is not in the memory."""

    pid: Annotated[int, "number, in the initial namespace"]
    ppid: Annotated[int | None, "that of its parent"]
    started_at: Annotated[str | None, "time of its start, ISO 8601 in UTC"]
    uid: Annotated[int | None, "effective user"]
    name: Annotated[str | None, "its command; the full name of a kernel thread"]
    kernel: Annotated[bool, "whether it is a kernel thread"]
    threads: Annotated[int | None, "number of its threads"]
    arguments: Annotated[
        list[str] | None,
        "its arguments; null also for a kernel thread, and where their page is in no swap area that is read",
    ]
    arguments_cut: Annotated[bool, "whether there are more, beyond 4096 bytes"]
    resident_pages: Annotated[int | None, "pages in memory, by the kernel's counters; null for a kernel thread"]
    swapped_pages: Annotated[int | None, "pages in swap, likewise"]
    lost_pages: Annotated[int | None, "pages of its mappings that the source lacks, likewise"]


class CompletenessDocument(TypedDict):
    """Completeness of an image: the part of the machine's memory that it has."""

    ram_pages: Annotated[int | None, "pages of RAM of the machine"]
    listed_pages: Annotated[int, "of them, pages that the image lists"]
    zero_pages: Annotated[int, "of these, pages of zeroes without data"]
    not_saved_pages: Annotated[
        int | None, "pages of RAM that it does not list: free, held for the copy itself, or marked nosave"
    ]
    swapped_pages: Annotated[int | None, "pages of processes and caches that are in swap devices, not in the image"]


class MachineIdentityDocument(TypedDict):
    """The machine in a memory; null for a fact that is not in the memory, or that is left out."""

    kernel: KernelIdentityDocument
    hostname: Annotated[str | None, "name of the machine"]
    domain: Annotated[str | None, "its NIS domain"]
    machine_id: Annotated[str | None, "content of /etc/machine-id, if the page cache has it"]
    command_line: Annotated[str | None, "command line of the kernel"]
    booted_at: Annotated[str | None, "time of boot, ISO 8601 in UTC"]
    hibernated_at: Annotated[str | None, "time at which memory was copied, ISO 8601 in UTC"]
    uptime_seconds: Annotated[float | None, "between both"]
    clock_source: Annotated[str | None, "clock source"]
    zone: Annotated[str | None, "time zone that /etc/localtime names, if the directory cache has it"]
    minutes_west: Annotated[int | None, "time zone that the kernel was given, in minutes west of Greenwich"]
    cpus: Annotated[int | None, "CPUs that are present"]
    cpu_model: Annotated[str | None, "model of the boot CPU"]
    vendor: Annotated[str | None, "DMI vendor of the system"]
    product: Annotated[str | None, "DMI name of the product"]
    bios: Annotated[str | None, "DMI version of the firmware"]
    hypervisor: Annotated[
        str | None, "hypervisor by the kernel's name, such as KVM; none; unknown if only CPUID reports one"
    ]
    swap: Annotated[list[SwapInUseDocument] | None, "swap devices in use"]
    modules: Annotated[list[str] | None, "names of the loaded modules"]
    mounts: Annotated[list[MountedDocument] | None, "mounted file systems of process 1"]
    network: Annotated[list[NetworkDeviceDocument] | None, "network devices"]
    dm_crypt: Annotated[
        list[str] | None, "number of each open dm-crypt device, whose key is in the memory; ? if the kernel cut it"
    ]
    log: Annotated[list[LogRecordDocument] | None, "last messages of the kernel's log"]
    completeness: CompletenessDocument
    processes: NotRequired[Annotated[list[ListedProcessDocument] | None, "`--processes`: the processes"]]
    left_out: Annotated[list[str], "`--redact`: facts that are left out or shortened"]
    remarks: Annotated[list[str], "a sentence on each fact that is unknown or not whole"]


class DmesgDocument(TypedDict):
    """`hibernaut dmesg`: the kernel's log."""

    release: Annotated[str, "release of the kernel"]
    records: Annotated[list[LogRecordDocument], "messages, oldest first"]
    unread_records: Annotated[int, "messages that are not in the memory"]


class PsDocument(TypedDict):
    """`hibernaut ps`: the processes of a machine."""

    release: Annotated[str, "release of the kernel"]
    at: Annotated[str | None, "time of the memory, ISO 8601 in UTC; null if not known"]
    processes: Annotated[list[ListedProcessDocument], "the processes, by number"]
    remarks: Annotated[list[str], "a sentence on what is not whole"]


class CodecLibraryDocument(TypedDict):
    """A library that decompresses the data here."""

    name: Annotated[str, "liblzo2, python-lzo or lzallright; liblz4, or lz4, which cramjam may accompany"]
    version: Annotated[str, "version, as the library states it"]
    file: Annotated[str | None, "file that it is loaded from; null if the system does not tell"]


class InspectDocument(TypedDict):
    """`hibernaut inspect`: the contents of an image and its faults."""

    architecture: Annotated[str | None, "architecture of the kernel; null if the info page cannot be read"]
    kernel: Annotated[str | None, "kernel that the info page names; null on x86-64, where it names none"]
    page_bytes: Annotated[int, "size of a page of the machine, in which pages and blocks are counted here"]
    record: Annotated[list[RecordFieldDocument], "record of another architecture in the info page"]

    compressor: Annotated[str, "lzo, lz4 or none"]
    codec: Annotated[list[CodecLibraryDocument], "libraries of the compressor; none if the data are not compressed"]
    flags: Annotated[
        int, "flags of the swap header (kernel/power/power.h, SF_*); of the image header of suspend-utils (swsusp.h)"
    ]
    offset_pages: Annotated[int, "block of the swap header on its device, in pages"]
    crc32: CrcDocument
    hw_sig: Annotated[Hex | None, "ACPI hardware signature in the swap header"]
    cr3: Annotated[Hex | None, "physical address of the root of the page tables"]
    jump_address: Annotated[Hex | None, "virtual address of restore_registers"]
    jump_address_phys: Annotated[Hex | None, "its physical address; null if the kernel does not store it"]
    magic: Annotated[Hex | None, "magic of the info page, which tells its generation"]
    e820_checksum: Annotated[Hex | None, "CRC-32 of the e820 table; null in generations without one"]
    e820_md5: Annotated[str | None, "MD5 of the e820 table, in kernels 4.10 to 5.12; empty if built without MD5"]
    physical_pages: Annotated[int | None, "pages of RAM of the machine (num_physpages)"]
    image_pages: Annotated[int | None, "pages of data in the image, as its header states"]
    pages: Annotated[int | None, "pages in the stream: header, lists and data"]
    saved_pages: Annotated[int | None, "pages on the image's lists"]
    zero_pages: Annotated[int | None, "of them, pages of zeroes without data"]
    stored_pages: Annotated[int | None, "of them, pages with data"]
    meta_pages: Annotated[int | None, "pages of lists of frames"]
    map_pages: Annotated[int | None, "pages of the swap map, or of the extents of suspend-utils"]
    units: Annotated[
        int | None, "units of 32 compressed pages (suspend-utils: see buffer_pages); 0 if the image is not compressed"
    ]
    compressed_bytes: Annotated[int | None, "sum of the units' compressed lengths, in bytes"]
    first_map_block: Annotated[int, "block of the first page of the swap map or of the extents"]
    remarks: Annotated[list[str], "limits of what could be read, which are not faults of the image"]
    problems: Annotated[list[ProblemDocument], "faults; empty if the image is intact"]
    sha256_pfns: NotRequired[
        Annotated[Sha256, "`--digests`: of the listed frames as little-endian u64, in image order"]
    ]
    sha256_stored_pages: NotRequired[Annotated[Sha256, "`--digests`: of all stored pages, in image order"]]
    uswsusp: NotRequired[Annotated[UswsuspDocument, "of an image of suspend-utils alone"]]
    verdict: NotRequired[Annotated[VerdictDocument, "with `--for-kernel` or `--on-machine`"]]
    machine: NotRequired[Annotated[MachineIdentityDocument, "of an intact image whose memory has a kernel"]]
    salvage: NotRequired[Annotated[SalvageDocument, "of a damaged or used-up image that is read as far as it goes"]]


class HoleDocument(TypedDict):
    """A range of the direct map that is not present."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages
    level: LeafSize
    kind: Annotated[str, "not-present, none or table-missing"]
    entry: Annotated[Hex, "first page-table entry of the range"]
    plain: Annotated[bool, "whether not-present entries hold their page frames as they are, not inverted"]
    in_source: Annotated[bool, "whether the source holds the page frames"]


class MismatchDocument(TypedDict):
    """A range of the direct map that maps other page frames than its address says."""

    start_pfn: Annotated[Hex, "page frame that the address stands for"]
    pages: Pages
    level: LeafSize
    entry: Annotated[Hex, "first page-table entry of the range"]
    found_pfn: Annotated[Hex, "page frame that it maps"]


class GapDocument(TypedDict):
    """A gap in physical memory that a file of raw memory leaves out."""

    start: Annotated[Hex, "its first byte, a physical address"]
    size_bytes: Annotated[int, "its length"]


Gaps = Annotated[list[GapDocument], "gaps of raw memory that its file leaves out and that were put back, ascending"]
GapsFrom = Annotated[str | None, "their origin: the option gap, or the page tables; null if none are known"]


class MapDocument(TypedDict):
    """`hibernaut map`: the direct map."""

    remarks: Annotated[list[str], "what is missing in the source"]
    gaps: Gaps
    gaps_from: GapsFrom
    levels: Annotated[int, "levels of paging: 4 or 5"]
    cr3: Annotated[Hex, "physical address of the root of the page tables"]
    root_from: Annotated[
        str, "its origin: the option cr3, a CPU of the dump (CPU 0), VMCOREINFO, the image, or the search of memory"
    ]
    encryption_mask: Annotated[
        Hex | None, "bit of encrypted memory (SME, SEV) in page-table entries; null if it is not encrypted"
    ]
    encryption_from: Annotated[str | None, "its origin: VMCOREINFO, or the page tables (by plausibility)"]
    base: Annotated[Hex, "virtual address of page frame 0"]
    end_pfn: Annotated[Hex, "one past the last page frame"]
    present_bytes: Annotated[dict[str, int], "bytes that are present, by the size of the entries that map them"]
    holes: Annotated[list[HoleDocument], "ranges without a present entry, ascending; the first 10 000"]
    more_holes: Annotated[int, "number of ranges without a present entry that are not listed"]
    mismatches: Annotated[list[MismatchDocument], "ranges with entries for other page frames, ascending; as many"]
    more_mismatches: Annotated[int, "number of ranges with entries for other page frames that are not listed"]
    salvage: NotRequired[Annotated[SalvageDocument, "of a damaged or used-up image that is read as far as it goes"]]


class StepDocument(TypedDict):
    """A page-table entry on the way to an address."""

    level: Annotated[str, "PGD, P4D, PUD, PMD or PTE"]
    table_pfn: Annotated[Hex, "page frame of the table"]
    index: Annotated[int, "index of the entry, 0-511"]
    entry: Annotated[Hex, "the entry"]
    flags: Annotated[list[str], "names of the bits that are set"]


class RightsDocument(TypedDict):
    """Rights that all levels together give."""

    rw: Annotated[bool, "writable"]
    nx: Annotated[bool, "not executable"]
    user: Annotated[bool, "accessible in user mode"]


class StoredFrameDocument(TypedDict):
    """A reading of the page frame in a not-present entry."""

    pfn: Annotated[Hex, "page frame of the address"]
    inverted: Annotated[bool, "whether the entry stores it inverted"]


class SwapSlotDocument(TypedDict):
    """A reading of a swap entry."""

    area: Annotated[int, "number of the swap area: the type of the entry"]
    slot: Annotated[Hex, "slot in it: the offset of the entry"]
    inverted: Annotated[bool, "whether the entry stores the slot inverted, as kernels with the L1TF mitigation do"]


class NotPresentDocument(TypedDict):
    """The meaning of an entry that is not present."""

    kind: Annotated[
        str,
        "frame (a mapping of the kernel that was taken away), protnone (a user mapping without access), swap, "
        "not-a-slot (a migration, hwpoison, device or marker entry) or unknown",
    ]
    frames: Annotated[list[StoredFrameDocument], "readings of its page frame; several if nothing decides"]
    slots: Annotated[list[SwapSlotDocument], "readings of its swap slot; several if nothing decides"]


class WalkDocument(TypedDict):
    """`hibernaut walk`: the translation of one virtual address."""

    vaddr: Annotated[Hex, "the address"]
    levels: Annotated[list[StepDocument], "entries from the root down"]
    stop: Annotated[str, "end of the walk: present, not-present, none, table-missing or non-canonical"]
    pfn: Annotated[Hex | None, "page frame of the last entry; null if it has none, or if its readings differ"]
    paddr: Annotated[Hex | None, "physical address; null if the address is not mapped"]
    effective: RightsDocument
    not_present: Annotated[NotPresentDocument | None, "meaning of a last entry that is not present, else null"]
    gaps: Gaps
    gaps_from: GapsFrom


class DrgnDocument(TypedDict):
    """`hibernaut drgn`: the kernel as drgn is given it."""

    release: Annotated[str, "its release"]
    levels: Annotated[int, "levels of paging: 4 or 5"]
    symbols: Annotated[int, "symbols of kallsyms"]
    types: Annotated[int, "types of its BTF; 0 if it cannot be read"]
    types_problem: Annotated[str | None, "reason why there are no types, else null"]
    swap_areas: Annotated[list[int], "numbers of the swap areas whose slots are read"]


class ProcessMappingDocument(TypedDict):
    """A mapping of a process."""

    start: Annotated[Hex, "its first address"]
    end: Annotated[Hex, "one past its last address"]
    rights: Annotated[str, "as /proc/PID/maps has them, such as r-xp"]
    offset: Annotated[int, "byte of its file at which it begins"]
    name: Annotated[str | None, "path of its file, or a name such as [heap]; null without one"]
    resident_pages: Annotated[int, "pages in page frames that the source has"]
    swapped_pages: Annotated[int, "pages in swap slots"]
    lost_pages: Annotated[int, "pages whose frame or page table the source lacks"]
    untouched_pages: Annotated[int, "pages that the process has not touched: zero, or as in the file"]


class ProcessReadDocument(TypedDict):
    """Bytes of a process."""

    vaddr: Annotated[Hex, "their address"]
    bytes: Annotated[str, "two hexadecimal digits each"]


class ProcessDocument(TypedDict):
    """`hibernaut process`: the address space of a process."""

    pid: Annotated[int, "its number"]
    command: Annotated[str, "its name (comm)"]
    mappings: Annotated[list[ProcessMappingDocument], "ascending"]
    resident_pages: Annotated[int, "sum over its mappings"]
    swapped_pages: Annotated[int, "sum over its mappings"]
    lost_pages: Annotated[int, "sum over its mappings"]
    core: Annotated[str | None, "the core that was written, else null"]
    core_missing_pages: Annotated[int | None, "pages without content in the core; null without one"]
    read: Annotated[ProcessReadDocument | None, "the bytes that were asked for, else null"]
    remarks: Annotated[list[str], "what the core lacks"]


class CachedFileDocument(TypedDict):
    """A file in memory."""

    path: Annotated[str | None, "its path; null if no name of it is in the memory"]
    file_system: Annotated[str, "kind of its file system"]
    inode: Annotated[int, "its number"]
    size_bytes: Annotated[int, "its length"]
    resident_pages: Annotated[int, "pages in memory"]
    swapped_pages: Annotated[int, "pages in swap slots"]
    only_here: Annotated[bool, "whether it has no other place (tmpfs): then a page that is absent is a hole"]


class FilesDocument(TypedDict):
    """`hibernaut files`: the files in memory."""

    files: Annotated[list[CachedFileDocument], "by file system"]


class MissingFilePageDocument(TypedDict):
    """A page of a file that is nowhere."""

    page: Annotated[int, "its number in the file"]
    reason: Annotated[str, "why"]


class ExtractDocument(TypedDict):
    """`hibernaut files` that puts a file together."""

    path: Annotated[str, "the file"]
    output: Annotated[str, "the file that was written"]
    size_bytes: Annotated[int, "its length"]
    missing_pages: Annotated[int, "pages that are nowhere; they read as zeroes"]
    missing: Annotated[list[MissingFilePageDocument], "the first 10000 of them"]


class DigestDocument(TypedDict):
    """A file as it is on disk, nothing unpacked."""

    path: Annotated[str, "the file, as given"]
    size_bytes: Annotated[int, "its length"]
    sha256: Annotated[Sha256, "its digest"]


class ManifestAreaDocument(TypedDict):
    """The swap area that an image was read from."""

    uuid: Annotated[str | None, "UUID in its swap header; null if there is none"]
    offset_pages: Annotated[int, "block of its header on its device, in pages"]
    state: Annotated[str, "as `hibernaut find` has it: image, uswsusp, used up, damaged, swap or other"]
    checksum: Annotated[str | None, "crc32, or md5 of suspend-utils; null if the image has none"]
    stored: Annotated[str | None, "the checksum in the image"]
    ok: Annotated[bool | None, "whether it is that of the data; null if it was not compared"]


class ManifestDocument(TypedDict):
    """The file of the option manifest: the origin of an output, and digests of both."""

    version: Annotated[str, "version of hibernaut"]
    command: Annotated[list[str], "the command, word by word"]
    time: Annotated[str, "time at which the output was complete, UTC (ISO 8601)"]
    source: Annotated[DigestDocument, "the source before it was read; of a disk in several files, the one given"]
    output: Annotated[DigestDocument, "the output"]
    area: Annotated[ManifestAreaDocument | None, "swap area of the image in the source; null for a dump"]


class ConvertDocument(TypedDict):
    """`hibernaut convert`: the file that was written."""

    source: Annotated[str, "format of the source: elf, lime, avml, kdump, raw, swsusp or uswsusp"]
    remarks: Annotated[list[str], "what is missing in the source"]
    gaps: Gaps
    gaps_from: GapsFrom
    format: Annotated[str, "format of the file: elf, lime, raw or kdump"]
    compressor: Annotated[str | None, "of kdump: zlib, lzo, zstd or none; null for other formats"]
    pages: Pages
    ranges: Annotated[int, "number of ranges of neighbouring page frames"]
    zero_pages: Annotated[int, "pages of zeroes of an image that have no data in it"]
    file_bytes: Annotated[int, "length of the file, in bytes"]
    direct_map_base: Annotated[Hex | None, "virtual address of page frame 0 in an ELF core; null if unknown"]
    vmcoreinfo: Annotated[bool | None, "whether an ELF core or kdump has VMCOREINFO; null for other formats"]
    salvage: NotRequired[Annotated[SalvageDocument, "of a damaged or used-up image that is read as far as it goes"]]
    manifest: NotRequired[Annotated[ManifestDocument, "the file that the option manifest writes"]]


class MountDocument(TypedDict):
    """`hibernaut mount`: the files of a source, printed once they are there."""

    source: Annotated[str, "format of the source: elf, lime, avml, kdump, raw, swsusp or uswsusp"]
    remarks: Annotated[list[str], "what is missing in the source"]
    gaps: Gaps
    gaps_from: GapsFrom
    directory: Annotated[str, "folder that they are mounted on"]
    files: Annotated[list[str], "their names"]
    pages: Pages
    ranges: Annotated[int, "number of ranges of neighbouring page frames"]
    direct_map_base: Annotated[Hex | None, "virtual address of page frame 0 in the ELF core; null if unknown"]
    salvage: NotRequired[Annotated[SalvageDocument, "of a damaged or used-up image that is read as far as it goes"]]


class SymbolFileDocument(TypedDict):
    """`hibernaut isf`: the symbol file that was written."""

    source: Annotated[str, "format of the source: elf, lime, avml, kdump, raw, swsusp or uswsusp"]
    remarks: Annotated[list[str], "what is missing in the source"]
    file: Annotated[str, "the file"]
    file_bytes: Annotated[int, "its length, in bytes"]
    release: Annotated[str, "release of the kernel"]
    banner: Annotated[str, "banner by which Volatility finds the file, without its newline"]
    levels: Annotated[int, "levels of paging: 4 or 5"]
    kaslr_shift: Annotated[Hex, "distance of the kernel image from its addresses in the file"]
    types: Annotated[int, "number of structures and unions in the file"]
    enums: Annotated[int, "number of enumerations"]
    symbols: Annotated[int, "number of symbols"]
    typed_symbols: Annotated[int, "of them, those with a type"]
    modules: Annotated[list[str], "modules whose types are in the file"]


class VolatilityPluginsDocument(TypedDict):
    """`hibernaut volatility-plugins`: the plug-in for Volatility 3."""

    folder: Annotated[str, "folder that Volatility loads"]


class CompletionDocument(TypedDict):
    """`hibernaut completion`: the script for a shell."""

    shell: Annotated[str, "shell that reads the script"]
    script: Annotated[str, "the script"]


class AllocationDocument(TypedDict):
    """A page allocation during the copy."""

    number: Annotated[int, "number of the allocation, from 1"]
    purpose: Annotated[str, "purpose of the page"]
    pfn: Annotated[Hex | None, "page frame; null if the allocation failed"]


class WrittenDocument(TypedDict):
    """Counts of an image that was written."""

    saved_pages: Annotated[int, "pages on the image's lists"]
    zero_pages: Annotated[int, "of them, pages of zeroes without data"]
    stored_pages: Annotated[int, "of them, pages with data"]
    meta_pages: Annotated[int, "pages of lists of frames"]
    map_pages: Annotated[int, "pages of the swap map"]
    units: Annotated[int, "units of 32 compressed pages; 0 if the image is not compressed"]
    compressed_bytes: Annotated[int, "sum of the units' compressed lengths, in bytes"]
    crc32: Annotated[Hex | None, "CRC-32 in the header; null if the image is not compressed"]
    blocks: Annotated[int, "blocks of 4096 bytes in the swap area, without the header"]
    manifest: NotRequired[Annotated[ManifestDocument, "the file that the option manifest writes"]]


class SaveDocument(WrittenDocument):
    """`hibernaut save`: the image that was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Annotated[Literal["saved"], "the image was written"]
    pages_from: Annotated[str, "origin of the list of pages: image, kernel or direct-map"]
    allocations: Annotated[list[AllocationDocument], "page allocations during the copy, in order"]
    changed_pages: Annotated[int, "pages whose copy differs from the source"]
    skipped_pages: Annotated[int, "pages that were not copied"]
    log: Log
    rules: Annotated[str, "kernel line that is modelled"]
    rules_from: RulesFromText


class FaultDocument(TypedDict):
    """A fault of the modelled machine."""

    what: Annotated[str, "kind of the fault"]
    address: Annotated[Hex, "virtual address"]
    entry: Annotated[Hex | None, "page-table entry; null where there is no table"]
    pfn: Annotated[Hex | None, "page frame that was accessed"]
    doing: Annotated[str, "step of the kernel that faulted"]


class RefusalDocument(TypedDict):
    """The reason why the modelled kernel does not hibernate."""

    what: Annotated[str, "the kernel's reason"]
    errno: Annotated[str, "the kernel's name of the error"]


class CrashedSaveDocument(TypedDict):
    """`hibernaut save` where the modelled machine crashes: nothing was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Annotated[Literal["died"], "the modelled machine crashed"]
    fault: FaultDocument
    log: Log
    rules: Annotated[str, "kernel line that is modelled"]
    rules_from: RulesFromText


class RefusedSaveDocument(TypedDict):
    """`hibernaut save` where the modelled kernel does not hibernate: nothing was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Annotated[Literal["refused"], "the modelled kernel does not hibernate"]
    refused: RefusalDocument
    log: Log
    rules: Annotated[str, "kernel line that is modelled"]
    rules_from: RulesFromText


class WriteDocument(TypedDict):
    """A change of memory."""

    paddr: Annotated[Hex, "physical address"]
    bytes: Annotated[int, "number of bytes"]


class RewriteDocument(WrittenDocument):
    """`hibernaut rewrite`: the image that was written."""

    compressor: Annotated[str, "lzo, lz4 or none"]
    in_place: Annotated[bool, "whether the image itself was rewritten"]
    writes: Annotated[list[WriteDocument], "changes of memory, in order"]


class RunOfPagesDocument(TypedDict):
    """Neighbouring page frames."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages


class PageClassDocument(TypedDict):
    """Pages with the same kind of entry in the direct map."""

    name: Annotated[str, "kind of entry"]
    pages: Pages
    first: Annotated[list[RunOfPagesDocument], "the first ranges"]
    more: Annotated[bool, "whether there are more ranges"]
    today: Annotated[str, "outcome with today's kernel"]
    fixmap: Annotated[str, "outcome with the fixmap slot"]
    today_bad: Annotated[bool, "whether today's kernel may lose or tear a page, or crash"]
    fixmap_bad: Annotated[bool, "the same for the fixmap slot"]


class SplitDocument(TypedDict):
    """A large entry that the copy would split."""

    start_pfn: Annotated[Hex, "first page frame of the entry"]
    level: LeafSize
    first_pfn: Annotated[Hex, "first page frame in it that is saved"]
    pages: Pages
    table_pfn: Annotated[Hex, "page frame of the table that the entry lies in"]
    order: Annotated[str, "below: the table is copied before the split; above: after it; not listed: it is not copied"]
    allocations: Annotated[int, "pages for tables that the split takes"]


class DepletionDocument(TypedDict):
    """The splits in the copy that the kernel has a page for."""

    when: Annotated[
        str,
        "`before`: predicted for a kernel that does not hibernate yet; `copy`: for one whose list of pages is fixed",
    ]
    image_pages: Annotated[int, "pages that are allocated for the image before devices are frozen"]
    free_pages: Annotated[int, "free pages at the copy"]
    kept_pages: Annotated[int, "free pages that an allocation for a table does not get"]
    least: Annotated[int, "splits that find a page in any case"]
    most: Annotated[int, "splits that find one at most, without reclaim"]
    floor_pages: Annotated[
        int | None, "free pages that the kernel's reserves leave for splits, whatever is in memory; null in the copy"
    ]
    cached_pages: Annotated[int, "pages of files, which may be reclaimed in the midst of the copy"]
    drivers_pages: Annotated[int, "pages that drivers were taken to allocate before the copy"]
    suffices: Annotated[bool | None, "whether this is enough for the splits of this machine; null if it is not certain"]


class AuditDocument(TypedDict):
    """`hibernaut audit`: whether every page of a machine would be saved."""

    rules: Annotated[str, "kernel line that is modelled"]
    rules_from: RulesFromText
    saveable_pages: Pages
    refused: Annotated[str | None, "reason why the kernel does not hibernate"]
    classes: Annotated[list[PageClassDocument], "pages by kind of entry"]
    allocations: Annotated[int, "pages for tables that the copy takes"]
    splits: Annotated[list[SplitDocument], "the first splits, at most 20"]
    more_splits: Annotated[int, "number of splits that are not listed"]
    depletion: Annotated[DepletionDocument | None, "the splits that find a page; null if the kernel does not tell"]
    no_depletion: Annotated[str | None, "reason why it is not known"]
    safe_today: Annotated[bool, "whether today's kernel saves every page, whatever fails"]
    safe_by_fixmap: Annotated[bool, "whether the fixmap slot does"]
    gaps: Gaps
    gaps_from: GapsFrom


class RunDocument(TypedDict):
    """The copy by one way in one branch of the explanation."""

    outcome: Annotated[str, "saved, died or refused"]
    allocations: Annotated[int, "number of page allocations"]
    failed_checks: Annotated[list[str], "names of the checks that found something"]
    findings: Annotated[list[str], "names of these checks with the number of pages"]
    kernel_lines: Annotated[list[str], "the modelled kernel's own messages"]


class BranchDocument(TypedDict):
    """A branch of the explanation."""

    title: Annotated[str, "condition of the branch"]
    path: Annotated[list[str], "the code path, step by step"]
    today: Annotated[RunDocument, "the run by today's kernel"]
    fixmap: Annotated[RunDocument, "the run with the fixmap slot"]


class ExplainDocument(TypedDict):
    """`hibernaut explain`: the answer to the question of the mailing list."""

    question: Annotated[str, "the question"]
    rules: Annotated[str, "kernel line that is modelled"]
    branches: Annotated[list[BranchDocument], "the branches"]


class SituationDocument(TypedDict):
    """A machine about to hibernate."""

    name: Annotated[str, "name of the situation"]
    what: Annotated[str, "description"]


class CellDocument(TypedDict):
    """One way in one situation."""

    way: Annotated[str, "way of copying pages that are not present"]
    situation: Annotated[str, "name of the situation"]
    outcome: Annotated[str, "saved, died or refused"]
    saved_pages: Pages
    allocations: Annotated[int, "number of page allocations"]
    failed_checks: Annotated[list[str], "names of the checks that found something"]
    findings: Annotated[int, "number of findings"]
    first_findings: Annotated[list[str], "the first findings"]
    error: Annotated[str | None, "reason why nothing was saved"]


class CrashLogDocument(TypedDict):
    """The kernel's log of one cell that crashes."""

    way: Annotated[str, "way of copying pages that are not present"]
    situation: Annotated[str, "name of the situation"]
    log: Log


class DemoImageDocument(TypedDict):
    """The image that the demo writes and reads back."""

    pages: Pages
    crc32: Annotated[Hex | None, "CRC-32 in the header; null if the image is not compressed"]
    blocks: Annotated[int, "blocks of 4096 bytes in the swap area"]
    listed_as_saved: Annotated[bool, "whether the image lists the frames of the snapshot"]
    wrong_pages: Annotated[int, "pages that differ from the machine's"]


class DemoDocument(TypedDict):
    """`hibernaut demo`: the matrix of ways and situations."""

    ways: Annotated[list[str], "ways of copying pages that are not present"]
    situations: Annotated[list[SituationDocument], "the situations"]
    cells: Annotated[list[CellDocument], "the outcome of each way in each situation"]
    last_words: CrashLogDocument
    image: DemoImageDocument


class EndingDocument(TypedDict):
    """An outcome of runs."""

    verdict: Annotated[str, "the outcome, in words"]
    outcome: Annotated[str, "saved, died or refused"]
    violated: Annotated[list[str], "names of the violated invariants"]
    warned: Annotated[bool, "whether the kernel warned"]
    loses: Annotated[bool, "whether a page or the machine is lost; false if there are only traces"]
    runs: Annotated[int, "number of runs with this outcome"]
    machines: Annotated[int, "number of machines that have such a run"]
    choices_away: Annotated[int, "number of choices in which the shortest run deviates from one without interference"]
    schedule: Annotated[list[str], "choices of the shortest run, in words"]
    injected: Annotated[list[str], "its choices that deviate"]
    findings: Annotated[list[str], "the first violations"]
    file: Annotated[str | None, "file that the run was saved to"]


class WayDocument(TypedDict):
    """Every run by one way."""

    way: Annotated[str, "way of copying pages that are not present"]
    safe: Annotated[bool, "whether no run loses a page or the machine"]
    machines: Annotated[int, "number of machines"]
    runs: Annotated[int, "number of runs"]
    states: Annotated[int, "number of distinct states"]
    steps: Annotated[int, "number of steps that were executed"]
    cut_machines: Annotated[int, "machines not explored to the end"]
    cut: Annotated[str | None, "the bound that cut the first of them"]
    endings: Annotated[list[EndingDocument], "outcomes, shortest runs first"]


class ExploreDocument(TypedDict):
    """`hibernaut explore`: every run of a scope."""

    scope: Annotated[str, "machines, bounds and rules"]
    covered: Annotated[bool, "whether every run was explored"]
    rules_from: RulesFromText
    ways: Annotated[list[WayDocument], "results by way"]


class OperationDocument(TypedDict):
    """An operation on a machine."""

    do: Annotated[str, "name of the operation"]
    way: NotRequired[Annotated[str, "hibernate: way of copying pages that are not present"]]
    pfn: NotRequired[Annotated[int, "page frame"]]
    pages: NotRequired[Pages]
    cpu: NotRequired[Annotated[int, "number of the CPU"]]


class ReplayDocument(TypedDict):
    """`hibernaut replay`: a saved run, played again."""

    format: Annotated[str, "hibernaut run"]
    version: Annotated[int, "version of the format"]
    machine: Annotated[dict[str, Any], "family and unit of a simulated machine, or source and fingerprint"]
    rules: Annotated[str, "kernel line that is modelled"]
    operations: Annotated[list[OperationDocument], "operations on the machine, in order"]
    choices: Annotated[list[int], "index of the answer to each question"]
    schedule: Annotated[list[str], "the choices, in words"]
    injected: Annotated[list[str], "the choices that deviate"]
    outcome: Annotated[str, "saved, died or refused"]
    violated: Annotated[list[str], "names of the violated invariants"]
    warned: Annotated[bool, "whether the kernel warned"]
    death: Annotated[str, "kind of the crash; empty if there is none"]
    error: Annotated[str | None, "the fault or refusal"]
    findings: Annotated[list[str], "the first violations"]
    more_findings: Annotated[int, "number of violations that are not listed"]
    log: Log
    same: Annotated[bool, "whether the replay is identical to the file"]
    difference: Annotated[str | None, "the first difference"]


class TallyDocument(TypedDict):
    """Counts of every run by one way."""

    machines: Annotated[int, "number of machines"]
    runs: Annotated[int, "number of runs"]
    states: Annotated[int, "number of distinct states"]
    cut: Annotated[int, "machines not explored to the end"]


class StudyDocument(TypedDict):
    """A study behind the answers."""

    name: Annotated[str, "name of the study"]
    scope: Annotated[str, "machines, bounds and rules"]
    ways: Annotated[dict[str, TallyDocument], "counts by way"]


class ClaimDocument(TypedDict):
    """A claim and its verdict over the runs."""

    name: Annotated[str, "name of the claim"]
    title: Annotated[str, "the claim, a sentence"]
    holds: Annotated[bool, "whether no machine contradicts it"]
    machines: Annotated[int, "number of machines, each by each way"]
    runs: Annotated[int, "number of runs"]
    against: Annotated[int, "number of machines that contradict it"]
    first_against: Annotated[str | None, "the first of them"]


class CostDocument(TypedDict):
    """The cost of a way on a machine with two hidden blocks of 2 MiB."""

    way: Annotated[str, "name of the way"]
    pages: Annotated[int, "pages copied, none of them present"]
    tables: Annotated[int, "tables allocated"]
    entry_writes: Annotated[int, "entries written, those that fill a table left out"]
    invalidations: Annotated[int, "invalidations of one address"]
    flushes: Annotated[int, "flushes of a whole TLB"]


class AnswersDocument(TypedDict):
    """`hibernaut answers`: studies, claims, and the cost of each way."""

    studies: Annotated[list[StudyDocument], "the studies"]
    claims: Annotated[list[ClaimDocument], "the claims"]
    costs: Annotated[list[CostDocument], "the cost of each way; empty unless a study of proposed kernels is run"]


class StepLineDocument(TypedDict):
    """A step of the takeover."""

    step: Annotated[str, "name of the step; empty for a further line"]
    what: Annotated[str, "outcome of the step"]


class StockDocument(TypedDict):
    """The stock kernel's own hibernation."""

    outcome: Annotated[str, "hibernated, died or refused"]
    reason: Annotated[str, "the kernel's message, unless it hibernated"]


class TakeoverDocument(TypedDict):
    """`hibernaut takeover`: an image from a dump, resumed by a stock kernel."""

    passed: Annotated[bool, "whether the resumed guest and its direct map are unchanged"]
    kernel: Annotated[str, "release of the kernel"]
    variant: Annotated[str, "kind of guest"]
    steps: Annotated[list[StepLineDocument], "the steps, in order"]
    stock: StockDocument
    stock_resumed: Annotated[str | None, "outcome of resuming from the kernel's own image"]
    resumed: Annotated[str, "outcome of resuming from our image"]
    direct_map_findings: Annotated[
        list[str], "differences between the direct maps of the dump and of the resumed guest"
    ]


class VariantDocument(TypedDict):
    """A kind of guest."""

    name: Annotated[str, "name of the variant"]
    what: Annotated[str, "description"]
    memory_mib: Annotated[int, "RAM, in MiB"]
    levels: Annotated[int, "levels of paging: 4 or 5"]
    kaslr: Annotated[bool, "whether the kernel randomizes its addresses"]
    compressor: Annotated[str, "compressor of the image"]
    swap: Annotated[str, "disk, partition or file"]
    regions: Annotated[list[str], "regions out of the direct map"]
    seed: Annotated[int, "seed of the choice of the regions' blocks"]
    fail_allocations: Annotated[int, "number of failing allocations for splits"]
    skip_allocations: Annotated[int, "number of those that succeed before the first one fails"]
    kfence: Annotated[bool, "whether KFENCE is switched on at run time"]
    secret_pages: Annotated[int, "pages of memfd_secret"]
    pages: Annotated[Literal["above", "below"], "position of the allocator's pages relative to the regions"]
    lists: Annotated[Literal["above", "below"], "position of the CPUs' own lists relative to the regions"]
    swaps_out: Annotated[bool, "whether pages are swapped out before the image is made"]
    zswap: Annotated[bool, "whether zswap is enabled"]
    zswap_compressor: Annotated[str, "compressor of zswap, by the kernel's name; empty for the kernel's default"]
    huge_pages: Annotated[int, "huge pages of anonymous memory that a process has; with any, tmpfs has some, too"]


class VariantsDocument(TypedDict):
    """`hibernaut lab variants`: the kinds of guests."""

    variants: Annotated[list[VariantDocument], "the variants"]


class RecordDocument(TypedDict):
    """The record of a guest (`machine.json`)."""

    session: Annotated[str, "session of the guest"]
    release: Annotated[str, "release of its kernel"]
    kernel: Annotated[str, "kernel line, or the release"]
    variant: VariantDocument
    partition: Annotated[int | None, "number of the swap partition; null for a whole disk"]
    offset: Annotated[int, "resume_offset, in pages"]
    regions: Annotated[list[dict[str, str]], "the module's report on each region"]
    frames: Annotated[list[list[int]], "page of the locked region, first page frame, count"]
    direct_map: Annotated[dict[str, int], "the kernel's counters DirectMap4k, DirectMap2M, DirectMap1G, in kB"]
    saved_pages: Annotated[int | None, "number of pages that the kernel announced; null if it did not"]
    allocator: Annotated[dict[str, int], "page frames of the allocator's structures, by name"]


class SentenceDocument(TypedDict):
    """A sentence of a report."""

    about: Annotated[str, "verdict, source, machine, integrity, saving, regions, tables, outcome or trace"]
    state: Annotated[Literal["ok", "warning", "bad", "unknown", "fact"], "its weight"]
    text: Annotated[str, "the sentence, or a few"]


class FrameClassDocument(TypedDict):
    """Page frames of one class."""

    key: Annotated[str, "name of the class"]
    label: Annotated[str, "the class in words"]
    pages: Pages


class RegionInOrderDocument(TypedDict):
    """A region under a large entry that is not present, or under a table that is missing, in the order of the copy."""

    start_pfn: Annotated[Hex, "first page frame of the region"]
    pages: Pages
    level: LeafSize
    entry: Annotated[Hex, "raw entry that decides"]
    table_pfn: Annotated[Hex, "page frame of the table that holds the entry"]
    first_pfn: Annotated[Hex | None, "first page frame of the region that is saved; null if none is, or it is unknown"]
    listed_pages: Annotated[int, "pages of the region that are saved"]
    order: Annotated[
        Literal["below", "above", "not listed"] | None,
        "below: the table is copied before the split; above: after it; not listed: it is not copied; null: not known",
    ]
    lost_pfn: Annotated[Hex | None, "page frame that the entry names as a table and that the file lacks"]
    torn: Annotated[bool, "whether the image names a table that it never had; of a dump, whether its image would"]
    steps: Annotated[list[str], "steps of the copy at this region, in order"]


class AddressRegionDocument(TypedDict):
    """A part of the kernel's or a process's virtual addresses."""

    name: Annotated[str, "user, direct map, vmemmap, kernel image, or other"]
    start: Annotated[Hex, "first virtual address"]
    end: Annotated[Hex, "one past the last one"]
    present_bytes: Annotated[dict[str, int], "bytes present, by size of entry"]
    not_present_pages: Annotated[int, "pages under entries that are not present and not none"]
    missing_tables: Annotated[int, "tables there that the file lacks"]


class ContentsDocument(TypedDict):
    """Contents of pages."""

    pages: Pages
    zero_pages: Annotated[int, "pages that are all zeroes"]
    distinct_pages: Annotated[int, "different contents of the others, by a digest of 64 bits"]
    repeated_pages: Annotated[int, "others with the content of a page that was counted before"]


class CompressionDocument(TypedDict):
    """Compression of an image by unit."""

    compressor: Annotated[str, "lzo, lz4 or none"]
    units: Annotated[int, "number of units that can be read; 0 if it is not compressed"]
    unit_pages: Annotated[int, "pages of a unit, the last one apart"]
    stored_pages: Annotated[int, "rows of 4096 bytes in them, or not compressed, the list of frames included"]
    compressed_bytes: Annotated[int, "bytes after compression, the length of each unit apart; 0 if not compressed"]


class ImageAreaDocument(TypedDict):
    """Place of an image's blocks in its swap area."""

    area_blocks: Annotated[int, "blocks of the area's device"]
    header_block: Annotated[int, "block of the swap header"]
    image_blocks: Annotated[int, "blocks of the image: pages and map pages, those that cannot be read included"]
    map_blocks: Annotated[int, "map pages among them"]
    first_block: Annotated[int, "lowest block of the image"]
    last_block: Annotated[int, "highest block"]
    runs: Annotated[int, "runs of neighbouring blocks"]


class OwnerDifferenceDocument(TypedDict):
    """Differences of the page frames of one use."""

    owner: Annotated[str, "use of the frames"]
    different: Annotated[int, "frames with other bytes"]
    only_first: Annotated[int, "frames that SOURCE has alone"]
    only_second: Annotated[int, "frames that OTHER has alone"]


class DifferentRunDocument(TypedDict):
    """Neighbouring page frames of one use that differ."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages
    owner: Annotated[str, "use of the frames"]


class ChangedEntryDocument(TypedDict):
    """A page-table entry that differs."""

    table_pfn: Annotated[Hex, "page frame of its table"]
    index: Annotated[int, "its number in the table"]
    first: Annotated[Hex, "the entry in SOURCE"]
    second: Annotated[Hex, "the entry in OTHER"]


class DifferenceDocument(TypedDict):
    """The difference between two sources."""

    equal: Annotated[int, "frames with the same bytes"]
    different: Annotated[int, "frames with other bytes"]
    only_first: Annotated[int, "frames that SOURCE has alone"]
    only_second: Annotated[int, "frames that OTHER has alone"]
    owners: Annotated[list[OwnerDifferenceDocument], "the same by use"]
    runs: Annotated[list[DifferentRunDocument], "the first frames with other bytes, at most 200 runs"]
    more_runs: Annotated[int, "number of further runs"]
    entries: Annotated[list[ChangedEntryDocument], "the first changed entries of page tables, at most 200"]
    more_entries: Annotated[int, "number of further ones"]


class SourceReportDocument(TypedDict):
    """A source in a report."""

    name: Annotated[str, "name of the file"]
    kind: Annotated[str, "format of the file"]
    verdict: Annotated[SentenceDocument, "the verdict in one sentence"]
    sentences: Annotated[list[SentenceDocument], "the source in plain sentences"]
    facts: Annotated[dict[str, str], "facts of the machine by name"]
    frames: Annotated[int, "page frames of the map"]
    runs: Annotated[int, "runs of frames of one class in the map"]
    mapped: Annotated[list[FrameClassDocument], "frames by their entry of the direct map"]
    fate: Annotated[list[FrameClassDocument], "frames by whether hibernation saves them"]
    use: Annotated[list[FrameClassDocument], "frames by use"]
    regions: Annotated[list[RegionInOrderDocument], "regions in the order of the copy, at most 256"]
    more_regions: Annotated[int, "number of further ones"]
    page_tables: Annotated[int | None, "page tables that the root reaches; null if there is no root"]
    addresses: Annotated[list[AddressRegionDocument], "virtual addresses by part"]
    contents: Annotated[ContentsDocument | None, "contents of the pages; null if they cannot all be read"]
    compression: Annotated[CompressionDocument | None, "compression; null for a dump"]
    area: Annotated[ImageAreaDocument | None, "blocks of the image; null for a dump, and if none is known"]
    swapped_pages: Annotated[int | None, "pages in swap slots, which have no frame; null if unknown"]
    remarks: Annotated[list[str], "sentences on facts that are unknown"]
    salvage: NotRequired[Annotated[SalvageDocument, "of a damaged or used-up image that is read as far as it goes"]]


class TimelineStepDocument(TypedDict):
    """Neighbouring calls of a recorded copy loop: plain copies, or pages with the same calls at each."""

    first_call: Annotated[int, "number of the first call, from 1 on"]
    last_call: Annotated[int, "number of the last one; a call that copies a run can be part of two steps"]
    calls: Annotated[list[str], "calls of each page in their order, by the kernel's names; copy alone: plain copies"]
    start_pfn: Annotated[Hex | None, "first page frame; null if nothing is copied before these calls"]
    last_pfn: Annotated[Hex | None, "last page frame"]
    pages: Annotated[int, "pages whose copy begins"]
    runs: Annotated[int, "runs of neighbouring page frames"]
    error: Annotated[int, "error of a call that fails; 0 if none does"]
    table: Annotated[bool, "whether the one page frame is a page table that the loop changes or allocates"]


class TraceTableDocument(TypedDict):
    """A page table that a recorded copy loop changes, or a page that it allocates."""

    pfn: Annotated[Hex, "its page frame"]
    allocated_by: Annotated[int | None, "number of the call that allocates it; null if it was there before"]
    listed: Annotated[bool, "whether it is on the list of pages to save"]
    copied_by: Annotated[int | None, "number of the call that copies it; null if none does"]
    changes_before: Annotated[int, "calls that change an entry of it before its copy, or at all without one"]
    changes_after: Annotated[int, "calls that change an entry of it after its copy"]


class CopyTimelineDocument(TypedDict):
    """A recorded copy loop as a timeline."""

    trace: Annotated[str, "file with the trace"]
    release: Annotated[str, "release of the kernel"]
    guest: Annotated[str, "kind of guest"]
    outcome: Annotated[str, "hibernated, or died: it crashed"]
    same_machine: Annotated[bool, "whether the trace is known to be of SOURCE's hibernation; another one is refused"]
    calls: Annotated[dict[str, int], "number of calls by name"]
    pages: Annotated[int, "pages whose copy begins"]
    listed_pages: Annotated[int, "pages on the list of pages to save"]
    sentences: Annotated[list[SentenceDocument], "the loop in plain sentences"]
    steps: Annotated[list[TimelineStepDocument], "steps in their order, at most 200"]
    more_steps: Annotated[int, "number of further ones"]
    tables: Annotated[list[TraceTableDocument], "page tables that it changes or allocates, at most 200"]
    more_tables: Annotated[int, "number of further ones"]


class ReportDocument(TypedDict):
    """`hibernaut report`: the numbers of a page."""

    report: Annotated[str, "file with the page"]
    report_bytes: Annotated[int, "its length"]
    redacted: Annotated[bool, "whether names of a person or a machine are left out"]
    source: SourceReportDocument
    other: Annotated[SourceReportDocument | None, "OTHER; null without it"]
    difference: Annotated[DifferenceDocument | None, "difference between both; null without OTHER"]
    trace: Annotated[CopyTimelineDocument | None, "the recorded copy loop of SOURCE; null if no trace is given"]


class ReplyDocument(TypedDict):
    """A command in a guest and its output."""

    command: Annotated[str, "the command"]
    status: Annotated[int, "exit status"]
    lines: Annotated[list[str], "lines of output"]


class BootDocument(TypedDict):
    """`hibernaut lab boot`: commands in a guest."""

    kernel: Annotated[str, "release of the kernel"]
    answers: Annotated[list[ReplyDocument], "the commands, in order"]


class BuildDocument(TypedDict):
    """`hibernaut lab build`: a kernel from source."""

    tree: Annotated[str, "folder of the result, a build tree"]
    release: Annotated[str, "release of the kernel"]
    source: Annotated[str, "kernel line or source folder"]
    cure: Annotated[str, "name of the change to the source"]
    fresh: Annotated[bool, "whether anything was built; false if the cache had it"]
    seconds: Annotated[float, "duration of the build"]
    unset: Annotated[list[str], "settings that the kernel's configuration does not have"]
    patch: Annotated[str | None, "file with the change as a patch; null if none was asked for"]


class BuildPlanDocument(TypedDict):
    """`hibernaut lab build --dry-run`: the commands."""

    tree: Annotated[str, "folder of the result"]
    commands: Annotated[list[list[str]], "words of each command, in order"]


class CureDocument(TypedDict):
    """A change to the kernel."""

    name: Annotated[str, "name of the change"]
    what: Annotated[str, "the change, a clause"]
    kind: Annotated[str, "stock, cure, wrong or alternative"]
    noticed: Annotated[str, "effect by which a wrong cure or an alternative is noticed"]


class CuresDocument(TypedDict):
    """`hibernaut lab build --list`: the changes to the kernel."""

    cures: Annotated[list[CureDocument], "the changes"]


class DumpDocument(TypedDict):
    """`hibernaut lab dump`: the RAM of a guest."""

    dump: Annotated[str, "the file"]
    record: RecordDocument


class CheckedTraceDocument(TypedDict):
    """`hibernaut replay --against`: the calls of a kernel's copy loop, compared with the model's."""

    trace: Annotated[str, "the file with the calls"]
    release: Annotated[str, "release of the kernel"]
    rules: Annotated[str, "rules by which the model runs"]
    guest: Annotated[str, "kind of guest"]
    outcome: Annotated[str, "outcome of the recorded hibernation: hibernated or died"]
    way: Annotated[str, "way of the model"]
    calls: Annotated[int, "number of recorded calls, neighbouring copies counted as one"]
    same_calls: Annotated[int, "number of calls that are the same, from the first on"]
    same: Annotated[bool, "whether the model makes the same calls"]
    difference: Annotated[str | None, "the first difference, null if there is none"]


class HibernateDocument(TypedDict):
    """`hibernaut lab hibernate`: a guest that hibernates."""

    outcome: Annotated[str, "hibernated, died or refused"]
    reason: Annotated[str, "the kernel's message, unless it hibernated"]
    image: Annotated[str, "the disk"]
    seconds: Annotated[float, "time from boot to end"]
    record: RecordDocument


class OtherMachineDocument(TypedDict):
    """`hibernaut lab hibernate --arch`: a guest of another architecture that hibernates."""

    machine: Annotated[str, "name of the machine"]
    outcome: Annotated[Literal["hibernated", "failed"], "hibernated, or failed"]
    reason: Annotated[str, "last lines of its console, unless it hibernated"]
    image: Annotated[str, "the disk"]
    seconds: Annotated[float, "time from boot to end"]
    release: Annotated[str, "release of the kernel"]
    build: Annotated[str, "build string of the kernel"]
    page_bytes: Annotated[int, "size of a page"]
    frames: Annotated[list[Hex], "numbers of the pages that contain their identity, counted in pages of that size"]


class TraceDocument(TypedDict):
    """`hibernaut lab trace`: the copy loop of a guest's kernel, recorded."""

    trace: Annotated[str, "the file with the calls"]
    release: Annotated[str, "release of the kernel"]
    rules: Annotated[str, "rules of that kernel"]
    outcome: Annotated[str, "hibernated or died"]
    reason: Annotated[str, "the kernel's message, unless it hibernated"]
    calls: Annotated[dict[str, int], "number of calls of each kind, neighbouring copies counted as one"]
    allocations: Annotated[list[str | None], "frame of each page allocated for a split, null if that failed"]
    record: RecordDocument


class ResumeDocument(TypedDict):
    """`hibernaut lab resume`: a guest that resumes."""

    passed: Annotated[bool, "whether the guest resumed unchanged"]
    reason: Annotated[str, "verified facts, or the reason of the failure"]
    seconds: Annotated[float, "time from boot to end"]
    facts: Annotated[dict[str, Any], "facts that the resumed guest reports"]


class ConfirmDocument(TypedDict):
    """`hibernaut lab confirm`: the model's prediction and the kernel's behaviour."""

    file: Annotated[str, "the saved run"]
    regions: Annotated[list[str], "regions out of the direct map"]
    fail_allocations: Annotated[int, "number of failing allocations for splits"]
    outcome: Annotated[str, "outcome that the model predicts: saved or died"]
    kernel_lines: Annotated[list[str], "messages of the modelled kernel"]
    violated: Annotated[list[str], "names of the invariants that the model violates"]
    pages: Annotated[str, "position of the allocator's pages relative to the regions"]
    lists: Annotated[str, "position of the CPUs' own lists relative to the regions"]
    allocates: Annotated[bool, "whether pages are allocated after the resume"]
    dies_of: Annotated[str, "crash of the resumed machine in the model; empty if it continues"]
    agrees: Annotated[bool, "whether the kernel behaves as predicted"]
    release: Annotated[str, "release of the kernel"]
    said: Annotated[list[str], "messages of the real kernel"]
    seen: Annotated[str, "observations in one sentence"]


class DepletedGuestDocument(TypedDict):
    """`hibernaut lab depletion`: splits of a guest's kernel with few free pages, predicted and made."""

    release: Annotated[str, "release of the kernel"]
    blocks: Annotated[int, "blocks of 2 MiB out of the direct map, one page of each to save"]
    before: Annotated[DepletionDocument, "prediction from its memory before it hibernated"]
    in_copy: Annotated[DepletionDocument, "prediction from its memory at the beginning of the copy"]
    kernels_image_pages: Annotated[int, "pages that the kernel allocated for the image, by its own message"]
    kernels_free_pages: Annotated[
        int | None, "free pages right before the copy, by its own messages, if it prints them"
    ]
    served: Annotated[int, "splits that got a page without reclaim"]
    splits: Annotated[int, "splits that got a page"]
    failed: Annotated[bool, "whether an allocation failed; none is injected"]
    interrupts: Annotated[bool, "whether the copy continued with interrupts enabled"]
    outcome: Annotated[str, "hibernated, died, refused or hung"]
    reason: Annotated[str, "the kernel's messages of the last three"]
    resumed: Annotated[str | None, "what another machine resumed from the image; null without an image"]
    as_predicted: Annotated[bool, "whether as many splits were served as both predictions allow"]


class ImageChangeDocument(TypedDict):
    """A change of an image."""

    part: Annotated[str, "part of the image that was changed"]
    index: Annotated[int, "which entry, link, unit, listed frame or stored page; 0 for a field"]
    value: Annotated[str, "its new value in hex; of a byte, its position and the bits that were flipped"]
    was: Annotated[str | None, "its value before; null of a byte"]
    mends_crc: Annotated[bool, "whether the CRC in the header was made right"]


class TriedImageDocument(TypedDict):
    """A changed image that a kernel was given."""

    compressor: Annotated[str, "compressor of the image: lzo, lz4 or none"]
    changes: Annotated[list[ImageChangeDocument], "what was changed; nothing in the image as it was"]
    change: Annotated[str, "the changes in words"]
    outcome: Annotated[
        str, "refused, whole, wrong, crashed while reading, crashed after, hung while reading or hung after"
    ]
    says: Annotated[str, "words of the kernel, or what was verified"]
    reports: Annotated[list[str], "reports of the kernel's sanitizers before the image was put in its place"]
    predicted: Annotated[str, "prediction: resumes, refuses, crashes, resumes or refuses, unknown or unread"]
    words: Annotated[str, "words of the refusal as predicted, ? for a value; empty if none are"]
    reason: Annotated[str, "reason for the prediction; of `resumes or refuses` the condition"]
    as_predicted: Annotated[bool | None, "whether it ended so, in these words; null if nothing was predicted"]
    is_case: Annotated[bool, "whether it has a finding that no image with fewer of its changes has"]


class ParserDocument(TypedDict):
    """`hibernaut lab fuzz-resume`: changed images given to a real kernel."""

    release: Annotated[str, "release of the kernel"]
    images: Annotated[list[TriedImageDocument], "images that it was given, the unchanged one first"]


class CaseDocument(TypedDict):
    """Result of a case on a kernel."""

    kernel: Annotated[str, "kernel line, or the release"]
    release: Annotated[str, "release of the kernel"]
    case: Annotated[str, "name of the case"]
    must: Annotated[str, "outcome that the case must have"]
    passed: Annotated[bool | None, "null if the case could not be run"]
    seen: Annotated[str, "observations"]
    seconds: Annotated[int, "duration"]
    result: Annotated[Literal["PASS", "FAIL", "SKIP"], "result of the case"]


class ProveDocument(TypedDict):
    """`hibernaut lab prove`: every case on every kernel."""

    passed: Annotated[bool, "whether all cases pass, but those of kernels that cannot be had"]
    results: Annotated[list[CaseDocument], "results by kernel and case"]


class JudgedCaseDocument(TypedDict):
    """Behaviour of a kernel in one situation."""

    case: Annotated[str, "name of the situation"]
    what: Annotated[str, "description of the situation"]
    verdict: Annotated[
        Literal["cured", "not cured", "not exercised", "unclear"], "verdict on the kernel in this situation"
    ]
    why: Annotated[list[str], "what is wrong, or why nothing can be said; what was right if the kernel is cured"]
    kernel_lines: Annotated[list[str], "messages of the kernel that bear on it"]
    tries: Annotated[int, "number of guests"]
    seconds: Annotated[int, "duration"]


class JudgeDocument(TypedDict):
    """`hibernaut lab judge`: whether a kernel's hibernation saves every page, in each situation."""

    kernel: Annotated[str, "kernel line, or the release"]
    release: Annotated[str, "release of the kernel"]
    configuration: Annotated[str | None, "digest of its configuration; null if that is not known"]
    lacks: Annotated[list[str], "needs that its configuration does not meet"]
    quick: Annotated[bool, "whether each guest resumed in the boot in which it hibernated"]
    control: Annotated[bool, "whether the kernel hibernates and resumes with the whole direct map present"]
    cases: Annotated[list[JudgedCaseDocument], "the situations, the control first"]
    verdict: Annotated[Literal["cured", "not cured", "cannot judge"], "verdict on the kernel"]
    why: Annotated[str, "the reason of the verdict"]
    seconds: Annotated[int, "duration"]


class HiddenDocument(TypedDict):
    """Frames of RAM out of the direct map that are alike."""

    size: Annotated[str, "size that one of their entries spans: 4K, 2M, 1G"]
    kind: Annotated[
        Literal["not present", "zero", "no table"],
        "the entry is not present; it is zero, in a table of 4K entries; an entry above is zero, so there is no table",
    ]
    owner: Annotated[str, "owner of the frames, or the reason why they have none; unknown if nothing tells"]
    saved: Annotated[
        Literal["yes", "no", "refused", "unknown"],
        "whether hibernation would save them; refused if the kernel does not hibernate while they are there",
    ]
    pages: Annotated[int, "number of frames"]
    entries: Annotated[int, "number of entries"]


class SurveyStepDocument(TypedDict):
    """A step of the survey, and the direct map after it."""

    step: Annotated[str, "name of the step"]
    what: Annotated[str, "description of the step"]
    done: Annotated[str, "what was done; empty if nothing was"]
    unable: Annotated[str, "why the step was not taken, or the direct map not read; empty if it was"]
    present_mib: Annotated[dict[str, float] | None, "memory that is present, MiB, by size of entry; null if not read"]
    hidden: Annotated[list[HiddenDocument], "RAM that is out of the direct map"]


class SurveyedKernelDocument(TypedDict):
    """One kernel of the survey."""

    kernel: Annotated[str, "kernel line"]
    release: Annotated[str | None, "release of the kernel; null if the line's packages are gone"]
    answer: Annotated[str, "whether a large entry was not present, or why the kernel was not surveyed"]
    steps: Annotated[list[SurveyStepDocument], "the steps, in order"]
    seconds: Annotated[int, "duration"]


class SurveyDocument(TypedDict):
    """`hibernaut lab survey`: the memory that kernels take out of the direct map."""

    kernels: Annotated[list[SurveyedKernelDocument], "the kernels, by line"]


class NeededOptionDocument(TypedDict):
    """An option of a kernel's configuration that a trial needs."""

    option: Annotated[str, "name of the option"]
    why: Annotated[str, "what it is for"]
    case: Annotated[str | None, "name of the only situation that needs it; null if every guest does"]
    found: Annotated[str, "its value in the configuration that was checked; empty if none was"]


class SelftestDocument(TypedDict):
    """`hibernaut lab kselftest`: the files of the self-test."""

    files: Annotated[list[str], "files that were written"]


class NeedsDocument(TypedDict):
    """`hibernaut lab judge --config` and `--check-config`: options that a trial needs, or those that are lacking."""

    configuration: Annotated[str | None, "file that was checked; null if none was"]
    options: Annotated[list[NeededOptionDocument], "the options"]


class ListedCaseDocument(TypedDict):
    """A case of the laboratory."""

    name: Annotated[str, "name of the case"]
    must: Annotated[str, "outcome that the case must have"]


class CasesDocument(TypedDict):
    """`hibernaut lab prove --list` and `hibernaut lab judge --list`: the cases."""

    cases: Annotated[list[ListedCaseDocument], "the cases"]


class PlannedGuestDocument(TypedDict):
    """A guest that would be booted."""

    kernel: Annotated[str, "kernel line, or the file of the kernel"]
    command: Annotated[list[str], "words of QEMU's command line"]


class DryRunDocument(TypedDict):
    """A command with --dry-run: the guests that it would boot first."""

    guests: Annotated[list[PlannedGuestDocument], "the guests"]


class NeedDocument(TypedDict):
    """A need of the laboratory."""

    name: Annotated[str, "name of the need"]
    purpose: Annotated[str, "its use in the laboratory"]
    required: Annotated[bool, "whether the laboratory needs it"]
    there: Annotated[bool, "whether it is met"]
    where: Annotated[str, "where it was found, or the reason why it is not met"]


class DoctorDocument(TypedDict):
    """`hibernaut lab doctor`: the needs of the laboratory."""

    ready: Annotated[bool, "whether all required needs are met"]
    found: Annotated[list[NeedDocument], "the needs"]
    cures: Annotated[list[str], "commands that install what is missing"]


OutcomeName = Literal["ok", "warning", "would fail", "not known"]


class ReadingDocument(TypedDict):
    """A fact that a check used."""

    origin: Annotated[str, "file that states it"]
    value: Annotated[str, "the fact, or the reason why it is not known"]


class ComparedRangeDocument(TypedDict):
    """A range of two memory maps."""

    start: Annotated[Hex, "first byte"]
    end: Annotated[Hex, "byte after the last"]
    before: Annotated[str | None, "type at the boot that hibernated; null for no entry"]
    after: Annotated[str | None, "type at the boot that resumes; null for no entry"]
    same: Annotated[bool, "whether both are the same"]


class ComparedMapDocument(TypedDict):
    """The firmware's memory map at two boots, side by side."""

    before_from: Annotated[str, "origin of the map of the boot that hibernated"]
    after_from: Annotated[str, "origin of the map of the boot that resumes"]
    ranges: Annotated[list[ComparedRangeDocument], "all that one of them describes, ascending"]


class DiagnosisFindingDocument(TypedDict):
    """The finding of a check."""

    check: Annotated[str, "name of the check"]
    question: Annotated[str, "can it hibernate, will it fit, will it be found, will it be accepted or last time"]
    outcome: Annotated[OutcomeName, "its outcome"]
    summary: Annotated[str, "the finding, a clause"]
    read: Annotated[list[ReadingDocument], "facts that were used"]
    words: Annotated[list[str], "messages of the kernel or of systemd where it would fail; ? stands for a number"]
    advice: Annotated[str | None, "what to do next; null if nothing is to do"]
    memory_maps: Annotated[ComparedMapDocument | None, "the memory maps that differ; null for other checks"]


class DiagnosisDocument(TypedDict):
    """`hibernaut doctor`: whether a machine hibernates and comes back, check by check."""

    outcome: Annotated[OutcomeName, "the worst outcome; not known if nothing is known"]
    checks: Annotated[list[DiagnosisFindingDocument], "the findings"]


class SealDocument(TypedDict):
    """`hibernaut seal`: what was sealed, and where its manifest is."""

    area: Annotated[str, "path of the area"]
    seal: Annotated[str, "Ed25519 or passphrase"]
    key_id: Annotated[Sha256 | None, "SHA-256 of the public key; null for a passphrase"]
    counter: Annotated[int, "number against older images, see the option least of verify"]
    covered_blocks: Annotated[int, "number of blocks of 4096 bytes that a resuming kernel reads"]
    map_pages: Annotated[int, "number of map pages among them"]
    data_blocks: Annotated[int, "number of blocks of the swap map's entries among them, without the info page"]
    manifest: Annotated[str | None, "file of the manifest; null if it is in the area"]
    manifest_block: Annotated[int | None, "block of the area's device at which it begins; null if it is in a file"]
    manifest_bytes: Annotated[int, "length of the manifest"]


class VerifyDocument(TypedDict):
    """`hibernaut verify`: whether a resuming kernel reads what was sealed."""

    area: Annotated[str, "path of the area"]
    state: Annotated[
        Literal["whole", "moved", "touched", "older"],
        "as sealed, the same data from other blocks, something else, or too small a counter",
    ]
    sentence: Annotated[str, "the verdict in words"]
    least: Annotated[int | None, "smallest counter accepted from now on; null if none is kept, or it is not whole"]
    difference: Annotated[str | None, "what differs first in the order of reading; null for a whole image"]
    block: Annotated[int | None, "its block on the area's device; null if it is not a block"]
    seal: Annotated[str, "Ed25519 or passphrase"]
    key_id: Annotated[Sha256 | None, "SHA-256 of the public key; null for a passphrase"]
    counter: Annotated[int, "counter of the seal"]
    covered_blocks: Annotated[int, "number of blocks of 4096 bytes that were sealed"]
    manifest: Annotated[str | None, "file of the manifest; null if it is in the area"]
    manifest_block: Annotated[int | None, "block of the area's device at which it begins; null if it is in a file"]


class SealKeyDocument(TypedDict):
    """`hibernaut seal-key`: the pair of keys that was made."""

    private: Annotated[str, "file of the private key"]
    public: Annotated[str, "file of the public key"]
    key_id: Annotated[Sha256, "SHA-256 of the public key"]
    tpm: Annotated[bool, "whether this machine's TPM has sealed the private key"]
    pcrs: Annotated[str | None, "registers of the TPM that the private key depends on; null for none"]


DOCUMENTS: dict[str, tuple[Any, ...]] = {
    "answers": (AnswersDocument,),
    "audit": (AuditDocument,),
    "convert": (ConvertDocument,),
    "demo": (DemoDocument,),
    "dmesg": (DmesgDocument,),
    "explain": (ExplainDocument,),
    "explore": (ExploreDocument,),
    "find": (FindDocument,),
    "inspect": (InspectDocument, RemainsDocument),
    "lab boot": (BootDocument, DryRunDocument),
    "lab build": (BuildDocument, BuildPlanDocument, CuresDocument),
    "lab confirm": (ConfirmDocument, DryRunDocument),
    "lab depletion": (DepletedGuestDocument, DryRunDocument),
    "lab fuzz-resume": (ParserDocument, DryRunDocument),
    "lab doctor": (DoctorDocument,),
    "lab dump": (DumpDocument, DryRunDocument),
    "lab golden": (
        DryRunDocument,
        Annotated[dict[str, Any], "`hibernaut lab golden`: the content of expected.json."],
    ),
    "lab hibernate": (HibernateDocument, OtherMachineDocument, DryRunDocument),
    "lab kselftest": (SelftestDocument,),
    "lab judge": (JudgeDocument, CasesDocument, NeedsDocument, DryRunDocument),
    "lab prove": (ProveDocument, CasesDocument, DryRunDocument),
    "lab resume": (ResumeDocument, DryRunDocument),
    "lab survey": (SurveyDocument, DryRunDocument),
    "lab trace": (TraceDocument, DryRunDocument),
    "lab variants": (VariantsDocument,),
    "map": (MapDocument,),
    "process": (ProcessDocument,),
    "files": (FilesDocument, ExtractDocument),
    "doctor": (DiagnosisDocument,),
    "drgn": (DrgnDocument,),
    "mount": (MountDocument,),
    "ps": (PsDocument,),
    "isf": (SymbolFileDocument,),
    "volatility-plugins": (VolatilityPluginsDocument,),
    "completion": (CompletionDocument,),
    "report": (ReportDocument,),
    "replay": (ReplayDocument, CheckedTraceDocument),
    "rewrite": (RewriteDocument,),
    "save": (SaveDocument, CrashedSaveDocument, RefusedSaveDocument),
    "seal": (SealDocument,),
    "seal-key": (SealKeyDocument,),
    "schema": (Annotated[dict[str, Any], "`hibernaut schema`: the commands, or the JSON Schema of one."],),
    "takeover": (TakeoverDocument, DryRunDocument),
    "verify": (VerifyDocument,),
    "walk": (WalkDocument,),
}
"""The shapes of each command's document, by the command's words. Never changed after import."""
