"""What holds the datapath's programs on devices, and a node without a compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.loader.bpf import prebuilt
from services.loader.bpf.attach import Kind, Mode
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import SOURCES as PROGRAMS
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.errors import CompilerMissing, PrebuiltDamaged
from services.loader.bpf.switching import AttachOptions
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.bpf.namespaces import run
from tests.kernel.bpf.node import WEB, Node

pytestmark = pytest.mark.kernel


def reopen(node: Node, config: NodeConfig, pin_dir: str, cache_dir: str, options: AttachOptions) -> None:
    """The node's next start."""
    node.datapath.close()
    node.datapath = KernelDatapath.open(
        config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir, attach=options
    )


def held(node: Node) -> dict[str, set[Kind]]:
    """What holds each program where it runs."""
    return {
        program.name: {place.kind for place in program.attachments}
        for program in node.datapath.programs()
        if program.attachments
    }


@pytest.mark.parametrize("mode", [Mode.TCX, Mode.AUTO])
def test_endpoints_may_have_links_and_filters_again(
    node: Node, config: NodeConfig, pin_dir: str, cache_dir: str, mode: Mode
) -> None:
    pins = node.datapath.pins
    assert held(node) == {
        "from_container": {Kind.CLSACT}, "to_container": {Kind.CLSACT}, "from_host": {Kind.TCX},
        "to_host": {Kind.TCX}, "from_overlay": {Kind.TCX}, "to_overlay": {Kind.TCX},
    }  # fmt: skip
    try:
        reopen(node, config, pin_dir, cache_dir, AttachOptions(Mode.CLSACT, mode))
        assert held(node)["from_container"] == held(node)["to_container"] == {Kind.TCX}
        assert held(node)["from_host"] == held(node)["to_overlay"] == {Kind.CLSACT}
        assert os.listdir(os.path.dirname(pins.link("lxcweb", ""))) != []
        # One that comes later, and again.
        for _ in range(2):
            node.datapath.attach_endpoint(node.web)
            assert held(node)["from_container"] == {Kind.TCX}
        assert "lxcweb" in pins.link_devices()
        node.datapath.detach_endpoint(node.web.ifindex, WEB)
        run("ip", "link", "del", "lxcweb")
        node.datapath.detach_endpoint(node.web.ifindex, WEB)
        assert "lxcweb" not in pins.link_devices() and "lxcclient" in pins.link_devices()
        reopen(node, config, pin_dir, cache_dir, AttachOptions(Mode.AUTO, Mode.CLSACT))
        assert held(node)["from_container"] == {Kind.CLSACT}
        assert held(node)["from_host"] == {Kind.TCX}
        assert not os.path.exists(pins.link("lxcclient", "from_container"))
    finally:
        node.datapath.close()


def test_another_mode_moves_programs_that_need_not_be_loaded(
    config: NodeConfig, pin_dir: str, cache_dir: str, tmp_path: Path
) -> None:
    def start(mode: Mode) -> tuple[bool, set[int], set[Kind]]:
        datapath = KernelDatapath.open(
            config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir, state_dir=str(tmp_path),
            attach=AttachOptions(mode),
        )  # fmt: skip
        try:
            programs = [each for each in datapath.programs() if each.attachments]
            kinds = {place.kind for program in programs for place in program.attachments}
            return datapath.report.adopted, {program.id for program in programs}, kinds
        finally:
            datapath.close()

    first, programs, kinds = start(Mode.AUTO)
    assert not first and kinds == {Kind.TCX} and len(programs) == 4
    for mode, kind in ((Mode.CLSACT, Kind.CLSACT), (Mode.CLSACT, Kind.CLSACT), (Mode.AUTO, Kind.TCX)):
        assert start(mode) == (True, programs, {kind})


def test_a_node_without_clang_runs_the_packages_objects(
    config: NodeConfig, pin_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, empty = tmp_path / "objects", tmp_path / "bin"
    prebuilt.build(SOURCES, PROGRAMS, str(package))
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))

    def start(prebuilt_dir: str) -> KernelDatapath:
        return KernelDatapath.open(
            config,
            pin_dir=pin_dir,
            source_dir=SOURCES,
            cache_dir=str(tmp_path / "cache"),
            prebuilt_dir=prebuilt_dir,
        )

    with pytest.raises(CompilerMissing, match=r"FIMBRIA_PREBUILT_DIR"):
        start("")
    datapath = start(str(package))
    try:
        assert datapath.report.cache_hit
        assert {program.name for program in datapath.programs()} >= {"from_container", "from_host"}
    finally:
        datapath.close()
    (damaged,) = package.glob("bpf_lxc-*.o")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(PrebuiltDamaged, match=damaged.name):
        start(str(package))
