# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorded outcomes of real kernels (`python -m tests.crashes.booted`), and the instants that they were given."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.crashes.booted import HEAD, IMAGES, IN_PLACE, RECORDED, REWRITTEN, Booted, Instant, drawn, named, put, table
from tests.crashes.calls import Call

PAGE = REPOSITORY / "docs" / "reliability.md"
FOUND = [Booted(**json.loads(line)) for line in RECORDED.read_text().splitlines()]
WRITES = [Call("write", 0, offset=4096 * at, data=bytes([at + 1]) * 4096) for at in range(6)]
"""The first write gives the old image up, the last one is the new header."""


def test_kernels_agree_with_the_judge() -> None:
    """Every instant of the rewrite as it is: the kernel resumes the old image or the new one, or boots, as judged."""
    of_ours = [one for one in FOUND if not one.without]
    assert all(one.outcome == one.judged for one in of_ours)
    assert {(one.kernel.split(".")[0], one.image) for one in of_ours} == {
        (line, image) for line in "67" for image in IMAGES
    }
    for one in of_ours:
        assert one.outcome in ("old", "none", "new")
        if one.outcome == "none":
            assert one.says.endswith("; the area is swap")


def test_no_kernel_resumes_from_half_an_image() -> None:
    """Without one of the syncs: each instant is half by the judge, and no kernel resumes the old or the new image."""
    without = [one for one in FOUND if one.without]
    assert {one.without for one in without} == {"first", "second"}
    assert all(one.judged.startswith("half: ") for one in without)
    assert all(one.outcome in ("refused", "wrong", "crashed", "hung") for one in without)
    for kernel in {one.kernel for one in FOUND}:
        mixed = [one for one in without if one.kernel == kernel and one.image == REWRITTEN]
        assert {one.without for one in mixed} == {"first", "second"}
        assert {one.outcome for one in mixed} == {
            "wrong"
        }  # no CRC: the kernel resumes, and half of the change is there
        assert all(re.search(r"changed pages \[(17|900)\]$", one.says) for one in mixed)


def test_each_kernel_was_given_each_instant() -> None:
    """Those of `named`, once with each kind of image, and as many that were drawn."""
    wanted = [(one.name, one.without) for one in named(len(WRITES))]
    for kernel in {one.kernel for one in FOUND}:
        for image in IMAGES:
            given = [(one.instant, one.without) for one in FOUND if (one.kernel, one.image) == (kernel, image)]
            here = [one for one in wanted if image != REWRITTEN or one[0] in IN_PLACE]
            assert given[: len(here)] == here
            assert len(given) > len(here)


def test_the_table_of_kernels_is_that_of_the_record() -> None:
    """HIBERNAUT_UPDATE_DOCS=1 writes it."""
    before, head, rest = PAGE.read_text().partition(HEAD)
    assert head
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        PAGE.write_text(before + table(FOUND) + rest[rest.index("\n\n") + 1 :])
    assert f"{table(FOUND)}\n" in PAGE.read_text()


@pytest.mark.parametrize("instant", named(len(WRITES)), ids=lambda one: one.name)
def test_an_instant_has_its_calls_on_the_disk(tmp_path: Path, instant: Instant) -> None:
    """Whole writes for synced calls, some sectors of pending ones, and nothing of all others."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096 * len(WRITES)))
    put(disk, WRITES, instant)
    content = disk.read_bytes()
    share = {at: content[4096 * at : 4096 * (at + 1)].count(at + 1) / 4096 for at in range(len(WRITES))}
    assert all(share[at] == 1 for at in instant.synced)
    assert all(share[at] == 0 for at in set(share) - {*instant.synced, *instant.pending})
    assert not instant.pending or 0 < sum(share[at] for at in instant.pending) < len(instant.pending)
    given_up, header = 0 in instant.synced, len(WRITES) - 1 in instant.synced
    blocks = all(share[at] == 1 for at in range(1, len(WRITES) - 1))
    in_order = (not header or (blocks and given_up)) and (given_up or not any(share.values()))
    assert in_order == (not instant.without)


def test_drawn_instants_keep_the_order_of_the_syncs() -> None:
    """Pending calls come after the last sync; the same seed draws the same instants."""
    sync = Call("sync", 0)
    calls = [WRITES[0], sync, *WRITES[1:-1], sync, WRITES[-1], sync]
    found = list(drawn(calls, 50, 1))
    assert found == list(drawn(calls, 50, 1))
    groups = [(), (0,), (1, 2, 3, 4), (5,)]
    for one in found:
        assert any(one.synced == sum(groups[: at + 1], ()) for at in range(len(groups)))
        assert any(set(one.pending) <= set(group) for group in groups)
    assert {one.synced for one in found} >= {(), (0,), (0, 1, 2, 3, 4)}
