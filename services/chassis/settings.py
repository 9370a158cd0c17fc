"""Settings: one frozen dataclass a process, filled from flags, then the environment, then defaults.

    @dataclass(frozen=True)
    class IpamSettings(CommonSettings):
        pool_cidr: str = setting("10.244.0.0/16", help="Pool that is created at first start.")

gives ``--pool-cidr`` and ``FIMBRIA_POOL_CIDR``. A value that does not fit is a :class:`SettingsError` naming
the variable or flag, the value and what was expected.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

ENV_PREFIX: Final = "FIMBRIA_"
# At the rate at which one replica answers, about a third of a second of waiting.
DEFAULT_MAX_CALLS: Final = 1000
DEFAULT_MAX_WATCHES: Final = 10_000
_META: Final = "fimbria"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class SettingsError(Exception):
    """A setting that cannot be used: ``variable`` is the flag or environment variable at fault."""

    def __init__(self, variable: str, value: str | None, expected: str) -> None:
        shown = "is missing" if value is None else f"is {value!r}"
        super().__init__(f"{variable} {shown}; expected {expected}")
        self.variable = variable
        self.value = value
        self.expected = expected


class HelpRequested(Exception):
    """``--help`` was among the flags; ``str(exc)`` is the text to print."""


@dataclass(frozen=True)
class _Meta:
    help: str
    env: str | None
    minimum: float | None
    maximum: float | None
    secret: bool


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    env: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that :func:`load_settings` fills.

    Without ``default`` the setting is required; a callable is called for it. ``env`` replaces the variable's
    name. ``minimum`` and ``maximum`` are inclusive bounds for numbers. The value of a ``secret`` is never
    printed.
    """
    meta = {_META: _Meta(help, env, minimum, maximum, secret)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=meta)
    if default is dataclasses.MISSING:
        return dataclasses.field(kw_only=True, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class CommonSettings:
    """What every process can be told. Services derive from it and add their own."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:0",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", help="Least severe log line to write."
    )
    log_format: Literal["json", "console"] = setting(
        "json", help="Log lines as JSON objects, or for a person."
    )
    otlp_endpoint: str = setting(
        "",
        help="OTLP/gRPC collector of traces, metrics and logs: http://HOST:PORT, https://HOST:PORT or "
        "unix:/PATH. Empty: nothing is sent.",
    )
    trace_file: str = setting("", help="File that finished spans are appended to, one JSON object a line.")
    ready_file: str = setting("", help="File that is written (pid, addresses) once the process serves.")
    drain_seconds: float = setting(
        5.0,
        help="How long calls in flight may take to finish after SIGTERM, in seconds.",
        minimum=0,
        maximum=3600,
    )
    max_calls: int = setting(
        DEFAULT_MAX_CALLS,
        help="How many unary calls are served at once; those beyond are refused with RESOURCE_EXHAUSTED"
        " (OVERLOADED) at once.",
        minimum=1,
    )
    max_watches: int = setting(
        DEFAULT_MAX_WATCHES, help="The same for streams: watches and subscriptions.", minimum=1
    )
    instance: str = setting(socket.gethostname, help="Name of this replica in telemetry and logs.")


S = TypeVar("S")


def load_settings(
    cls: type[S], argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> S:
    """An instance of ``cls``: flags beat environment beats defaults.

    ``argv`` are the arguments without the program's name (default: the process's own). Raises
    :class:`SettingsError` for an unknown flag, a missing value or one that does not fit, and
    :class:`HelpRequested` for ``--help``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    fields = _described(cls)
    flags = _parse_flags(cls, arguments, {_flag(field): field for field, _ in fields})
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field, meta in fields:
        variable = meta.env or ENV_PREFIX + field.name.upper()
        if field.name in flags:
            values[field.name] = _convert(_flag(field), flags[field.name], hints[field.name], meta)
        elif variable in environ:
            values[field.name] = _convert(variable, environ[variable], hints[field.name], meta)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{_flag(field)} or {variable}", None, _expected(hints[field.name], meta))
    return cls(**values)


def settings_table(classes: Iterable[type[Any]]) -> str:
    """One Markdown table of all settings of the classes; what several of them share stands once, first."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field, meta in _described(cls):
            variable = meta.env or ENV_PREFIX + field.name.upper()
            text = f"{meta.help} *{_expected(hints[field.name], meta)}*"
            rows.setdefault((variable, _flag(field), _shown_default(field), text), []).append(cls.__name__)
    width = max((len(users) for users in rows.values()), default=0)
    lines = ["| variable | flag | default | meaning | used by |", "|---|---|---|---|---|"]
    for (variable, flag, default, text), users in sorted(rows.items(), key=lambda row: -len(row[1])):
        used = (
            "all"
            if len(users) == width > 1
            else ", ".join(name.removesuffix("Settings").lower() for name in users)
        )
        cells = (f"`{variable}`", f"`{flag}`", default, text.replace("|", "\\|"), used)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def usage(cls: type[Any], program: str) -> str:
    """The text of ``--help``."""
    hints = typing.get_type_hints(cls)
    lines = [
        f"usage: {program} [--setting value ...]",
        "",
        "Every flag has an environment variable; the flag wins.",
        "",
    ]
    for field, meta in _described(cls):
        lines.append(f"  {_flag(field)}  ({meta.env or ENV_PREFIX + field.name.upper()})")
        lines.append(f"      {meta.help}")
        lines.append(f"      {_expected(hints[field.name], meta)}; default: {_shown_default(field)}")
    return "\n".join(lines)


def _described(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], _Meta]]:
    return [(field, field.metadata[_META]) for field in dataclasses.fields(cls) if _META in field.metadata]


def _flag(field: dataclasses.Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def _parse_flags(
    cls: type[Any], arguments: list[str], known: Mapping[str, dataclasses.Field[Any]]
) -> dict[str, str]:
    found: dict[str, str] = {}
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition("=")
        if name in ("--help", "-h"):
            raise HelpRequested(usage(cls, "python -m services.NAME"))
        if name not in known:
            raise SettingsError("flag", name, f"one of {', '.join(sorted(known))}")
        if not equals:
            if not arguments:
                raise SettingsError(name, None, "a value after the flag")
            value = arguments.pop(0)
        found[known[name].name] = value
    return found


def _convert(variable: str, text: str, hint: Any, meta: _Meta) -> Any:
    def refuse() -> SettingsError:
        return SettingsError(variable, "***" if meta.secret else text, _expected(hint, meta))

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        if not text:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(variable, text, hint, meta)
    if origin is Literal:
        if text in arguments:
            return text
        raise refuse()
    if origin is tuple:
        return tuple(
            _convert(variable, part.strip(), arguments[0], meta) for part in text.split(",") if part.strip()
        )
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise refuse()
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            raise refuse() from None
        low = -float("inf") if meta.minimum is None else meta.minimum
        high = float("inf") if meta.maximum is None else meta.maximum
        if not low <= number <= high:
            raise refuse()
        return number
    if hint is Path:
        return Path(text)
    if hint is str:
        return text
    raise TypeError(f"setting {variable} has the type {hint!r}, which no conversion exists for")


def _expected(hint: Any, meta: _Meta) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "a comma-separated list"
    if origin in (typing.Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return f"{_expected(inner, meta)}, or nothing"
    if hint is bool:
        return "true or false"
    if hint in (int, float):
        text = "a whole number" if hint is int else "a number"
        if meta.minimum is not None and meta.maximum is not None:
            return f"{text} from {_number(meta.minimum)} to {_number(meta.maximum)}"
        if meta.minimum is not None:
            return f"{text} of at least {_number(meta.minimum)}"
        return text if meta.maximum is None else f"{text} of at most {_number(meta.maximum)}"
    return "a path" if hint is Path else "a text"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "found at start"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default == "" or field.default == ():
        return "none"
    if isinstance(field.default, tuple):
        return "`" + ",".join(map(str, field.default)) + "`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default}`"
