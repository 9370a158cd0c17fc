"""`buf curl`: a gRPC client that knows nothing of Fimbria but what reflection tells it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.rpc import error_details_pb2

BUF = Path(sys.executable).with_name("buf")


def curl(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `buf curl` against a HOST:PORT target."""
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def listed(target: str, what: str) -> set[str]:
    """The names that `--list-services` or `--list-methods` gives."""
    answer = curl(target, what, f"http://{target}")
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def call(target: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """Calls `package.Service/Method` with a JSON request; the JSON answer."""
    answer = curl(target, "--data", json.dumps(request), f"http://{target}/{method}")
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout or "{}")
    return found


def refuse(target: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """Calls a method that must fail; the error as JSON with code, message and details."""
    answer = curl(target, "--data", json.dumps(request), f"http://{target}/{method}")
    assert answer.returncode != 0, answer.stdout
    found: dict[str, Any] = json.loads(answer.stderr)
    return found


def error_info(error: dict[str, Any]) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo among an error's details."""
    return error_details_pb2.ErrorInfo.FromString(_detail(error, "google.rpc.ErrorInfo"))


def bad_request(error: dict[str, Any]) -> error_details_pb2.BadRequest:
    """The BadRequest among an error's details."""
    return error_details_pb2.BadRequest.FromString(_detail(error, "google.rpc.BadRequest"))


def _detail(error: dict[str, Any], kind: str) -> bytes:
    value = next(detail["value"] for detail in error["details"] if detail["type"] == kind)
    return base64.b64decode(value + "=" * (-len(value) % 4))
