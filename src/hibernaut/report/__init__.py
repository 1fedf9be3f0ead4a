# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON documents, text and pages."""
