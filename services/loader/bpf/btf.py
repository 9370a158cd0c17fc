"""What BTF says of a map's keys and values: how they are laid out, and what their bytes mean.

A :data:`Layout` is plain data. It comes from a compiled object's BTF or from that of a map in the kernel,
and two of them are equal if programs would read the same bytes in the same way: the names of types do not
count, those of members do.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from services.loader.bpf.native import check_pointer, ffi, lib

# enum of include/uapi/linux/btf.h
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FLOAT, _TYPE_TAG, _ENUM64 = 8, 9, 10, 11, 16, 18, 19
_THROUGH = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_SIGNED = 1  # BTF_INT_SIGNED
_POINTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number of ``size`` bytes; ``big_endian``: declared as __be16 and the like."""

    name: str = field(compare=False)
    size: int
    signed: bool = False
    big_endian: bool = False
    integer: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Array:
    """``count`` elements in a row."""

    element: Layout
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.element.size * self.count

    def __str__(self) -> str:
        return f"{self.element}[{self.count}]"


@dataclass(frozen=True, slots=True)
class Member:
    """A named part of a record, ``offset`` bytes from its start. ``bits`` 0, or a bit field's (offset within
    the record, width).
    """

    name: str
    offset: int
    layout: Layout
    bits: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """A struct or a union. The members of anonymous ones within it are its own."""

    name: str = field(compare=False)
    size: int
    members: tuple[Member, ...]
    union: bool = False

    def __str__(self) -> str:
        return f"{'union' if self.union else 'struct'} {self.name or '(anonymous)'}"


Layout: TypeAlias = Scalar | Array | Record


class TypeInformation:
    """One BTF blob, open. ``handle`` is libbpf's and stays its owner's."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def layout(self, number: int) -> Layout | None:
        """The layout of a type; None for 0 and for what no map has in it (void, functions)."""
        return self._layout(number, "", False) if number else None

    def _layout(self, number: int, alias: str, big_endian: bool) -> Layout | None:
        head = lib.btf__type_by_id(self._handle, number)
        if head == ffi.NULL:
            return None
        kind, name = (head.info >> 24) & 0x1F, self._name(head.name_off)
        if kind in _THROUGH:
            if kind == _TYPEDEF:
                big_endian = big_endian or name.startswith("__be")
                alias = alias or name
            return self._layout(head.size_or_type, alias, big_endian)
        if kind == _INT:
            encoding = (ffi.cast("__u32 *", head + 1)[0] >> 24) & 0xF
            return Scalar(alias or name, head.size_or_type, bool(encoding & _SIGNED), big_endian)
        if kind in (_ENUM, _ENUM64):
            return Scalar(name, head.size_or_type, bool(head.info >> 31))
        if kind == _FLOAT:
            return Scalar(name, head.size_or_type, True, False, False)
        if kind == _PTR:
            return Scalar("pointer", _POINTER_BYTES, False, False, False)
        if kind == _ARRAY:
            array = ffi.cast("struct btf_array *", head + 1)
            element = self._layout(array.type, "", False)
            return None if element is None else Array(element, int(array.nelems))
        if kind in (_STRUCT, _UNION):
            members = self._members(head)
            return (
                None if members is None else Record(name, head.size_or_type, tuple(members), kind == _UNION)
            )
        return None

    def _members(self, head: Any) -> list[Member] | None:
        found = []
        entries = ffi.cast("struct btf_member *", head + 1)
        with_bits = bool(head.info >> 31)
        for index in range(head.info & 0xFFFF):
            entry = entries[index]
            layout = self._layout(entry.type, "", False)
            if layout is None:
                return None
            name = self._name(entry.name_off)
            width, at = (entry.offset >> 24, entry.offset & 0xFFFFFF) if with_bits else (0, entry.offset)
            if width:
                found.append(Member(name, at // 8, layout, (at, width)))
            elif not name and isinstance(layout, Record) and not layout.union:
                # An anonymous struct is only a way of writing.
                found += [_moved(member, at) for member in layout.members]
            else:
                found.append(Member(name, at // 8, layout))
        return found

    def _name(self, offset: int) -> str:
        return ffi.string(lib.btf__name_by_offset(self._handle, offset)).decode() if offset else ""


def _moved(member: Member, bits: int) -> Member:
    at, width = member.bits
    return Member(member.name, bits // 8 + member.offset, member.layout, (at + bits if width else 0, width))


@contextmanager
def kernel_type_information(number: int) -> Iterator[TypeInformation]:
    """The BTF that the kernel has under an id. Raises BpfError."""
    handle = check_pointer(lib.btf__load_from_kernel_by_id(number), f"read BTF {number}")
    try:
        yield TypeInformation(handle)
    finally:
        lib.btf__free(handle)


JsonValue: TypeAlias = int | str | bool | list["JsonValue"] | dict[str, "JsonValue"]

_ADDRESS_NAMES = ("addr", "ip4", "ipv4", "tunnel")
_IN6_BYTES = 16


def decode(layout: Layout, data: bytes, name: str = "") -> JsonValue:
    """The bytes of one key or value as numbers, lists and objects by member name.

    Bytes that are no number are hexadecimal text; what is in network order comes as the number that it means;
    addresses come as such where the declaration leaves no doubt.
    """
    if isinstance(layout, Scalar):
        return _decode_scalar(layout, data[: layout.size], name)
    if isinstance(layout, Array):
        element = layout.element
        if isinstance(element, Scalar) and element.size == 1:
            return data[: layout.size].hex()
        size = element.size
        return [decode(element, data[at : at + size], name) for at in range(0, layout.size, size or 1)]
    if layout.name == "in6" and layout.size == _IN6_BYTES:
        return socket.inet_ntop(socket.AF_INET6, data[:_IN6_BYTES])
    return {
        member.name or f"offset_{member.offset}": _decode_member(member, data)
        for member in layout.members
        if not member.name.startswith("pad")
    }


def _decode_member(member: Member, data: bytes) -> JsonValue:
    at, width = member.bits
    if width:
        return (int.from_bytes(data, "little") >> at) & ((1 << width) - 1)
    return decode(member.layout, data[member.offset :], member.name)


def _decode_scalar(layout: Scalar, data: bytes, name: str) -> JsonValue:
    if not layout.integer:
        return data.hex()
    if layout.big_endian:
        if layout.size == 4 and name.endswith(_ADDRESS_NAMES):
            return socket.inet_ntop(socket.AF_INET, data)
        return int.from_bytes(data, "big", signed=layout.signed)
    return int.from_bytes(data, "little", signed=layout.signed)
