"""A node's programs: what holds them, reloads that fail, and a loader without a compiler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.loader.v1 import loader_pb2_grpc

from services.chassis.errors import FimbriaError, error_from_rpc
from services.loader.bpf import prebuilt
from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import REPOSITORY, Node, Pod, Rig
from tests.kernel.loader.traffic import connect, talks

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[tuple[Pod, Pod]]:
    """A server and a client on the first node."""
    web, client = rig.pod(rig.nodes[0], "web", app="web"), rig.pod(rig.nodes[0], "client", app="client")
    web.add()
    client.add()
    with echo_server(web.namespace, 80):
        yield web, client


@pytest.fixture
def node(rig: Rig) -> Iterator[Node]:
    """The first node, whose loader a test may restart with other settings."""
    first = rig.nodes[0]
    yield first
    restart(first, {})


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the datapath's sources that a test may break."""
    directory = tmp_path / "bpf"
    shutil.copytree(REPOSITORY / "bpf", directory)
    (directory / "lib" / "copy.h").write_text("/* No other build is made of these. */\n")
    return directory


def restart(node: Node, environment: dict[str, str], sources: Path = REPOSITORY / "bpf") -> None:
    node.loader.kill()
    node.loader.environment = environment
    others = [each for each in node.loader.arguments if not each.startswith("--source-dir=")]
    node.loader.arguments = [*others, f"--source-dir={sources}"]
    node.loader.start()


def status(node: Node) -> pb.DatapathStatus:
    with grpc.insecure_channel(node.target) as channel:
        return loader_pb2_grpc.DatapathServiceStub(channel).GetStatus(
            pb.GetStatusRequest(), wait_for_ready=True, timeout=20
        )


def kinds(node: Node) -> dict[str, set[str]]:
    """What holds each program that runs."""
    return {
        program.name: {place.kind for place in program.attachments}
        for program in status(node).programs
        if program.attachments
    }


def ids(node: Node) -> set[int]:
    return {program.id for program in status(node).programs}


def reload(node: Node, level: pb.RegenerationLevel.ValueType) -> pb.ReloadResponse:
    with grpc.insecure_channel(node.target) as channel:
        return loader_pb2_grpc.DatapathServiceStub(channel).Reload(
            pb.ReloadRequest(level=level), wait_for_ready=True, timeout=120
        )


def refusal(node: Node, level: pb.RegenerationLevel.ValueType) -> FimbriaError:
    with pytest.raises(grpc.RpcError) as caught:
        reload(node, level)
    return error_from_rpc(caught.value)


def test_settings_say_what_holds_programs_and_a_restart_moves_them(node: Node, pods: tuple[Pod, Pod]) -> None:
    web, client = pods
    with connect(client, web, 80) as connection:
        assert (kinds(node)["from_container"], kinds(node)["from_host"]) == ({"clsact"}, {"tcx"})
        before = ids(node)
        restart(node, {"FIMBRIA_ATTACH_MODE": "clsact", "FIMBRIA_ENDPOINT_ATTACH_MODE": "tcx"})
        assert talks(connection)
        assert (kinds(node)["from_container"], kinds(node)["from_host"]) == ({"tcx"}, {"clsact"})
        restart(node, {})
        assert (kinds(node)["to_container"], kinds(node)["to_host"]) == ({"clsact"}, {"tcx"})
        assert talks(connection)
        assert ids(node) == before, "programs were loaded that were there"


def test_a_reload_that_fails_names_the_line_and_changes_nothing(
    node: Node, pods: tuple[Pod, Pod], sources: Path
) -> None:
    web, client = pods
    # Ahead of the loader, which has thirty seconds to come up.
    compile_sources(str(sources), SOURCES, str(REPOSITORY / "build" / "bpf-cache"))
    restart(node, {}, sources)
    before = ids(node)
    header, program = sources / "lib" / "policy.h", sources / "bpf_host.c"
    good_header, good_program = header.read_text(), program.read_text()
    with connect(client, web, 80) as connection:
        header.write_text(f"{good_header}\nint broken = nowhere;\n")
        for level in (pb.REGENERATION_LEVEL_RELOAD, pb.REGENERATION_LEVEL_REBUILD):
            error = refusal(node, level)
            assert (error.code, error.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "DATAPATH_UNAVAILABLE",
            )
            line = str(len(good_header.splitlines()) + 2)
            assert (error.metadata["file"], error.metadata["line"]) == ("lib/policy.h", line)
            assert "nowhere" in error.metadata["text"]
            assert f"policy.h:{line}:" in error.message
        header.write_text(good_header)
        program.write_text(
            good_program.replace(
                "	struct packet p = {", "	*(volatile int *)0 = 1;\n	struct packet p = {"
            )
        )
        error = refusal(node, pb.REGENERATION_LEVEL_RELOAD)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DATAPATH_UNAVAILABLE")
        assert "load program from_host" in error.message and error.metadata["program"] == "from_host"
        program.write_text(good_program)
        assert ids(node) == before
        assert talks(connection)
        assert reload(node, pb.REGENERATION_LEVEL_RELOAD).unchanged
        told = reload(node, pb.REGENERATION_LEVEL_REBUILD)
        assert not told.unchanged and told.endpoints == 2 and len(told.programs) >= 6
        assert ids(node).isdisjoint(before)
        assert talks(connection)


def test_a_node_without_clang_reloads_from_its_package(
    node: Node, pods: tuple[Pod, Pod], sources: Path, tmp_path: Path
) -> None:
    web, client = pods
    package, empty = tmp_path / "objects", tmp_path / "bin"
    prebuilt.build(str(sources), SOURCES, str(package))
    empty.mkdir()
    (empty / "nsenter").symlink_to(shutil.which("nsenter") or "/usr/bin/nsenter")
    with connect(client, web, 80) as connection:
        restart(node, {"PATH": str(empty), "FIMBRIA_PREBUILT_DIR": str(package)}, sources)
        assert talks(connection)
        error = refusal(node, pb.REGENERATION_LEVEL_REBUILD)
        assert error.reason == "DATAPATH_UNAVAILABLE" and "install clang-19" in error.message
        assert reload(node, pb.REGENERATION_LEVEL_RELOAD).programs
        assert talks(connection)
