# SPDX-License-Identifier: GPL-2.0-or-later
"""A source as files: a tree whose files are read on demand, and a mount of it through FUSE."""
