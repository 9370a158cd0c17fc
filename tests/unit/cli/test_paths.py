"""Names of a lab's things: two labs, and two pods, never share one."""

from __future__ import annotations

from pathlib import Path

from cli.lab.paths import LONGEST_NAME, LabPaths, lab_id


def test_the_id_belongs_to_the_real_path(tmp_path: Path) -> None:
    real = tmp_path / "lab"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    assert lab_id(link) == lab_id(real)
    assert lab_id(real) != lab_id(tmp_path / "other")
    assert len(lab_id(real)) == 6


def test_no_pod_has_the_namespace_of_another_or_of_a_node(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path)
    names = [
        paths.pod_netns("a-b", "c"),
        paths.pod_netns("a", "b-c"),
        paths.pod_netns("node", "1"),
        paths.node_netns("node-1"),
        paths.pod_netns("net", "x"),
        paths.underlay_netns,
        paths.outside_netns,
    ]
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"fl-{paths.id}-") for name in names)


def test_long_names_are_cut_and_stay_apart(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path)
    first = paths.pod_netns("n" * 63, "p" * 250 + "a")
    second = paths.pod_netns("n" * 63, "p" * 250 + "b")
    assert first != second
    assert len(first) <= LONGEST_NAME
