# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey: owners and fate of what is hidden, from made-up readings; and a guest that holds secret memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.survey import reading
from hibernaut.lab.survey.reading import Hidden, Owners, Reading, hidden_in, read_direct_map
from hibernaut.lab.survey.steps import SECRET_PAGES, STEPS, SurveyedGuest, SurveyStep
from hibernaut.lab.survey.survey import SURVEYED, StepTaken, adapted, answer_of, take
from hibernaut.lab.vm.port import Reply
from hibernaut.lab.vm.qemu import Hardware, planned_command
from hibernaut.linux.direct_map import Hole
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from hibernaut.paging.spans import Stop
from tests.lab.test_page_tables import DIRECT_MAP, ROOT, machine, put
from tests.lab.test_page_tables import PTE as PTE_TABLE

PTE, PMD, PUD = Level.PTE, Level.PMD, Level.PUD
BY_NAME = {step.name: step for step in STEPS}


def hole(start: int, pages: int, level: Level = PTE, kind: Stop = Stop.NOT_PRESENT) -> Hole:
    """Return a hole in RAM."""
    return Hole(start, pages, level, kind, 0, in_source=True)


POOL = ("KFENCE pool", FrameRanges.of([(100, 512)]))
TEXT = ("module or JIT text", FrameRanges.of([(90, 30)]))
EVERYTHING = [(0, 1 << 20, 0)]


@pytest.mark.parametrize(
    ("holes", "owners", "expected"),
    [
        ([], Owners(), []),
        ([hole(5, 2)], Owners(), [Hidden(PTE, "not present", "unknown", "unknown", 2, 2)]),
        ([hole(5, 2)], Owners(flags=EVERYTHING), [Hidden(PTE, "not present", "unknown", "yes", 2, 2)]),
        (
            [hole(98, 4)],
            Owners([POOL, TEXT], EVERYTHING),
            [
                Hidden(PTE, "not present", "KFENCE pool", "yes", 2, 2),
                Hidden(PTE, "not present", "module or JIT text", "yes", 2, 2),
            ],
        ),
        (
            [hole(100, 3)],
            Owners([POOL], [(100, 2, 1 << 32), (102, 1, 0)]),
            [
                Hidden(PTE, "not present", "KFENCE pool", "no", 2, 2),
                Hidden(PTE, "not present", "KFENCE pool", "yes", 1, 1),
            ],
        ),
        (
            [hole(7, 3)],
            Owners([("secret memory", FrameRanges.of([(7, 2)]))], EVERYTHING),
            [
                Hidden(PTE, "not present", "secret memory", "refused", 2, 2),
                Hidden(PTE, "not present", "unknown", "yes", 1, 1),
            ],
        ),
        (
            [hole(0, 4, kind=Stop.NONE)],
            Owners([TEXT], [(0, 1, 1 << 10), (1, 1, 1 << 20), (2, 1, 1 << 23), (3, 1, 1 << 32)]),
            [
                Hidden(PTE, "zero", "end of RAM, or the firmware's", "no", 1, 1),
                Hidden(PTE, "zero", "free memory", "no", 1, 1),
                Hidden(PTE, "zero", "offline", "no", 1, 1),
                Hidden(PTE, "zero", "reserved", "no", 1, 1),
            ],
        ),
        (
            [hole(1024, 512, PMD), hole(4096, 1024, PMD, Stop.NONE), hole(1 << 18, 1 << 18, PUD), hole(3, 1)],
            Owners(flags=EVERYTHING),
            [
                Hidden(PUD, "not present", "unknown", "yes", 1 << 18, 1),
                Hidden(PMD, "no table", "unknown", "yes", 1024, 2),
                Hidden(PMD, "not present", "unknown", "yes", 512, 1),
                Hidden(PTE, "not present", "unknown", "yes", 1, 1),
            ],
        ),
    ],
    ids=["nothing", "no flags", "flags", "owners", "reserved pool", "secrets", "not saved", "large"],
)
def test_owners_and_fate(holes: list[Hole], owners: Owners, expected: list[Hidden]) -> None:
    """One row for each level, kind, owner and fate; the first owner counts, and flags decide what is saved."""
    assert list(hidden_in(holes, owners)) == expected


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("KPF_RESERVED", 1 << 31),
        ("KPF_BUDDY", 1 << 11),
        ("KPF_NOPAGE", 1 << 21),
        ("KPF_OFFLINE", 1 << 24),
        ("SECRET", "secrets"),
        ("KFENCE", "KFENCE"),
        ("_kind", lambda _: "not present"),
        ("_saved", lambda _name, _flags: "yes"),
    ],
)
def test_mutants_of_the_reading_are_noticed(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong flag, a confused owner, a kind or fate that is always the same changes a row above."""
    table = next(mark for mark in test_owners_and_fate.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    monkeypatch.setattr(reading, name, wrong)
    assert any(list(hidden_in(holes, owners)) != expected for holes, owners, expected in table.args[1])


def taken(*hidden: Hidden, step: str = "boot") -> StepTaken:
    """Return a step after which something is hidden."""
    return StepTaken(BY_NAME[step], "done", Reading({}, hidden))


LARGE = Hidden(PMD, "not present", "unknown", "yes", 1024, 2)
SMALL = Hidden(PTE, "not present", "KFENCE pool", "yes", 500, 500)
ZERO = Hidden(PMD, "no table", "reserved", "no", 512, 1)
UNREAD = StepTaken(BY_NAME["cpu"], "", None, "no CPU 1")


@pytest.mark.parametrize(
    ("steps", "answer"),
    [
        ([taken()], "None seen: in 1 reading no 2M or 1G entry was not present; no 4K entry is, either."),
        (
            [taken(ZERO), taken(SMALL), UNREAD],
            "None seen: in 2 readings no 2M or 1G entry was not present; 4K entries are, for KFENCE pool "
            "(up to 500 pages).",
        ),
        ([taken(SMALL), taken(SMALL, LARGE, step="bpf")], "Yes: after bpf, 2 of 2M of unknown not present."),
        ([UNREAD], "Nothing was read."),
    ],
)
def test_the_answer_for_a_kernel(steps: list[StepTaken], answer: str) -> None:
    """A large entry that is not present is the answer; zero entries are none, steps without a reading do not count."""
    assert answer_of(steps) == answer


def test_a_step_that_a_kernel_cannot_take_has_the_reason() -> None:
    """It is listed, with nothing read; a guest that does not answer is listed with what was done."""

    def unable(_: SurveyedGuest) -> str:
        raise LabUnavailable("no such device", advice="none")

    def silent(_guest: object, _pool: object) -> Reading:
        raise LabError("no answer")

    step = SurveyStep("x", "x", unable)
    assert take(step, None) == StepTaken(step, "", None, "no such device")  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hibernaut.lab.survey.survey.read_direct_map", silent)
        seen = take(BY_NAME["boot"], SurveyedGuest(None, {}))  # type: ignore[arg-type]
    assert (seen.done, seen.reading, seen.unable) == ("booted", None, "no answer")


def test_the_machine_of_the_survey() -> None:
    """Two CPUs and room for memory; other guests have one CPU and no room."""
    plain = Hardware(Path("vmlinuz"), None, "quiet", memory_mib=3072)
    words = planned_command(adapted("more=1")(plain))
    assert words[words.index("-smp") + 1] == "2"
    assert words[words.index("-m") + 1] == "3072,slots=1,maxmem=3200M"
    assert words[words.index("-append") + 1].endswith("quiet more=1")
    words = planned_command(plain)
    assert (words[words.index("-smp") + 1], words[words.index("-m") + 1]) == ("1", "3072")


def test_a_guest_that_holds_secret_memory(lab_61: Lab, tmp_path: Path) -> None:
    """Exactly its pages leave the direct map, as 4K entries, and are owned by it; others stay as they were."""
    with lab_61.boot(SURVEYED, tmp_path, [], shared_ram=True, adapt=adapted("secretmem.enable=1")) as guest:
        surveyed = SurveyedGuest(guest, {})
        before, after = (take(BY_NAME[name], surveyed) for name in ("boot", "secret"))
    assert before.reading is not None, before.unable
    assert after.reading is not None, after.unable
    others = set(before.reading.hidden)  # now and then a few pages of a mapping that is being changed
    assert all(one.level == PTE for one in others)
    found = [one for one in after.reading.hidden if one.saved != "no" and one not in others]
    assert found == [Hidden(PTE, "not present", "secret memory", "refused", SECRET_PAGES, SECRET_PAGES)]


@dataclass
class MadeUpGuest:
    """A guest that is only its memory, its registers, and its answers."""

    memory: SegmentMemory
    flags: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    fails: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def qemu(self) -> MadeUpGuest:
        """Itself."""
        return self

    @property
    def port(self) -> MadeUpGuest:
        """Itself."""
        return self

    @property
    def ram(self) -> MadeUpGuest:
        """Itself."""
        return self

    def execute(self, command: str) -> None:
        """Note a command of the monitor."""
        self.asked.append(command)

    def registers(self) -> dict[str, int]:
        """Return a root without the kernel's half as often as wanted, then the real one."""
        self.fails -= 1
        return {"CR3": (15 if self.fails >= 0 else ROOT) << 12 | 0x5}

    def ask(self, command: str) -> Reply:
        """Answer."""
        self.asked.append(command)
        return Reply("s", 0, self.secret if command == "!frames secret" else self.flags)


def made_up(**answers: Any) -> MadeUpGuest:
    """Return a guest whose frames 7 and 9 are not present; a variable in frame 8 holds the address of frame 7."""
    ram = machine()
    for pfn in (7, 9):
        put(ram, PTE_TABLE, pfn, (FRAME_MASK ^ pfn << 12) | int(Entry.RW))
    ram[8, 16:24] = np.frombuffer((DIRECT_MAP + (7 << 12)).to_bytes(8, "little"), dtype=np.uint8)
    return MadeUpGuest(SegmentMemory([Segment(0, ram)]), **answers)


VARIABLE = DIRECT_MAP + (8 << 12) + 16


def test_a_reading_of_a_made_up_guest() -> None:
    """It is stopped while its tables are read; owners are the pool that a variable names, and secret memory."""
    guest = made_up(
        flags=("flags first=0x7 count=3 value=0x0",), secret=("frames page=0 first=0x9 count=1", "frames first=0x0")
    )
    found = read_direct_map(guest, VARIABLE)  # type: ignore[arg-type]
    assert [one for one in found.hidden if one.kind == "not present"] == [
        Hidden(PTE, "not present", "KFENCE pool", "yes", 1, 1),
        Hidden(PTE, "not present", "secret memory", "refused", 1, 1),
    ]
    assert guest.asked == ["stop", "cont", "!frames secret", "!pageflags 0x7 3"]
    unnamed = read_direct_map(made_up(), None)  # type: ignore[arg-type]
    assert Hidden(PTE, "not present", "unknown", "unknown", 2, 2) in unnamed.hidden


def test_a_guest_that_is_stopped_in_user_space() -> None:
    """Tables without the kernel's half are tried again; a guest that has no others is an error, and continues."""
    guest = made_up(fails=2)
    assert read_direct_map(guest, None).hidden  # type: ignore[arg-type]
    assert guest.asked[:6] == ["stop", "cont"] * 3
    guest = made_up(fails=99)
    with pytest.raises(LabError, match="the direct map cannot be read"):
        read_direct_map(guest, None)  # type: ignore[arg-type]
    assert guest.asked == ["stop", "cont"] * reading.STOPS


def test_frames_are_asked_for_in_few_ranges() -> None:
    """Holes near each other are one range; the ranges cover every hole."""
    near = reading.NEAR_PAGES
    holes = [hole(10, 2), hole(12 + near, 1), hole(14 + 2 * near, 5)]
    assert list(reading._near(holes)) == [(10, near + 3), (14 + 2 * near, 5)]
    assert list(reading._near([])) == []
