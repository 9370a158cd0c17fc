"""From one layout to another: what is kept, widened, added, refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.bpf.btf import Array, Layout, Member, Record, Scalar, decode
from services.loader.bpf.conversion import Incompatible, compile_conversion, identity

U8, U16, U32, U64 = (Scalar(f"__u{8 * size}", size) for size in (1, 2, 4, 8))
S16, S32, S64 = (Scalar(f"__s{8 * size}", size, True) for size in (2, 4, 8))
BE16, BE32 = (Scalar(f"__be{8 * size}", size, False, True) for size in (2, 4))


def record(*members: tuple[str, Layout], union: bool = False, name: str = "r") -> Record:
    """A packed record, so that offsets are of every kind."""
    offset, made = 0, []
    for label, layout in members:
        made.append(Member(label, 0 if union else offset, layout))
        offset = max(offset, layout.size) if union else offset + layout.size
    return Record(name, offset, tuple(made), union)


scalars = st.sampled_from([U8, U16, U32, U64, S16, S32, S64, BE16, BE32])
names = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=6)


@st.composite
def records(draw: st.DrawFn, depth: int = 2) -> Record:
    inner: st.SearchStrategy[Layout] = scalars
    if depth:
        inner = st.one_of(
            scalars,
            st.builds(Array, scalars, st.integers(1, 4)),
            records(depth - 1),
            st.builds(Array, records(depth - 1), st.integers(1, 3)),
        )
    return record(*((name, draw(inner)) for name in draw(names)))


def widened(layout: Layout, data: st.DataObject) -> Layout:
    """A layout that the given one may become: more members, wider numbers, another order."""
    if isinstance(layout, Scalar):
        wider = [each for each in (U8, U16, U32, U64) if each.size >= layout.size]
        if layout.big_endian:
            return layout
        signed = [each for each in (S16, S32, S64) if each.size >= layout.size]
        return data.draw(st.sampled_from(signed if layout.signed else wider))
    if isinstance(layout, Array):
        return Array(widened(layout.element, data), layout.count + data.draw(st.integers(0, 2)))
    members = [(member.name, widened(member.layout, data)) for member in layout.members]
    members += [(f"new_{i}", data.draw(scalars)) for i in range(data.draw(st.integers(0, 2)))]
    return record(*data.draw(st.permutations(members)))


def agrees(old: Layout, new: Layout, before: bytes, after: bytes) -> None:
    """Every number of the old layout reads the same in the new one, and what is new is zero."""
    if isinstance(old, Scalar) and isinstance(new, Scalar):
        assert decode(old, before) == decode(new, after)
    elif isinstance(old, Array) and isinstance(new, Array):
        for index in range(new.count):
            rest = after[index * new.element.size :][: new.element.size]
            if index < old.count:
                agrees(old.element, new.element, before[index * old.element.size :], rest)
            else:
                assert not any(rest)
    elif isinstance(old, Record) and isinstance(new, Record):
        known = {member.name: member for member in old.members}
        for member in new.members:
            part = after[member.offset : member.offset + member.layout.size]
            if member.name in known:
                was = known[member.name]
                agrees(was.layout, member.layout, before[was.offset :], part)
            else:
                assert not any(part)
    else:
        raise AssertionError("kinds differ")


@settings(deadline=None)
@given(st.data())
def test_what_was_there_reads_the_same_and_what_is_new_is_zero(data: st.DataObject) -> None:
    old = data.draw(records())
    new = widened(old, data)
    conversion = compile_conversion(old, new, key=True)
    count = data.draw(st.integers(0, 5))
    before = data.draw(st.binary(min_size=count * old.size, max_size=count * old.size))
    after = bytes(conversion.apply(before))
    assert len(after) == count * new.size
    for index in range(count):
        agrees(old, new, before[index * old.size :][: old.size], after[index * new.size :][: new.size])


@settings(deadline=None)
@given(st.data())
def test_there_and_back_loses_nothing(data: st.DataObject) -> None:
    old = data.draw(records())
    new = widened(old, data)
    before = data.draw(st.binary(min_size=3 * old.size, max_size=3 * old.size))
    there = compile_conversion(old, new).apply(before)
    back = compile_conversion(new, old, key=True, lossy=True).apply(there)
    assert bytes(back) == before


@settings(deadline=None)
@given(records(), st.integers(0, 4))
def test_an_equal_layout_is_passed_on_as_it_is(layout: Record, count: int) -> None:
    conversion = compile_conversion(layout, layout)
    assert conversion.identical and conversion == identity(layout.size)
    data = bytes(count * layout.size)
    assert conversion.apply(data) is data


def test_a_member_that_is_gone_is_dropped_from_values_and_refused_in_keys() -> None:
    old, new = record(("a", U32), ("b", U16)), record(("b", U16))
    assert bytes(compile_conversion(old, new).apply(b"\1\0\0\0\2\0")) == b"\2\0"
    with pytest.raises(Incompatible, match="a is __u32 and would be no more") as caught:
        compile_conversion(old, new, key=True)
    assert caught.value.field == "a"


def test_padding_of_a_key_may_be_shorter_than_it_was() -> None:
    old = record(("a", U32), ("pad", Array(U8, 3)))
    new = record(("a", U32), ("space", U8), ("pad", Array(U8, 2)))
    conversion = compile_conversion(old, new, key=True)
    assert conversion.apply(bytes((1, 2, 3, 4, 0, 0, 0))) == bytes((1, 2, 3, 4, 0, 0, 0))
    back = compile_conversion(new, old, lossy=True)
    assert back.apply(bytes((1, 2, 3, 4, 5, 0, 0))) == bytes((1, 2, 3, 4, 0, 0, 0))
    with pytest.raises(Incompatible, match="space"):
        compile_conversion(new, old, key=True)


def test_padding_of_a_key_may_go() -> None:
    old, new = record(("a", U32), ("pad", U32)), record(("a", U32), ("b", U32))
    assert bytes(compile_conversion(old, new, key=True).apply(b"\1\0\0\0\0\0\0\0")) == b"\1" + bytes(7)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (U32, U16),  # would lose what is above
        (BE16, BE32),  # its bytes stand at the other end
        (BE32, U32),
        (U32, record(("a", U32))),
        (Scalar("float", 4, True, False, False), U32),
        (record(("a", U32), union=True), record(("a", U32))),
        (record(("a", U32), ("b", U16), union=True), record(("a", U32), union=True)),
    ],
)
def test_what_cannot_become_the_other_is_named(old: Layout, new: Layout) -> None:
    with pytest.raises(Incompatible) as caught:
        compile_conversion(record(("x", record(("y", old)))), record(("x", record(("y", new)))))
    assert caught.value.field.startswith("x.y")
    assert str(old) in str(caught.value) or "no more" in str(caught.value)


def test_a_union_may_gain_a_member_and_stays_as_it_was() -> None:
    old = record(("a", U32), ("b", U16), union=True)
    new = record(("a", U32), ("b", U16), ("c", U64), union=True)
    assert bytes(compile_conversion(old, new).apply(b"\1\2\3\4")) == b"\1\2\3\4" + bytes(4)


def test_a_shorter_array_loses_its_end_but_not_in_a_key() -> None:
    old, new = Array(U16, 3), Array(U16, 2)
    assert bytes(compile_conversion(old, new).apply(b"\1\0\2\0\3\0")) == b"\1\0\2\0"
    with pytest.raises(Incompatible):
        compile_conversion(old, new, key=True)


def test_bytes_are_shown_by_their_meaning() -> None:
    layout = record(
        ("saddr", BE32), ("port", BE16), ("mac", Array(U8, 6)), ("pad", U16), ("n", Array(S16, 2)),
        ("v6", Record("in6", 16, (Member("w", 0, Array(BE32, 4)),))),
    )  # fmt: skip
    data = bytes([192, 0, 2, 1, 0, 80, 2, 0, 0, 0, 0, 1, 9, 9, 255, 255, 1, 0]) + bytes(15) + b"\1"
    assert decode(layout, data) == {
        "saddr": "192.0.2.1", "port": 80, "mac": "020000000001", "n": [-1, 1], "v6": "::1",
    }  # fmt: skip
