"""Whatever becomes of the tracking server or of the run, training goes on, the folder is complete, and MLflow has each point once."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_races import COMPLETE, repeat, sizes, status_of
from torch import nn
from tracked_runs import write_run
from tracking_servers import Gate, Server
from warm_processes import TINY, Command, call, exit_code, fork, start, wait_until

from brainseg.records.mlflow_store import connect, limited
from brainseg.records.tracking import FIRST_FILES, LAST_FILES, replicate

SHARE = 0.02  # of the time of a run, that may be spent on tracking
EPOCHS, STEPS = 80, 3  # of the runs under a fault; three steps an epoch
PACE = 0.45  # seconds that a step takes there, as a larger network would: 110 s in all


# What MLflow must hold


def rows_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mirrored(run: Path, uri: str, status: str, times: bool = True) -> Any:
    """Assert that MLflow has this run folder, once: each point, each file, and if finished its model; returns MLflow's run.

    Without `times`: epochs behind the best one were run again, and MLflow keeps when and how fast they were the first time.
    """
    from mlflow.artifacts import download_artifacts

    with limited(10):
        mlflow = connect(uri)
        uid = json.loads((run / "run.json").read_text())["uid"]
        (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("brainseg").experiment_id], f"tags.`brainseg.uid` = '{uid}'")
        record = mlflow.get_run(found.info.run_id)
        points = [point for key in record.data.metrics for point in mlflow.get_metric_history(found.info.run_id, key)]
        artifacts = {item.path for item in mlflow.list_artifacts(found.info.run_id)}
        models = mlflow.search_logged_models([found.info.experiment_id], f"source_run_id = '{found.info.run_id}'")
        stored = {name: Path(download_artifacts(f"runs:/{found.info.run_id}/{name}", tracking_uri=uri)).read_bytes()
                  for name in artifacts & {"log.txt", "metrics.jsonl", "summary.json", "patients.csv"}}
    assert record.info.status == status
    each_point_once(run, points, times)
    ended = status != "RUNNING"
    assert artifacts - {"pictures"} == {name for name in FIRST_FILES + LAST_FILES * ended if (run / name).exists()}
    assert stored == {name: (run / name).read_bytes() for name in stored}
    if ended and rows_of(run):
        best = max(rows_of(run), key=lambda row: row["metrics"]["val/dice"])
        assert (record.data.metrics["best/epoch"], record.data.metrics["best/val_dice"]) == (best["epoch"], best["metrics"]["val/dice"])
    if status == "FINISHED":
        assert "pictures" in artifacts
        assert record.data.metrics["test/dice"] == json.loads((run / "summary.json").read_text())["metrics"]["test/dice"]
        assert {model.status for model in models} == {"READY"}
        assert {model.model_id for model in models} == {output.model_id for output in record.outputs.model_outputs}
    return record


def each_point_once(run: Path, points: list[Any], times: bool) -> None:
    expected = {(key, row["epoch"]): (value, row["time"]) for row in rows_of(run) for key, value in row["metrics"].items()}
    found = {(point.key, point.step): (point.value, point.timestamp) for point in points}
    assert len(found) == len(points), "a point twice"
    assert {key for key, _ in found.keys() - expected.keys()} <= {key for key, _ in found if key.startswith(("best/", "test/"))}
    assert expected.keys() <= found.keys(), "a point is missing"
    if times:
        assert {where: found[where] for where in expected} == expected
    else:
        assert {where: found[where][0] for where in expected if not where[0].startswith("speed/")} == {
            where: value for where, (value, _) in expected.items() if not where[0].startswith("speed/")
        }


def is_complete(run: Path, epochs: int, checkpoints: Iterable[str] = ("best",)) -> None:
    files = COMPLETE | {f"checkpoints/{name}.pt" for name in checkpoints}
    assert {path.relative_to(run).as_posix() for path in run.rglob("[!.]*") if path.is_file()} == files
    assert status_of(run)["state"] == "finished"
    assert [row["epoch"] for row in rows_of(run)] == list(range(epochs))


# A server that is away


class Paced:
    """Run in the child: a step takes `seconds` longer, and what each `Mirror.update` took is written to times.json."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        from brainseg import train
        from brainseg.records.tracking import Mirror
        from brainseg.training import engine

        run, update, augmented = train.run, Mirror.update, engine.augmented
        attempts: list[tuple[float, bool]] = []

        def timed_run(*arguments: Any) -> Any:
            started = time.monotonic()
            outcome = run(*arguments)
            Path("times.json").write_text(json.dumps({"seconds": time.monotonic() - started, "attempts": attempts}))
            return outcome

        def timed_update(mirror: Mirror, final: bool = False) -> None:
            started = time.monotonic()
            update(mirror, final)
            attempts.append((time.monotonic() - started, mirror.failing))

        def slower(*arguments: Any) -> Any:
            time.sleep(self.seconds)
            return augmented(*arguments)

        train.run, Mirror.update, engine.augmented = timed_run, timed_update, slower  # type: ignore[method-assign]


class Trial(NamedTuple):
    """How a training under a fault went: seconds of the run, seconds of each call of `Mirror.update`, and whether it failed."""

    folder: Path
    said: str
    seconds: float
    attempts: list[tuple[float, bool]]

    def figures(self) -> str:
        first, *between, final = (seconds for seconds, _ in self.attempts)
        parts = f"first {first:.2f} s, between {sum(between):.3f} s, final {final:.2f} s"
        return f"{self.folder.name}: {self.seconds:.1f} s; {parts}; in all {(first + sum(between) + final) / self.seconds:.2%}"


def train_under(folder: Path, gate: str, epochs: int, pace: float, meanwhile: Callable[[], None] = lambda: None) -> Trial:
    command = start(folder, "train", *TINY, f"epochs={epochs}", f"tracking.uri={gate}", "output=run", before=Paced(pace))
    wait_until(lambda: status_of(folder / "run").get("state") == "running")
    meanwhile()
    said = command.finish(seconds=900)
    times = json.loads((folder / "times.json").read_text())
    return Trial(folder, said, times["seconds"], times["attempts"])


def unharmed(trial: Trial, epochs: int) -> None:
    """Training has gone to its end and waited for the server at most for the share that it may."""
    is_complete(trial.folder / "run", epochs)
    cost = [seconds for seconds, _ in trial.attempts]
    assert len(cost) == epochs + 2, "when it begins, after each epoch, and at the end"
    assert sum(cost[1:-1]) <= SHARE * trial.seconds, trial.figures()
    assert cost[0] < (1.9 if trial.attempts[0][1] else 5), f"one request of a second, or all that a run begins with: {trial.figures()}"
    if trial.attempts[-1][1]:
        assert cost[-1] < 1.9, f"one request of a second: {trial.figures()}"
        assert "run `python -m brainseg.sync run` later" in trial.said


@pytest.mark.parametrize("mode", ["closed", "hanging", "broken"])
def test_a_short_run_without_a_server_is_complete_and_brought_over_later(tmp_path: Path, template: Path, mode: str) -> None:
    trial = train_under(tmp_path, Gate(mode).uri, epochs=3, pace=0)
    unharmed(trial, epochs=3)
    assert trial.attempts[0][1] and trial.attempts[-1][1] and trial.said.count("tracking failed") == 2, "said first and last"
    shutil.copy(template, tmp_path / "mlflow.db")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(2):
        assert "1 of 1 runs are in MLflow" in call(tmp_path, "sync", "run", f"tracking.uri={store}")
        mirrored(tmp_path / "run", store, "FINISHED")


# The mode of the port from each share of the run on.
COURSES = {
    "absent": {0: "closed"},
    "hanging": {0: "hanging"},
    "broken": {0: "broken"},
    "absent, back": {0: "closed", 0.3: "open"},
    "broken, back": {0: "broken", 0.3: "open"},
    "killed, back": {0: "open", 0.3: "closed", 0.5: "open"},
    "hung, back": {0: "open", 0.3: "hanging", 0.5: "open"},
    "answers lost, back": {0: "cutting", 0.5: "open"},
    "answers lost later, back": {0: "open", 0.2: "cutting", 0.5: "open"},
}


def follow(course: dict[float, str], turn: Callable[[str], None]) -> None:
    started = time.monotonic()
    for share, mode in course.items():
        time.sleep(max(0, started + share * EPOCHS * STEPS * PACE - time.monotonic()))
        turn(mode)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Trial, Gate | None, str]]]:
    """All courses, two minutes each, at the same time: they mostly sleep. And a real server, killed and started again.

    They begin three seconds apart: ten imports of MLflow, and ten final uploads, at once keep a small server busy for longer
    than the second that a request may take.
    """
    base = tmp_path_factory.mktemp("trials")
    server, mortal = Server(base / "server"), Server(base / "mortal")
    for one in (server, mortal):
        one.wait()
    gates = {name: Gate(course[0], server.uri) for name, course in COURSES.items()}
    turns = {"killed": mortal.kill, "started": mortal.start}

    def begin(name: str) -> Trial:
        time.sleep(3 * names.index(name))
        if name == "real":
            course = partial(follow, {0.3: "killed", 0.5: "started"}, lambda what: turns[what]())
            return train_under(base / name, mortal.uri, EPOCHS, PACE, course)
        return train_under(base / name, gates[name].uri, EPOCHS, PACE, partial(follow, COURSES[name], gates[name].set))

    names = (*COURSES, "real")
    with ThreadPoolExecutor(len(names)) as pool:
        ended = dict(zip(names, pool.map(begin, names), strict=True))
    mortal.wait()
    yield {name: (trial, gates.get(name), (mortal if name == "real" else server).uri) for name, trial in ended.items()}
    for one in (server, mortal):
        one.kill()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("course", [*COURSES, "real"])
def test_two_minutes_of_training_while_the_server_is(trials: dict[str, tuple[Trial, Gate | None, str]], course: str) -> None:
    trial, gate, server = trials[course]
    print(f"figure: {trial.figures()} in tracking calls")
    unharmed(trial, EPOCHS)
    back = gate is None or "back" in course
    assert trial.attempts[-1][1] is not back, trial.said
    if back:
        mirrored(trial.folder / "run", server, "FINISHED")
    else:
        assert sum(seconds for seconds, _ in trial.attempts) <= SHARE * trial.seconds, f"also in all: {trial.figures()}"
        gate.set("open")
    assert "1 of 1 runs are in MLflow" in call(trial.folder, "sync", "run")
    mirrored(trial.folder / "run", server, "FINISHED")


# A run that does not end well


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Path:
    """A folder with an empty MLflow store."""
    shutil.copy(template, tmp_path / "mlflow.db")
    return tmp_path


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


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
        from brainseg import train

        loss = train.build.loss
        if self.calls is None:
            train.figures.curves = lambda *_: 1 / 0  # type: ignore[assignment]
        else:
            train.build.loss = lambda *asked: Broken(loss(*asked), self.calls)  # type: ignore[assignment]


class NoteStatus:
    """Run in the child: after each update of MLflow, what status it shows, in statuses.txt."""

    def __call__(self) -> None:
        from brainseg.records.tracking import Mirror

        update = Mirror.update

        def noted(mirror: Mirror, final: bool = False) -> None:
            mirror.not_before = 0
            update(mirror, final)
            with Path("statuses.txt").open("a") as file:
                file.write(mirror.tracker.client.get_run(mirror.tracker.run_id).info.status + "\n")

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


def uid_of(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["uid"]


@pytest.mark.parametrize("calls", [
    pytest.param(5, id="in a step"), *(pytest.param(n, marks=pytest.mark.faults) for n in (0, 1, 3, 4, 7, 11, 15, 16, 17)),
    pytest.param(None, id="in the report", marks=pytest.mark.faults),
])
def test_a_crash_is_told_here_and_in_mlflow_and_the_run_goes_on(project: Path, calls: int | None) -> None:
    """Calls 3, 7, 11 and 15 are validations, 16 and 17 the scores of the best epoch; None: in the report."""
    said = start(project, "train", *LONG, before=BreakAt(calls)).finish(1)
    assert said.count("run failed: ZeroDivisionError: ") == 1
    run, status = project / "run", status_of(project / "run")
    error = "ZeroDivisionError: " + ("division by zero" if calls is None else "the criterion broke")
    assert (status["state"], status["error"]) == ("failed", error)
    log = (run / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log and error in log and "test_tracking_faults.py" in log
    record = mirrored(run, store_of(project), "FAILED")  # compares the log among the artifacts with ours
    assert record.data.tags["error"] == error
    goes_on(project, uid_of(run), record.info.run_id)


@pytest.mark.parametrize(("number", "times"), [
    (signal.SIGKILL, 1), *(pytest.param(number, 6, marks=pytest.mark.faults) for number in (signal.SIGKILL, signal.SIGTERM)),
])
def test_a_run_that_was_stopped_goes_on_as_the_same_run(tmp_path: Path, template: Path, number: signal.Signals, times: int) -> None:
    """Also twice. After kill -9 nobody could say that it has ended; the next start finds a running run whose process is gone."""

    def stop_and_go_on(case: int) -> None:
        folder, chance = tmp_path / str(case), random.Random(case)
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        record = None
        for epochs in sorted(chance.sample(range(1, 4), chance.randint(1, 2))):
            command = start(folder, "train", *LONG, before=Paced(0.3))  # the last epoch outlasts a slow look at the folder
            stop(command, number, lambda epochs=epochs: len(rows_of(folder / "run")) >= epochs, chance.random() * 0.1)
            state = status_of(folder / "run")
            assert (state["state"], state["pid"]) == ("running" if number == signal.SIGKILL else "killed", command.pid)
            before, record = record, shown(folder, "RUNNING" if number == signal.SIGKILL else "KILLED")
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
        with limited(10):
            mlflow = connect(store_of(folder))
            (record,) = mlflow.search_runs([mlflow.get_experiment_by_name("brainseg").experiment_id])
        assert record.info.status == status
        return record
    return mirrored(folder / "run", store_of(folder), status)


@pytest.mark.parametrize(("keep", "times"), [("best", 1), *(pytest.param(keep, 4, marks=pytest.mark.faults) for keep in ("best", "all"))])
def test_an_extended_run_is_the_same_run(tmp_path: Path, template: Path, keep: str, times: int) -> None:
    """`resume=RUN epochs=more`, killed in the middle and asked for again, then extended once more."""

    def extend(case: int) -> None:
        folder = tmp_path / str(case)
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        call(folder, "train", *TINY, "epochs=2", "output=run", f"checkpoint.keep={keep}")
        first = mirrored(folder / "run", store_of(folder), "FINISHED")
        command = start(folder, "train", "resume=run", "epochs=5", before=Paced(0.1))
        stop(command, signal.SIGKILL, lambda: len(rows_of(folder / "run")) >= 3, random.Random(case).random() * 0.2)
        for epochs in (5, 6):
            call(folder, "train", "resume=run", f"epochs={epochs}")
            is_complete(folder / "run", epochs, {"best", "last", "previous"} if keep == "all" else {"best"})
            run = mirrored(folder / "run", store_of(folder), "FINISHED", times=keep == "all")
            assert run.info.run_id == first.info.run_id
            assert (run.data.params["epochs"], run.data.tags["extended.epochs"]) == ("2", str(epochs))

    repeat(times, extend)


# Killed while it speaks with the store


def mirror_killed_at(folder: Path, moment: int | None) -> None:
    """Mirror a run from beginning to end, killed at `moment`: they are before and after each call of the client, and at each commit."""
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from brainseg.records.tracking import Mirror

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

    for name, work in list(vars(MlflowClient).items()):
        if callable(work) and not name.startswith("_"):
            setattr(MlflowClient, name, doomed(work))
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
def test_a_kill_at_any_moment_with_the_store_is_made_good(tmp_path: Path, template: Path, times: int) -> None:
    """The next replicate completes what was cut short."""

    def mirror(name: str, moment: int | None) -> int | None:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        return exit_code(fork(mirror_killed_at, folder, moment), 300)

    def kill(case: int) -> None:
        folder = tmp_path / str(case)
        assert mirror(folder.name, moments[case]) == -signal.SIGKILL
        replicate(write_run(folder / "run", store_of(folder), 3, "finished"))
        mirrored(folder / "run", store_of(folder), "FINISHED")
        shutil.rmtree(folder)

    assert mirror("whole", None) == 0
    every = range(int((tmp_path / "whole" / "moments.txt").read_text()))
    assert len(every) > 80, "calls and commits are seen"
    moments = random.Random(0).sample(every, min(times, len(every)))
    for case in range(len(moments)):
        kill(case)
    print(f"figure: killed at {len(moments)} of {len(every)} moments, 0 wrong")
