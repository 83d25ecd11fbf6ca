"""Whatever becomes of the run, MLflow has each point once and the state it is in, and the next start goes on in the same MLflow run."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mirrored_runs import Paced, is_complete, mirrored, rows_of, store_of, uid_of
from test_races import repeat, sizes, status_of
from torch import nn
from tracked_runs import write_run
from warm_processes import TINY, Command, call, exit_code, fork, start, wait_until

from brainseg.tracking.client import connect, short_timeouts
from brainseg.tracking.upload import upload_run


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Path:
    """A folder with an empty MLflow store."""
    shutil.copy(template, tmp_path / "mlflow.db")
    return tmp_path


class Broken(nn.Module):
    """A criterion that works `calls` times: three steps an epoch, then one validated patient."""

    def __init__(self, criterion: nn.Module, calls: int) -> None:
        super().__init__()
        self.criterion, self.calls = criterion, calls

    def forward(self, *arguments: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ZeroDivisionError("the criterion broke\nin two lines")
        return self.criterion(*arguments)


class BreakAt:
    """Run in the child: the criterion breaks after so many calls, or the drawing of the curves does."""

    def __init__(self, calls: int | None) -> None:
        self.calls = calls

    def __call__(self) -> None:
        from brainseg.reports import figures
        from brainseg.training import losses

        loss = losses.build_loss
        if self.calls is None:
            figures.draw_curves = lambda *_: 1 / 0  # type: ignore[assignment]
        else:
            losses.build_loss = lambda *asked: Broken(loss(*asked), self.calls)  # type: ignore[assignment]


class NoteStatus:
    """Run in the child: after each update of MLflow, what status it shows, in statuses.txt."""

    def __call__(self) -> None:
        from brainseg.tracking.mirror import Mirror

        update = Mirror.update

        def noted(mirror: Mirror, final: bool = False) -> None:
            mirror.not_before = 0
            update(mirror, final)
            with Path("statuses.txt").open("a") as file:
                file.write(mirror.upload.client.get_run(mirror.upload.run_id).info.status + "\n")

        Mirror.update = noted  # type: ignore[method-assign]


LONG = (*TINY, "epochs=4", "output=run", "resume=auto")


def goes_on(folder: Path, uid: str, run_id: str, *arguments: str, epochs: int = 4) -> None:
    """The next start ends the run, in the same MLflow run, which says RUNNING and then FINISHED."""
    (folder / "statuses.txt").unlink(missing_ok=True)
    start(folder, "train", *(arguments or LONG), before=NoteStatus()).finish()
    shown = (folder / "statuses.txt").read_text().split()
    assert len(shown) >= 2 and set(shown[:-1]) == {"RUNNING"} and shown[-1] == "FINISHED"
    is_complete(folder / "run", epochs)
    run = mirrored(folder / "run", store_of(folder), "FINISHED")
    assert (run.info.run_id, run.data.tags["brainseg.uid"]) == (run_id, uid)


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(5, id="in a step"),
        # A criterion that breaks at its first call fails the check of the request: no run begins.
        *(pytest.param(n, marks=pytest.mark.faults) for n in (1, 3, 4, 7, 11, 15, 16, 17)),
        pytest.param(None, id="in the report", marks=pytest.mark.faults),
    ],
)
def test_a_crash_is_told_here_and_in_mlflow_and_the_run_goes_on(
    project: Path, calls: int | None
) -> None:
    """Calls 3, 7, 11 and 15 are validations, 16 and 17 the scores of the best epoch; None: in the report."""
    said = start(project, "train", *LONG, before=BreakAt(calls)).finish(1)
    assert said.count("run failed: ZeroDivisionError: ") == 1
    run, status = project / "run", status_of(project / "run")
    error = "ZeroDivisionError: " + ("division by zero" if calls is None else "the criterion broke")
    assert (status["state"], status["error"]) == ("failed", error)
    log = (run / "log.txt").read_text()
    assert (
        "Traceback (most recent call last)" in log
        and error in log
        and "test_tracking_stops.py" in log
    )
    record = mirrored(
        run, store_of(project), "FAILED"
    )  # compares the log among the artifacts with ours
    assert record.data.tags["error"] == error
    goes_on(project, uid_of(run), record.info.run_id)


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGKILL, 1),
        *(
            pytest.param(number, 6, marks=pytest.mark.faults)
            for number in (signal.SIGKILL, signal.SIGTERM)
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_the_same_run(
    tmp_path: Path, template: Path, number: signal.Signals, times: int
) -> None:
    """Also twice. After kill -9 nobody could say that it has ended; the next start finds a running run whose process is gone."""

    def stop_and_go_on(case: int) -> None:
        folder, chance = tmp_path / str(case), random.Random(case)
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        record = None
        for epochs in sorted(chance.sample(range(1, 4), chance.randint(1, 2))):
            command = start(
                folder, "train", *LONG, before=Paced(0.3)
            )  # the last epoch outlasts a slow look at the folder
            stop(
                command,
                number,
                lambda epochs=epochs: len(rows_of(folder / "run")) >= epochs,
                chance.random() * 0.1,
            )
            state = status_of(folder / "run")
            assert (state["state"], state["pid"]) == (
                "running" if number == signal.SIGKILL else "killed",
                command.pid,
            )
            before, record = (
                record,
                shown(folder, "RUNNING" if number == signal.SIGKILL else "KILLED"),
            )
            assert before is None or before.info.run_id == record.info.run_id
        goes_on(folder, uid_of(folder / "run"), record.info.run_id)

    repeat(times, stop_and_go_on)


def stop(command: Command, number: signal.Signals, when: Callable[[], Any], later: float) -> None:
    wait_until(when)
    time.sleep(later)
    os.kill(command.pid, number)
    command.finish(-9 if number == signal.SIGKILL else 143)
    with pytest.raises(ProcessLookupError):
        os.kill(command.pid, 0)


def shown(folder: Path, status: str) -> Any:
    """The run in MLflow. After a kill -9 it may lack the last epoch, which the kill came before."""
    if status == "RUNNING":
        with short_timeouts(10):
            mlflow = connect(store_of(folder))
            (record,) = mlflow.search_runs(
                [mlflow.get_experiment_by_name("brainseg").experiment_id]
            )
        assert record.info.status == status
        return record
    return mirrored(folder / "run", store_of(folder), status)


@pytest.mark.parametrize(
    ("keep", "times"),
    [("best", 1), *(pytest.param(keep, 4, marks=pytest.mark.faults) for keep in ("best", "all"))],
)
def test_an_extended_run_is_the_same_run(
    tmp_path: Path, template: Path, keep: str, times: int
) -> None:
    """`resume=RUN epochs=more`, killed in the middle and asked for again, then extended once more."""

    def extend(case: int) -> None:
        folder = tmp_path / str(case)
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        call(folder, "train", *TINY, "epochs=2", "output=run", f"checkpoint.keep={keep}")
        first = mirrored(folder / "run", store_of(folder), "FINISHED")
        command = start(folder, "train", "resume=run", "epochs=5", before=Paced(0.1))
        stop(
            command,
            signal.SIGKILL,
            lambda: len(rows_of(folder / "run")) >= 3,
            random.Random(case).random() * 0.2,
        )
        for epochs in (5, 6):
            call(folder, "train", "resume=run", f"epochs={epochs}")
            is_complete(
                folder / "run", epochs, {"best", "last", "previous"} if keep == "all" else {"best"}
            )
            run = mirrored(folder / "run", store_of(folder), "FINISHED", times=keep == "all")
            assert run.info.run_id == first.info.run_id
            assert run.data.tags["epochs"] == str(epochs)

    repeat(times, extend)


# Killed while it speaks with the store


def mirror_killed_at(folder: Path, moment: int | None) -> None:
    """Mirror a run from beginning to end, killed at `moment`: before or after a call of the client or a file sent, or at a commit."""
    from mlflow import MlflowClient
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from brainseg.tracking.mirror import Mirror

    moments = [0]

    def passing(*_: Any) -> None:
        if moments[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        moments[0] += 1

    def doomed(work: Callable[..., Any]) -> Callable[..., Any]:
        def working(*arguments: Any, **settings: Any) -> Any:
            passing()
            result = work(*arguments, **settings)
            passing()
            return result

        return working

    for kind in (MlflowClient, LocalArtifactRepository):
        for name, work in list(vars(kind).items()):
            if callable(work) and not name.startswith("_"):
                setattr(kind, name, doomed(work))
    event.listen(Engine, "commit", passing)
    mirror = Mirror(folder / "run")
    for epochs, state in ((1, "running"), (2, "running"), (3, "finished")):
        write_run(folder / "run", store_of(folder), epochs, state)
        mirror.not_before = 0
        mirror.update(final=state == "finished")
    assert not mirror.failing
    (folder / "moments.txt").write_text(str(moments[0]))


@pytest.mark.timeout(600)
@sizes(2, 1000)
def test_a_kill_at_any_moment_with_the_store_is_made_good(
    tmp_path: Path, template: Path, times: int
) -> None:
    """The next replicate completes what was cut short."""

    def mirror(name: str, moment: int | None) -> int | None:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        return exit_code(fork(mirror_killed_at, folder, moment), 300)

    def kill(case: int) -> None:
        folder = tmp_path / str(case)
        assert mirror(folder.name, moments[case]) == -signal.SIGKILL
        upload_run(write_run(folder / "run", store_of(folder), 3, "finished"))
        mirrored(folder / "run", store_of(folder), "FINISHED")
        shutil.rmtree(folder)

    assert mirror("whole", None) == 0
    every = range(int((tmp_path / "whole" / "moments.txt").read_text()))
    assert len(every) > 80, "calls, files and commits are seen"
    moments = random.Random(0).sample(every, min(times, len(every)))
    for case in range(len(moments)):
        kill(case)
    print(f"figure: killed at {len(moments)} of {len(every)} moments, 0 wrong")
