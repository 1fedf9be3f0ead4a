# SPDX-License-Identifier: GPL-2.0-or-later
"""A state machine over the simulated machine, for what is too large to enumerate: any operations, any interference.

Each rule appends operations to one `Run` and has them done. What a rule draws besides is luck: numbers that answer the
questions asked on the way, in order. When an invariant is broken everything so far is written down as a saved run,
played, and replayed from its file: it must come out the same, byte for byte.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hibernaut.exploration.families import ChosenMachine, Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import HIBERNATE, Operation
from hibernaut.exploration.play import FamilyMachine, Played, Written, play
from hibernaut.exploration.replay import replay, run_text, write_run
from hibernaut.exploration.run import Outcome, Run
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind, Question
from hibernaut.linux.rules import LINES, rules_named
from hibernaut.paging.entries import Level

__all__ = ["Drawn", "Luck", "Violated", "Wander", "wanderer"]

GIB, BLOCK = Level.PUD.pages, Level.PMD.pages
BOTH = (Side.ABOVE, Side.BELOW)

WHEREVER = Family(
    regions=(1, 0, 2),
    kinds=tuple(kind for kind in RegionKind if kind < RegionKind.KFENCE),
    tables=BOTH,
    root=BOTH,
    mem_map=BOTH,
    zone=BOTH,
    pcp=BOTH,
    free=BOTH,
    cpus=(1, 2),
    free_pages=128,
)
"""Any machine of up to two regions. KFENCE's pools and whole blocks with an owner are left out: a rule that makes a
page of one read-only would make its owner fault without a hibernation. So are unmapped pageblocks, which a rule would
map behind the allocator's back. What a CPU remembers from before is left to the rules."""

PLAIN = 0x20000
"""An unused frame of the lower bank, like the thousands behind it."""

MOST_HELD = 32
"""So many pages are held at most, or the tables find none."""

SAFE_FRAMES = 32
"""A resume takes fewer: the four pages of the boot kernel, the temporary tables of five gigabytes, the code."""

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

LUCK = st.lists(st.integers(0, 63), max_size=12)
PAGES = st.sampled_from((1, 2, 3, 33, 34, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK))
"""One page; what is flushed page by page, and what flushes all; nearly a block, a block, more."""
OFFSETS = st.sampled_from((0, 1, 2, 3, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 5, GIB - 2 * BLOCK))
RULES = st.sampled_from(["6.1", *(rules.line for rules in LINES)])
PRESENCE = ("set_direct_map_invalid", "set_memory_np", "set_memory_p", "set_direct_map_default")
RIGHTS = ("set_memory_4k", "set_memory_ro", "set_memory_rw", "set_memory_x", "set_memory_nx")


class Luck(Environment):
    """Answers by the numbers that it was given before an operation; without interference when there are no more.

    One number in eight makes an allocation fail; elsewhere they are counted round the answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        number = self.numbers.pop(0) if self.numbers else 0
        if question.kind == Kind.ALLOCATION_FAILS:
            return int(number % 8 == 1)
        return number % len(question.options)

    def fork(self) -> Self:
        """Itself: of a machine that is forked for a look nothing is asked."""
        return self


class Drawn(Environment):
    """Answers as they are drawn."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__()
        self._data = data

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        return self._data.draw(st.integers(0, len(question.options) - 1), label=str(question.kind))


class Violated(AssertionError):
    """An invariant is broken.

    Attributes:
        path: of the saved run.
        outcome: how it ended.
        operations: what was done.
    """

    def __init__(self, path: Path, outcome: Outcome, operations: tuple[Operation, ...]) -> None:
        self.path = path
        self.outcome = outcome
        self.operations = operations
        super().__init__(f"{outcome}; saved as {path}")


class Wander(RuleBasedStateMachine):
    """Whatever can be done to a machine, hibernations among it.

    Attributes:
        ways: by which it hibernates.
        wholes: whether gigabytes are made not present as a whole: not where pages are copied one by one.
        folder: where a run that breaks something is saved.
    """

    ways: tuple[str, ...] = ("fixmap",)
    wholes = True
    folder: Path

    @initialize(data=st.data(), line=RULES)
    def build(self, data: st.DataObject, line: str) -> None:
        """Build any machine of the widest family."""
        asked = Drawn(data)
        self.chosen: ChosenMachine = WHEREVER.choose(asked)
        self.layout_choices = tuple(choice.index for choice in asked.schedule)
        self.line = line
        self.luck = Luck()
        machine = build_machine(self.chosen.layout, self.luck, rules_named(line))
        self.run = Run(machine, ())
        self.places = [region.start_pfn for region in self.chosen.regions]

    # --- what is done -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.run.held) < MOST_HELD)
    @rule(pages=st.integers(1, 8), cpu=st.integers(0, 1), luck=LUCK)
    def alloc(self, pages: int, cpu: int, luck: list[int]) -> None:
        """Allocate pages on a CPU."""
        self._do(luck, Operation("alloc", pages=pages, cpu=self._cpu(cpu)))

    @precondition(lambda self: self.run.held)
    @rule(pages=st.integers(1, 8), cpu=st.integers(0, 1))
    def free(self, pages: int, cpu: int) -> None:
        """Free pages; those out of the direct map are put back first."""
        hidden = [pfn for pfn in self.run.held[-pages:] if not self._present(pfn)]
        back = [Operation("set_direct_map_default", pfn=pfn) for pfn in hidden]
        self._do([], *back, Operation("free", pages=pages, cpu=self._cpu(cpu)))

    @precondition(lambda self: self.run.held)
    @rule(which=st.integers(0, 63), change=st.sampled_from(PRESENCE), luck=LUCK)
    def hide_held(self, which: int, change: str, luck: list[int]) -> None:
        """A page of one's own: secret memory, say."""
        self._do(luck, Operation(change, pfn=self.run.held[which % len(self.run.held)]))

    @rule(where=st.integers(0, 2), offset=OFFSETS, pages=PAGES, change=st.sampled_from(PRESENCE), luck=LUCK)
    def change(self, where: int, offset: int, pages: int, change: str, luck: list[int]) -> None:
        """Take pages out of the direct map, or put them back."""
        self._do(luck, Operation(change, pfn=self._frame(where, offset), pages=pages))

    @rule(where=st.integers(0, 2), offset=OFFSETS, pages=PAGES, change=st.sampled_from(RIGHTS), luck=LUCK)
    def change_rights(self, where: int, offset: int, pages: int, change: str, luck: list[int]) -> None:
        """Change the rights of pages."""
        self._do(luck, Operation(change, pfn=self._frame(where, offset), pages=pages))

    @precondition(lambda self: self.wholes and self.places)
    @rule(where=st.integers(0, 1), change=st.sampled_from(("set_memory_np", "set_memory_p")), luck=LUCK)
    def change_gigabyte(self, where: int, change: str, luck: list[int]) -> None:
        """Change a whole GiB at once."""
        self._do(luck, Operation(change, pfn=self.places[where % len(self.places)], pages=GIB))

    @rule(where=st.integers(0, 2), offset=OFFSETS)
    def remember(self, where: int, offset: int) -> None:
        """Read a page, so that the TLB caches its translation."""
        self._do([], Operation("remember", pfn=self._frame(where, offset)))

    @rule(where=st.integers(0, 2), offset=OFFSETS, luck=LUCK)
    def remember_slot(self, where: int, offset: int, luck: list[int]) -> None:
        """Read a page through the slot without a flush afterwards, so that the TLB caches the slot."""
        self._do(luck, Operation("remember-slot", pfn=self._frame(where, offset)))

    @precondition(lambda self: self._can_hibernate())
    @rule(way=st.integers(0, 7), luck=LUCK)
    def hibernate(self, way: int, luck: list[int]) -> None:
        """Hibernate and resume."""
        self._do(luck, Operation(HIBERNATE, way=self.ways[way % len(self.ways)]))

    @precondition(lambda self: self._can_hibernate())
    @rule(way=st.integers(0, 7), other=st.integers(0, 7), luck=LUCK)
    def hibernate_twice(self, way: int, other: int, luck: list[int]) -> None:
        """Hibernate and resume twice."""
        names = [self.ways[each % len(self.ways)] for each in (way, other)]
        self._do(luck, *[Operation(HIBERNATE, way=name) for name in names])

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        """Raise Violated, with the saved run, as soon as an invariant is broken."""
        if not self.run.violations:
            return
        played = self._played()
        path = self._path()
        write_run(path, played)
        again, difference = replay(path)
        assert difference is None, difference
        assert again.outcome == self.run.outcome
        note(f"saved run: {path}")
        for line in (*map(str, self.run.operations), *played.lines, *map(str, self.run.violations[:5])):
            note(line)
        raise Violated(path, self.run.outcome, self.run.operations)

    def teardown(self) -> None:
        """A run that broke nothing is one that can be replayed, too."""
        if hasattr(self, "run") and not self.run.violations:
            self._played()

    def _played(self) -> Played:
        """The run once more, from its beginning: it must come out as it did step by step."""
        written = Written(
            FamilyMachine(WHEREVER, self.layout_choices),
            self.line,
            self.run.operations,
            tuple(choice.index for choice in self.luck.schedule),
        )
        played = play(written)
        assert run_text(played) == run_text(Played(written, played.before, self.luck.schedule, self.run))
        return played

    def _path(self) -> Path:
        folder = Path(os.environ.get("HIBERNAUT_SAVE") or self.folder)
        return folder / f"wander-{'-'.join(self.ways).replace(':', '-')}.json"

    # --- small things -------------------------------------------------------------------------------------------

    def _do(self, luck: Sequence[int], *operations: Operation) -> None:
        self.luck.numbers = list(luck)
        for operation in operations:
            self.run.append(operation)
        self.run.finish()
        self.luck.numbers = []

    def _frame(self, where: int, offset: int) -> int:
        places = [*self.places, PLAIN]
        return places[where % len(places)] + offset

    def _cpu(self, cpu: int) -> int:
        return cpu % self.chosen.layout.cpus

    def _present(self, pfn: int) -> bool:
        found = self.run.machine.lookup_address(self.run.machine.vaddr(pfn))
        return found is not None and found.present

    def _can_hibernate(self) -> bool:
        """Whether there are safe frames for the resume."""
        twin = self.run.machine.fork()
        twin.allocator.drain_pages()
        return twin.allocator.free_ranges().total_pages >= SAFE_FRAMES


def wanderer(*ways: str, folder: Path | None = None, wholes: bool = True) -> type[Wander]:
    """The state machine of a machine that hibernates by these ways.

    Args:
        ways: their names.
        folder: where a run that breaks something is saved, if `HIBERNAUT_SAVE` does not say; a new one if None.
        wholes: whether gigabytes are made not present as a whole.
    """
    where = Path(tempfile.mkdtemp(prefix="hibernaut-")) if folder is None else folder

    class Chosen(Wander):
        pass

    Chosen.ways, Chosen.folder, Chosen.wholes = ways, where, wholes
    return Chosen
