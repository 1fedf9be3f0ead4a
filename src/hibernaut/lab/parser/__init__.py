# SPDX-License-Identifier: GPL-2.0-or-later
"""The image parser of a resuming kernel, put to the test with mutated images."""
