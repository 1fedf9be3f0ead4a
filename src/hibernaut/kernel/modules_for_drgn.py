# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's types, functions and constants out of the BTF of loaded modules, by name.

A name that several modules have, each with a layout of its own, is not decided: drgn takes the module's name as that of
the file, as in `prog.type("struct virtblk_req", "virtio_blk")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.btf_for_drgn import DrgnTypes

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.modules import LoadedModule

__all__ = ["TypesOfModules"]


class _Found(NamedTuple):
    """A type of a module."""

    module: str
    number: int


class TypesOfModules:
    """The types of loaded modules; those of a name are looked for in all of them, or in one.

    Args:
        kernel_types: the kernel's own types, which those of modules refer to.
        modules: the modules by name.
    """

    def __init__(self, kernel_types: DrgnTypes, modules: Mapping[str, LoadedModule]) -> None:
        self._kernel_types = kernel_types
        self._modules = modules
        self._named: dict[BtfKind, dict[str, list[_Found]]] = {}

    def find(self, kinds: Any, name: str, module: str | None) -> Any | None:
        """Return the type of a name and of any of drgn's kinds, None if there is none.

        Raises:
            LookupError: modules differ in it, and none of them is named.
            FormatError: the BTF is damaged there.
        """
        for kind in self._kernel_types.btf_kinds(kinds):
            found = self._one(name, self._of_kind(kind).get(name, []), module, _shape)
            type_ = None if found is None else self._types[found.module].of(found.number)
            if type_ is not None and type_.kind in kinds:
                return type_
        return None

    def constant(self, name: str, module: str | None) -> Any | None:
        """Return a constant as `find` does a type."""
        found = self._one(name, self._constants.get(name, []), module, _value_of(name))
        if found is None:
            return None
        types = self._types[found.module]
        return types.object(found.number, value=_value_of(name)(types.btf, found.number))

    def function(self, name: str, module: str | None) -> Any | None:
        """Return a function as `find` does a type; None, too, if its module has no symbol of its name."""
        found = self._one(name, self._of_kind(BtfKind.FUNC).get(name, []), module, lambda btf, _: id(btf))
        if found is None:
            return None
        symbols = self._modules[found.module].symbols
        symbol = None if symbols is None else symbols.get(name)
        types = self._types[found.module]
        return None if symbol is None else types.object(types.btf.target(found.number), address=symbol.address)

    def _one(
        self, name: str, candidates: list[_Found], module: str | None, shape: Callable[[Btf, int], object]
    ) -> _Found | None:
        """Return the first of several types of a name. Raises LookupError if they differ in their shapes."""
        chosen = [one for one in candidates if module in (None, one.module)]
        if len({shape(self._types[one.module].btf, one.number) for one in chosen}) > 1:
            first, *others = (one.module for one in chosen)
            raise LookupError(
                f"{name} is not the same in the modules {first} and {', '.join(others)}; name one of them as the file"
            )
        return chosen[0] if chosen else None

    @cached_property
    def _types(self) -> dict[str, DrgnTypes]:
        """Drgn's types of each module that has BTF."""
        found = {}
        for name, module in self._modules.items():
            if module.btf is not None:
                found[name] = DrgnTypes(self._kernel_types.program, module.btf, self._kernel_types)
        return found

    def _of_kind(self, kind: BtfKind) -> dict[str, list[_Found]]:
        """Return the types of a kind by name; of those of one name in one module the first."""
        found = self._named.get(kind)
        if found is None:
            found = self._named[kind] = {}
            for module, types in self._types.items():
                try:
                    names = types.btf.names(kind)
                except FormatError:  # the names of a damaged module are not found
                    continue
                for name, number in names.items():
                    found.setdefault(name, []).append(_Found(module, number))
        return found

    @cached_property
    def _constants(self) -> dict[str, list[_Found]]:
        """Enumerations by the names of their enumerators."""
        found: dict[str, list[_Found]] = {}
        for module, types in self._types.items():
            try:
                constants = list(_own_constants(types.btf))
            except FormatError:
                continue
            for name, number in dict(reversed(constants)).items():
                found.setdefault(name, []).append(_Found(module, number))
        return found


def _own_constants(btf: Btf) -> Iterator[tuple[str, int]]:
    """Yield name and enumeration of each enumerator that is not the kernel's."""
    for number in btf.numbers(BtfKind.ENUM, BtfKind.ENUM64):
        for one in btf.enumerators(number):
            yield one.name, number


def _value_of(name: str) -> Callable[[Btf, int], int]:
    """Return a function that returns the value of an enumerator."""
    return lambda btf, number: next(one.value for one in btf.enumerators(number) if one.name == name)


def _shape(btf: Btf, number: int) -> tuple[object, ...]:
    """Return the properties that types of one name share if any of them can stand for the others."""
    number = btf.stripped(number)
    kind = btf.kind(number)
    match kind:
        case BtfKind.STRUCT | BtfKind.UNION:
            members = tuple((one.name, one.bit_offset, one.bit_size) for one in btf.members(number))
            return kind, btf.size_bytes(number), members
        case BtfKind.ENUM | BtfKind.ENUM64:
            return kind, btf.size_bytes(number), btf.enumerators(number)
        case BtfKind.INT:
            return kind, btf.integer(number)
        case BtfKind.ARRAY:
            return kind, btf.size_bytes(number)
    return (kind,)
