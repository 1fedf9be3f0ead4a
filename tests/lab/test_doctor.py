# SPDX-License-Identifier: GPL-2.0-or-later
"""The needs of the laboratory."""

from __future__ import annotations

from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine


def test_the_doctor_is_content_with_what_is_there() -> None:
    """No cure for what is not missing."""
    there = [one for one in examine(Cache()) if one.there]
    assert cures(there) == []
