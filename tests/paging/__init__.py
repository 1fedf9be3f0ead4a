# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of page tables as the CPU reads them."""
