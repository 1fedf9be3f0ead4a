# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions in /proc/kallsyms by their names in the source, as GCC, and Clang with LTO, list them."""

from __future__ import annotations

import pytest

from hibernaut.lab.listed_functions import ListedFunction, functions_among

NAMES = ("__alloc_frozen_pages_noprof", "__alloc_pages")


@pytest.mark.parametrize(
    ("line", "symbol"),
    [
        ("ffffffff8109f6c0 T swsusp_save", "swsusp_save"),
        ("ffffffff8109f6c0 t swsusp_save", "swsusp_save"),  # Clang's ThinLTO: only assembly calls it
        ("ffffffff8109f6c0 t swsusp_save.llvm.9370750255763404559", "swsusp_save.llvm.9370750255763404559"),
        ("ffffffff8109f6c0 t swsusp_save.constprop.0.isra.0", "swsusp_save.constprop.0.isra.0"),
        ("ffffffff8109f6c0 t swsusp_save.cold", None),
        ("ffffffff8109f6c0 t swsusp_save.constprop.0.cold", None),
        ("ffffffff8109f6c0 t swsusp_save.part.0", None),
        ("ffffffff8109f6c0 r swsusp_save", None),
        ("ffffffff8109f6c0 t swsusp_save [module]", None),
        ("ffffffff8109f6c0 t swsusp_saved", None),
    ],
)
def test_a_function_whatever_the_compiler_made_of_its_name(line: str, symbol: str | None) -> None:
    """A suffix is the compiler's, a part that was moved out is not the function."""
    expected = [] if symbol is None else [ListedFunction(0xFFFFFFFF8109F6C0, symbol)]
    assert functions_among([line], ["swsusp_save"]) == expected


def test_order_is_that_of_the_names() -> None:
    """The first name that the kernel has is its own; a plain one goes before one with a suffix."""
    lines = [
        "ffffffff81000001 t __alloc_pages.constprop.0",
        "ffffffff81000002 T __alloc_pages",
        "ffffffff81000003 t __alloc_frozen_pages_noprof.cold",
        "ffffffff81000004 t __alloc_frozen_pages_noprof.llvm.12",
    ]
    assert [one.address & 7 for one in functions_among(lines, NAMES)] == [4, 2, 1]
    assert {one.name for one in functions_among(lines, NAMES)} == set(NAMES)
