# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions: a run of the model, stated as the behaviour that a real kernel must show in a guest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hibernaut.errors import LabUnavailable
from hibernaut.exploration.layouts import RegionKind, Side, Structure
from hibernaut.exploration.operations import EXHAUST, HIBERNATE
from hibernaut.exploration.play import FamilyMachine, Played
from hibernaut.lab.variants import Variant
from hibernaut.linux.environment import Kind

__all__ = ["LOOKED_AT", "MAP_INVARIANTS", "Prediction", "cannot_arrange", "predict"]

STOCK_WAY = "remap"
"""The way in which a stock kernel copies."""

PROPOSED = frozenset({RegionKind.VMALLOC, RegionKind.UNMAPPED, RegionKind.UNMAPPED_FREE})
"""Kinds of region that no released kernel has."""
ON_A_NODE = (Structure.MEM_MAP, Structure.ZONE, Structure.FREE)
"""Structures of the allocator that a guest has together, on the node that pages come from."""

REGIONS = ("2m:above", "2m:below", "4k:above", "4k:below", "none:above", "none:below")
"""Regions for which the model's machine and a guest's are alike."""
MAX_REGIONS = 16
MAX_ABOVE = 4
"""Blocks below the PMD tables that a guest of 256 MiB certainly has free (Linux 6.1; newer ones have eight)."""

MAP_INVARIANTS = frozenset({"tables-closed", "same-direct-map", "same-translations"})
"""Invariants of the direct map."""
LOOKED_AT = MAP_INVARIANTS | {"same-data"}
"""Invariants of a saved machine whose violation shows in the image or in the resumed guest."""

CRASH_IN_LISTS = re.compile(r"__rmqueue_pcplist|rmqueue_bulk")
"""Crashes of the model that are of a link of the allocator's lists."""

SAVED_MESSAGE = re.compile(r"hibernation: Image created")


@dataclass(frozen=True)
class Prediction:
    """The behaviour that the model predicts for a kernel.

    Attributes:
        regions: regions out of the direct map, in the module's words (`REGIONS`), ascending by address.
        fail_allocations: number of allocations for splits that fail during the copy, the first ones.
        outcome: "saved" or "died".
        kernel_lines: messages of the modelled kernel (`EventLog.kernel_lines`); their numbers are the model's own.
        violated: names of the violated invariants (`exploration.INVARIANTS`).
        pages: position of the array of struct page, the heads of the free lists and the free pages relative to the
            regions: above or below.
        lists: position of the CPUs' own lists.
        allocates: whether pages are allocated on the resumed machine.
        resumed_crash: crash of the resumed machine; empty if it continues.
    """

    regions: tuple[str, ...]
    fail_allocations: int
    outcome: str
    kernel_lines: tuple[str, ...]
    violated: tuple[str, ...]
    pages: str = "above"
    lists: str = "above"
    allocates: bool = False
    resumed_crash: str = ""

    @property
    def variant(self) -> Variant:
        """The kind of guest with these regions and this allocator."""
        guest = Variant(
            "confirm",
            f"regions {' '.join(self.regions) or 'none'}, {self.fail_allocations} failing allocations",
            compressor="none",
            regions=self.regions,
            fail_allocations=self.fail_allocations,
            pages=self.pages,
            lists=self.lists,
        )
        return replace(guest, memory_mib=2 * guest.memory_mib) if guest.two_nodes else guest


def predict(played: Played) -> Prediction:
    """Return the prediction of a run.

    Raises:
        LabUnavailable: no guest with a stock kernel can try this run; the message says why.
    """
    machine, run = played.written.machine, played.run
    if not isinstance(machine, FamilyMachine):
        raise LabUnavailable("the run starts from the machine in a dump or image; a guest cannot be made like it")
    chosen = machine.chosen()[0]
    proposed = [f"a region {one.kind.word}" for one in chosen.regions if one.kind in PROPOSED]
    proposed += ["a second root"] if Structure.SECOND_ROOT in chosen.where else []
    if proposed:
        raise LabUnavailable(f"the run has {proposed[0]}: it is proposed, and in no released kernel")
    if chosen.layout.min_mark is not None or chosen.layout.batch is not None:
        raise LabUnavailable(
            "the run depends on the zone's min mark or the refill of a CPU's list, which this guest cannot be given",
            advice="see `hibernaut lab depletion`",
        )
    allocates = _require_stock_run(played)
    sides = {one: chosen.where[one] if chosen.regions else Side.ABOVE for one in (*ON_A_NODE, Structure.PCP)}
    if len({sides[one] for one in ON_A_NODE}) > 1:
        text = ", ".join(f"{one.word} {sides[one].word}" for one in ON_A_NODE)
        raise LabUnavailable(f"the run has structures of one node on both sides of the regions ({text})")
    if chosen.remembered:
        raise LabUnavailable("the run starts with stale TLB entries, which cannot be arranged in a guest")
    failing = [choice.subject for choice in played.schedule if choice.kind == Kind.ALLOCATION_FAILS and choice.value]
    if failing != list(range(1, len(failing) + 1)):
        raise LabUnavailable(f"allocation {failing[-1]} of the run fails; in a guest only the first ones can fail")
    crashes_later = run.status == "died" and run.snapshot is not None
    lines = run.machine.log.kernel_lines
    return Prediction(
        regions=tuple(map(str, chosen.regions)),
        fail_allocations=len(failing),
        outcome="saved" if crashes_later else run.status,
        kernel_lines=_lines_until_saved(lines) if crashes_later else lines,
        violated=played.outcome.violated,
        pages=sides[Structure.MEM_MAP].word,
        lists=sides[Structure.PCP].word,
        allocates=allocates,
        resumed_crash=played.outcome.crash if crashes_later else "",
    )


def _require_stock_run(played: Played) -> bool:
    """Return whether a run allocates after its hibernation. Raises LabUnavailable if a stock kernel cannot run it."""
    ways = {operation.way for operation in played.written.operations if operation.do == HIBERNATE}
    if ways != {STOCK_WAY}:
        raise LabUnavailable(f"the run copies by {', '.join(sorted(ways))}; a stock kernel copies by {STOCK_WAY}")
    done = [operation.do for operation in played.written.operations]
    # Allocations on the resumed machine need no arranging: a guest that resumes does nothing else.
    if done not in ([HIBERNATE], [HIBERNATE, EXHAUST]):
        raise LabUnavailable(
            f"the run has more than a hibernation ({', '.join(done)}); a guest only allocates afterwards"
        )
    if played.run.status == "refused":
        raise LabUnavailable("the kernel of the run refuses to hibernate: a guest would show nothing")
    return EXHAUST in done


def _lines_until_saved(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the messages of a machine up to the one that its image was created."""
    saved = next(number for number, line in enumerate(lines) if SAVED_MESSAGE.search(line))
    return tuple(lines[: saved + 1])


def cannot_arrange(prediction: Prediction) -> str | None:
    """Return why a prediction cannot be tried on the laboratory's guests; None if it can."""
    regions = prediction.regions
    unknown = [one for one in regions if one not in REGIONS]
    if unknown:
        return f"the module cannot take out {unknown[0]} (it can: {', '.join(REGIONS)})"
    if len(regions) > MAX_REGIONS:
        return f"{len(regions)} regions, the module takes out {MAX_REGIONS} at most"
    above = [one.endswith(":above") for one in regions]
    if sum(above) > MAX_ABOVE:
        return f"{sum(above)} regions below their PMD table, a guest has room for {MAX_ABOVE}"
    if above != sorted(above, reverse=True):
        return "a guest has its PMD tables in one place: no region above its table can follow one below"
    if prediction.variant.two_nodes and any(above):
        return "with the allocator's pages or the CPUs' lists below, a guest has its PMD tables below all regions"
    return _cannot_observe(prediction)


def _cannot_observe(prediction: Prediction) -> str | None:
    """Return why the laboratory could not observe whether a prediction holds; None if it could."""
    if prediction.resumed_crash and not CRASH_IN_LISTS.search(prediction.resumed_crash):
        return f"the laboratory cannot observe whether a resumed machine crashes with: {prediction.resumed_crash}"
    if prediction.outcome not in ("saved", "died"):
        return f"outcome {prediction.outcome!r}; a guest's kernel can only save or crash"
    unseen = prediction.violated and not LOOKED_AT.intersection(prediction.violated)
    if prediction.outcome == "saved" and not prediction.allocates and unseen:
        return f"the laboratory cannot observe these invariants: {', '.join(prediction.violated)}"
    return None
