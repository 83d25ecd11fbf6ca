"""Whatever becomes of the tracking server, training goes on, the folder is complete, and MLflow has each point once."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from mirrored_runs import Paced, is_complete, mirrored
from test_races import status_of
from tracking_servers import Gate, Server
from warm_processes import TINY, call, start, wait_until

SHARE = 0.02  # of the time of a run, that may be spent on tracking
EPOCHS, STEPS = 80, 3  # of the runs under a fault; three steps an epoch
PACE = 0.45  # seconds that a step takes there, as a larger network would: 110 s in all


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


def train_under(
    folder: Path, gate: str, epochs: int, pace: float, meanwhile: Callable[[], None] = lambda: None
) -> Trial:
    command = start(
        folder,
        "train",
        *TINY,
        f"epochs={epochs}",
        f"tracking.uri={gate}",
        "output=run",
        before=Paced(pace),
    )
    wait_until(lambda: status_of(folder / "run").get("state") == "running")
    meanwhile()
    said = command.finish(seconds=900)
    times = json.loads((folder / "times.json").read_text())
    return Trial(folder, said, times["seconds"], times["attempts"])


def unharmed(trial: Trial, epochs: int) -> None:
    """Training has gone to its end and waited for the server at most for the share that it may."""
    is_complete(
        trial.folder / "run", epochs, pictures=["validation.png"] if trial.seconds > 60 else ()
    )
    cost = [seconds for seconds, _ in trial.attempts]
    assert len(cost) == epochs + 2, "when it begins, after each epoch, and at the end"
    assert sum(cost[1:-1]) <= SHARE * trial.seconds, trial.figures()
    assert cost[0] < (1.9 if trial.attempts[0][1] else 5), (
        f"one request of a second, or all that a run begins with: {trial.figures()}"
    )
    if trial.attempts[-1][1]:
        assert cost[-1] < 1.9, f"one request of a second: {trial.figures()}"
        assert "run `python -m brainseg.sync run` later" in trial.said


@pytest.mark.parametrize("mode", ["closed", "hanging", "broken"])
def test_a_short_run_without_a_server_is_complete_and_brought_over_later(
    tmp_path: Path, template: Path, mode: str
) -> None:
    trial = train_under(tmp_path, Gate(mode).uri, epochs=3, pace=0)
    unharmed(trial, epochs=3)
    assert (
        trial.attempts[0][1] and trial.attempts[-1][1] and trial.said.count("tracking failed") == 2
    ), "said first and last"
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
def trials(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[Trial, Gate | None, str]]]:
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
        return train_under(
            base / name,
            gates[name].uri,
            EPOCHS,
            PACE,
            partial(follow, COURSES[name], gates[name].set),
        )

    names = (*COURSES, "real")
    with ThreadPoolExecutor(len(names)) as pool:
        ended = dict(zip(names, pool.map(begin, names), strict=True))
    mortal.wait()
    yield {
        name: (trial, gates.get(name), (mortal if name == "real" else server).uri)
        for name, trial in ended.items()
    }
    for one in (server, mortal):
        one.kill()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("course", [*COURSES, "real"])
def test_two_minutes_of_training_while_the_server_is(
    trials: dict[str, tuple[Trial, Gate | None, str]], course: str
) -> None:
    trial, gate, server = trials[course]
    print(f"figure: {trial.figures()} in tracking calls")
    unharmed(trial, EPOCHS)
    back = gate is None or "back" in course
    assert trial.attempts[-1][1] is not back, trial.said
    if back:
        mirrored(trial.folder / "run", server, "FINISHED")
    else:
        assert sum(seconds for seconds, _ in trial.attempts) <= SHARE * trial.seconds, (
            f"also in all: {trial.figures()}"
        )
        gate.set("open")
    assert "1 of 1 runs are in MLflow" in call(trial.folder, "sync", "run")
    mirrored(trial.folder / "run", server, "FINISHED")
