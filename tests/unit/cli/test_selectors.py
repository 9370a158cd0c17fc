"""Label selectors on the command line."""

from __future__ import annotations

import pytest
from fimbria.ipam.v1 import ipam_pb2

from cli.errors import BadInput
from cli.selectors import parse_selector, selector_text


def test_each_kind_of_requirement_is_understood() -> None:
    text = "app=web, tier in (a, b),zone notin (c),!canary,example.com/team,stage!=test,empty="
    selector = parse_selector(text, "--pods")
    assert dict(selector.match_labels) == {"app": "web", "empty": ""}
    assert [(one.key, one.operator, list(one.values)) for one in selector.match_expressions] == [
        ("tier", "In", ["a", "b"]),
        ("zone", "NotIn", ["c"]),
        ("canary", "DoesNotExist", []),
        ("example.com/team", "Exists", []),
        ("stage", "NotIn", ["test"]),
    ]
    assert parse_selector(selector_text(selector), "--pods") == selector


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_selector_selects_everything(text: str) -> None:
    selector = parse_selector(text, "--pods")
    assert selector == ipam_pb2.LabelSelector()
    assert selector_text(selector) == "(everything)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("app=web,", "'' is no requirement"),
        ("app in a,b", "'app in a' is no requirement"),
        ("app in ()", "'app in ()' is no requirement"),
        ("=web", "'=web' is no requirement"),
        ("app=a b", "'app=a b' is no requirement"),
        ("app=a,app=b", "app cannot have two values"),
    ],
)
def test_what_is_no_selector_is_refused_with_the_part(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_selector(text, "--pods")
    assert "--pods" in caught.value.message and said in caught.value.message
