# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of a golden dump, for tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.stopped import DUMP, StoppedKernel


@pytest.fixture(scope="module")
def kernel(golden: Golden) -> Iterator[StoppedKernel]:
    """A real kernel, stopped before its copy loop."""
    with open_memory(golden(DUMP)) as source:
        yield StoppedKernel(source)
