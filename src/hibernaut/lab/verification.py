# SPDX-License-Identifier: GPL-2.0-or-later
"""The verification of a resumed guest: its pages, its regions, its direct map."""

from __future__ import annotations

from typing import Any

from hibernaut.lab.guest_state import RunningGuest, direct_map_counters, module_report, region_problems
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.vm.port import Reply, facts_of

__all__ = ["verify_resumed"]


def verify_resumed(guest: RunningGuest, record: GuestRecord, reply: Reply) -> tuple[bool, str, dict[str, Any]]:
    """Verify a resumed guest and return whether all is right, one line about it, and the facts.

    Args:
        guest: the guest.
        record: its record from before the hibernation.
        reply: end of the command with which it hibernated.

    Raises:
        LabError: the guest ends or does not answer.
    """
    wrong = []
    if reply.status:
        wrong.append(f"hibernation ended with status {reply.status}")
    pages = 0
    for region in ("locked", "loose"):
        check = guest.port.ask(f"!verify {region}")
        pages += int(facts_of(check.lines[-1]).get("pages", "0")) if check.lines else 0
        if check.status:
            wrong.append(f"data: {'; '.join(check.lines) or f'no region {region}'}")
    after = module_report(guest).regions if record.regions else ()
    if len(after) != len(record.regions):
        wrong.append(f"the module reports {len(after)} regions, there were {len(record.regions)}")
    wrong += [problem for pair in zip(record.regions, after, strict=False) for problem in region_problems(*pair)]
    counters = direct_map_counters(guest)
    if not wrong and counters != record.direct_map:
        wrong.append(f"direct map: counters {counters}, were {record.direct_map}")
    facts = {"pages": pages, "regions": list(after), "direct_map": counters}
    if wrong:
        return False, "; ".join(wrong), facts
    blocks = f" and {len(after)} region{'s' * (len(after) > 1)} of the direct map" if after else ""
    return True, f"resumed, {pages} pages{blocks} as they were", facts
