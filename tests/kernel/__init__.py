# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of what a real kernel says of itself."""
