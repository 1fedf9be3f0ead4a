# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of a disk: each weakness that it must have, on calls that are made by hand."""

from __future__ import annotations

from tests.crashes.calls import Call, Tree
from tests.crashes.disk import Disk, State, all_states

TREE = Tree(folders={1: {"a": 2}}, files={2: b"old"})


def states_after(*calls: Call) -> list[State]:
    """Return the states after some calls on a folder with a file `a`."""
    disk = Disk(TREE)
    for call in calls:
        disk.do(call)
    found, whole = disk.states()
    assert whole
    return found


def test_a_rename_may_come_before_the_data() -> None:
    """A new file without a sync: its name is there, and it is empty, or of full length and zero."""
    found = states_after(
        Call("make", 3, (1, "b")), Call("write", 3, data=b"new"), Call("rename", 3, (1, "a"), (1, "b"))
    )
    assert {state.get("a") for state in found} == {b"old", b"", bytes(3), b"new"}
    synced = states_after(
        Call("make", 3, (1, "b")), Call("write", 3, data=b"new"), Call("sync", 3), Call("rename", 3, (1, "a"), (1, "b"))
    )
    assert {state.get("a") for state in synced} == {b"old", b"new"}


def test_an_entry_needs_its_folders_sync() -> None:
    """A synced file is found once its folder is synced, and not surely before."""
    made = (Call("make", 3, (1, "b")), Call("write", 3, data=b"new"), Call("sync", 3))
    assert {"b" in state for state in states_after(*made)} == {False, True}
    assert {"b" in state for state in states_after(*made, Call("sync", 1))} == {True}
    nested = (Call("folder", 4, (1, "f")), Call("make", 3, (4, "b")), Call("sync", 3), Call("sync", 4))
    assert {"f/b" in state for state in states_after(*nested)} == {False, True}
    assert {"f/b" in state for state in states_after(*nested, Call("sync", 1))} == {True}


def test_entries_come_in_any_order_and_a_rename_is_one_step() -> None:
    """Of two new files either may be alone; a renamed one has one of its names."""
    found = states_after(Call("make", 3, (1, "b")), Call("make", 4, (1, "c")))
    assert {frozenset(state) for state in found} == {frozenset("a" + more) for more in ("", "b", "c", "bc")}
    found = states_after(Call("rename", 2, (1, "b"), (1, "a")))
    assert {frozenset(state) for state in found} == {frozenset("a"), frozenset("b")}


def test_sectors_come_in_any_order_and_sizes_apart() -> None:
    """Of two sectors any may be missing; an extended file may be as long as before, or hold zeroes."""
    data = b"x" * 512 + b"y" * 512
    found = {state["a"] for state in states_after(Call("write", 2, data=data))}
    old = b"old".ljust(512, b"\0")
    assert {first + second for first in (old, data[:512]) for second in (bytes(512), data[512:])} < found
    assert {b"old", b"xxx"} < found
    assert len(found) == 6


def test_a_cut_and_what_is_written_behind_it_may_mix() -> None:
    """Without a sync after the cut, a sector of the old end may be behind a sector of the new one."""
    tree = Tree(folders={1: {"a": 2}}, files={2: b"a" * 1024})
    calls = [Call("size", 2, offset=0), Call("write", 2, data=b"b" * 1024)]
    mixed = b"b" * 512 + b"a" * 512
    assert mixed in [state["a"] for _, state, _ in all_states(tree, calls)]
    calls.insert(1, Call("sync", 2))
    assert mixed not in [state["a"] for _, state, _ in all_states(tree, calls)]


def test_a_kill_loses_nothing() -> None:
    """The last state is that of all calls."""
    *_, (stop, state, _) = all_states(TREE, [Call("write", 2, data=b"n"), Call("unlink", 2, (1, "a"))])
    assert (stop, state) == (2, {})


def test_a_sync_of_everything_leaves_one_state() -> None:
    """Files and entries alike."""
    found = states_after(
        Call("folder", 3, (1, "f")), Call("make", 4, (3, "b")), Call("write", 4, data=b"1"), Call("sync all", 0)
    )
    assert {tuple(state.items()) for state in found} == {(("a", b"old"), ("f", None), ("f/b", b"1"))}
