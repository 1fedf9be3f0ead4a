# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes to the kernel's copy of unmapped pages, as data: the cure, wrong cures, and alternatives."""
