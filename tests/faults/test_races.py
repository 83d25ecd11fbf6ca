"""Many processes at once: on a store that is not there yet, on one run folder, on a cohort that is not there yet."""

import hashlib
import json
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked_runs import COMPLETE, write_run
from warm_processes import TINY, WARM, Command, exit_code, fork, start, wait_until

from brainseg.config import PhantomConfig

COHORT = PhantomConfig(patients=8, slices=4, size=32)


def sizes(few: int, many: int) -> Any:
    """The same test twice: a share of it in `make test`, all of it in `make test-faults`."""
    return pytest.mark.parametrize(
        "times",
        [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.faults)],
    )


def repeat(times: int, once: Callable[[int], None]) -> None:
    """`once(0)` to `once(times - 1)`, two at a time, as there are at least two cores."""
    with ThreadPoolExecutor(min(times, 2)) as pool:
        list(pool.map(once, range(times)))
    print(f"figure: {times} times, 0 wrong")


def together(
    target: Callable[..., None], arguments: list[tuple[Any, ...]], seconds: float = 600
) -> list[int | None]:
    """The exit codes of a process for each of `arguments`, all released by one barrier, which they get as their last argument."""
    barrier = WARM.Barrier(len(arguments), timeout=300)
    processes = [fork(target, *one, barrier) for one in arguments]
    return [exit_code(process, seconds) for process in processes]


# A store that is not there yet


def begin_and_end(folder: Path, store: str, barrier: Any) -> None:
    """What training does: mirror the run when it begins and when it has ended. What goes wrong ends up in `error.txt`."""
    from brainseg.tracking.mirror import Mirror

    mirror = Mirror(folder)
    mirror._failed = lambda error, final, remedy=None: (folder / "error.txt").write_text(
        "".join(traceback.format_exception(error))
    )  # type: ignore
    barrier.wait()
    mirror.update()
    write_run(folder, store, epochs=3, state="finished", uid=folder.name)
    mirror.update(final=True)


@pytest.mark.timeout(1200)
@sizes(1, 50)
def test_eight_processes_start_on_a_fresh_store(tmp_path: Path, times: int) -> None:
    def start_eight(number: int) -> None:
        store = f"sqlite:///{tmp_path / str(number) / 'mlflow.db'}"
        folders = [
            write_run(tmp_path / str(number) / f"run-{n}", store, epochs=1, uid=f"run-{n}")
            for n in range(8)
        ]
        assert together(begin_and_end, [(folder, store) for folder in folders]) == [0] * 8
        errors = [path.read_text() for path in tmp_path.glob(f"{number}/*/error.txt")]
        assert not errors, f"start {number}: {len(errors)} failed, the first with\n{errors[0]}"
        each_run_is_there_once(store, {folder.name for folder in folders})

    repeat(times, start_eight)


def each_run_is_there_once(store: str, uids: set[str]) -> None:
    from brainseg.tracking.client import connect, short_timeouts

    with short_timeouts(10):
        mlflow = connect(store)
        (experiment,) = [
            entry.experiment_id for entry in mlflow.search_experiments() if entry.name != "Default"
        ]
        runs = mlflow.search_runs([experiment])
        assert sorted(run.data.tags["brainseg.uid"] for run in runs) == sorted(uids)
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            for key in ("train/loss", "val/dice", "speed/epoch_seconds"):
                assert [
                    point.step for point in mlflow.get_metric_history(run.info.run_id, key)
                ] == [1, 2, 3]
            assert "patients.csv" in {
                artifact.path for artifact in mlflow.list_artifacts(run.info.run_id)
            }
        assert len(mlflow.search_logged_models([experiment])) == len(uids)


# One run folder


class MeetAtTheLock:
    """Run in the child: wait for the other before taking the lock, then train only when `released`."""

    def __init__(self, barrier: Any, released: Any, at_the_lock: bool) -> None:
        self.barrier, self.released, self.at_the_lock = barrier, released, at_the_lock

    def __call__(self) -> None:
        from brainseg import train
        from brainseg.runs.run_folder import RunFolder

        active, fit = RunFolder.active, train.fit

        def meet(*arguments: Any) -> Any:
            self.barrier.wait()
            return active(*arguments)

        def wait_and_fit(*arguments: Any) -> None:
            self.released.wait(600)
            fit(*arguments)

        train.fit = wait_and_fit
        if self.at_the_lock:
            RunFolder.active = meet  # type: ignore[method-assign]
        else:
            self.barrier.wait()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from brainseg.data.phantom.cohort import ensure_cohort

    folder = str(tmp_path_factory.mktemp("cohort"))
    return ensure_cohort(
        PhantomConfig(COHORT.patients, COHORT.slices, COHORT.size, COHORT.seed, folder)
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("at_the_lock", [True, False], ids=["at the lock", "at the command"])
@sizes(1, 50)
def test_of_two_runs_on_one_folder_one_wins(
    tmp_path: Path, cohort: Path, times: int, at_the_lock: bool
) -> None:
    def race(number: int) -> None:
        folder, released = tmp_path / str(number), WARM.Event()
        before = MeetAtTheLock(WARM.Barrier(2, timeout=300), released, at_the_lock)
        arguments = (
            *TINY,
            "epochs=2",
            "tracking=none",
            f"data.path={cohort}",
            "resume=auto",
            "output=run",
        )
        since = int(time.time())
        commands = [start(folder, "train", *arguments, before=before) for _ in range(2)]
        wait_until(lambda: any(exit_code(command.process) is not None for command in commands))
        released.set()
        loser, winner = sorted(commands, key=lambda command: exit_code(command.process) is None)
        winner.finish()
        said = loser.finish(2)
        names_the_holder(said, winner, since)
        is_complete(folder / "run", winner, epochs=2)

    repeat(times, race)


def names_the_holder(said: str, holder: Command, since: int) -> None:
    """One line that says host, pid and since when."""
    assert said.count("\n") == 1, said
    found = re.search(r"in use by pid (\d+) on (\S+) since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", said)
    assert found, said
    assert (int(found[1]), found[2]) == (holder.pid, socket.gethostname())
    assert since <= time.mktime(time.strptime(found[3], "%Y-%m-%d %H:%M:%S")) <= time.time()


def is_complete(run: Path, owner: Command, epochs: int) -> None:
    """The folder of a finished run, all of it by `owner` and nobody else."""
    assert {
        path.relative_to(run).as_posix() for path in run.rglob("[!.]*") if path.is_file()
    } == COMPLETE
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["pid"], status["host"]) == (
        "finished",
        owner.pid,
        socket.gethostname(),
    )
    assert [
        json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == list(range(epochs))
    log = (run / "log.txt").read_text()
    assert len(re.findall(r"epoch +\d+  train/loss", log)) == epochs and "Traceback" not in log


@sizes(1, 10)
def test_a_lock_left_by_a_kill_is_taken(tmp_path: Path, cohort: Path, times: int) -> None:
    """The next start, with the same command, takes the folder; a third one meanwhile is refused and told of the second."""

    def kill_and_go_on(number: int) -> None:
        folder = tmp_path / str(number)
        arguments = (
            *TINY,
            "epochs=2",
            "tracking=none",
            f"data.path={cohort}",
            "resume=auto",
            "output=run",
        )
        waiting = partial(MeetAtTheLock, WARM.Barrier(1))
        killed = start(folder, "train", *arguments, before=waiting(WARM.Event(), at_the_lock=False))
        wait_until(lambda: status_of(folder / "run").get("state") == "running")
        os.kill(killed.pid, signal.SIGKILL)
        killed.finish(-signal.SIGKILL)
        assert status_of(folder / "run") | {"state": "running", "pid": killed.pid} == status_of(
            folder / "run"
        )

        released, since = WARM.Event(), int(time.time())
        second = start(folder, "train", *arguments, before=waiting(released, at_the_lock=False))
        wait_until(lambda: status_of(folder / "run").get("pid") == second.pid)
        names_the_holder(start(folder, "train", *arguments).finish(2), second, since)
        released.set()
        second.finish()
        is_complete(folder / "run", second, epochs=2)

    repeat(times, kill_and_go_on)


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}


def test_who_comes_after_the_winner_has_finished_is_still_refused_other_settings(
    tmp_path: Path, cohort: Path
) -> None:
    """Both found the folder free; then one ran to its end before the other took the lock."""
    released, late = WARM.Event(), WARM.Barrier(2, timeout=300)
    released.set()
    arguments = (*TINY, "epochs=1", "tracking=none", f"data.path={cohort}", "output=run")
    other = start(
        tmp_path,
        "train",
        *arguments,
        "seed=7",
        before=MeetAtTheLock(late, released, at_the_lock=True),
    )
    wait_until(lambda: late.n_waiting == 1)
    winner = start(tmp_path, "train", *arguments, "seed=3")
    winner.finish()
    late.wait()
    said = other.finish(2)
    assert "seed" in said and "Traceback" not in said, said
    is_complete(tmp_path / "run", winner, epochs=1)


# A cohort that is not there yet


def ask(folder: Path, killed_at: int | None, barrier: Any) -> None:
    """Ask for the cohort; note who makes it and what each one got, the moment it got it.

    The first maker kills itself at the patient number `killed_at`; at 8 before the HDF5 file, at 9 before that gets its name.
    """
    from brainseg.core import files
    from brainseg.data import conversion
    from brainseg.data.phantom import cohort as phantom

    moments = [0]

    def doomed(work: Callable[..., Any], what: str = "") -> Callable[..., Any]:
        def working(*arguments: Any, **settings: Any) -> Any:
            if what:
                note(folder, what)
            if moments[0] == killed_at and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            moments[0] += work is not write
            return work(*arguments, **settings)

        return working

    write = phantom.write_cohort
    phantom.write_cohort, conversion.convert = (
        doomed(write, "write"),
        doomed(conversion.convert, "prepare"),
    )
    phantom.make_patient, replace = doomed(phantom.make_patient), doomed(os.replace)
    files.os = SimpleNamespace(**vars(os) | {"replace": replace})  # type: ignore[assignment]
    barrier.wait()
    path = phantom.ensure_cohort(
        PhantomConfig(
            COHORT.patients, COHORT.slices, COHORT.size, COHORT.seed, str(folder / "data")
        )
    )
    note(folder, f"got {path} {hashlib.sha256(path.read_bytes()).hexdigest()}")


def note(folder: Path, line: str) -> None:
    with (folder / "notes.txt").open("a") as file:
        file.write(f"{line}\n")


@sizes(1, 10)
@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_six_processes_ask_for_a_cohort_and_one_makes_it(
    tmp_path: Path, cohort: Path, times: int, killed: bool
) -> None:
    """All get the same bytes; if the one that makes it is killed, at whatever moment, another one does."""
    expected = hashlib.sha256(cohort.read_bytes()).hexdigest()

    def ask_six(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        codes = together(ask, [(folder, number if killed else None)] * 6)
        assert sorted(codes, key=str) == ([-signal.SIGKILL] if killed else [0]) + [0] * 5
        lines = (folder / "notes.txt").read_text().splitlines()
        got = [line for line in lines if line.startswith("got")]
        assert got == [f"got {folder / 'data' / cohort.name} {expected}"] * (6 - killed)
        if not killed:
            assert [line for line in lines if not line.startswith("got")] == ["write", "prepare"]
            assert {path.suffix for path in (folder / "data").iterdir()} == {"", ".h5", ".lock"}, (
                "nothing half made"
            )

    repeat(times, ask_six)
