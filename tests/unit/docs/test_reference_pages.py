"""Pages that repeat what the code says are held against it."""

from __future__ import annotations

from pathlib import Path

from services.chassis import names
from services.chassis.settings_doc import page

DOCS = Path(__file__).parents[3] / "docs"

# Names of log keys and of gRPC metadata are not OpenTelemetry names.
_OTHER = {"TRACEPARENT", "TRACESTATE", "RPC_SYSTEM_GRPC"}


def test_the_settings_page_is_as_generated() -> None:
    assert (DOCS / "settings.md").read_text() == page(), "run `make settings`"


def test_every_telemetry_name_is_documented() -> None:
    text = (DOCS / "telemetry.md").read_text()
    constants = {
        name: value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and name not in _OTHER
    }
    assert len(constants) > 40
    missing = {name for name, value in constants.items() if f"`{value}`" not in text}
    assert not missing
