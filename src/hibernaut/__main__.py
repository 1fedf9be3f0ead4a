# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m hibernaut`."""

from __future__ import annotations

from hibernaut.cli import main

main()
