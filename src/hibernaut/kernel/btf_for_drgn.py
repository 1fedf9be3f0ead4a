# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's types out of a BTF, made when they are asked for.

The type of a global variable comes from `GLOBALS`: BTF names those of per-CPU variables only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import VOID, Btf, BtfKind, BtfMember
from hibernaut.kernel.globals import GLOBALS, AnonymousStructure

if TYPE_CHECKING:
    from typing import Any


__all__ = ["DrgnTypes", "declared_type", "type_of_global"]

LITTLE = "little"


class DrgnTypes:
    """drgn's type for each type of a BTF, by number.

    Args:
        program: drgn's `Program`, to which the types belong.
        btf: the types.
        base: those of the kernel, for the types of a module, which refer to them.

    Attributes:
        program: as given.
        btf: as given.
    """

    def __init__(self, program: Any, btf: Btf, base: DrgnTypes | None = None) -> None:
        import drgn

        self._drgn = drgn
        self.program = program
        self.btf = btf
        self._base = base
        self._made: dict[int, Any] = {}
        self._found: dict[tuple[frozenset[Any], str], Any | None] = {}
        kinds = drgn.TypeKind
        self._btf_kinds = {
            kinds.INT: BtfKind.INT,
            kinds.BOOL: BtfKind.INT,
            kinds.FLOAT: BtfKind.FLOAT,
            kinds.STRUCT: BtfKind.STRUCT,
            kinds.UNION: BtfKind.UNION,
            kinds.ENUM: BtfKind.ENUM,
            kinds.TYPEDEF: BtfKind.TYPEDEF,
        }

    def find(self, kinds: Any, name: str) -> Any | None:
        """Return the first complete type of a name and of any of drgn's kinds, None if there is none."""
        question = frozenset(kinds), name
        if question not in self._found:
            found = (self.of(number) for number in self.btf.find_each(name, *self.btf_kinds(kinds)))
            self._found[question] = next((one for one in found if one.kind in kinds), None)
        return self._found[question]

    def btf_kinds(self, kinds: Any) -> list[BtfKind]:
        """Return the kinds of BTF that types of drgn's kinds may have."""
        wanted = list(dict.fromkeys(self._btf_kinds[kind] for kind in kinds if kind in self._btf_kinds))
        return [*wanted, BtfKind.ENUM64] if BtfKind.ENUM in wanted else wanted

    def object(self, number: int, **place: int) -> Any:
        """Return an object of a type; its place as `drgn.Object` takes it: `address` or `value`."""
        return self._drgn.Object(self.program, self.of(number), **place)

    def of(self, number: int) -> Any:
        """Return the type of a number. Raises FormatError if the BTF is damaged there."""
        if self._base is not None and number < self.btf.first:
            return self._base.of(number)
        found = self._made.get(number)
        if found is None:
            found = self._made[number] = self._make(number)
        return found

    def anonymous(self, members: frozenset[str]) -> Any | None:
        """Return a structure without a name that has exactly these members, None if there is none."""
        number = self.btf.find_anonymous(members)
        return None if number is None else self.of(number)

    def _make(self, number: int) -> Any:
        program, btf, drgn = self.program, self.btf, self._drgn
        kind = btf.kind(number)
        match kind:
            case BtfKind.VOID:
                return program.void_type()
            case BtfKind.INT:
                integer = btf.integer(number)
                if integer.is_boolean:
                    return program.bool_type(integer.name, integer.size_bytes, LITTLE)
                return program.int_type(integer.name, integer.size_bytes, integer.is_signed, LITTLE)
            case BtfKind.FLOAT:
                return program.float_type(btf.name(number), btf.size_bytes(number), LITTLE)
            case BtfKind.PTR:
                return program.pointer_type(self.of(btf.target(number)))
            case BtfKind.ARRAY:
                array = btf.array(number)
                return program.array_type(self.of(array.element), array.length)
            case BtfKind.STRUCT | BtfKind.UNION:
                make = program.struct_type if kind == BtfKind.STRUCT else program.union_type
                members = [self._member(member) for member in btf.members(number)]
                return make(btf.name(number) or None, btf.size_bytes(number), members)
            case BtfKind.FWD:
                make = program.union_type if btf.forwards_union(number) else program.struct_type
                return make(btf.name(number))
            case BtfKind.ENUM | BtfKind.ENUM64:
                return self._enumeration(number)
            case BtfKind.TYPEDEF:
                return program.typedef_type(btf.name(number), self.of(btf.target(number)))
            case BtfKind.CONST | BtfKind.VOLATILE | BtfKind.RESTRICT:
                target = self.of(btf.target(number))
                return target.qualified(target.qualifiers | drgn.Qualifiers[kind.name])
            case BtfKind.TYPE_TAG:
                return self.of(btf.target(number))
            case BtfKind.FUNC_PROTO:
                parameters = btf.parameters(number)
                is_variadic = bool(parameters) and parameters[-1].type == VOID
                given = parameters[:-1] if is_variadic else parameters
                return program.function_type(
                    self.of(btf.target(number)),
                    [drgn.TypeParameter(self._later(one.type), one.name or None) for one in given],
                    is_variadic,
                )
        raise FormatError(f"BTF: type {number} is of kind {kind.name}, which is not a type of data")

    def _enumeration(self, number: int) -> Any:
        program, btf = self.program, self.btf
        enumerators = btf.enumerators(number)
        signed = btf.is_signed(number)
        if not enumerators:
            return program.enum_type(btf.name(number) or None)
        size_bytes = btf.size_bytes(number)
        compatible = program.int_type("int" if signed else "unsigned int", size_bytes, signed, LITTLE)
        made = [self._drgn.TypeEnumerator(one.name, one.value) for one in enumerators]
        return program.enum_type(btf.name(number) or None, compatible, made)

    def _member(self, member: BtfMember) -> Any:
        name = member.name or None
        if not member.bit_size:
            return self._drgn.TypeMember(self._later(member.type), name, member.bit_offset)
        object_of = self._drgn.Object

        def bit_field() -> Any:
            return object_of(self.program, self.of(member.type), bit_field_size=member.bit_size)

        return self._drgn.TypeMember(bit_field, name, member.bit_offset)

    def _later(self, number: int) -> Callable[[], Any]:
        return lambda: self.of(number)


def type_of_global(types: DrgnTypes, name: str) -> Any | None:
    """Return the type of a global variable: BTF's for a per-CPU one, else that of the table; None if unknown."""
    for number in types.btf.find_each(name, BtfKind.VAR):
        return types.of(types.btf.target(number))
    return declared_type(types, name)


def declared_type(types: DrgnTypes, name: str) -> Any | None:
    """Return the type that `GLOBALS` declares for a variable; None if it declares none that this kernel has."""
    for declared in GLOBALS.get(name, ()):
        if isinstance(declared, AnonymousStructure):
            found = types.anonymous(declared.members)
        else:
            try:
                found = types.program.type(declared)
            except LookupError:
                found = None
        if found is not None:
            return found
    return None
