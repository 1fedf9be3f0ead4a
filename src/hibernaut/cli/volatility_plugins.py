# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut volatility-plugins`: the folder that Volatility 3 loads to read hibernation images."""

from __future__ import annotations

from hibernaut.cli.options import OutputOptions
from hibernaut.report.documents import VolatilityPluginsDocument
from hibernaut.volatility.image_source import plugins_folder

__all__ = ["volatility_plugins"]


def volatility_plugins(output: OutputOptions) -> None:
    """Print the folder of the plug-in by which Volatility 3 reads hibernation images in place.

    `vol -p "$(hibernaut volatility-plugins)" -f IMAGE linux.pslist`; Volatility must be installed beside hibernaut, as
    with the extra `volatility`.
    """
    document: VolatilityPluginsDocument = {"folder": str(plugins_folder())}
    output.answer(document, lambda done: done["folder"])
