# SPDX-License-Identifier: Apache-2.0
"""What must hold whatever the parsers are given."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.policy.describe import describe_action, describe_rule, describe_subject
from services.policy.manifest import (
    Manifest,
    ManifestError,
    load_stored_manifest,
    parse_definitions,
    parse_manifests,
    parse_refs,
)
from tests.fuzz.manifests.mutate import Path, at, places

# Time of the processor, for texts of a few kilobytes, which take a few milliseconds.
MAX_SECONDS = 2.0
UNKNOWN = "unknownField"
_FREE = {"labels", "annotations", "matchLabels", "status", "managedFields", "ownerReferences"}
# What a cluster writes into an object; nobody reads it.
_NOT_READ = {
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "selfLink",
}


class Broken(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Outcome:
    """What became of a text: what it says, or why not."""

    manifests: list[Manifest] | None
    error: ManifestError | None


def check_text(text: str) -> Outcome:
    """Accepted, or refused with a reason; in time, and the same again from the store."""
    outcome = _outcome(lambda: parse_manifests(text), text)
    lines = (
        text.count("\n") + text.count("\r") + text.count("\u2028") + text.count("\u2029") + text.count("\x85")
    )
    for manifest in outcome.manifests or ():
        _check_manifest(manifest)
        _hold(all(1 <= line <= lines + 1 for line in manifest.policy.lines.values()), "a line outside", text)
        rules = {rule.path for rule in manifest.policy.rules()}
        _hold(set(manifest.policy.lines) <= rules, "a line for what is no rule", text)
    refs = _outcome(lambda: parse_refs(text), text)
    if outcome.manifests is not None:
        _hold(refs.error is None, "refused only by name", text)
    return outcome


def check_definition(definition: Mapping[str, Any]) -> Outcome:
    """The same for a message; paths of violations are those of the request."""
    outcome = _outcome(lambda: parse_definitions([definition]), definition)
    for manifest in outcome.manifests or ():
        _check_manifest(manifest)
    for violation in outcome.error.violations if outcome.error else ():
        _hold(violation.field.startswith("policies[0]"), f"the path {violation.field}", definition)
    return outcome


def check_nothing_is_ignored(manifest: Any) -> int:
    """In an accepted manifest each object refuses a field that nobody knows, and each field a value that
    nobody can mean. Returns how many places were tried.
    """
    tried = 0
    for path in list(places(manifest)):
        free = next((i for i, step in enumerate(path) if step in _FREE), None)
        if (
            path
            and path[-1] not in _NOT_READ
            and path[-1] != "status"
            and (free is None or free >= len(path) - 2)
        ):
            _refuses(manifest, path, {"nonsense": 1}, None)
            tried += 1
        if free is None and isinstance(at(manifest, path), dict):
            _refuses(manifest, (*path, UNKNOWN), "value", UNKNOWN)
            _refuses(manifest, (*path, UNKNOWN), None, UNKNOWN)
            tried += 1
    return tried


def _refuses(manifest: Any, path: Path, value: Any, named: str | None) -> None:
    changed = copy.deepcopy(manifest)
    at(changed, path[:-1])[path[-1]] = value
    text = json.dumps(changed)
    outcome = check_text(text)
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]
    _hold(outcome.error is not None, f"{where} = {value!r} is ignored", text)
    if outcome.error is not None and named:
        fields = [violation.field for violation in outcome.error.violations]
        _hold(where in fields, f"{where} is not among the paths {fields}", text)


def _outcome(parse: Callable[[], Any], given: object) -> Outcome:
    started = time.thread_time()
    try:
        outcome = Outcome(parse(), None)
    except ManifestError as error:
        outcome = Outcome(None, error)
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}\n{given!r}") from error
    seconds = time.thread_time() - started
    _hold(seconds < MAX_SECONDS, f"{seconds:.1f} s", given)
    if outcome.error is not None:
        _check_error(outcome.error, given)
    else:
        _hold(bool(outcome.manifests), "accepted, and nothing in it", given)
    return outcome


def _check_error(error: ManifestError, given: object) -> None:
    _hold(bool(error.violations) and bool(str(error)), "no violation", given)
    for violation in error.violations:
        _hold(bool(violation.field.strip()), "a violation without a path", given)
        _hold(bool(violation.description.strip()), "a violation without text", given)
        for text in (violation.field, violation.description, violation.subject):
            # They go into gRPC messages.
            _hold(_encodes(text), "text that has no UTF-8", given)
            _hold(len(text) < 6000, f"{len(text)} characters of {text[:80]}", given)


def _check_manifest(manifest: Manifest) -> None:
    """What is stored says the same again; and all of it can be told to people."""
    try:
        again = load_stored_manifest(manifest.text)
    except ManifestError as error:
        raise Broken(f"accepted, but not from the store: {error}\n{manifest.text!r}") from error
    _hold(replace(again, policy=manifest.policy) == manifest, "not the same from the store", manifest.text)
    _hold(again.policy == manifest.policy, "not the same policy from the store", manifest.text)
    for text in _words(manifest):
        _hold(_encodes(text), "words that have no UTF-8", manifest.text)


def _words(manifest: Manifest) -> Iterator[str]:
    yield manifest.text
    yield describe_subject(manifest.policy)
    for rule in manifest.policy.rules():
        yield describe_rule(rule)
        yield describe_action(rule)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hold(condition: bool, problem: str, given: object) -> None:
    if not condition:
        raise Broken(f"{problem}\n{given!r}")
