# SPDX-License-Identifier: GPL-2.0-or-later
"""The page with the results of every case on every kernel; a run replaces its own results and keeps the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hibernaut.kernel_line import KernelVersion, parse_release
from hibernaut.report.documents import ProveDocument
from hibernaut.report.text import markdown

__all__ = ["support_page"]

HEAD = """# Results on real kernels

Written by `make lab` (`hibernaut lab prove --write docs/support.md`). Results are never edited by hand.
"""
ROW = re.compile(r"^\| ([\d.]+) \| (.*) \| (.*) \| (\w+) \| (\d+) \|$", re.MULTILINE)
RELEASE = re.compile(r"([\d.]+) is Debian's ([^\s,]+?)(?=, |\.$)", re.MULTILINE)


def support_page(document: ProveDocument, order: Sequence[str], earlier: str = "") -> str:
    """Return the results as a page in Markdown, with the observations of each case.

    Args:
        document: the results.
        order: names of all cases, in the order of the page.
        earlier: text of such a page, whose results stay where this run has none for the same kernel and case.
    """
    releases = dict(RELEASE.findall(earlier))
    rows = {(kernel, case): " | ".join(rest) for kernel, case, *rest in ROW.findall(earlier)}
    lines = earlier.splitlines()
    seen = {
        one: next((line[len(start) :] for line in lines if line.startswith(start)), "")
        for one in rows
        for start in (f"- {one[0]}, {one[1]}: ",)
    }
    for found in document["results"]:
        one = found["kernel"], found["case"]
        rows[one] = f"{found['must']} | {found['result']} | {found['seconds']}"
        seen[one] = markdown(found["seen"])
        if found["release"]:
            releases[found["kernel"]] = found["release"]

    def place(one: tuple[str, str]) -> tuple[KernelVersion, int]:
        kernel, case = one
        return parse_release(kernel), order.index(case) if case in order else len(order)

    kernels = ", ".join(f"{name} is Debian's {releases[name]}" for name in sorted(releases, key=parse_release))
    parts = [
        HEAD,
        f"Kernels: {kernels}.",
        "",
        "| kernel | case | must | result | seconds |",
        "|---|---|---|---|---|",
        *(f"| {kernel} | {case} | {rows[kernel, case]} |" for kernel, case in sorted(rows, key=place)),
        "",
        "## Observations",
        "",
        *(f"- {kernel}, {case}: {seen[kernel, case]}" for kernel, case in sorted(rows, key=place)),
    ]
    return "\n".join(parts) + "\n"
