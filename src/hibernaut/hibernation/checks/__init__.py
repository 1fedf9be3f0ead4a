# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on a hibernation, one file each: no violation is a pass.

They compare bytes and entries of the snapshot, and of the machine that resumed from it, with those of the machine
before the copy.
"""
