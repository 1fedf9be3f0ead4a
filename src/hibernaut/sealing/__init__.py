# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals: what a resuming kernel reads of an image, its manifest, the seal on that, and the verdict before a resume.

All modules but `volume_blocks` and `in_area` need the standard library alone: `packages/verifier` makes one file of
them, for an initramfs.
"""
