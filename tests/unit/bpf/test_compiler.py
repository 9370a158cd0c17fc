"""The object cache and what a user reads when there is no compiler or the source is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.loader.bpf import compiler, prebuilt
from services.loader.bpf.compiler import Compiled, compile_sources, find_compiler
from services.loader.bpf.errors import (
    BpffsMissing,
    CompileError,
    CompilerMissing,
    MapMismatch,
    PrebuiltDamaged,
    VerifierError,
)
from services.loader.bpf.object_cache import ObjectCache
from services.loader.bpf.pins import PinDirectory, is_on_bpffs, remove_pins

SOURCE = "#include <linux/bpf.h>\nint answer(void) { return 42; }\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "one.c").write_text(SOURCE)
    (directory / "two.h").write_text("/* nothing */\n")
    return directory


@pytest.fixture
def package(sources: Path, tmp_path: Path) -> Path:
    """A directory of objects that were prebuilt from ``sources``."""
    directory = tmp_path / "objects"
    prebuilt.build(str(sources), ["one.c"], str(directory))
    return directory


@pytest.fixture
def no_clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def counted_clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """A clang in PATH that notes how often it compiles; its notes may be read by any process."""
    real = find_compiler()
    notes = tmp_path / "compilations"
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "clang-19"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo compiled >> {notes} ;; esac\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return lambda: len(notes.read_text().splitlines()) if notes.exists() else 0


def compile_one(sources: Path, tmp_path: Path, *, package: Path | str = "", fresh: bool = False) -> Compiled:
    (compiled,) = compile_sources(
        str(sources), ["one.c"], str(tmp_path / "cache"), prebuilt_dir=str(package), fresh=fresh
    )
    return compiled


def test_an_unchanged_source_is_compiled_once(sources: Path, tmp_path: Path) -> None:
    first = compile_one(sources, tmp_path)
    assert not first.cache_hit and first.seconds > 0 and os.path.getsize(first.path) > 0
    again = compile_one(sources, tmp_path)
    assert (again.path, again.cache_hit, again.seconds) == (first.path, True, 0.0)
    assert os.stat(tmp_path / "cache").st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["one.c", "two.h"])
def test_any_change_of_a_source_or_header_compiles_anew(sources: Path, tmp_path: Path, name: str) -> None:
    first = compile_one(sources, tmp_path)
    (sources / name).write_text((sources / name).read_text() + "/* more */\n")
    other = compile_one(sources, tmp_path)
    assert other.path != first.path and not other.cache_hit


def test_other_flags_and_another_compiler_are_other_entries(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_one(sources, tmp_path)
    cache = str(tmp_path / "cache")
    (flagged,) = compile_sources(str(sources), ["one.c"], cache, ["-DMORE=1"], prebuilt_dir="")
    monkeypatch.setattr(compiler, "compiler_version", lambda _: "clang of tomorrow\n")
    other = compile_one(sources, tmp_path)
    assert not flagged.cache_hit and not other.cache_hit
    assert len({first.path, flagged.path, other.path}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, os.path.getsize(path) - 1),
        lambda path: path.write_bytes(b"\x7fELF" + path.read_bytes()[4:-1] + b"!"),
        lambda path: path.with_name(f"{path.name}.sha256").unlink(),
        lambda path: os.truncate(path.with_name(f"{path.name}.sha256"), 10),
    ],
)
def test_a_damaged_entry_is_compiled_anew(
    sources: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    first = compile_one(sources, tmp_path)
    whole = Path(first.path).read_bytes()
    damage(Path(first.path))
    again = compile_one(sources, tmp_path)
    assert (again.path, again.cache_hit) == (first.path, False)
    assert Path(again.path).read_bytes() == whole
    assert compile_one(sources, tmp_path).cache_hit


def test_fresh_compiles_what_the_cache_has(
    sources: Path, tmp_path: Path, counted_clang: Callable[[], int]
) -> None:
    compile_one(sources, tmp_path)
    assert not compile_one(sources, tmp_path, fresh=True).cache_hit
    assert counted_clang() == 2


def test_threads_that_want_the_same_object_compile_it_once(
    sources: Path, tmp_path: Path, counted_clang: Callable[[], int]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: compile_one(sources, tmp_path), range(6)))
    assert len({each.path for each in found}) == 1
    assert sorted(each.cache_hit for each in found) == [False] + [True] * 5
    assert counted_clang() == 1


def test_processes_that_want_the_same_object_compile_it_once(
    sources: Path, tmp_path: Path, counted_clang: Callable[[], int]
) -> None:
    code = (
        "import sys; from services.loader.bpf.compiler import compile_sources as c; "
        "print(c(sys.argv[1], ['one.c'], sys.argv[2], prebuilt_dir='')[0].path)"
    )
    command = [sys.executable, "-c", code, str(sources), str(tmp_path / "cache")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(paths) == 1 and counted_clang() == 1


def hold(cache: str, key: str, ready: str) -> None:
    with ObjectCache(cache).making(key):
        Path(ready).touch()
        signal.pause()


def test_the_lock_of_a_process_that_was_killed_is_gone(tmp_path: Path) -> None:
    cache, ready = str(tmp_path / "cache"), tmp_path / "ready"
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(cache, "key", str(ready)))
    holder.start()
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: ObjectCache(cache).making("key").__enter__())
        assert not waiting.done()
        holder.kill()
        waiting.result(timeout=60)
    holder.join()


def test_who_waits_for_a_compilation_that_fails_tries_itself(sources: Path, tmp_path: Path) -> None:
    (sources / "one.c").write_text("int answer(void) { return wrong; }\n")
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(compile_one, sources, tmp_path) for _ in range(2)]
        assert all(isinstance(each.exception(), CompileError) for each in results)


def test_a_source_that_is_wrong_names_its_line(sources: Path, tmp_path: Path) -> None:
    (sources / "one.c").write_text("int answer(void)\n{\n\treturn wrong + worse;\n}\n")
    with pytest.raises(
        CompileError, match=r"one\.c does not compile: one\.c:3:\d+: error: .*wrong.* \(and 1 more\)$"
    ) as caught:
        compile_one(sources, tmp_path)
    error = caught.value
    assert "wrong" in error.output
    assert [(each.file, each.line, each.column) for each in error.diagnostics] == [
        ("one.c", 3, 9),
        ("one.c", 3, 17),
    ]
    assert error.metadata == {
        "file": "one.c",
        "line": "3",
        "column": "9",
        "text": error.diagnostics[0].text,
    }
    assert os.listdir(tmp_path / "cache") == []


def test_an_error_in_a_header_names_the_header(sources: Path, tmp_path: Path) -> None:
    (sources / "two.h").write_text("#include <no_such_header.h>\n")
    (sources / "one.c").write_text('#include "two.h"\n' + SOURCE)
    with pytest.raises(CompileError, match=r"two\.h:1:10: error: 'no_such_header\.h' file not found"):
        compile_one(sources, tmp_path)


def test_warnings_are_errors(sources: Path, tmp_path: Path) -> None:
    (sources / "one.c").write_text("int answer(int unused) { int x; return 1; }\n")
    with pytest.raises(CompileError, match="unused"):
        compile_one(sources, tmp_path)


@pytest.mark.usefixtures("no_clang")
def test_without_clang_both_remedies_are_named(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(CompilerMissing, match="install clang-19"):
        find_compiler()
    with pytest.raises(CompilerMissing, match=r"/nowhere has no prebuilt.*clang-19.*FIMBRIA_PREBUILT_DIR"):
        compile_one(sources, tmp_path, package="/nowhere")


def test_without_clang_what_was_compiled_before_is_found(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_one(sources, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    again = compile_one(sources, tmp_path)
    assert (again.path, again.cache_hit) == (first.path, True)


def test_a_node_without_clang_takes_the_prebuilt_object(
    sources: Path, tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = compile_one(sources, tmp_path, package=package)
    assert found.prebuilt and found.cache_hit and Path(found.path).parent == package
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CompilerMissing):
        compile_one(sources, tmp_path, package=package, fresh=True)
    (sources / "two.h").write_text("/* another version */\n")
    with pytest.raises(CompilerMissing, match=str(package)):
        compile_one(sources, tmp_path, package=package)


def test_the_cache_comes_before_the_package_and_the_package_before_clang(
    sources: Path, tmp_path: Path, package: Path, counted_clang: Callable[[], int]
) -> None:
    assert compile_one(sources, tmp_path, package=package).prebuilt
    assert counted_clang() == 0
    compile_one(sources, tmp_path)
    assert not compile_one(sources, tmp_path, package=package).prebuilt
    assert counted_clang() == 1


def test_a_prebuilt_object_that_is_not_what_its_manifest_says_is_refused(
    sources: Path, tmp_path: Path, package: Path
) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    (build,) = manifest["builds"]
    assert build["feature_set"] == "default" and "clang" in manifest["compiler"]
    damaged = package / build["objects"]["one.c"]["file"]
    damaged.write_bytes(damaged.read_bytes() + b"!")
    # With a clang in PATH as well: somebody has changed what the package brought.
    with pytest.raises(PrebuiltDamaged, match=r"its sha256 is .*manifest\.json says .*FIMBRIA_PREBUILT_DIR"):
        compile_one(sources, tmp_path, package=package)
    damaged.unlink()
    with pytest.raises(PrebuiltDamaged, match="No such file"):
        compile_one(sources, tmp_path, package=package)
    (package / "manifest.json").write_text("{")
    with pytest.raises(PrebuiltDamaged, match="cannot be read"):
        compile_one(sources, tmp_path, package=package)


def test_prebuilding_again_leaves_only_what_is_named(sources: Path, package: Path) -> None:
    before = set(os.listdir(package))
    prebuilt.build(str(sources), ["one.c"], str(package))
    assert set(os.listdir(package)) == before
    (sources / "one.c").write_text(SOURCE.replace("42", "43"))
    prebuilt.build(str(sources), ["one.c"], str(package))
    assert len(os.listdir(package)) == 2 and set(os.listdir(package)) != before


def test_old_builds_are_pruned_and_none_that_is_in_use(tmp_path: Path) -> None:
    cache = ObjectCache(str(tmp_path))
    now = time.time()
    for age in range(6):
        for stem in ("bpf_lxc", "bpf_host"):
            path = tmp_path / f"{stem}-{age:032x}-{age:08x}.o"
            for each in (path, Path(f"{path}.sha256")):
                each.write_text("object")
                os.utime(each, (now - 86400 * age, now - 86400 * age))
    (tmp_path / ".compile-left").mkdir()
    os.utime(tmp_path / ".compile-left", (now - 86400, now - 86400))
    cache._note(str(tmp_path / f"bpf_lxc-{5:032x}-{5:08x}.o"))
    os.utime(tmp_path / f"bpf_lxc-{5:032x}-{5:08x}.o", (now - 86400 * 5, now - 86400 * 5))
    with cache.making(f"bpf_host-{4:032x}-{4:08x}"):
        removed = cache.prune(kept=2, now=now)
    assert {name[-10:-2] for name in removed} == {f"{age:08x}" for age in (2, 3, 4)}
    assert f"bpf_host-{4:032x}-{4:08x}.o" not in removed
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"{stem}-{age:032x}-{age:08x}.o{end}"
        for age in (0, 1, 4, 5)
        for stem in ("bpf_lxc", "bpf_host")
        for end in ("", ".sha256")
        if (stem, age) != ("bpf_lxc", 4)
    )
    # What somebody used within the last hour stays, however much there is.
    assert cache.prune(kept=0, now=now - 86400) == [f"bpf_host-{4:032x}-{4:08x}.o"]


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
