# SPDX-License-Identifier: GPL-2.0-or-later
"""The library's errors: one readable line, and the same error after a trip to another process."""

from __future__ import annotations

import pickle

import pytest

from hibernaut.errors import (
    CorruptImage,
    FormatError,
    HibernationRefused,
    HibernautError,
    LabError,
    LabUnavailable,
    MachineFault,
    OutOfMemory,
)
from hibernaut.linux.change_page_attr import AttributeChangeError

ERRORS = (
    HibernautError("something"),
    FormatError("bad", source="file", offset=3, expected="this", found="that"),
    CorruptImage("worse", source="file"),
    MachineFault("page fault", address=1, entry=2, pfn=3, doing="copying", log=("last log line",)),
    OutOfMemory(7, injected=True),
    HibernationRefused("secret", errno="EPERM", log=("no",)),
    LabError("died", log=("a", "b")),
    LabUnavailable("no QEMU", cure="apt-get install it"),
    AttributeChangeError("refused", vaddr=4096, errno="EFAULT"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_a_trip_to_another_process(error: HibernautError) -> None:
    """Kind, attributes and line are unchanged, so a parent can report a worker's error."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert (str(again), again.args) == (str(error), error.args)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_with_other_facts_is_a_copy(error: HibernautError) -> None:
    """The copy is of the same kind and differs in the facts given; the error itself does not change."""
    before = dict(vars(error))
    for name in before:
        twin = error.with_facts(**{name: "changed"})
        assert type(twin) is type(error)
        assert vars(twin) == {**before, name: "changed"}
        assert twin.args == error.args
    assert vars(error) == before
    with pytest.raises(TypeError, match="nonsense"):
        error.with_facts(nonsense=1)
