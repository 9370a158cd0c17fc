from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from services.chassis.settings import (
    CommonSettings,
    HelpRequested,
    SettingsError,
    load_settings,
    setting,
    settings_table,
)

DEFAULT_STATE = Path("/run/x")


@dataclass(frozen=True)
class Sample(CommonSettings):
    pool: str = setting("10.244.0.0/16", help="The first pool.")
    workers: int = setting(4, help="Workers.", minimum=1, maximum=64)
    ratio: float = setting(0.5, help="A ratio.", minimum=0)
    fast: bool = setting(False, help="Whether to hurry.")
    mode: Literal["a", "b"] = setting("a", help="Either.")
    state: Path = setting(DEFAULT_STATE, help="Where state is.")  # noqa: RUF009
    limit: int | None = setting(None, help="A limit, if any.")
    key: int = setting(0, help="A secret number.", secret=True)
    odd: str = setting("", help="Named by others.", env="KUBECONFIG")


def test_defaults_stand_without_flags_and_environment() -> None:
    settings = load_settings(Sample, [], {})
    assert settings.listen == ("127.0.0.1:0",)
    assert (settings.pool, settings.workers, settings.limit) == ("10.244.0.0/16", 4, None)
    assert settings.instance


def test_a_flag_beats_the_environment_which_beats_the_default() -> None:
    environ = {"FIMBRIA_WORKERS": "8", "FIMBRIA_RATIO": "0.25"}
    settings = load_settings(Sample, ["--workers", "16"], environ)
    assert (settings.workers, settings.ratio) == (16, 0.25)


def test_every_type_is_converted() -> None:
    argv = ["--fast=yes", "--mode", "b", "--state", "/var/x", "--limit=7", "--listen", "a:1, unix:/b ,"]
    settings = load_settings(Sample, argv, {"KUBECONFIG": "/k"})
    assert settings.fast is True
    assert (settings.mode, settings.state, settings.limit) == ("b", Path("/var/x"), 7)
    assert settings.listen == ("a:1", "unix:/b")
    assert settings.odd == "/k"
    assert load_settings(Sample, ["--limit="], {}).limit is None


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--workers", "0"], {}, "--workers is '0'; expected a whole number from 1 to 64"),
        ([], {"FIMBRIA_WORKERS": "many"}, "FIMBRIA_WORKERS is 'many'; expected a whole number from 1 to 64"),
        ([], {"FIMBRIA_RATIO": "-1"}, "FIMBRIA_RATIO is '-1'; expected a number of at least 0"),
        ([], {"FIMBRIA_RATIO": "nan"}, "FIMBRIA_RATIO is 'nan'; expected a number of at least 0"),
        (["--fast", "perhaps"], {}, "--fast is 'perhaps'; expected true or false"),
        (["--mode", "c"], {}, "--mode is 'c'; expected one of a, b"),
        (["--limit", "x"], {}, "--limit is 'x'; expected a whole number"),
        ([], {"FIMBRIA_KEY": "hunter2"}, "FIMBRIA_KEY is '***'; expected a whole number"),
        (["--workers"], {}, "--workers is missing; expected a value after the flag"),
    ],
)
def test_a_value_that_does_not_fit_is_named(argv: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Sample, argv, environ)
    assert str(caught.value) == message


def test_an_unknown_flag_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SettingsError, match=r"flag is '--worker'; expected one of .*--workers"):
        load_settings(Sample, ["--worker", "1"], {})


def test_a_required_setting_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Needy(CommonSettings):
        node: str = setting(help="The node's name.")

    globals()["Needy"] = Needy
    with pytest.raises(SettingsError, match="--node or FIMBRIA_NODE is missing; expected a text"):
        load_settings(Needy, [], {})
    assert load_settings(Needy, ["--node", "node-1"], {}).node == "node-1"


def test_help_shows_every_setting() -> None:
    with pytest.raises(HelpRequested) as caught:
        load_settings(Sample, ["--help"], {})
    assert "--workers  (FIMBRIA_WORKERS)" in str(caught.value)
    assert "(KUBECONFIG)" in str(caught.value)


def test_the_table_has_shared_settings_once() -> None:
    table = settings_table([Sample, CommonSettings])
    assert table.count("FIMBRIA_LISTEN") == 1
    (listen,) = [line for line in table.splitlines() if "FIMBRIA_LISTEN" in line]
    assert listen.endswith("| all |")
    (workers,) = [line for line in table.splitlines() if "FIMBRIA_WORKERS" in line]
    assert workers == (
        "| `FIMBRIA_WORKERS` | `--workers` | `4` | Workers. *a whole number from 1 to 64* | sample |"
    )
    assert len({line.count(" | ") for line in table.splitlines() if not line.startswith("|---")}) == 1
