# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts that a real kernel states about itself in its memory, its image or its /proc and /sys."""
