from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.chassis.paging import PageRequest, page


def walk(items: list[str], size: int) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        part = page(items, key=str, page_size=size, page_token=token)
        assert len(part.items) <= (size or 100)
        found += part.items
        token = part.next_page_token
        if not token:
            return found


@given(st.lists(st.text(max_size=5), unique=True, max_size=30), st.integers(1, 7))
def test_pages_together_are_the_sorted_list(items: list[str], size: int) -> None:
    assert walk(items, size) == sorted(items)


def test_size_defaults_to_a_hundred() -> None:
    items = [f"{number:03}" for number in range(150)]
    first = page(items, key=str, page_size=0, page_token="")
    assert len(first.items) == 100 and first.next_page_token
    assert page(items[:100], key=str, page_size=0, page_token="").next_page_token == ""


def test_items_that_come_and_go_neither_repeat_nor_hide_others() -> None:
    first = page(["b", "d", "f"], key=str, page_size=2, page_token="")
    second = page(["a", "d", "e", "f"], key=str, page_size=2, page_token=first.next_page_token)
    assert (first.items, second.items) == (("b", "d"), ("e", "f"))


def test_a_request_for_sql_carries_the_key_and_one_row_more() -> None:
    rows = [("shop", 1), ("shop", 2), ("tools", 1)]
    request = PageRequest.parse(2, "", scope="addresses?pool=default")
    assert (request.limit, request.after) == (3, None)
    token = request.page(rows, key=lambda row: row).next_page_token
    again = PageRequest.parse(2, token, scope="addresses?pool=default")
    assert again.after == ("shop", 2)
    assert again.page(rows[2:], key=lambda row: row).next_page_token == ""


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        PageRequest.parse(size, "")
    assert caught.value.violations[0].field == "page_size"
    assert caught.value.message == f"page_size is '{size}'; expected 1 to 1000, or 0 for 100"


def test_a_token_of_another_list_is_refused() -> None:
    token = page(["a", "b"], key=str, page_size=1, page_token="", scope="nodes").next_page_token
    with pytest.raises(InvalidArgument) as caught:
        page(["a", "b"], key=str, page_size=1, page_token=token, scope="pools")
    assert caught.value.violations[0].field == "page_token"


@given(st.text(max_size=60))
def test_any_other_text_is_refused_as_a_token(token: str) -> None:
    if not token:
        return
    with pytest.raises(InvalidArgument) as caught:
        PageRequest.parse(1, token)
    assert caught.value.reason == "PAGE_INVALID"
