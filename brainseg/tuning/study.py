"""The study of a search: its trials in one SQLite file, shared by any number of processes. The only module that talks to Optuna's storage.

    runs/search/STUDY.db      every trial: its settings, val/dice of each epoch, how it ended, its run's folder
    runs/search/STUDY/        locks, and the picture

A trial is held by a lock that dies with its process, so that a vanished one is known at once, without a heartbeat. It is then
proposed again as a new trial, which finds the old one's run folder by its settings and goes on there.
"""

import json
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from brainseg.config import SearchConfig
from brainseg.core.errors import check
from brainseg.core.seeds import seed_for
from brainseg.runs.run_folder import RunFolder
from brainseg.tuning.search_space import overrides

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

VANISHINGS = (
    2  # a trial that took its process with it so often (out of memory?) is not proposed again
)


class Study:
    """One study. `begin` a trial, then `finish`, `end` or `set_aside` it: one at a time in a process."""

    def __init__(self, database: Path, settings: dict[str, Any]) -> None:
        """Open it, or begin it with `settings`: what its trials share, and its space. Raises RequestError if it has others."""
        self.database, self.folder = database, database.with_suffix("")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock")
        self.held = FileLock(self.folder / ".none")
        with (
            self.lock,
            named_errors(database),
        ):  # two processes that make the tables at once would fail
            self.optuna = _open(database)
            begun = self.optuna.user_attrs.get("settings")
            if begun is None:
                self.optuna.set_user_attr("settings", settings)
        changed = _differences(begun, settings) if begun is not None else ""
        check(
            not changed,
            "study",
            database.stem,
            f"was begun with other settings: {changed}",
            "name another study=NAME for these",
        )

    def begin(self, config: SearchConfig, space: dict[str, "BaseDistribution"]) -> "Trial | None":
        """The next trial, or None when `config.trials` have ended or are under way somewhere."""
        from optuna.pruners import MedianPruner, NopPruner
        from optuna.samplers import TPESampler

        with self.lock:
            for running in self.trials("RUNNING"):
                self._take_back(running)
            if self.count() >= config.trials:
                return None
            untried = Untried(space, [one.params for one in self._counting()])
            if untried.exhausted and not self.trials("WAITING"):
                print(
                    f"every one of the {untried.size} combinations of the space is tried or under way",
                    flush=True,
                )
                return None
            # Seeded by how many there were, a study that was stopped, even within a trial, proposes what it would have in one go.
            seed = seed_for(config.sampler_seed, "proposal", self.count()) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # constant_liar is experimental: trials under way elsewhere count as poor, not as nothing
                self.optuna.sampler = TPESampler(
                    seed=seed, n_startup_trials=config.random_trials, constant_liar=True
                )
            pruning = config.prune == "median"
            self.optuna.pruner = (
                MedianPruner(config.prune_after, config.prune_warmup - 1)
                if pruning
                else NopPruner()
            )
            trial = self.optuna.ask(space)
            if "resumes" not in trial.user_attrs and untried.has_tried(trial.params):
                trial = self._ask_again(trial, untried.draw(seed), space)
            self.held = self._lock_of(trial.number)
            self.held.acquire(timeout=0)
            return trial

    def _ask_again(
        self, trial: "Trial", params: dict[str, Any], space: "dict[str, BaseDistribution]"
    ) -> "Trial":
        """Set aside a proposal that was tried before, which would run nothing, and return a trial of `params` instead."""
        from optuna.trial import TrialState

        trial.set_user_attr("repeats", True)
        self.optuna.tell(trial, state=TrialState.FAIL)
        self.optuna.enqueue_trial(params)
        return self.optuna.ask(space)

    def finish(self, trial: "Trial") -> float:
        """The run has ended well: its value is the val/dice of its best epoch."""
        summary = json.loads((Path(trial.user_attrs["folder"]) / "summary.json").read_text())
        value = float(summary["best"]["val/dice"])
        self.optuna.tell(trial, value)
        self.held.release()
        return value

    def end(self, trial: "Trial", state: str, reason: str) -> None:
        """Write down that the trial was PRUNED or has FAILed."""
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self.optuna.tell(trial, state=TrialState[state])
        self.held.release()

    def set_aside(self, trial: "Trial | FrozenTrial", vanished: int = 0) -> None:
        """An interrupted trial is to be proposed again; in its place it counts as nothing."""
        from optuna.trial import TrialState

        if (
            trial.number not in self._resumed()
        ):  # a kill between the two lines below must not propose it twice
            self.optuna.enqueue_trial(
                trial.params, user_attrs={"resumes": trial.number, "vanished": vanished}
            )
        self.optuna.tell(trial.number, state=TrialState.FAIL)
        self.held.release()

    def count(self) -> int:
        """Trials that have ended or are under way; what was set aside counts as the trial that resumes it."""
        return len(self._counting())

    def ended(self) -> "list[FrozenTrial]":
        """The trials that count and are no longer under way."""
        return [trial for trial in self._counting() if trial.state.is_finished()]

    def _counting(self) -> "list[FrozenTrial]":
        """Return the trials less those set aside: what another trial resumes, and proposals that were tried before."""
        resumed = self._resumed()
        listed = self.trials("COMPLETE", "PRUNED", "FAIL", "RUNNING")
        return [
            trial
            for trial in listed
            if trial.number not in resumed and "repeats" not in trial.user_attrs
        ]

    def trials(self, *states: str) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.optuna.get_trials(
            deepcopy=False, states=tuple(TrialState[state] for state in states) or None
        )

    def _resumed(self) -> set[int]:
        return {
            trial.user_attrs["resumes"] for trial in self.trials() if "resumes" in trial.user_attrs
        }

    def _take_back(self, trial: "FrozenTrial") -> None:
        """Set a running trial aside if its process is gone; one that has vanished too often stays failed."""
        from optuna.trial import TrialState

        try:
            with self._lock_of(trial.number).acquire(timeout=0):
                vanished = trial.user_attrs.get("vanished", 0) + 1
                if vanished < VANISHINGS or trial.number in self._resumed():
                    print(
                        f"trial {trial.number}: its process is gone; it is tried again", flush=True
                    )
                    self.set_aside(trial, vanished)
                else:
                    self.optuna.tell(trial.number, state=TrialState.FAIL)
        except Timeout:  # it is being run
            pass

    def _lock_of(self, number: int) -> FileLock:
        return FileLock(self.folder / f".trial-{number}.lock")


class Untried:
    """The combinations of a space that no trial has yet."""

    def __init__(self, space: "dict[str, BaseDistribution]", tried: "list[dict[str, Any]]") -> None:
        self.space, self.tried = space, {_typed(params) for params in tried}
        counts = [_count(one) for one in space.values()]
        self.size = (
            math.inf
            if None in counts
            else math.prod(count for count in counts if count is not None)
        )
        self.exhausted = len(self.tried) >= self.size

    def has_tried(self, params: dict[str, Any]) -> bool:
        """Return True if a trial has these settings, as they are typed for its run."""
        return _typed(params) in self.tried

    def draw(self, seed: int) -> dict[str, Any]:
        """Return a combination drawn at random; the space must not be exhausted."""
        generator = random.Random(seed)
        while self.has_tried(
            params := {name: _draw(one, generator) for name, one in self.space.items()}
        ):
            pass
        return params


def _typed(params: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(overrides(params)))


def _count(distribution: "BaseDistribution") -> int | None:
    """Return the number of values of a setting; None where they lie on a continuous scale."""
    choices, step = getattr(distribution, "choices", None), getattr(distribution, "step", None)
    if choices is not None:
        return len(choices)
    return None if step is None else round((distribution.high - distribution.low) / step) + 1  # type: ignore[attr-defined]


def _draw(distribution: "BaseDistribution", generator: random.Random) -> Any:
    """Return one value of a setting, each with the same probability."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return generator.choice(distribution.choices)
    low, high, count = distribution.low, distribution.high, _count(distribution)  # type: ignore[attr-defined]
    if count is None:
        return generator.uniform(low, high)
    value = low + generator.randrange(count) * distribution.step  # type: ignore[attr-defined]
    return value if isinstance(distribution, IntDistribution) else min(value, high)


def name_run(trial: "Trial", folder: RunFolder) -> None:
    """Name the run of a trial in the study: its folder, and the uid under which MLflow has it (tag brainseg.uid)."""
    trial.set_user_attr("folder", str(folder.path))
    trial.set_user_attr("uid", folder.facts["uid"])


@contextmanager
def named_errors(database: Path) -> Iterator[None]:
    """What SQLite refuses, as a full disk or a file that is no database, as an OSError of one line that names the file."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        StorageInternalError,
        SQLAlchemyError,
        RuntimeError,
    ) as error:  # the last: tables of another version of Optuna
        cause = str(error.__cause__ or error).splitlines()[0]
        raise OSError(
            f"study={database}: cannot be used ({cause}); move it away, or name another study=NAME"
        ) from error


def _open(database: Path) -> "OptunaStudy":
    import optuna
    from sqlalchemy.engine import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create(
        "sqlite", database=str(database.resolve())
    ).render_as_string()  # a folder's name may hold signs such as ?
    storage = optuna.storages.RDBStorage(
        url, engine_kwargs={"connect_args": {"timeout": 60}}
    )  # seconds for another's write to end
    return optuna.create_study(
        storage=storage, study_name=database.stem, direction="maximize", load_if_exists=True
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two flat sets of settings."""
    keys = sorted(key for key in before | now if before.get(key) != now.get(key))
    return "; ".join(
        f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in keys
    )
