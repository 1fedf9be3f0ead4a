# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest side: the initramfs, its init program, and the module that takes regions out of the direct map."""
