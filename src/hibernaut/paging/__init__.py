# SPDX-License-Identifier: GPL-2.0-or-later
"""What the CPU sees: entry bits, one-address lookup, whole-table scan, the TLB."""
