"""`last` in place of a run's folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from scored_runs import scored_run

from brainseg.cli.arguments import read_overrides
from brainseg.core.errors import RequestError

pytestmark = pytest.mark.usefixtures("empty_folder")


def read(command: str, *overrides: str) -> list[str]:
    arguments = SimpleNamespace(overrides=list(overrides), multirun=False, config_dir=None)
    return read_overrides(command, arguments)


def make_runs() -> None:
    """Two runs. Only the first one has a checkpoint."""
    for name in ("b-first", "a-second"):
        scored_run(Path("runs") / name, {"a": 0.5}, overrides=["epochs=3"])
    (Path("runs") / "b-first" / "checkpoints").mkdir()
    (Path("runs") / "b-first" / "checkpoints" / "best.pt").touch()


def test_last_is_the_run_that_was_started_last() -> None:
    make_runs()
    assert read("verify", "run=last") == ["run='runs/a-second'"]
    assert read("evaluate", "checkpoint=last", "split=all") == [
        "checkpoint='runs/b-first'",
        "split=all",
    ]
    assert read("train", "resume=last", "epochs=5") == [
        "epochs=3",
        "resume='runs/a-second'",
        "epochs=5",
    ]
    assert read("train", "from=last", "seed=1") == ["epochs=3", "seed=1"]
    assert read("train", "model.name=last") == ["model.name=last"]


def test_a_file_of_this_name_has_priority_and_no_run_is_told() -> None:
    with pytest.raises(RequestError, match="run=last: there is no such run below runs/"):
        read("verify", "run=last")
    Path("last").mkdir()
    assert read("verify", "run=last") == ["run=last"]
