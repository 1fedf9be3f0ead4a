# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory's kernels, probed: their bzImages have the rules of their lines."""

from __future__ import annotations

import os

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.hibernation.real_kernel import image_rules_of_vmlinuz, rules_of_vmlinuz
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import KERNEL_LINES, get_kernel, line_named
from hibernaut.linux.rules import PROBES, RULES
from hibernaut.swsusp.rules import IMAGE_RULES
from tests.lab.conftest import SWITCH, unavailable


@pytest.mark.parametrize("line", KERNEL_LINES)
def test_a_laboratory_kernel_has_the_rules_of_its_line(line: str) -> None:
    """Every probe answers, but for a static function that older kernels lack; the answers are the line's."""
    if os.environ.get(SWITCH) == "off":
        pytest.skip(f"no laboratory: {SWITCH}=off")
    try:
        kernel = get_kernel(Cache(), line_named(line))
    except LabUnavailable as error:
        unavailable(str(error))
        raise
    found, images = rules_of_vmlinuz(kernel.vmlinuz), image_rules_of_vmlinuz(kernel.vmlinuz)
    assert found.rules is RULES[line]
    assert set(PROBES) - set(found.probed) == (set() if line == "7.3" else {"collapses_large_pages"})
    assert images.rules == IMAGE_RULES[line]
    assert images.line == ("magic", "other_magics", "checks_crc32", "read")
