"""The object cache and what a user reads when there is no compiler or the source is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.loader.bpf.compiler import compile_sources, find_compiler
from services.loader.bpf.errors import BpffsMissing, CompileError, CompilerMissing, MapMismatch, VerifierError
from services.loader.bpf.pins import PinDirectory, is_on_bpffs, remove_pins

SOURCE = "#include <linux/bpf.h>\nint answer(void) { return 42; }\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "one.c").write_text(SOURCE)
    (directory / "two.h").write_text("/* nothing */\n")
    return directory


def compile_one(sources: Path, tmp_path: Path) -> tuple[str, bool]:
    (compiled,) = compile_sources(str(sources), ["one.c"], str(tmp_path / "cache"))
    return compiled.path, compiled.cache_hit


def test_an_unchanged_source_is_compiled_once(sources: Path, tmp_path: Path) -> None:
    path, hit = compile_one(sources, tmp_path)
    assert not hit and os.path.getsize(path) > 0
    assert compile_one(sources, tmp_path) == (path, True)


@pytest.mark.parametrize("name", ["one.c", "two.h"])
def test_any_change_of_a_source_or_header_compiles_anew(sources: Path, tmp_path: Path, name: str) -> None:
    path, _ = compile_one(sources, tmp_path)
    (sources / name).write_text((sources / name).read_text() + "/* more */\n")
    other, hit = compile_one(sources, tmp_path)
    assert other != path and not hit


def test_a_source_that_is_wrong_names_its_line(sources: Path, tmp_path: Path) -> None:
    (sources / "one.c").write_text("int answer(void) { return wrong; }\n")
    with pytest.raises(
        CompileError, match=r"one\.c does not compile: one\.c:1:\d+: error: .*wrong"
    ) as caught:
        compile_one(sources, tmp_path)
    assert "wrong" in caught.value.output
    assert [path for path in os.listdir(tmp_path / "cache") if not path.startswith(".")] == []


def test_warnings_are_errors(sources: Path, tmp_path: Path) -> None:
    (sources / "one.c").write_text("int answer(int unused) { int x; return 1; }\n")
    with pytest.raises(CompileError, match="unused"):
        compile_one(sources, tmp_path)


def test_without_clang_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="install clang-19"):
        find_compiler()


def test_pins_elsewhere_than_on_bpffs_are_refused(tmp_path: Path) -> None:
    assert not is_on_bpffs(str(tmp_path))
    with pytest.raises(BpffsMissing, match="mount -t bpf bpf"):
        PinDirectory(str(tmp_path / "pins")).make(())
    assert not (tmp_path / "pins").exists()


def test_removing_pins_that_are_not_there_is_fine(tmp_path: Path) -> None:
    remove_pins(str(tmp_path / "nothing"))


def test_a_verifier_error_ends_with_the_line_that_matters() -> None:
    log = "1: (61) r0 = *(u32 *)(r1 +999)\ninvalid bpf_context access off=999 size=4\nprocessed 2 insns\n"
    error = VerifierError(13, "broken", log)
    assert str(error) == (
        "load program broken: Permission denied (EACCES): invalid bpf_context access off=999 size=4"
    )
    assert error.log == log


def test_a_map_mismatch_names_both_definitions_and_the_remedy() -> None:
    error = MapMismatch("policy", "/pins/policy", "hash key 16", "hash key 20")
    for word in ("policy", "/pins/policy", "hash key 16", "hash key 20", "remove the pin"):
        assert word in str(error)
