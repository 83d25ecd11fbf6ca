"""A run's checkpoint under a name in MLflow's model registry: found again by every command, never copied, never registered twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brainseg import evaluate, register
from brainseg.cli.main import run_command
from brainseg.tracking.client import connect, short_timeouts
from brainseg.tracking.lookup import checkpoint_of, folder_of_checkpoint

Call = Callable[..., str]


@pytest.fixture
def call(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run a command in the project's folder; returns what it printed."""
    monkeypatch.chdir(project)

    def call(command: Any, *overrides: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            run_command(
                command.__name__.removeprefix("brainseg."),
                command.run,
                command.check_request,
                list(overrides),
            )
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out if code == 0 else shown.err

    return call


def client(project: Path) -> Any:
    with short_timeouts(5):
        return connect(f"sqlite:///{project / 'mlflow.db'}", make=False)


def test_a_registered_run_is_found_by_name_alias_and_version(project: Path, call: Call) -> None:
    said = call(register, "run=run", "name=lgg")
    assert (
        "version 1 of lgg" in said
        and "alias:         best" in said
        and "checkpoint=models:/lgg@best" in said
    )
    for name in ("models:/lgg@best", "models:/lgg/1"):
        assert (
            checkpoint_of(name).read_bytes()
            == (project / "run" / "checkpoints" / "best.pt").read_bytes()
        )
        assert folder_of_checkpoint(name) == project / "run"
    data = next((project / "data").glob("*.h5"))
    said = call(
        evaluate, "checkpoint=models:/lgg@best", f"data.path={data}", "device=cpu", "output=scores"
    )
    assert "1 patient by their role in training: 1 test" in said
    tested = json.loads((project / "run" / "summary.json").read_text())["metrics"]["test/dice"]
    assert json.loads((project / "scores" / "summary.json").read_text())["metrics"][
        "test/dice"
    ] == pytest.approx(tested, abs=1e-6)


def test_registering_again_makes_no_second_version(project: Path, call: Call) -> None:
    call(register, "run=run", "name=twice")
    run_id = client(project).get_model_version("twice", "1").run_id
    for name in ("run", run_id, f"runs:/{run_id}"):
        assert "nothing to do: this checkpoint is already version 1 of twice" in call(
            register, f"run={name}", "name=twice"
        )
    assert "alias:         candidate" in call(register, "run=run", "name=twice", "alias=candidate")
    assert "alias" not in call(register, "run=run", "name=twice", "alias=null")
    (version,) = client(project).search_model_versions("name = 'twice'")
    assert client(project).get_registered_model("twice").aliases.keys() == {"best", "candidate"}
    (output,) = client(project).get_run(run_id).outputs.model_outputs
    model = client(project).get_logged_model(output.model_id)
    assert (
        version.source == model.artifact_location
        and version.tags["checkpoint.sha256"] == model.tags["checkpoint.sha256"]
    )
    assert {"name": "twice", "version": "1"} in json.loads(model.tags["mlflow.modelVersions"])
    suffixes = {path.suffix for path in (project / "mlartifacts").rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pth"}


def test_the_alias_moves_to_a_further_checkpoint_and_says_so(project: Path, call: Call) -> None:
    call(register, "run=run", "name=moving")
    other = project / "other"
    shutil.copytree(project / "run", other)
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(facts | {"uid": "0" * 32}))
    assert "MLflow does not know it" in call(register, "run=other", "name=moving", code=2)
    from brainseg.tracking.upload import upload_run

    upload_run(other)
    said = call(register, "run=other", "name=moving")
    assert "version 2 of moving" in said and "best, taken from version 1" in said
    assert client(project).get_model_version_by_alias("moving", "best").version in (2, "2")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run=nowhere", "name=x"], ["run=nowhere", "not found", "python -m brainseg.sync runs"]),
        (["run=" + "0" * 32, "name=x"], ["not found", "python -m brainseg.sync runs"]),
        (["run=run", "name=a/b"], ["name=a/b", "letters, digits"]),
        (["run=run", "name=x", "alias=latest"], ["alias=latest", "MLflow reserves"]),
        (["run=run", "name=x", "alias=v2"], ["alias=v2", "MLflow reserves"]),
        (["run=run"], ["name must be given; add name=..."]),
        (
            ["run=run", "name=x", "tracking.uri=sqlite:///away.db"],
            ["run=run", "away.db", "python -m brainseg.sync run"],
        ),
        (["run=damaged", "name=x"], ["damaged/run.json", "not what a run writes"]),
    ],
)
def test_a_wrong_request_is_one_line_and_registers_nothing(
    overrides: list[str], words: list[str], project: Path, call: Call
) -> None:
    (project / "damaged").mkdir(exist_ok=True)
    (project / "damaged" / "run.json").write_text("[]")
    error = call(register, *overrides, code=2)
    assert error.count("\n") == 1 and error.startswith("error: ")
    for word in words:
        assert word in error
    assert not (project / "away.db").exists()
    assert client(project).search_model_versions("name = 'x'") == []
