# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of a symbol file that was written for Volatility, and its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibernaut.kernel.isf import VOID_TYPE, own_banner
from hibernaut.report.text import counted
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from hibernaut.kernel.isf import IsfFile
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.report.documents import SymbolFileDocument
    from hibernaut.sources import Source

__all__ = ["symbol_file_document", "symbol_file_text"]


def symbol_file_document(
    source: Source, kernel: Kernel, isf: IsfFile, name: str, file_bytes: int
) -> SymbolFileDocument:
    """Return the document of a symbol file that was written.

    Args:
        source: the memory.
        kernel: its kernel.
        isf: the content.
        name: name of the file.
        file_bytes: its length.
    """
    return {
        "source": source.kind,
        "remarks": [*source.remarks, *_module_remarks(kernel)],
        "file": name,
        "file_bytes": file_bytes,
        "release": kernel.release,
        "banner": own_banner(kernel).rstrip(b"\0\n").decode("utf-8", "backslashreplace"),
        "levels": kernel.levels,
        "kaslr_shift": f"{kernel.kaslr_shift:#x}",
        "types": len(isf["user_types"]),
        "enums": len(isf["enums"]),
        "symbols": len(isf["symbols"]),
        "typed_symbols": sum(symbol["type"] != VOID_TYPE for symbol in isf["symbols"].values()),
        "modules": [name for name, module in kernel.modules.items() if module.btf is not None],
    }


def _module_remarks(kernel: Kernel) -> list[str]:
    """Return a remark on the modules whose types are not known."""
    without = [module for module in kernel.modules.values() if module.btf is None]
    remarks = [] if kernel.modules.trouble is None else [f"not all modules are known: {kernel.modules.trouble}"]
    if without:
        remarks.append(f"{counted(len(without), 'module')} without types, the first: {without[0].btf_trouble}")
    return remarks


def symbol_file_text(document: SymbolFileDocument) -> str:
    """Return the text of a symbol file that was written."""
    counts = (
        counted(document["types"], "structure"),
        counted(document["enums"], "enumeration"),
        counted(document["symbols"], "symbol"),
    )
    lines = [
        f"{document['file']}: {', '.join(counts)}, {document['typed_symbols']} of them with a type",
        visible_line(document["banner"]),
    ]
    if document["modules"]:
        lines.append(f"with the types of {counted(len(document['modules']), 'loaded module')}")
    lines += [f"REMARK  {visible_line(remark)}" for remark in document["remarks"]]
    if document["levels"] == 5:
        lines.append(
            "page tables of 5 levels: Volatility 3 has no layer for them; the one in `hibernaut volatility-plugins` "
            "reads them in an image"
        )
    return "\n".join(lines)
