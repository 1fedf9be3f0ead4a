# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/troubleshooting.md lists every message with the checks that see it, and every check."""

from __future__ import annotations

import pytest

from hibernaut.doctor.checks.table import CHECKS
from hibernaut.doctor.messages import MESSAGES, Message
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text() if (REPOSITORY / "docs/troubleshooting.md").exists() else ""
NAMES = {check.name for check in CHECKS}


def message_row(message: Message) -> str:
    """Return the line of the page's table for a message."""
    checks = ", ".join(f"`{name}`" for name in message.checks)
    return f"| `{message.text}` | {message.meaning} | {message.advice} | {checks} |"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: one.text[:40])
def test_every_message_is_listed(message: Message) -> None:
    """Its row is the one of the program's table, and its checks exist."""
    assert message_row(message) in PAGE
    assert set(message.checks) <= NAMES


@pytest.mark.parametrize("check", CHECKS, ids=lambda one: one.name)
def test_every_check_is_listed(check) -> None:  # type: ignore[no-untyped-def]
    """Its row names the question that it belongs to."""
    assert f"| `{check.name}` | {check.question} | " in PAGE


def test_only_checks_that_exist_are_listed() -> None:
    """The table of checks has no other row."""
    rows = PAGE.split("| check | question | ok if |")[1].strip().splitlines()[1:]
    assert [row.split("`")[1] for row in rows] == [check.name for check in CHECKS]
