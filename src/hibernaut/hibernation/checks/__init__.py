# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on a hibernation, one file each: a check passes if it returns no violation.

Each compares bytes and page-table entries of the snapshot, or of the machine that resumed from it, with those of the
machine before the copy.
"""
