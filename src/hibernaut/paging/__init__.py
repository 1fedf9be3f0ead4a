# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as the CPU sees them: entry bits, one-address lookup, whole-table scan, TLB."""
