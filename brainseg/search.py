"""Search good settings: Optuna proposes them, each trial is an ordinary run of `brainseg.train` with its folder and its MLflow run.

    python -m brainseg.search space=quick trials=20 data.path=lgg.h5 epochs=10
    python -m brainseg.search trials=20 model.depth=3,4,5 'optimizer.lr=tag(log,interval(1e-4,1e-2))'

The same command again goes on to `trials` in all, and several at once share them. Trials are judged by val/dice alone; no test
patient is looked at. See docs/search.md.
"""

import importlib.util
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brainseg import train
from brainseg.cli.main import run_command, with_options_added
from brainseg.config import SearchConfig, TrainConfig
from brainseg.config.compose import check_budget, compose_job
from brainseg.config.hydra_errors import suggest_setting
from brainseg.config.overrides import setting_of, values_by_setting
from brainseg.core.errors import RequestError, check
from brainseg.core.signals import Stopped
from brainseg.data.store import Store
from brainseg.runs.identity import drop_non_identity, non_default_settings
from brainseg.runs.job import Job
from brainseg.runs.run_folder import RunFolder
from brainseg.training.state import State
from brainseg.tuning import report, search_space
from brainseg.tuning.study import Study, name_run, named_errors

if TYPE_CHECKING:
    from optuna.trial import Trial

OWN = tuple(field.name for field in fields(SearchConfig))


class Plan(NamedTuple):
    """What a command line asks for."""

    overrides: list[str]  # of brainseg.train, the same in every trial
    space: search_space.Space
    jobs: list[
        TrainConfig
    ]  # at the ends of the space: if these are in order, so is what lies between
    database: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What all trials of the study share, so that their values can be compared; and the space."""
        job = self.jobs[0]
        fixed = {
            name: str(value)
            for name, value in drop_non_identity(non_default_settings(job)).items()
            if name not in self.space
        }
        if job.data.path is not None:
            with Store(Path(job.data.path)) as store:
                fixed["data"] = store.fingerprint
        return fixed | {f"space {name}": _described(one) for name, one in self.space.items()}

    @property
    def described(self) -> list[str]:
        return [f"  {name}: {_described(one)}" for name, one in self.space.items()]


def _described(dimension: search_space.Dimension) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in dimension.items() if value not in (None, False)
    )


class Pruned(Stopped):
    """The search has ended the run after an epoch: it would hardly become the best."""


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are the search's own (its settings, Hydra's flags), and the overrides of brainseg.train."""
    trains = [
        one
        for one in argv
        if "=" in one
        and not one.startswith("-")
        and setting_of(one).split(".")[0] not in (*OWN, "hydra")
    ]
    return [one for one in argv if one not in trains], trains


def plan_search(overrides: list[str], config: SearchConfig) -> Plan:
    """Compose the ends of the space; creates nothing. Raises RequestError."""
    fixed, varied = search_space.format_value(overrides)
    given = values_by_setting(fixed)
    known = [*OWN, *(field.name for field in fields(TrainConfig)), "experiment"]
    for name in ("from", "resume"):
        check(
            given.get(name, "auto") == "auto",
            name,
            given.get(name),
            "a search makes its own runs",
            "leave it out",
        )
    for name, value in {**given, **varied}.items():
        check(
            "." in name or name in known,
            name,
            value,
            "no such setting of search or train",
            suggest_setting(name, known),
        )
    chosen = config.space or (None if varied else "quick")
    if chosen is not None:  # what is typed wins: it narrows the space, or takes a setting out of it
        varied = {
            name: one for name, one in search_space.load_space(chosen).items() if name not in given
        } | varied
    check(
        bool(varied),
        "space",
        chosen,
        "every setting of it is fixed on the command line",
        "leave one out",
    )
    for name in varied:
        shared = (
            name.split(".")[0] == "split"
            or name in ("data.path", "data.limit_patients")
            or name.startswith("data.phantom")
        )
        check(
            not shared,
            name,
            ",".join(map(str, search_space.ends(varied[name]))),
            "scores of other patients could not be compared",
            "fix it",
        )
    first = {name: search_space.ends(one)[0] for name, one in varied.items()}
    ends = [first] + [
        first | {name: value}
        for name, one in varied.items()
        for value in search_space.ends(one)[1:]
    ]
    jobs = [compose_job("train", [*fixed, *search_space.overrides(settings)]) for settings in ends]
    for job in jobs:
        check_budget([*overrides, *varied], job)
    check(
        jobs[0].test != "yes",
        "test",
        "yes",
        "a search must not see test patients",
        "leave test=auto and evaluate the chosen run",
    )
    check(
        not jobs[0].rerun,
        "rerun",
        "true",
        "a trial that was stopped could not go on in its folder",
        "name another study=NAME",
    )
    study = config.study or (Path(chosen).stem if chosen else "typed")
    SearchConfig(study=study)  # the name of a file may be none for a study
    return Plan(fixed, varied, jobs, Path(jobs[0].output or "runs") / "search" / f"{study}.db")


class Search:
    """The command: `check` composes what is asked for, `run` runs it."""

    def __init__(self, overrides: list[str]) -> None:
        self.overrides = overrides

    def check(self, config: SearchConfig) -> None:
        """All that can be refused before anything is created. Raises RequestError."""
        there = importlib.util.find_spec("optuna") is not None
        check(
            there,
            "optuna",
            "not installed",
            "brainseg.search needs it",
            "pip install 'optuna>=4.9,<6'",
        )
        self.plan = plan_search(self.overrides, config)
        for job in self.plan.jobs:
            if missing := train.check_request(job).missing:
                raise RequestError(missing)
        if self.plan.database.exists():
            Study(self.plan.database, self.plan.settings)

    def run(self, config: SearchConfig) -> int:
        """Run trials until there are `config.trials` in all, then report; the exit code: 1 if one of them failed in this start."""
        planned = self.plan
        if planned.jobs[0].dry_run != "false":
            print(
                f"{config.trials} trials in all, study {planned.database}",
                *planned.described,
                sep="\n",
            )
            return 0
        logging.basicConfig(format="%(message)s")
        logging.getLogger("brainseg").setLevel(logging.INFO)
        study = Study(planned.database, planned.settings)
        print(
            f"study {planned.database.stem}: {study.count()} of {config.trials} trials, in {planned.database}",
            flush=True,
        )
        distributions, failed = search_space.distributions(planned.space), 0
        with named_errors(planned.database):
            while (trial := study.begin(config, distributions)) is not None:
                failed += not run_trial(study, trial, planned)
            proposed = {one.number: search_space.overrides(one.params) for one in study.trials()}
            print(report.format_summary(study, planned.overrides, proposed))
        return int(failed > 0)


def run_trial(study: Study, trial: "Trial", planned: Plan) -> bool:
    """Run one trial and write down how it ended; False if it failed, which never ends the search."""
    varied = search_space.overrides(trial.params)
    job = Job(
        (*planned.overrides, *varied),
        planned.database.stem,
        trial.number,
        tuple(planned.space),
        choosing=True,
    )
    print(f"\ntrial {trial.number}: {' '.join(varied)}", flush=True)
    try:
        config = compose_job("train", list(job.overrides))
        outcome = train.run(
            config, job, TrialCallback(trial, by_time=config.max_minutes is not None)
        )
        name_run(trial, RunFolder(outcome.folder))
        print(f"trial {trial.number}: val/dice {study.finish(trial):.4f}", flush=True)
    except Pruned as pruned:
        study.end(trial, "PRUNED", str(pruned))
        print(f"trial {trial.number}: {pruned}", flush=True)
    except Stopped:
        study.set_aside(trial)
        print(f"trial {trial.number}: set aside; the same command goes on with it", flush=True)
        raise
    except (
        Exception
    ) as error:  # whatever a trial dies of, the study goes on; run() has logged the traceback
        reason = "; ".join(
            [
                f"{type(error).__name__}: {error}".strip().splitlines()[0],
                *getattr(error, "__notes__", []),
            ]
        )
        study.end(trial, "FAIL", reason)
        print(f"trial {trial.number} failed: {reason}", file=sys.stderr, flush=True)
        return False
    return True


class TrialCallback:
    """Tells the study a trial's epochs as they come, and ends the run where the study's pruner says so."""

    def __init__(self, trial: "Trial", by_time: bool = False) -> None:
        """`by_time`: trials of equal minutes are compared at equal tenths of their steps; how many epochs these are differs."""
        self.trial, self.by_time, self.reported, self.last = trial, by_time, 0, -1

    def __call__(self, folder: RunFolder, state: State) -> None:
        """Raises Pruned, but never after the last epoch: there is nothing left to save."""
        if "folder" not in self.trial.user_attrs:
            name_run(self.trial, folder)
        for row in state.history[self.reported :]:  # of a resumed run also the epochs before
            if (
                "val/dice" in row["metrics"] and row["step"] > state.half_steps
            ):  # before, it says nothing of what the network will be
                at = 10 * row["step"] // state.total_steps if self.by_time else row["epoch"]
                if at > self.last:
                    self.trial.report(row["metrics"]["val/dice"], at)
                self.last = at
        self.reported = len(state.history)
        if state.history and state.step < state.total_steps and self.trial.should_prune():
            raise Pruned(
                f"pruned after epoch {state.epoch - 1}: val/dice {state.best:.4f} is below the median of those that finished"
            )


def main() -> None:
    """Entry point of `python -m brainseg.search` and `brainseg search`."""
    own, trains = split_arguments(sys.argv[1:])
    command = Search(with_options_added(trains))
    run_command("search", command.run, command.check, own)


if __name__ == "__main__":
    main()
