"""Studies in a journal and on a PostgreSQL server, and searches whose workers share one."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, running_postgres
from searching import LR, TINY, call
from warm_processes import start

from brainseg.config import SearchConfig
from brainseg.core.errors import RequestError
from brainseg.tuning.study import Study

pytestmark = pytest.mark.usefixtures("empty_folder")
DATABASE = Path("runs/search/shared.db")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("server").url
    return "journal:journals/shared.log" if request.param == "journal" else "sqlite"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("mysql://a@b/c", "must be sqlite, journal:FILE or postgresql://"),
        ("journal:", "must be sqlite, journal:FILE"),
        ("postgresql://host", "must be sqlite, journal:FILE"),
        ("postgresql://me:secret@host/db", "must not contain a password"),
        ("postgresql://me@host/db?password=secret", "must not contain a password"),
        ("postgresql://me:secret@[::1/db", "must be sqlite, journal:FILE or postgresql://"),
    ],
)
def test_other_storages_and_passwords_are_refused(storage: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        SearchConfig(storage=storage)
    assert "secret" not in str(error.value)


def test_a_trial_belongs_to_one_session_until_that_ends(storage: str) -> None:
    from optuna.distributions import FloatDistribution

    space, config = {"optimizer.lr": FloatDistribution(1e-4, 1e-1)}, SearchConfig(trials=3)
    name = f"sessions-{storage.partition(':')[0]}"
    first, second = (Study(DATABASE.with_stem(name), {"epochs": "4"}, storage) for _ in range(2))
    trial = first.begin(config, space)
    assert trial is not None
    other = second.begin(config, space)
    assert other is not None and other.number == 1
    assert not second.locks.acquire_trial(0), "a session of its own holds the first trial"
    # The lock ends with the first session. The trial is then proposed again.
    first.locks.release_trial(0)
    resumed = second.begin(config, space)
    assert resumed is not None and resumed.params == trial.params
    assert resumed.user_attrs["resumes"] == 0 and second.count() == 2
    with pytest.raises(RequestError, match="epochs was 4, is 5"):
        Study(DATABASE.with_stem(name), {"epochs": "5"}, storage)


def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("psycopg")
    nowhere = "storage=postgresql://me@127.0.0.1:1/db"
    assert call(monkeypatch, *TINY, LR, "trials=1", nowhere) == 1
    printed = capsys.readouterr().err
    assert "study=postgresql://me@127.0.0.1:1/db: cannot be used" in printed
    assert "check storage, and that the server answers" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_workers_make_exactly_the_trials_though_one_is_killed(
    empty_folder: Path, server: PostgresServer
) -> None:
    shared_trials(empty_folder, server.url, workers=8, trials=16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_workers_share_a_journal_though_one_is_killed(empty_folder: Path) -> None:
    shared_trials(empty_folder, "journal:journals/shared.log", workers=3, trials=8)


def shared_trials(folder: Path, storage: str, workers: int, trials: int) -> None:
    """Run a search with workers, kill one, and complete the search with a second start."""
    command = [
        *TINY,
        LR,
        "tracking=none",
        "study=shared",
        f"storage={storage}",
        f"trials={trials}",
        f"workers={workers}",
        "prune=none",
    ]
    process = start(folder, "search", *command)
    end = time.monotonic() + 900
    while not (victim := worker_with_trial(folder)):
        assert time.monotonic() < end
        time.sleep(0.2)
    os.kill(victim, signal.SIGKILL)
    process.finish(1)
    start(folder, "search", *command).finish(0)
    study = Study(DATABASE, settings_of(storage), storage)
    ended = study.ended_trials()
    assert Counter(trial.state.name for trial in ended) == {"COMPLETE": trials}
    assert len({trial.user_attrs["folder"] for trial in ended}) == trials, "none twice"
    assert study.trials("RUNNING") == []
    assert len(list(folder.glob("runs/search/shared/worker-*.txt"))) == workers


def worker_with_trial(folder: Path) -> int | None:
    """The process of a run that is training, after two other runs have finished."""
    import json

    states = [json.loads(path.read_text()) for path in folder.glob("runs/*/status.json")]
    running = [state["pid"] for state in states if state["state"] == "running"]
    finished = [state for state in states if state["state"] == "finished"]
    return running[0] if running and len(finished) >= 2 else None


def settings_of(storage: str) -> dict:
    import optuna

    from brainseg.tuning.storage import open_storage

    opened, _ = open_storage(storage, DATABASE)
    return optuna.load_study(study_name="shared", storage=opened).user_attrs["settings"]
