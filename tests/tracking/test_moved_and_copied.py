"""A project or a run folder that was moved or copied: its own store, its own artifacts, and nothing of the original is changed."""

import hashlib
import json
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked_runs import client, the_run, write_run

from brainseg import evaluate, register, sync, train
from brainseg.cli.main import run_command
from brainseg.core.places import relocated_database, relocated_path
from brainseg.tracking import runs
from brainseg.tracking.lookup import checkpoint_of, folder_of_run
from brainseg.tracking.moved_store import HOME
from brainseg.tracking.runs import mirror_among, place_tags
from brainseg.tracking.upload import upload_run


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is warned of, also while Hydra has its own handlers."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("brainseg").addHandler(handler)
    yield lines
    logging.getLogger("brainseg").removeHandler(handler)


def content(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def command(folder: Path, module: Any, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        run_command(
            module.__name__.removeprefix("brainseg."),
            module.run,
            module.check_request,
            list(overrides),
        )
    assert stop.value.code == 0


def use(folder: Path, epochs: int, monkeypatch: pytest.MonkeyPatch, run: str = "run") -> Any:
    """Extend, synchronize, register and evaluate the run of a project; returns its MLflow run, whose files are checked."""
    command(
        folder, train, f"resume={run}", f"epochs={epochs}", "force=true", monkeypatch=monkeypatch
    )
    assert sync.run([run]) == 0
    command(folder, register, f"run={run}", "name=lgg", monkeypatch=monkeypatch)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow = client(store)
    experiment = mlflow.get_experiment_by_name("brainseg")
    (found,) = mlflow.search_runs([experiment.experiment_id], f"tags.folder = '{folder / run}'")
    found = mlflow.get_run(found.info.run_id)
    assert experiment.artifact_location == (folder / "mlartifacts").as_uri()
    assert found.info.artifact_uri.startswith(f"{experiment.artifact_location}/")
    assert [
        point.step for point in mlflow.get_metric_history(found.info.run_id, "val/dice")
    ] == list(range(epochs))
    assert (found.data.tags["epochs"], found.info.status) == (str(epochs), "FINISHED")
    metrics = Path(found.info.artifact_uri.removeprefix("file://"), "metrics.jsonl")
    assert metrics.read_bytes() == (folder / run / "metrics.jsonl").read_bytes()
    for name in (f"runs:/{found.info.run_id}", "models:/lgg@best"):
        best = checkpoint_of(name)
        assert (
            best.is_relative_to(folder)
            and best.read_bytes() == (folder / run / "checkpoints" / "best.pt").read_bytes()
        )
    assert folder_of_run(found.info.run_id) == folder / run
    command(
        folder,
        evaluate,
        f"checkpoint={run}",
        "device=cpu",
        "viewer=0",
        "overlays=false",
        monkeypatch=monkeypatch,
    )
    data = json.loads((folder / "evaluations" / Path(run).name / "summary.json").read_text())[
        "data"
    ]
    assert Path(data["path"]).is_relative_to(folder), "also the data are those of this project"
    return found


def test_a_project_that_is_copied_and_then_moved(
    project: Path, tmp_path: Path, monkeypatch: Any, warnings: list[str]
) -> None:
    """Resumed, synchronized, registered and evaluated in the copy, in the original, and where the copy is moved to."""
    original, copy, moved = (
        tmp_path / "original",
        tmp_path / "copy",
        tmp_path / "elsewhere" / "moved",
    )
    shutil.copytree(project, original)
    before = content(project)
    use(original, 6, monkeypatch)
    assert content(project) == before
    shutil.copytree(original, copy)
    before = content(original)
    of_copy = use(copy, 7, monkeypatch)
    assert content(original) == before, "the copy has touched the original"
    assert f"{copy / 'mlflow.db'} was copied from {original}" in "\n".join(warnings)
    before = content(copy)
    of_original = use(original, 8, monkeypatch)
    assert content(copy) == before
    assert of_original.info.run_id != of_copy.info.run_id, (
        "each was extended on a curve of its own, and a curve has a run of its own"
    )

    moved.parent.mkdir()
    shutil.move(copy, moved)
    before = content(original)
    use(moved, 9, monkeypatch)
    assert content(original) == before and not copy.exists(), "the old place is not made again"
    assert f"{moved / 'mlflow.db'} was moved from {copy}" in "\n".join(warnings)


@pytest.mark.slow
def test_a_run_folder_that_is_copied_has_its_own_mlflow_run(
    project: Path, tmp_path: Path, monkeypatch, warnings: list[str]
) -> None:
    """Both folders lie in one project, and so in one store."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    first = use(folder, 6, monkeypatch)
    shutil.copytree(folder / "run", folder / "twin")
    place = Path(first.info.artifact_uri.removeprefix("file://"))
    before, run_before = content(place), first.to_dictionary()
    of_twin = use(folder, 7, monkeypatch, "twin")
    assert (
        content(place) == before
        and client(f"sqlite:///{folder / 'mlflow.db'}").get_run(first.info.run_id).to_dictionary()
        == run_before
    )
    assert (
        of_twin.info.run_id != first.info.run_id
        and of_twin.data.tags["copy_of"] == first.info.run_id
    )
    assert "twin is a copy of" in "\n".join(warnings)
    # No epoch is added here: further ones would be those of another curve, which has an MLflow run of its own.
    assert use(folder, 6, monkeypatch, "run").info.run_id == first.info.run_id
    shutil.move(folder / "twin", folder / "renamed")
    assert use(folder, 7, monkeypatch, "renamed").info.run_id == of_twin.info.run_id, (
        "a run that is moved stays the same run"
    )


def run_with(**tags: str) -> Any:
    return SimpleNamespace(data=SimpleNamespace(tags=tags))


def test_a_folder_on_another_machine_is_that_folder_only_on_a_shared_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same path and number on its disk: the same folder, seen from another node. Another number: a copy."""
    mirrored = run_with(**place_tags(tmp_path))
    monkeypatch.setattr(runs.socket, "gethostname", lambda: "another")
    assert socket.gethostname() == "another"
    assert mirror_among([mirrored], tmp_path, lambda _: False) is mirrored
    mirrored.data.tags["folder.inode"] = "0"
    assert mirror_among([mirrored], tmp_path, lambda _: False) is None, (
        "it may be there, and must not be overwritten"
    )


def test_artifacts_apart_from_the_database_are_not_shared_by_a_copy(
    template: Path, tmp_path: Path
) -> None:
    """tracking.artifacts=/somewhere/else: the copy takes the files in, and leaves the others alone."""
    project, copy, apart = tmp_path / "project", tmp_path / "copy", tmp_path / "big disk"
    project.mkdir()
    shutil.copy(template, project / "mlflow.db")
    store = f"sqlite:///{project / 'mlflow.db'}"
    tracked = {"uri": store, "artifacts": str(apart), "experiment": "brainseg"}
    upload_run(
        write_run(
            project / "run", store, state="finished", tracking=tracked, path=str(project / "run")
        )
    )
    assert the_run(store).info.artifact_uri.startswith(apart.as_uri())
    shutil.copytree(project, copy)
    before = content(apart)
    upload_run(
        write_run(
            copy / "run", store, 5, state="finished", tracking=tracked, path=str(project / "run")
        )
    )
    run = the_run(f"sqlite:///{copy / 'mlflow.db'}")
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    assert content(apart) == before and place.is_relative_to(copy / "mlartifacts")
    assert len((place / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_link_to_a_project_is_no_move(
    template: Path, tmp_path: Path, warnings: list[str]
) -> None:
    project, link = tmp_path / "project", tmp_path / "link"
    project.mkdir()
    link.symlink_to(project)
    shutil.copy(template, project / "mlflow.db")
    store = f"sqlite:///{project / 'mlflow.db'}"
    upload_run(write_run(project / "run", store, path=str(project / "run")))
    warnings.clear()
    before = the_run(store).info.run_id
    upload_run(link / "run", f"sqlite:///{link / 'mlflow.db'}")
    assert the_run(store).info.run_id == before and warnings == []
    assert client(store).get_experiment_by_name("brainseg").tags[HOME] == str(project)


def test_a_run_finds_its_store_and_its_data_where_they_lie_today(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("mlflow.db", "data/a.h5", "runs/a/run.json"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).touch()
    facts = {"path": str(old / "runs" / "a")}
    assert relocated_path(old / "data" / "a.h5", new / "runs" / "a", facts) == new / "data" / "a.h5"
    assert relocated_path(old / "data" / "b.h5", new / "runs" / "a", facts) == old / "data" / "b.h5"
    assert relocated_database(old / "mlflow.db", new / "runs" / "a", facts) == new / "mlflow.db"
    assert relocated_database(old / "mlflow.db", new / "runs" / "a", {}) == new / "mlflow.db", (
        "of a run that knows no path"
    )
    old.mkdir()
    assert relocated_database(old / "mlflow.db", new / "runs" / "a", {}) == old / "mlflow.db", (
        "a store that is yet to be made"
    )
    (new / "mlflow.db").unlink()
    old.rmdir()
    assert relocated_database(old / "mlflow.db", new / "runs" / "a", facts) == new / "mlflow.db", (
        "to be made here, not there"
    )


def test_a_folder_that_holds_another_run_today_is_not_taken_for_the_old_one(
    store: str, tmp_path: Path
) -> None:
    from brainseg.core.errors import RequestError

    upload_run(write_run(tmp_path / "run", store))
    run_id = the_run(store).info.run_id
    assert folder_of_run(run_id, store) == tmp_path / "run"
    write_run(tmp_path / "run", store, uid="uid-2")
    with pytest.raises(RequestError, match="is not on this machine"):
        folder_of_run(run_id, store)
