# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels under QEMU: boot, hibernate, dump, resume; see README.md in this folder."""
