# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory for tests: real kernels where QEMU and Debian's packages can be had."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.lab.cure.cures import cure_named
from hibernaut.lab.host.build import plan_build
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.host.trees import kernel_of_tree
from hibernaut.lab.laboratory import Lab

SWITCH = "HIBERNAUT_LAB"
"""on: boot guests if the laboratory is ready; required: fail if it is not; else boot nothing."""

BUILT_SWITCH = "HIBERNAUT_BUILT"
"""1: boot guests of the kernels that `hibernaut lab build` has made, too: some ten minutes; `.ci/run` does not."""


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


@pytest.fixture
def lab_built(lab_61: Lab) -> Callable[[str], Lab]:
    """The laboratory with a kernel that was built from the source of 6.1, by the name of its cure, or a skip."""
    if not os.environ.get(BUILT_SWITCH):
        pytest.skip(f"minutes of guests: {BUILT_SWITCH}=1 boots kernels that `hibernaut lab build` made")

    def built(cure: str) -> Lab:
        tree = plan_build(lab_61.cache, "6.1", cure_named(cure)).result(lab_61.cache)
        if not tree.is_dir():
            pytest.skip(f"not built: `hibernaut lab build --source 6.1 --cure {cure}` takes minutes")
        return Lab(kernel_of_tree(tree), lab_61.cache)

    return built
