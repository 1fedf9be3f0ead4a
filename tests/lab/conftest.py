# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory for tests: real kernels where QEMU and Debian's packages can be had."""

from __future__ import annotations

import os

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.laboratory import Lab

SWITCH = "HIBERNAUT_LAB"
"""on: boot guests if the laboratory is ready; required: fail if it is not; else boot nothing."""


def unavailable(reason: str) -> None:
    """Skip, or fail where the laboratory is required."""
    if os.environ.get(SWITCH) == "required":
        pytest.fail(f"the laboratory is required and not ready: {reason}")
    pytest.skip(f"no laboratory: {reason}")


@pytest.fixture(scope="session")
def lab_61() -> Lab:
    """The laboratory with Linux 6.1."""
    if os.environ.get(SWITCH) not in ("on", "required"):
        pytest.skip(f"minutes of work: {SWITCH}=on boots guests")
    cache = Cache()
    missing = [one for one in examine(cache) if one.need.required and not one.there]
    if missing:
        unavailable(f"{', '.join(one.need.name for one in missing)} missing; {'; '.join(cures(missing))}")
    try:
        return Lab(get_kernel(cache, line_named("6.1")), cache)
    except LabUnavailable as error:
        unavailable(str(error))
        raise
