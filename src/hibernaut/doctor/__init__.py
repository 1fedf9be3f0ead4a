# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a machine hibernates and comes back: facts gathered without writing, and checks that are pure functions."""
