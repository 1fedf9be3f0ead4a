# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of files and what holds bytes."""
