"""What the plugin does by itself: VERSION, its checks, its words, and a DEL that waits."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.loader.cni.delete_queue import DeleteQueue
from tests.kernel.cni.conftest import Runtime
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel


@contextmanager
def impostor(path: Path, reply: bytes | None, *, linger: float = 0.0) -> Iterator[None]:
    """Something else on the loader's socket: answers ``reply``, if any, hangs up after ``linger`` s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if reply is not None:
                    connection.sendall(reply)
                done.wait(linger)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def frame(body: bytes, kind: int = 0, magic: bytes = b"FCN1", length: int | None = None) -> bytes:
    return (
        magic + kind.to_bytes(4, "big") + (len(body) if length is None else length).to_bytes(4, "big") + body
    )


def test_version_needs_nothing(runtime: Runtime) -> None:
    answer = runtime.call("VERSION", conf=b"", CNI_CONTAINERID="-", CNI_IFNAME="-", CNI_NETNS="-")
    assert answer.status == 0
    assert answer.json == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CNI_COMMAND": "-"}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "PING"}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "add"}, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": "-"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../../etc"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": 'a"b'}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a" * 201}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": "-"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a" * 16}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a:b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "\n"}, "CNI_IFNAME"),
        ({"CNI_NETNS": "-"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/etc/hostname"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/proc/self/ns/mnt"}, "CNI_NETNS"),
        ({"CNI_ARGS": "x" * 70000}, "CNI_ARGS"),
    ],
)
def test_a_bad_variable_is_code_4_and_named(runtime: Runtime, changes: dict[str, str], named: str) -> None:
    answer = runtime.call("ADD", "/proc/self/ns/net", **changes)
    assert answer.code == 4
    assert named in answer.msg


def test_all_missing_variables_are_named_at_once(runtime: Runtime) -> None:
    answer = runtime.call("ADD", CNI_CONTAINERID="-", CNI_IFNAME="-", CNI_NETNS="-")
    assert answer.code == 4
    assert all(name in answer.msg for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"))


def test_a_namespace_that_does_not_exist_is_code_3(runtime: Runtime) -> None:
    for command in ("ADD", "CHECK"):
        answer = runtime.call(command, "/run/netns/fcni-none")
        assert answer.code == 3
        assert "/run/netns/fcni-none" in answer.msg


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "", None])
def test_another_version_is_code_1(runtime: Runtime, version: str | None) -> None:
    answer = runtime.call("ADD", "/proc/self/ns/net", runtime.config(cniVersion=version))
    assert answer.code == 1
    assert answer.json["cniVersion"] == "1.1.0"


def test_an_error_is_in_the_version_of_the_configuration(runtime: Runtime) -> None:
    answer = runtime.call("ADD", "/run/netns/fcni-none", runtime.config(cniVersion="0.4.0"))
    assert answer.json["cniVersion"] == "0.4.0"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"   ",
        b"[]",
        b"3",
        b"{",
        b"{}x",
        b'{"a":}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":-}',
        b'{"a":nul}',
        b'{"a":"\x01"}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\xc0\x80"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xf4\x90\x80\x80"}',
        b'{"a":"unterminated',
        b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
        b"\0",
    ],
)
def test_what_is_not_json_is_code_6(runtime: Runtime, text: bytes) -> None:
    answer = runtime.call("ADD", "/proc/self/ns/net", text)
    assert answer.code == 6
    assert "byte" in answer.json["details"]


def test_a_configuration_over_a_mebibyte_is_code_6(runtime: Runtime) -> None:
    text = json.dumps(runtime.config(padding="x" * (1 << 20))).encode()
    answer = runtime.call("ADD", "/proc/self/ns/net", text)
    assert answer.code == 6
    assert "1 MiB" in answer.json["details"]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"name": None}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": 3}, "name"),
        ({"socket": 3}, "socket"),
        ({"socket": "relative"}, "socket"),
        ({"socket": "/" + "x" * 107}, "socket"),
        ({"queue": ["x"]}, "queue"),
        ({"queue": "relative"}, "queue"),
        ({"timeout_seconds": "1"}, "timeout_seconds"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"timeout_seconds": 1e9}, "timeout_seconds"),
    ],
)
def test_a_bad_member_is_code_7_and_named(runtime: Runtime, members: dict[str, Any], named: str) -> None:
    text = json.dumps(
        {key: value for key, value in (runtime.config() | members).items() if value is not None}
    )
    answer = runtime.call("ADD", "/proc/self/ns/net", text.encode())
    assert answer.code == 7
    assert f'"{named}"' in answer.msg


def test_escaped_member_names_count_and_the_last_one_wins(runtime: Runtime) -> None:
    text = (
        b'{"cniVersion":"9","cni\\u0056ersion":"0.4.0","name":"n","\\ud83d\\ude00":[{}],"socket":"/none/s"}'
    )
    answer = runtime.call("ADD", "/proc/self/ns/net", text)
    assert answer.code == 11
    assert answer.json["cniVersion"] == "0.4.0"


def test_messages_are_valid_json_whatever_is_in_them(runtime: Runtime) -> None:
    for name in ('x"\\', "\x01", "\u2028é😀"):
        answer = runtime.call("ADD", "/proc/self/ns/net", runtime.config(name=name))
        assert answer.code == 7
        assert name in answer.msg
    answer = runtime.call("ADD", "/x", CNI_CONTAINERID=os.fsdecode(b"\xff\xfe"))
    assert answer.code == 4
    assert "\ufffd\ufffd" in answer.msg


def test_without_a_loader_add_and_check_are_to_be_tried_again(runtime: Runtime, pod: Namespace) -> None:
    for command in ("ADD", "CHECK"):
        answer = runtime.call(command, pod.path)
        assert answer.code == 11
        assert str(runtime.socket) in answer.msg


def test_without_a_loader_a_del_succeeds_and_waits(runtime: Runtime, pod: Namespace) -> None:
    runtime.socket.parent.mkdir()
    for netns in (pod.path, "", "/run/netns/fcni-gone"):
        answer = runtime.call("DEL", netns)
        assert (answer.status, answer.text) == (0, "")
    assert runtime.queued() == ["c1@65746830.json"]
    assert runtime.queue.stat().st_mode & 0o777 == 0o700
    assert (runtime.queue / "c1@65746830.json").stat().st_mode & 0o777 == 0o600
    (queued,) = DeleteQueue(runtime.queue).waiting()
    assert queued.request.key == ("c1", "eth0")
    assert queued.request.args["K8S_POD_NAME"] == "web"
    assert queued.request.config == runtime.config()
    assert queued.request.started_ns > 1_600_000_000 * 10**9


def test_names_of_queue_files_are_safe_and_do_not_meet(runtime: Runtime) -> None:
    runtime.socket.parent.mkdir()
    for container, ifname in (("c1", "eth0"), ("c1", "eth1"), ("a" * 200, "%n%s\\.é'\"@*"), ("c.._-", "@")):
        assert runtime.call("DEL", CNI_CONTAINERID=container, CNI_IFNAME=ifname).status == 0
    assert len(DeleteQueue(runtime.queue).waiting()) == 4
    assert len(runtime.queued()) == 4


def test_a_queue_of_ones_own_choice(runtime: Runtime, tmp_path: Path) -> None:
    queue = tmp_path / "elsewhere"
    assert runtime.call("DEL", conf=runtime.config(queue=str(queue))).status == 0
    assert len(DeleteQueue(queue).waiting()) == 1


@pytest.mark.parametrize("place", ["missing/deletes", "file/deletes", "file"])
def test_a_del_that_cannot_be_kept_is_code_5(runtime: Runtime, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    answer = runtime.call("DEL", conf=runtime.config(queue=str(tmp_path / place)))
    assert answer.code == 5
    assert str(tmp_path / place) in answer.msg


def test_a_loader_that_does_not_answer_is_given_up(runtime: Runtime, pod: Namespace) -> None:
    conf = runtime.config(timeout_seconds=0.3)
    with impostor(runtime.socket, None, linger=5):
        answer = runtime.call("ADD", pod.path, conf)
    assert answer.code == 11
    assert "in time" in answer.msg
    runtime.socket.unlink()
    with impostor(runtime.socket, None, linger=5):
        assert runtime.call("DEL", pod.path, conf).status == 0
    assert len(runtime.queued()) == 1


def test_a_loader_that_dies_under_way_is_to_be_tried_again(runtime: Runtime, pod: Namespace) -> None:
    with impostor(runtime.socket, None):
        answer = runtime.call("ADD", pod.path)
    assert answer.code == 11
    runtime.socket.unlink()
    with impostor(runtime.socket, frame(b'{"cniVersion":', length=100)):
        assert runtime.call("ADD", pod.path).code == 11


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(b"{}", magic=b"FCN2"),
        frame(b"{}", kind=7),
        frame(b"", length=0xFFFFFFFF),
        frame(b"garbage"),
        frame(b"[]"),
        frame(b'{"a":1', 0),
        frame(b"", kind=1),
    ],
)
def test_a_senseless_reply_is_code_5_and_never_printed(
    runtime: Runtime, pod: Namespace, reply: bytes
) -> None:
    with impostor(runtime.socket, reply, linger=0.2):
        answer = runtime.call("ADD", pod.path)
    assert answer.code == 5
    assert "not understood" in answer.msg
    runtime.socket.unlink()
    with impostor(runtime.socket, reply, linger=0.2):
        assert runtime.call("DEL", pod.path).status == 0
    assert len(runtime.queued()) == 1


def test_any_bytes_on_stdin_end_in_an_error_of_the_specification(runtime: Runtime) -> None:
    """Mutations of a good configuration; a crash, or undefined behaviour, would end by a signal."""
    dice = random.Random(20251)
    good = json.dumps(
        runtime.config(x=[1.5e-3, None, True, {"k": '\u00e9\\"\n'}]), ensure_ascii=False
    ).encode()
    for _ in range(150):
        text = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(text))
            match dice.randrange(3):
                case 0:
                    text[at] = dice.randrange(256)
                case 1:
                    del text[at : at + dice.randrange(1, 9)]
                case _:
                    text[at:at] = dice.choice([b'"', b"{", b"\\u", b"\xf0\x9f", b"[", b"\0", b"e+", b"\\"])
        answer = runtime.call("ADD", "/proc/self/ns/net", bytes(text))
        assert answer.code in (1, 5, 6, 7, 11)
