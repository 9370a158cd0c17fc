"""Label selectors: what they select, how they are checked, and how a pool's row has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import orjson

from services.chassis.errors import InvalidArgument
from services.chassis.labels import check_key, check_value
from services.ipam.model import LabelSelector, Requirement
from services.ipam.problems import invalid


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether all of the selector's requirements hold of `labels`."""
    return all(labels.get(key) == value for key, value in selector.match_labels) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    present = requirement.key in labels
    match requirement.operator:
        case "In":
            return present and labels[requirement.key] in requirement.values
        case "NotIn":
            # As in Kubernetes: what has no such label is not in the set either.
            return not present or labels[requirement.key] not in requirement.values
        case "Exists":
            return present
        case "DoesNotExist":
            return not present


def check_selector(selector: LabelSelector, field: str) -> LabelSelector:
    """The selector; raises InvalidArgument (SELECTOR_INVALID) naming the part of `field` that is wrong."""
    for key, value in selector.match_labels:
        _check(f"{field}.match_labels[{key!r}]", key, value)
    for at, requirement in enumerate(selector.match_expressions):
        where = f"{field}.match_expressions[{at}]"
        _check(where, requirement.key, *requirement.values)
        takes_values = requirement.operator in ("In", "NotIn")
        if takes_values != bool(requirement.values):
            expected = "at least one value" if takes_values else "no values"
            raise invalid(
                f"{where}.values",
                f"{len(requirement.values)} of operator {requirement.operator}; expected {expected}",
                reason="SELECTOR_INVALID",
                value=",".join(requirement.values),
            )
    return selector


def _check(field: str, key: str, *values: str) -> None:
    try:
        check_key(key, key)
        for value in values:
            check_value(value, f"{key}={value}")
    except InvalidArgument as exc:
        raise invalid(field, exc.message, reason="SELECTOR_INVALID", value=key) from None


def encode_selector(selector: LabelSelector | None) -> str | None:
    """The selector as a pool's row has it: protobuf's JSON of a LabelSelector."""
    if selector is None:
        return None
    document: dict[str, object] = {}
    if selector.match_labels:
        document["matchLabels"] = dict(selector.match_labels)
    if selector.match_expressions:
        document["matchExpressions"] = [
            {"key": one.key, "operator": one.operator, "values": list(one.values)}
            for one in selector.match_expressions
        ]
    return orjson.dumps(document).decode()


# Every allocation of a workload in mode multi-pool asks for those of all pools.
@lru_cache(maxsize=1024)
def decode_selector(text: str | None) -> LabelSelector | None:
    """The inverse of `encode_selector`."""
    if text is None:
        return None
    document = orjson.loads(text)
    return LabelSelector(
        tuple(sorted(document.get("matchLabels", {}).items())),
        tuple(
            Requirement(one["key"], one["operator"], tuple(one.get("values", ())))
            for one in document.get("matchExpressions", ())
        ),
    )
