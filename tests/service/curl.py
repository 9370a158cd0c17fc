"""`buf curl`: a gRPC client that knows nothing of Fimbria but what reflection tells it."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.rpc import error_details_pb2

BUF = Path(sys.executable).with_name("buf")


def _command(target: str, path: str, *arguments: str) -> list[str]:
    """The command line for a target, which is HOST:PORT or the path of a unix socket."""
    socket = ["--unix-socket", target] if target.startswith("/") else []
    host = "localhost" if socket else target
    url = f"http://{host}{path}"
    return [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *socket, *arguments, url]


def curl(target: str, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `buf curl` against a path of a target (HOST:PORT or a unix socket)."""
    return subprocess.run(_command(target, path, *arguments), capture_output=True, text=True, timeout=30)


def listed(target: str, what: str) -> set[str]:
    """The names that `--list-services` or `--list-methods` gives."""
    answer = curl(target, "", what)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def call(target: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """Calls `package.Service/Method` with a JSON request; the JSON answer."""
    answer = curl(target, f"/{method}", "--data", json.dumps(request))
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout or "{}")
    return found


def first(target: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """The first message of a streaming method, which is then left."""
    command = _command(target, f"/{method}", "--data", "@-")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        try:
            client.stdin.write(json.dumps(request))
            client.stdin.flush()
            if "/Subscribe" not in method:
                client.stdin.close()
            text = ""
            for line in client.stdout:
                text += line
                with contextlib.suppress(json.JSONDecodeError):
                    found: dict[str, Any] = json.loads(text)
                    return found
        finally:
            client.kill()
    raise AssertionError(f"{method} ended without a message")


def refuse(target: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """Calls a method that must fail; the error as JSON with code, message and details."""
    answer = curl(target, f"/{method}", "--data", json.dumps(request))
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
