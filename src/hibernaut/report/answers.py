# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of answers (`docs/answers.md`), from the results of the studies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hibernaut.exploration.run import Outcome
from hibernaut.exploration.tally import Tally
from hibernaut.hibernation.invariants import INVARIANTS, TRACES
from hibernaut.hibernation.ways import MUTANTS
from hibernaut.report.documents import AnswersDocument
from hibernaut.studies.answers import Answers
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.costs import BLOCKS, Cost
from hibernaut.studies.judge import Judged, Studied
from hibernaut.studies.placements import ALLOCATOR
from hibernaut.studies.questions import COMING, PROPOSED_RULES
from hibernaut.volumes.output import make_folder, remove_file, write_file

__all__ = ["answers_document", "answers_page", "write_answers"]

SHOWN_FINDINGS = 4
NAME_BY_CONTENT = re.compile(r"\.?([a-z0-9-]+)\.[0-9a-f]{16}\.json(?:\.[0-9a-f]{8}\.partial)?")
"""A run that a page links until the file of its own name has the same content; or its hidden file, of `replacing`."""

HEAD = """\
# Answers

`hibernaut answers --write docs/answers.md` writes this page and the runs in `docs/answers/`; neither is edited by hand.
`hibernaut replay FILE` replays a run, byte for byte; `hibernaut explore` explores other scopes.

A *machine* is a layout: which regions are out of the direct map, where the page tables and the allocator's own pages
lie. A *run* is one machine, one way of copying, and one answer to each choice of the environment: whether an allocation
fails, whether a stale translation is still cached, whether the owner of a page uses it while the image is written. A
*state* is a machine between two steps of the copy. Of each region one to four pages are saved; mapping them takes one
new table in a region of 2 MiB, three in one of 1 GiB: up to nine allocations in a run. Every run of every machine of a
scope is executed, on real page-table bytes and the allocator's own bytes in memory, then resumed and checked against
all invariants. A way is *safe* in a scope if no run breaks any; it *leaves traces* if some run breaks only
{traces}; else it loses or breaks something. A page that lost RW is such a
trace only where its owner sets RW when it puts the page back: an owner that restores PRESENT alone, such as KFENCE,
then faults, which is `no-fault`. The owners of regions of 2 MiB and 1 GiB are taken to set both, as execmem of 6.13-rc
did. [explore.md](explore.md) lists the invariants and the limits of the model; [support.md](support.md) has the results
of real kernels for the first three failures of Remap; `hibernaut lab confirm FILE` tries a run on a real kernel."""


def write_answers(page: Path, answers: Answers) -> None:
    """Write the page, and its runs into the folder beside it. At any instant the page links its own runs.

    Nothing is overwritten that a page on the disk links: runs that differ from those of the old page are first written
    under names by their content, and a page that links these takes the place of the old one. Then the runs are written
    under their own names, then the page that links those, and the files by content are removed; so are those that an
    earlier call left which did not end.

    Args:
        page: the page; its runs are in the folder of its name without the suffix.
        answers: the answers.

    Raises:
        OSError: as the system reports it; the page on the disk is one of the three, whole, with its runs.
    """
    folder = page.parent / page.stem
    make_folder(folder)
    runs = {name: text.encode() for name, text in answers.runs.items()}
    changed = [name for name, data in runs.items() if not _has_content(folder / f"{name}.json", data)]
    if changed and page.exists():
        files = {name: f"{name}.{hashlib.sha256(runs[name]).hexdigest()[:16]}.json" for name in changed}
        for name, file in files.items():
            write_file(folder / file, runs[name], public=True)
        write_file(page, answers_page(answers, page.stem, files).encode(), public=True)
    for name in changed:
        write_file(folder / f"{name}.json", runs[name], public=True)
    write_file(page, answers_page(answers, page.stem).encode(), public=True)
    names = {claim.name for claim in CLAIMS}
    for path in sorted(folder.iterdir()):
        if (match := NAME_BY_CONTENT.fullmatch(path.name)) and match[1] in names:
            remove_file(path)


def _has_content(path: Path, data: bytes) -> bool:
    """Return whether a file has these bytes."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def answers_page(answers: Answers, folder: str, files: Mapping[str, str] | None = None) -> str:
    """Return the page as Markdown.

    Args:
        answers: the answers.
        folder: folder of the runs, relative to the page.
        files: names of the files of runs in it, by claim, where they are not CLAIM.json.
    """
    files = {name: f"{name}.json" for name in answers.runs} | dict(files or {})
    traces = ", ".join(f"`{name}`" for name in INVARIANTS if name in TRACES)
    parts = [HEAD.format(traces=traces), _scopes(answers.studied), _table(answers.studied)]
    parts += ["## Claims", *(_claim(judged, folder, files) for judged in answers.judged)]
    parts += [_mutants(answers.studied)]
    if answers.costs:
        parts.append(_proposed(answers.costs))
    if answers.placements:
        parts.append(_story(answers, folder, files))
    return "\n\n".join(parts) + "\n"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _scopes(studied: Sequence[Studied]) -> str:
    rows = []
    for one in studied:
        tallies = one.tallies.values()
        machines = max(tally.machines for tally in tallies)
        cut = sum(tally.cut for tally in tallies)
        rows.append(
            (
                one.study.name,
                one.study.asks,
                str(machines),
                str(len(one.tallies)),
                str(sum(tally.runs for tally in tallies)),
                str(sum(tally.states for tally in tallies)),
                "all" if not cut else f"CUT on {cut} machines",
            )
        )
    words = [f"- **{one.study.name}**: {one.study.sweep.scope}." for one in studied]
    head = ("study", "asks for", "machines", "ways", "runs", "distinct states", "covered")
    return "\n\n".join(["## Scopes", _rows(head, rows), "\n".join(words)])


def _table(studied: Sequence[Studied]) -> str:
    ways = [name for name in dict.fromkeys(way for one in studied for way in one.tallies) if name not in MUTANTS]
    rows = [[f"`{way}`", *(_cell(one.tallies[way]) if way in one.tallies else "" for one in studied)] for way in ways]
    text = (
        "Each cell: whether every run of the study is safe by that way, else how many of its runs lose or break "
        "something. The claims below explain the numbers."
    )
    return "\n\n".join(["## Is every run safe?", text, _rows(["way", *(one.study.name for one in studied)], rows)])


def _cell(tally: Tally) -> str:
    bad = sum(runs for outcome, (runs, _, _) in tally.endings.items() if outcome.loses)
    if bad:
        return f"**{bad} of {tally.runs} runs**"
    return "leaves traces" if any(outcome.violated for outcome in tally.endings) else "safe"


def _claim(judged: Judged, folder: str, files: Mapping[str, str]) -> str:
    claim = judged.claim
    scope = f"{judged.machines} machines (each by each way), {judged.runs} runs; studies: {', '.join(claim.studies)}"
    if judged.against:
        answer = f"**Does not hold** on {judged.against} of {scope}; the first: {judged.first_against}."
    else:
        answer = f"**Holds** on all of {scope}."
    lines = [f"### {claim.title}", f"{answer} Exactly: {claim.says}.", *_run(judged, folder, files)]
    return "\n\n".join(lines)


def _run(judged: Judged, folder: str, files: Mapping[str, str]) -> Iterator[str]:
    if judged.shown is None:
        yield "No run shows it."
        return
    played = judged.shown.played
    file = files[judged.claim.name]
    lines = [*played.lines, f"injected: {'; '.join(played.injected) or 'nothing'}"]
    lines += [f"-> {violation}" for violation in played.run.violations[:SHOWN_FINDINGS]]
    more = len(played.run.violations) - SHOWN_FINDINGS
    lines += [f"-> and {more} more"] if more > 0 else []
    lines.append(f"=> {played.outcome}" if played.outcome.violated else f"=> {played.outcome.status}, unchanged")
    name = next(operation.way for operation in played.written.operations if operation.way)
    yield f"The run, by `{name}`: [{folder}/{file}]({folder}/{file})"
    yield "```\n" + "\n".join(lines) + "\n```"


def _broken(studied: Sequence[Studied], way: str) -> list[str]:
    """Return the invariants that a way breaks in any run of any study, in their order."""
    outcomes: set[Outcome] = {outcome for one in studied if way in one.tallies for outcome in one.tallies[way].endings}
    names = {name for outcome in outcomes for name in outcome.violated}
    return [name for name in INVARIANTS if name in names]


def _mutants(studied: Sequence[Studied]) -> str:
    rows = []
    for way, mutant in MUTANTS.items():
        if any(way in one.tallies for one in studied):
            broken = _broken(studied, way)
            caught = f"{mutant.caught_by}: {'yes' if mutant.caught_by in broken else 'NO'}"
            rows.append((f"`{way}`", mutant.defect, caught, ", ".join(broken)))
    return "\n\n".join(
        [
            "## Mutants",
            "Ways with a deliberate defect. Each is made for one invariant to detect; it may break others too, as the "
            "way that it is derived from does.",
            _rows(("mutant", "defect", "detected by", "broken invariants"), rows),
        ]
    )


STORY = """\
In January 2025, during the candidates of Linux 6.13, resuming from hibernation broke (Message-ID
Z4QM_RFfhNX_li_C@intel.com): a NULL dereference in `__rmqueue_pcplist` after the resume. The change that was found and
disabled, 5185e7f9f3bd ("x86/module: enable ROX caches for module text on 64 bit"), took 2 MiB blocks of executable
memory out of the direct map. The mechanism was never named. Whether it was this one is open; the model shows which
placements of the allocator's own pages have the same symptom.

By the rules of 6.13-rc, one to three 2 MiB blocks out of the direct map, Remap's copy with no failure in it; every
placement of the array of struct page, of the heads of the free lists, of the CPUs' lists and of the free pages, below
or above the blocks; tables of each block below or above; one or two CPUs. After the resume pages are allocated until
none is free. Machines on which, of {machines} each:"""


def _story(answers: Answers, folder: str, files: Mapping[str, str]) -> str:
    rows = []
    for places, found in sorted(answers.placements.items()):
        deaths = "; ".join(f"{death} ({count})" for death, count in sorted(found.crashes.items()))
        rows.append(
            (
                *(place.word for place in places),
                str(found.table_lost),
                str(found.lists_torn),
                deaths or ("-" if not found.lists_torn else "none of the 64 allocations met the damage"),
            )
        )
    machines = max(found.machines for found in answers.placements.values())
    null = [places for places, found in answers.placements.items() if any(_is_story(death) for death in found.crashes)]
    head = (*(structure.word for structure in ALLOCATOR), "a table is lost", "lists are torn", "allocations crash with")
    if null:
        where = " and ".join(
            f"{structure} {null[0][number].word} the blocks"
            for number, structure in enumerate(ALLOCATOR)
            if len({one[number] for one in null}) == 1
        )
        said = (
            f"So a NULL dereference in `__rmqueue_pcplist` follows in {len(null)} of {len(answers.placements)} "
            f"placements: exactly those in which {where}. "
            "The copy meets the struct pages first, as they are before anything is split: those inside a free block "
            "hold whatever their last owner left in the list's links, here NULL; those that were on a list before "
            "hold poison. Then a split refills the CPU's list from that block, and the head of that list is copied "
            "after it: it points to pages whose saved links are not links. A lost table alone does not explain it: "
            "where the allocator's pages all lie above the blocks, tables are lost and no allocation crashes. Nor "
            "is one needed: see the claim on two NUMA nodes, the placements that can be arranged in a guest; "
            "[explore.md](explore.md) has the results of real kernels there. Whether the machines of the reports "
            "were laid out like this is not known: it takes the addresses of their struct pages, their per-CPU "
            "lists and the blocks."
        )
    else:
        said = "No placement gives a NULL dereference in `__rmqueue_pcplist`: the mechanism is another one."
    run = [
        f"The run: [{folder}/{files[judged.claim.name]}]({folder}/{files[judged.claim.name]})."
        for judged in answers.judged
        if judged.claim.name == "null-on-a-cpu-list" and judged.shown
    ]
    return "\n\n".join(["## The 6.13-rc regression", STORY.format(machines=machines), _rows(head, rows), said, *run])


def _is_story(death: str) -> bool:
    return "NULL" in death and "__rmqueue_pcplist" in death


PROPOSED = """\
The studies {studies} are of what no released kernel has. [KernelRules](reference/api.md) has the Message-IDs of what is
proposed, by the names of the rules: `{rules}`.
No patch hibernates by the mermap or by an entry of 2 MiB. The claims are those of the model; the text of
each says whether guests confirm it. The model's unmapped pageblocks follow notes on the series, not its allocator: the
list of free blocks, and the place of a block's mark, are the model's own.

The cost of a way, counted by the model on one machine with one CPU: {blocks} blocks of 2 MiB, not neighbours, each one
entry that is not present, all {pages} pages to save, copied one after another as the kernel's loop does. An
invalidation drops one address (INVLPG), a flush a whole TLB; a new table is a page allocated in the copy (`reserved`:
before it), filled with 512 entries. `remap-whole` sets and resets the entry for each page. The region of the mermap has
one address, or 64 with `mermap:64`: a flush each time that they are used up, and one at the end; the size of the
proposed region was not read. `fixmap-whole-run` writes an entry for each block, and zero after each run of
neighbours."""


def _proposed(costs: Sequence[Cost]) -> str:
    text = PROPOSED.format(
        studies=", ".join(f"*{study.name}*" for study in COMING),
        rules=PROPOSED_RULES,
        blocks=BLOCKS,
        pages=costs[0].pages,
    )
    rows = [
        (f"`{one.way}`", *map(str, (one.tables, one.entry_writes, one.invalidations, one.flushes))) for one in costs
    ]
    head = ("way", "new tables", "entries written", "invalidations", "flushes")
    return "\n\n".join(["## Proposed kernels, and the cost of each way", text, _rows(head, rows)])


def answers_document(answers: Answers) -> AnswersDocument:
    """Return the document of the answers: scope and counts of each study, and the verdict on each claim."""
    return {
        "studies": [
            {
                "name": one.study.name,
                "scope": one.study.sweep.scope,
                "ways": {
                    name: {"machines": tally.machines, "runs": tally.runs, "states": tally.states, "cut": tally.cut}
                    for name, tally in one.tallies.items()
                },
            }
            for one in answers.studied
        ],
        "claims": [
            {
                "name": judged.claim.name,
                "title": judged.claim.title,
                "holds": not judged.against,
                "machines": judged.machines,
                "runs": judged.runs,
                "against": judged.against,
                "first_against": judged.first_against,
            }
            for judged in answers.judged
        ],
        "costs": [
            {
                "way": one.way,
                "pages": one.pages,
                "tables": one.tables,
                "entry_writes": one.entry_writes,
                "invalidations": one.invalidations,
                "flushes": one.flushes,
            }
            for one in answers.costs
        ],
    }
