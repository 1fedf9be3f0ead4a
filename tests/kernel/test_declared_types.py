# SPDX-License-Identifier: GPL-2.0-or-later
"""Declarations in C, taken apart."""

from __future__ import annotations

import pytest

from hibernaut.kernel.declared_types import Declaration, parse_declaration
from hibernaut.kernel.globals import GLOBALS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("u64", Declaration(None, "u64", 0, ())),
        ("unsigned long", Declaration(None, "unsigned long", 0, ())),
        ("struct mm_struct", Declaration("struct", "mm_struct", 0, ())),
        ("enum x86_hypervisor_type", Declaration("enum", "x86_hypervisor_type", 0, ())),
        ("struct mem_section **", Declaration("struct", "mem_section", 2, ())),
        ("char [256]", Declaration(None, "char", 0, (256,))),
        ("struct pglist_data *[]", Declaration("struct", "pglist_data", 1, (None,))),
        ("unsigned long [65][]", Declaration(None, "unsigned long", 0, (65, None))),
    ],
)
def test_a_declaration_has_a_tag_pointers_and_bounds(text: str, expected: Declaration) -> None:
    """As the table of globals writes them."""
    assert parse_declaration(text) == expected


@pytest.mark.parametrize("text", ["", "int (*)(void)", "char []*", "struct", "int x;"])
def test_another_text_is_refused(text: str) -> None:
    """A tag alone is a name to the parser, and to C none."""
    if text == "struct":
        assert parse_declaration(text).tag is None
        return
    with pytest.raises(ValueError, match="not a declaration"):
        parse_declaration(text)


def test_every_type_of_the_table_is_a_declaration() -> None:
    """At most one bound is unknown: the room up to the next symbol decides one."""
    declared = [one for types in GLOBALS.values() for one in types if isinstance(one, str)]
    assert len(declared) > 100
    assert all(parse_declaration(one).bounds.count(None) <= 1 for one in declared)
