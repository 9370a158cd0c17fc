"""Pages that repeat what the code says are held against it."""

from __future__ import annotations

from pathlib import Path

import yaml

from services.chassis import names
from services.chassis.settings_doc import page

DOCS = Path(__file__).parents[3] / "docs"

# Names of log keys and of gRPC metadata are not OpenTelemetry names.
_OTHER = {"TRACEPARENT", "TRACESTATE", "RPC_SYSTEM_GRPC"}


def test_the_settings_page_is_as_generated() -> None:
    assert (DOCS / "settings.md").read_text() == page(), "run `make settings`"


def test_the_collectors_pipelines_are_made_of_what_it_has() -> None:
    config = yaml.safe_load((DOCS.parent / "deploy" / "otel" / "collector.yaml").read_text())
    pipelines = config["service"]["pipelines"]
    assert pipelines.keys() == {"traces", "metrics", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == config[kind].keys()


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
