"""The study of a search: its trials in one storage, shared by any number of processes.

    runs/search/STUDY.db      every trial: settings, val/dice of each epoch, state, run folder
    runs/search/STUDY/        locks, and the picture

The trials can also be in a journal or on a server (`storage.py`). A process holds a lock for its
trial, and the lock disappears with the process. Another process therefore detects a crash. The
trial is then proposed again as a new trial, which finds the run folder of the old trial by its
settings and resumes that run.
"""

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config import SearchConfig
from brainseg.core.errors import check
from brainseg.core.seeds import seed_for
from brainseg.runs.run_folder import RunFolder
from brainseg.tuning.search_space import to_overrides
from brainseg.tuning.storage import POSTGRESQL, open_storage, place_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

# A trial whose process was killed this many times is not proposed again. It may need more memory
# than there is, and would end every process that runs it.
MAX_CRASHES = 2
# Random draws per tried combination before a space counts as exhausted. Each combination that is
# left would be missed with a chance of e^-100.
MAX_DRAWS = 100


class Study:
    """Study of a search. A process runs one trial at a time.

    It calls `begin`, and after the run `finish`, `end` or `set_aside`.
    """

    def __init__(self, database: Path, settings: dict[str, Any], storage: str = "sqlite") -> None:
        """Open the study, or create it with `settings`.

        `settings` are the settings that all trials share, and the space. `storage` is described in
        `storage.py`. Raises RequestError if the study was created with other settings, and OSError
        if the storage cannot be used.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.folder = database.stem, database.with_suffix("")
        self.place = place_of(storage, database)
        self.folder.mkdir(parents=True, exist_ok=True)
        with naming_storage(self.place):
            opened, self.locks = open_storage(storage, database)
        with naming_storage(self.place), self.locks.study():
            self.optuna = optuna.create_study(
                storage=opened, study_name=self.name, direction="maximize", load_if_exists=True
            )
            stored_settings = self.optuna.user_attrs.get("settings")
            if stored_settings is None:
                self.optuna.set_user_attr("settings", settings)
        changed = (
            _describe_changes(stored_settings, settings) if stored_settings is not None else ""
        )
        check(
            not changed,
            "study",
            self.name,
            f"was created with other settings: {changed}",
            "repeat those settings, or choose another study=NAME",
        )

    def begin(self, config: SearchConfig, space: dict[str, "BaseDistribution"]) -> "Trial | None":
        """Return the next trial, or None if no trial is left to run.

        No trial is left if `config.trials` trials have ended or are running in some process, or if
        every combination of the space was tried.
        """
        from optuna.pruners import MedianPruner, NopPruner
        from optuna.samplers import TPESampler

        with self.locks.study():
            for running in self.trials("RUNNING"):
                self._recover_crashed(running)
            if self.count() >= config.trials:
                return None
            # Seeded by the number of trials, an interrupted study makes the same proposals as an
            # uninterrupted one, even if it was interrupted within a trial.
            seed = seed_for(config.sampler_seed, "proposal", self.count()) % 2**32
            untried = UntriedCombinations(space, [trial.params for trial in self._counted_trials()])
            replacement = untried.draw(seed)
            if replacement is None and not self.trials("WAITING"):
                print(
                    f"all {len(untried.tried)} combinations of the space were tried or are running",
                    flush=True,
                )
                return None
            with warnings.catch_warnings():
                # Optuna warns that constant_liar is experimental. The option makes trials that run
                # in other processes count as poor instead of being ignored.
                warnings.simplefilter("ignore")
                self.optuna.sampler = TPESampler(
                    seed=seed,
                    n_startup_trials=config.random_trials,
                    constant_liar=True,
                    # The default is False in Optuna 4 and True in Optuna 5. The trials of a study
                    # must not depend on the version.
                    multivariate=False,
                )
            self.optuna.pruner = (
                MedianPruner(config.prune_after, config.prune_warmup - 1)
                if config.prune == "median"
                else NopPruner()
            )
            trial = self.optuna.ask(space)
            is_new = "resumes" not in trial.user_attrs
            if replacement is not None and is_new and untried.has_tried(trial.params):
                trial = self._replace_proposal(trial, replacement, space)
            self.locks.acquire_trial(trial.number)
            return trial

    def _replace_proposal(
        self, trial: "Trial", params: dict[str, Any], space: "dict[str, BaseDistribution]"
    ) -> "Trial":
        """Fail a proposal that was tried before, and return a trial of `params` instead.

        A run with the same settings exists, so that the proposal would run nothing.
        """
        from optuna.trial import TrialState

        trial.set_user_attr("repeats", True)
        self.optuna.tell(trial, state=TrialState.FAIL)
        self.optuna.enqueue_trial(params)
        return self.optuna.ask(space)

    def finish(self, trial: "Trial") -> float:
        """Record that the run of a trial finished.

        Returns the value of the trial: val/dice of the run's best epoch.
        """
        summary = json.loads((Path(trial.user_attrs["folder"]) / "summary.json").read_text())
        value = float(summary["best"]["val/dice"])
        self.optuna.tell(trial, value)
        self.locks.release_trial(trial.number)
        return value

    def end(self, trial: "Trial", state: str, reason: str) -> None:
        """Record that a trial ended without a value. `state` is PRUNED or FAIL."""
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self.optuna.tell(trial, state=TrialState[state])
        self.locks.release_trial(trial.number)

    def set_aside(self, trial: "Trial | FrozenTrial", vanished: int = 0) -> None:
        """Propose an interrupted trial again, and exclude the interrupted trial from all counts.

        `vanished` is how often its process was killed.
        """
        from optuna.trial import TrialState

        # A crash between the two calls below must not lead to a second proposal.
        if trial.number not in self._resumed_numbers():
            self.optuna.enqueue_trial(
                trial.params, user_attrs={"resumes": trial.number, "vanished": vanished}
            )
        self.optuna.tell(trial.number, state=TrialState.FAIL)
        self.locks.release_trial(trial.number)

    def count(self) -> int:
        """Return the number of trials that have ended or are running.

        An interrupted trial and the trial that resumes it count once.
        """
        return len(self._counted_trials())

    def ended_trials(self) -> "list[FrozenTrial]":
        """Return the counted trials that are no longer running."""
        return [trial for trial in self._counted_trials() if trial.state.is_finished()]

    def _counted_trials(self) -> "list[FrozenTrial]":
        """Return all trials except resumed ones and proposals that were tried before."""
        resumed = self._resumed_numbers()
        candidates = self.trials("COMPLETE", "PRUNED", "FAIL", "RUNNING")
        return [
            trial
            for trial in candidates
            if trial.number not in resumed and "repeats" not in trial.user_attrs
        ]

    def trials(self, *states: str) -> "list[FrozenTrial]":
        """Return Optuna's trials in any of `states`, or in every state without arguments."""
        from optuna.trial import TrialState

        return self.optuna.get_trials(
            deepcopy=False, states=tuple(TrialState[state] for state in states) or None
        )

    def _resumed_numbers(self) -> set[int]:
        """Return the numbers of the trials that were proposed again."""
        return {
            trial.user_attrs["resumes"] for trial in self.trials() if "resumes" in trial.user_attrs
        }

    def _recover_crashed(self, trial: "FrozenTrial") -> None:
        """Propose a running trial again if its process no longer exists.

        A trial whose process was killed `MAX_CRASHES` times fails instead.
        """
        from optuna.trial import TrialState

        if not self.locks.acquire_trial(trial.number):
            # A process holds the lock, so the trial is still running.
            return
        vanished = trial.user_attrs.get("vanished", 0) + 1
        if vanished < MAX_CRASHES or trial.number in self._resumed_numbers():
            print(
                f"trial {trial.number}: its process no longer exists; the trial is proposed again",
                flush=True,
            )
            self.set_aside(trial, vanished)
        else:
            self.optuna.tell(trial.number, state=TrialState.FAIL)
            self.locks.release_trial(trial.number)


class UntriedCombinations:
    """The combinations of a space that no trial has tried."""

    def __init__(self, space: "dict[str, BaseDistribution]", tried: "list[dict[str, Any]]") -> None:
        self.space, self.tried = space, {_override_key(params) for params in tried}

    def has_tried(self, params: dict[str, Any]) -> bool:
        """Return True if the run of some trial has the same overrides."""
        return _override_key(params) in self.tried

    def draw(self, seed: int) -> dict[str, Any] | None:
        """Return an untried combination at random, or None if all were tried.

        Combinations cannot be counted, because overrides have four digits, so that different
        numbers may give the same run.
        """
        generator = random.Random(seed)
        for _ in range(MAX_DRAWS * (1 + len(self.tried))):
            params = {
                name: _draw_value(distribution, generator)
                for name, distribution in self.space.items()
            }
            if not self.has_tried(params):
                return params
        return None


def _override_key(params: dict[str, Any]) -> tuple[str, ...]:
    """Return the sorted overrides of a trial. Proposals with an equal key give the same run."""
    return tuple(sorted(to_overrides(params)))


def _count_values(distribution: "BaseDistribution") -> int | None:
    """Return the number of values of a setting, or None if its scale is continuous."""
    choices, step = getattr(distribution, "choices", None), getattr(distribution, "step", None)
    if choices is not None:
        return len(choices)
    if step is None:
        return None
    return round((distribution.high - distribution.low) / step) + 1  # type: ignore[attr-defined]


def _draw_value(distribution: "BaseDistribution", generator: random.Random) -> Any:
    """Return a random value of a setting, each value with the same probability."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return generator.choice(distribution.choices)
    count = _count_values(distribution)
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if count is None:
        return generator.uniform(low, high)
    # The sum of decimal numbers may exceed `high` by a rounding error.
    value = low + generator.randrange(count) * distribution.step  # type: ignore[attr-defined]
    return value if isinstance(distribution, IntDistribution) else min(value, high)


def name_run(trial: "Trial", folder: RunFolder) -> None:
    """Record folder and uid of a trial's run in the study. In MLflow, the uid is brainseg.uid."""
    trial.set_user_attr("folder", str(folder.path))
    trial.set_user_attr("uid", folder.facts["uid"])


@contextmanager
def naming_storage(place: str) -> Iterator[None]:
    """Raise errors of the storage as an OSError of one line that names the place.

    Such errors are a full disk, a file that is not a database, or a server that does not answer.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # RuntimeError means that another version of Optuna created the tables, and JSONDecodeError
    # that a file is not a journal.
    except (StorageInternalError, SQLAlchemyError, RuntimeError, json.JSONDecodeError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        remedy = (
            "check storage, and that the server answers"
            if place.startswith(POSTGRESQL)
            else "move the file away, or choose another study=NAME"
        )
        raise OSError(f"study={place}: cannot be used ({cause}); {remedy}") from error


def _describe_changes(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """Return the settings that changed, with both values."""
    keys = sorted(key for key in stored | current if stored.get(key) != current.get(key))
    return "; ".join(
        f"{key} was {stored.get(key, 'not set')}, is {current.get(key, 'not set')}" for key in keys
    )
