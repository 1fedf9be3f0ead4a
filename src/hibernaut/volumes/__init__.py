# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes by position, whatever holds them: plain files, compressed files, partitions, and files that are written."""
