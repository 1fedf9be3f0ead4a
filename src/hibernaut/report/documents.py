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
    "AnswersDocument",
    "AuditDocument",
    "BootDocument",
    "ConfirmDocument",
    "ConvertDocument",
    "CrashedSaveDocument",
    "DemoDocument",
    "DoctorDocument",
    "DumpDocument",
    "ExplainDocument",
    "ExploreDocument",
    "HibernateDocument",
    "InspectDocument",
    "MapDocument",
    "Pattern",
    "ProveDocument",
    "RefusedSaveDocument",
    "ReplayDocument",
    "ResumeDocument",
    "RewriteDocument",
    "SaveDocument",
    "TakeoverDocument",
    "VariantsDocument",
    "VerdictDocument",
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

    check: Annotated[str, "name of the check, in the kernel's order"]
    answer: Annotated[str, "passes, refuses, or unknown"]
    message: Annotated[str | None, "the kernel's message where it refuses"]
    remark: Annotated[str | None, "reason for the answer"]
    where: Annotated[str | None, "place in the image"]


class VerdictDocument(TypedDict):
    """Whether a kernel would resume from an image on a machine."""

    kernel: Annotated[str, "kernel line whose rules apply"]
    rules_from: RulesFromText
    machine: Annotated[str, "machine whose facts apply"]
    checks: list[CheckDocument]
    resumes: Annotated[bool | None, "null if a check cannot be answered"]


class InspectDocument(TypedDict):
    """`hibernaut inspect`: the contents of an image and its faults."""

    compressor: Annotated[str, "lzo, lz4 or none"]
    flags: Annotated[int, "flags of the swap header (kernel/power/power.h, SF_*)"]
    offset_pages: Annotated[int, "block of the swap header on its device, in pages"]
    crc32: CrcDocument
    hw_sig: Annotated[Hex | None, "ACPI hardware signature in the swap header"]
    cr3: Annotated[Hex | None, "physical address of the root of the page tables"]
    jump_address: Annotated[Hex | None, "virtual address of restore_registers"]
    jump_address_phys: Annotated[Hex | None, "its physical address"]
    e820_checksum: Annotated[Hex | None, "CRC-32 of the e820 table"]
    physical_pages: Annotated[int | None, "pages of RAM of the machine (num_physpages)"]
    image_pages: Annotated[int | None, "pages of data in the image, as its header states"]
    pages: Annotated[int | None, "pages in the stream: header, lists and data"]
    saved_pages: Annotated[int | None, "page frames on the image's lists"]
    zero_pages: Annotated[int | None, "of them, pages of zeroes without data"]
    stored_pages: Annotated[int | None, "of them, pages with data"]
    meta_pages: Annotated[int | None, "pages of lists of frames"]
    map_pages: Annotated[int | None, "pages of the swap map"]
    units: Annotated[int | None, "units of 32 compressed pages; 0 if the image is not compressed"]
    compressed_bytes: Annotated[int | None, "sum of the units' compressed lengths, in bytes"]
    first_map_block: Annotated[int, "block of the first page of the swap map"]
    problems: Annotated[list[ProblemDocument], "faults; empty if the image is intact"]
    sha256_pfns: NotRequired[Annotated[Sha256, "--digests: of the listed frames as little-endian u64, in image order"]]
    sha256_stored_pages: NotRequired[Annotated[Sha256, "--digests: of all stored pages, in image order"]]
    verdict: NotRequired[VerdictDocument]


class HoleDocument(TypedDict):
    """A range of the direct map that is not present."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages
    level: LeafSize
    kind: Annotated[str, "not-present, none or table-missing"]
    entry: Annotated[Hex, "first page-table entry of the range"]
    in_source: Annotated[bool, "whether the source holds the page frames"]


class MismatchDocument(TypedDict):
    """A range of the direct map that maps other page frames than its address says."""

    start_pfn: Annotated[Hex, "page frame that the address stands for"]
    pages: Pages
    level: LeafSize
    entry: Annotated[Hex, "first page-table entry of the range"]
    found_pfn: Annotated[Hex, "page frame that it maps"]


class MapDocument(TypedDict):
    """`hibernaut map`: the direct map."""

    levels: Annotated[int, "levels of paging: 4 or 5"]
    cr3: Annotated[Hex, "physical address of the root of the page tables"]
    base: Annotated[Hex, "virtual address of page frame 0"]
    end_pfn: Annotated[Hex, "one past the last page frame"]
    present_bytes: Annotated[dict[str, int], "bytes that are present, by the size of the entries that map them"]
    holes: list[HoleDocument]
    mismatches: list[MismatchDocument]


class StepDocument(TypedDict):
    """A page-table entry on the way to an address."""

    level: Annotated[str, "PGD, P4D, PUD, PMD or PTE"]
    table_pfn: Annotated[Hex, "page frame of the table"]
    index: Annotated[int, "index of the entry, 0-511"]
    entry: Hex
    flags: Annotated[list[str], "names of the bits that are set"]


class RightsDocument(TypedDict):
    """Rights that all levels together give."""

    rw: bool
    nx: bool
    user: bool


class WalkDocument(TypedDict):
    """`hibernaut walk`: the translation of one virtual address."""

    vaddr: Hex
    levels: list[StepDocument]
    stop: Annotated[str, "reason for the end of the walk"]
    pfn: Annotated[Hex | None, "page frame of the last entry"]
    paddr: Annotated[Hex | None, "physical address; null if the address is not mapped"]
    effective: RightsDocument


class ConvertDocument(TypedDict):
    """`hibernaut convert`: the file that was written."""

    source: Annotated[str, "format of the source: elf, lime, kdump, raw or swsusp"]
    format: Annotated[str, "format of the file: elf, lime or raw"]
    pages: Pages
    ranges: Annotated[int, "number of ranges of neighbouring page frames"]
    zero_pages: Annotated[int, "pages of zeroes of an image that have no data in it"]
    file_bytes: Annotated[int, "length of the file, in bytes"]
    direct_map_base: Annotated[Hex | None, "virtual address of page frame 0 in an ELF core; null if unknown"]
    vmcoreinfo: Annotated[bool | None, "whether an ELF core has a VMCOREINFO note; null for other formats"]


class AllocationDocument(TypedDict):
    """A page allocation during the copy."""

    number: Annotated[int, "number of the allocation, from 1"]
    purpose: str
    pfn: Annotated[Hex | None, "page frame; null if the allocation failed"]


class WrittenDocument(TypedDict):
    """Counts of an image that was written."""

    saved_pages: Annotated[int, "page frames on the image's lists"]
    zero_pages: Annotated[int, "of them, pages of zeroes without data"]
    stored_pages: Annotated[int, "of them, pages with data"]
    meta_pages: Annotated[int, "pages of lists of frames"]
    map_pages: Annotated[int, "pages of the swap map"]
    units: Annotated[int, "units of 32 compressed pages; 0 if the image is not compressed"]
    compressed_bytes: Annotated[int, "sum of the units' compressed lengths, in bytes"]
    crc32: Annotated[Hex | None, "CRC-32 in the header; null if the image is not compressed"]
    blocks: Annotated[int, "blocks of 4096 bytes in the swap area, without the header"]


class SaveDocument(WrittenDocument):
    """`hibernaut save`: the image that was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Literal["saved"]
    pages_from: Annotated[str, "origin of the list of pages"]
    allocations: list[AllocationDocument]
    changed_pages: Annotated[int, "pages whose copy differs from the source"]
    skipped_pages: Annotated[int, "pages that were not copied"]
    log: Log
    rules: Annotated[str, "kernel line whose rules apply"]
    rules_from: RulesFromText


class FaultDocument(TypedDict):
    """A fault of the modelled machine."""

    what: str
    address: Annotated[Hex, "virtual address"]
    entry: Annotated[Hex | None, "page-table entry; null where there is no table"]
    pfn: Annotated[Hex | None, "page frame that was accessed"]
    doing: Annotated[str, "step of the kernel that faulted"]


class RefusalDocument(TypedDict):
    """The reason why the modelled kernel does not hibernate."""

    what: str
    errno: Annotated[str, "the kernel's name of the error"]


class CrashedSaveDocument(TypedDict):
    """`hibernaut save` where the modelled machine crashes: nothing was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Literal["died"]
    fault: FaultDocument
    log: Log
    rules: Annotated[str, "kernel line whose rules apply"]
    rules_from: RulesFromText


class RefusedSaveDocument(TypedDict):
    """`hibernaut save` where the modelled kernel does not hibernate: nothing was written."""

    via: Annotated[str, "way of copying pages that are not present"]
    outcome: Literal["refused"]
    refused: RefusalDocument
    log: Log
    rules: Annotated[str, "kernel line whose rules apply"]
    rules_from: RulesFromText


class WriteDocument(TypedDict):
    """A change of memory."""

    paddr: Annotated[Hex, "physical address"]
    bytes: Annotated[int, "number of bytes"]


class RewriteDocument(WrittenDocument):
    """`hibernaut rewrite`: the image that was written."""

    compressor: Annotated[str, "lzo, lz4 or none"]
    in_place: bool
    writes: list[WriteDocument]


class RunOfPagesDocument(TypedDict):
    """Neighbouring page frames."""

    start_pfn: Annotated[Hex, "first page frame"]
    pages: Pages


class PageClassDocument(TypedDict):
    """Pages with the same kind of entry in the direct map."""

    name: str
    pages: Pages
    first: Annotated[list[RunOfPagesDocument], "the first ranges"]
    more: Annotated[bool, "whether there are more ranges"]
    today: Annotated[str, "outcome with today's kernel"]
    fixmap: Annotated[str, "outcome with the fixmap slot"]
    today_bad: bool
    fixmap_bad: bool


class SplitDocument(TypedDict):
    """A large entry that the copy would split."""

    start_pfn: Annotated[Hex, "first page frame of the entry"]
    level: LeafSize
    first_pfn: Annotated[Hex, "first page frame in it that is saved"]
    pages: Pages
    table_pfn: Annotated[Hex, "page frame of the table that the entry lies in"]
    order: Annotated[str, "whether the table is copied before or after the split"]
    allocations: Annotated[int, "pages for tables that the split takes"]


class AuditDocument(TypedDict):
    """`hibernaut audit`: whether every page of a machine would be saved."""

    rules: Annotated[str, "kernel line whose rules apply"]
    rules_from: RulesFromText
    saveable_pages: Pages
    refused: Annotated[str | None, "reason why the kernel does not hibernate"]
    classes: list[PageClassDocument]
    allocations: Annotated[int, "pages for tables that the copy takes"]
    splits: list[SplitDocument]
    more_splits: Annotated[int, "number of splits that are not listed"]
    safe_today: Annotated[bool, "whether today's kernel saves every page, whatever fails"]
    safe_by_fixmap: Annotated[bool, "whether the fixmap slot does"]


class RunDocument(TypedDict):
    """The copy by one way in one branch of the explanation."""

    outcome: Annotated[str, "saved, died or refused"]
    allocations: Annotated[int, "number of page allocations"]
    failed_checks: Annotated[list[str], "names of the checks that found something"]
    findings: list[str]
    kernel_lines: Annotated[list[str], "the modelled kernel's own messages"]


class BranchDocument(TypedDict):
    """A branch of the explanation."""

    title: str
    path: Annotated[list[str], "the code path, step by step"]
    today: RunDocument
    fixmap: RunDocument


class ExplainDocument(TypedDict):
    """`hibernaut explain`: the answer to the question of the mailing list."""

    question: str
    rules: Annotated[str, "kernel line whose rules apply"]
    branches: list[BranchDocument]


class SituationDocument(TypedDict):
    """A machine about to hibernate."""

    name: str
    what: str


class CellDocument(TypedDict):
    """One way in one situation."""

    way: str
    situation: str
    outcome: Annotated[str, "saved, died or refused"]
    saved_pages: Pages
    allocations: Annotated[int, "number of page allocations"]
    failed_checks: Annotated[list[str], "names of the checks that found something"]
    findings: Annotated[int, "number of findings"]
    first_findings: list[str]
    error: Annotated[str | None, "reason why nothing was saved"]


class CrashLogDocument(TypedDict):
    """The kernel's log of one cell that crashes."""

    way: str
    situation: str
    log: Log


class DemoImageDocument(TypedDict):
    """The image that the demo writes and reads back."""

    pages: Pages
    crc32: Hex | None
    blocks: Annotated[int, "blocks of 4096 bytes in the swap area"]
    listed_as_saved: Annotated[bool, "whether the image lists the frames of the snapshot"]
    wrong_pages: Annotated[int, "pages that differ from the machine's"]


class DemoDocument(TypedDict):
    """`hibernaut demo`: the matrix of ways and situations."""

    ways: list[str]
    situations: list[SituationDocument]
    cells: list[CellDocument]
    crash: CrashLogDocument
    image: DemoImageDocument


class EndingDocument(TypedDict):
    """An outcome of runs."""

    verdict: Annotated[str, "the outcome, in words"]
    outcome: Annotated[str, "saved, died or refused"]
    violated: Annotated[list[str], "names of the violated invariants"]
    warned: Annotated[bool, "whether the kernel warned"]
    loses: Annotated[bool, "whether a page or the machine is lost"]
    runs: int
    machines: int
    choices_away: Annotated[int, "number of choices in which the shortest run deviates from one without interference"]
    schedule: Annotated[list[str], "choices of the shortest run, in words"]
    injected: Annotated[list[str], "its choices that deviate"]
    findings: Annotated[list[str], "the first violations"]
    file: Annotated[str | None, "file that the run was saved to"]


class WayDocument(TypedDict):
    """Every run by one way."""

    way: str
    safe: Annotated[bool, "whether no run loses a page or the machine"]
    machines: int
    runs: int
    states: Annotated[int, "number of distinct states"]
    steps: int
    cut_machines: Annotated[int, "machines not explored to the end"]
    cut: Annotated[str | None, "the bound that cut the first of them"]
    endings: list[EndingDocument]


class ExploreDocument(TypedDict):
    """`hibernaut explore`: every run of a scope."""

    scope: str
    covered: Annotated[bool, "whether every run was explored"]
    rules_from: RulesFromText
    ways: list[WayDocument]


class OperationDocument(TypedDict):
    """An operation on a machine."""

    do: str
    way: NotRequired[str]
    pfn: NotRequired[Annotated[int, "page frame"]]
    pages: NotRequired[Pages]
    cpu: NotRequired[int]


class ReplayDocument(TypedDict):
    """`hibernaut replay`: a saved run, played again."""

    format: str
    version: int
    machine: Annotated[dict[str, Any], "family and unit of a simulated machine, or source and fingerprint"]
    rules: Annotated[str, "kernel line whose rules apply"]
    operations: list[OperationDocument]
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

    machines: int
    runs: int
    states: Annotated[int, "number of distinct states"]
    cut: Annotated[int, "machines not explored to the end"]


class StudyDocument(TypedDict):
    """A study behind the answers."""

    name: str
    scope: str
    ways: dict[str, TallyDocument]


class ClaimDocument(TypedDict):
    """A claim and its verdict over the runs."""

    name: str
    title: str
    holds: bool
    machines: int
    runs: int
    against: Annotated[int, "number of machines that contradict it"]
    first_against: Annotated[str | None, "the first of them"]


class AnswersDocument(TypedDict):
    """`hibernaut answers`: studies and claims."""

    studies: list[StudyDocument]
    claims: list[ClaimDocument]


class StepLineDocument(TypedDict):
    """A step of the takeover."""

    step: str
    what: str


class StockDocument(TypedDict):
    """The stock kernel's own hibernation."""

    outcome: str
    reason: str


class TakeoverDocument(TypedDict):
    """`hibernaut takeover`: an image from a dump, resumed by a stock kernel."""

    passed: bool
    kernel: Annotated[str, "release of the kernel"]
    variant: Annotated[str, "kind of guest"]
    steps: list[StepLineDocument]
    stock: StockDocument
    stock_resumed: Annotated[str | None, "outcome of resuming from the kernel's own image"]
    resumed: Annotated[str, "outcome of resuming from our image"]
    direct_map_findings: list[str]


class VariantDocument(TypedDict):
    """A kind of guest."""

    name: str
    what: str
    memory_mib: Annotated[int, "RAM, in MiB"]
    levels: Annotated[int, "levels of paging: 4 or 5"]
    kaslr: bool
    compressor: str
    swap: str
    regions: Annotated[list[str], "regions out of the direct map"]
    seed: int
    fail_allocations: Annotated[int, "number of failing allocations for splits"]
    secret_pages: Annotated[int, "pages of memfd_secret"]
    pages: Literal["above", "below"]
    lists: Literal["above", "below"]


class VariantsDocument(TypedDict):
    """`hibernaut lab variants`: the kinds of guests."""

    variants: list[VariantDocument]


class RecordDocument(TypedDict):
    """The record of a guest (`machine.json`)."""

    session: str
    release: str
    kernel: str
    variant: VariantDocument
    partition: int | None
    offset: Annotated[int, "resume_offset, in pages"]
    regions: Annotated[list[dict[str, str]], "the module's report on each region"]
    frames: Annotated[list[list[int]], "page of the locked region, first page frame, count"]
    direct_map: Annotated[dict[str, int], "the kernel's counters DirectMap4k, DirectMap2M, DirectMap1G, in kB"]
    saved_pages: int | None
    allocator: dict[str, int]


class ReplyDocument(TypedDict):
    """A command in a guest and its output."""

    command: str
    status: Annotated[int, "exit status"]
    lines: list[str]


class BootDocument(TypedDict):
    """`hibernaut lab boot`: commands in a guest."""

    kernel: Annotated[str, "release of the kernel"]
    answers: list[ReplyDocument]


class DumpDocument(TypedDict):
    """`hibernaut lab dump`: the RAM of a guest."""

    dump: Annotated[str, "the file"]
    record: RecordDocument


class HibernateDocument(TypedDict):
    """`hibernaut lab hibernate`: a guest that hibernates."""

    outcome: str
    reason: str
    image: Annotated[str, "the disk"]
    seconds: float
    record: RecordDocument


class ResumeDocument(TypedDict):
    """`hibernaut lab resume`: a guest that resumes."""

    passed: bool
    reason: str
    seconds: float
    facts: Annotated[dict[str, Any], "facts that the resumed guest reports"]


class ConfirmDocument(TypedDict):
    """`hibernaut lab confirm`: the model's prediction and the kernel's behaviour."""

    file: str
    regions: list[str]
    fail_allocations: int
    outcome: Annotated[str, "outcome that the model predicts: saved or died"]
    kernel_lines: Annotated[list[str], "messages of the modelled kernel"]
    violated: list[str]
    pages: str
    lists: str
    allocates: bool
    resumed_crash: Annotated[str, "crash of the resumed machine in the model; empty if it continues"]
    agrees: bool
    release: str
    said: Annotated[list[str], "messages of the real kernel"]
    seen: str


class CaseDocument(TypedDict):
    """Result of a case on a kernel."""

    kernel: str
    release: str
    case: str
    must: Annotated[str, "outcome that the case must have"]
    passed: Annotated[bool | None, "null if the case could not be run"]
    seen: str
    seconds: int
    result: Literal["PASS", "FAIL", "SKIP"]


class ProveDocument(TypedDict):
    """`hibernaut lab prove`: every case on every kernel."""

    passed: bool
    results: list[CaseDocument]


class NeedDocument(TypedDict):
    """A need of the laboratory."""

    name: str
    purpose: str
    required: bool
    there: bool
    where: Annotated[str, "where it was found, or the reason why it is not met"]


class DoctorDocument(TypedDict):
    """`hibernaut lab doctor`: the needs of the laboratory."""

    ready: bool
    found: list[NeedDocument]
    cures: Annotated[list[str], "commands that install what is missing"]


DOCUMENTS: dict[str, tuple[Any, ...]] = {
    "answers": (AnswersDocument,),
    "audit": (AuditDocument,),
    "convert": (ConvertDocument,),
    "demo": (DemoDocument,),
    "explain": (ExplainDocument,),
    "explore": (ExploreDocument,),
    "inspect": (InspectDocument,),
    "lab boot": (BootDocument,),
    "lab confirm": (ConfirmDocument,),
    "lab doctor": (DoctorDocument,),
    "lab dump": (DumpDocument,),
    "lab golden": (dict[str, Any],),
    "lab hibernate": (HibernateDocument,),
    "lab prove": (ProveDocument,),
    "lab resume": (ResumeDocument,),
    "lab variants": (VariantsDocument,),
    "map": (MapDocument,),
    "replay": (ReplayDocument,),
    "rewrite": (RewriteDocument,),
    "save": (SaveDocument, CrashedSaveDocument, RefusedSaveDocument),
    "schema": (dict[str, Any],),
    "takeover": (TakeoverDocument,),
    "walk": (WalkDocument,),
}
"""The shapes of each command's document, by the command's words. Never changed after import."""
