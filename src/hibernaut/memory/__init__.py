# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: ranges of page frames, a copy-on-write overlay, and readers and writers of memory files."""
