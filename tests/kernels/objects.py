"""What a compiled BPF object asks of a kernel, read from its instructions: helpers, calls and stack.

`python -m tests.kernels.objects` prints it for the datapath. It stands in for the kernels that no mirror has:
a verifier may refuse a program for other reasons, but loads none that asks for more than there is.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES

REPOSITORY = Path(__file__).resolve().parents[2]

# Linux 5.15: include/uapi/linux/bpf.h, include/linux/filter.h and check_max_stack_depth() of the verifier.
LAST_HELPER_5_15 = 175
MAX_STACK_BYTES = 512
MAX_FRAMES = 8
# Frames count in steps of 32 bytes; since 6.8 in steps of 16 where the kernel compiles programs.
_FRAME_STEP = 32

_FRAME_POINTER = 10
_CALL, _MOV64, _ADD64 = 0x85, 0xBF, 0x07
_LDX, _ST, _STX = 0x01, 0x02, 0x03
_BY_REGISTER_OF_ITS_OWN, _KFUNC = 1, 2
_SHT_SYMTAB, _SHT_REL, _SHF_EXECINSTR = 2, 9, 4
_STT_FUNC, _STT_SECTION = 2, 3
_INSN = struct.Struct("<BBhi")


@dataclass
class Function:
    """A program, or what it calls. ``stack`` is its frame in bytes."""

    name: str
    is_program: bool
    stack: int = 0
    helpers: set[int] = field(default_factory=set)
    kfuncs: int = 0
    calls: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    flags: int
    link: int
    info: int
    data: bytes


@dataclass(frozen=True)
class _Symbol:
    name: str
    type: int
    section: int
    value: int
    size: int


def functions(path: str) -> dict[str, Function]:
    """The functions of an object by name. Raises ValueError for a file that is no 64-bit ELF object."""
    sections, symbols = _elf(Path(path).read_bytes())
    names = {(s.section, s.value): s for s in symbols if s.type == _STT_FUNC}
    targets = _call_targets(sections, symbols, names)
    found = {}
    for (section, start), symbol in names.items():
        code = sections[section]
        made = Function(symbol.name, code.name != ".text")
        _read(made, code.data[start : start + symbol.size], section, start, targets, names)
        found[symbol.name] = made
    return found


def deepest(all_functions: dict[str, Function], name: str) -> tuple[int, tuple[str, ...]]:
    """The bytes of stack of a function and what it calls, as kernels before 6.8 count, and the calls."""

    @cache
    def below(each: str) -> tuple[int, tuple[str, ...]]:
        function = all_functions[each]
        own = max(_FRAME_STEP, -(-function.stack // _FRAME_STEP) * _FRAME_STEP)
        bytes_, chain = max((below(callee) for callee in function.calls), default=(0, ()))
        return own + bytes_, (each, *chain)

    return below(name)


def _read(
    function: Function,
    code: bytes,
    section: int,
    start: int,
    targets: dict[tuple[int, int], str],
    names: dict[tuple[int, int], _Symbol],
) -> None:
    of_frame: set[int] = set()
    for index, (opcode, registers, offset, immediate) in enumerate(_INSN.iter_unpack(code)):
        destination, source = registers & 0xF, registers >> 4
        place = start + index * _INSN.size
        kind = opcode & 0x07
        if opcode == _CALL and source == _BY_REGISTER_OF_ITS_OWN:
            local = names.get((section, place + (immediate + 1) * _INSN.size))
            callee = targets.get((section, place)) or (local.name if local else None)
            if callee is None:
                raise ValueError(f"{function.name}: a call at {place} to an unknown place")
            function.calls.add(callee)
        elif opcode == _CALL and source == _KFUNC:
            function.kfuncs += 1
        elif opcode == _CALL:
            function.helpers.add(immediate)
        elif opcode == _MOV64 and source == _FRAME_POINTER:
            of_frame.add(destination)
            continue
        elif opcode == _ADD64 and destination in of_frame:
            function.stack = max(function.stack, -immediate)
        elif (kind in (_ST, _STX) and destination == _FRAME_POINTER) or (
            kind == _LDX and source == _FRAME_POINTER
        ):
            function.stack = max(function.stack, -offset)
        if kind not in (_ST, _STX):
            of_frame.discard(destination)


def _call_targets(
    sections: list[_Section], symbols: list[_Symbol], names: dict[tuple[int, int], _Symbol]
) -> dict[tuple[int, int], str]:
    """(section, offset) of calls that the linker is to resolve, with the function that each calls."""
    found = {}
    for section in sections:
        if section.type != _SHT_REL:
            continue
        code = sections[section.info]
        if not code.flags & _SHF_EXECINSTR:
            continue
        for offset, info in struct.iter_unpack("<QQ", section.data):
            symbol = symbols[info >> 32]
            opcode, registers, _, immediate = _INSN.unpack_from(code.data, offset)
            if opcode != _CALL or registers >> 4 != _BY_REGISTER_OF_ITS_OWN:
                continue
            if symbol.type == _STT_SECTION:
                symbol = names[symbol.section, (immediate + 1) * _INSN.size]
            found[section.info, offset] = symbol.name
    return found


def _elf(data: bytes) -> tuple[list[_Section], list[_Symbol]]:
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("no 64-bit ELF object")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, name_section = struct.unpack_from("<HHH", data, 58)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * size) for index in range(count)]
    names = heads[name_section][4]
    sections = [
        _Section(_text(data, names + name), kind, flags, link, info, data[offset : offset + length])
        for name, kind, flags, _, offset, length, link, info, _, _ in heads
    ]
    symtab = next(section for section in sections if section.type == _SHT_SYMTAB)
    strings = sections[symtab.link].data
    symbols = [
        _Symbol(_text(strings, name), info & 0xF, section, value, length)
        for name, info, _, section, value, length in struct.iter_unpack("<IBBHQQ", symtab.data)
    ]
    return sections, symbols


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def complaints(path: str) -> Iterator[str]:
    """What of an object Linux 5.15 cannot have, in words."""
    found = functions(path)
    for function in found.values():
        if function.kfuncs:
            yield f"{function.name} calls kernel functions"
        newer = sorted(number for number in function.helpers if number > LAST_HELPER_5_15)
        if newer:
            yield f"{function.name} calls helpers {newer}, which are newer"
        if function.is_program:
            stack, chain = deepest(found, function.name)
            if stack > MAX_STACK_BYTES or len(chain) > MAX_FRAMES:
                sizes = " > ".join(f"{each} {found[each].stack}" for each in chain)
                yield f"{stack} bytes of stack, {MAX_STACK_BYTES} at most: {sizes}"


def main() -> int:
    """Prints each program's stack, and the complaints; 1 if there are any."""
    status = 0
    with tempfile.TemporaryDirectory() as scratch:
        for compiled in compile_sources(str(REPOSITORY / "bpf"), SOURCES, scratch):
            found = functions(compiled.path)
            for program in (each for each in found.values() if each.is_program):
                stack, chain = deepest(found, program.name)
                sizes = " > ".join(f"{each} {found[each].stack}" for each in chain)
                print(f"{program.name:<16} {stack:>4} bytes of stack: {sizes}")
            for complaint in complaints(compiled.path):
                status = 1
                print(f"{compiled.source}: {complaint}")
    return status


if __name__ == "__main__":
    sys.exit(main())
