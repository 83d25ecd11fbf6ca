"""Search for good settings: Optuna proposes them, and each trial is an ordinary training run.

    python -m brainseg.search space=quick trials=20 data.path=lgg.h5 epochs=10
    python -m brainseg.search trials=20 model.depth=3,4 'optimizer.lr=tag(log,interval(1e-4,1e-2))'

Each trial has the run folder and the MLflow run of `brainseg.train`. The same command resumes the
search until there are `trials` in all, and several processes may share them. Trials are judged by
val/dice alone, and no test patient is used. See docs/search.md.
"""

import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from brainseg import train
from brainseg.cli.arguments import add_option_prefixes, replace_last
from brainseg.cli.main import run_command
from brainseg.config import SearchConfig, TrainConfig
from brainseg.config.compose import compose_job, compose_multirun, is_hydra_setting
from brainseg.config.launchers import SLURM, launcher_name
from brainseg.config.overrides import setting_of
from brainseg.core.errors import RequestError, check
from brainseg.core.output import print_log
from brainseg.core.signals import Stopped
from brainseg.runs.identity import training_budget
from brainseg.runs.job import Job
from brainseg.runs.run_folder import RunFolder
from brainseg.sweeps.progress import describe_charts
from brainseg.sweeps.search_workers import QueuedWorker, run_workers, submit_workers
from brainseg.training.state import State
from brainseg.tuning import report, search_space
from brainseg.tuning.plan import Plan, plan_search, split_arguments
from brainseg.tuning.storage import POSTGRESQL, exists_in_file, place_of
from brainseg.tuning.study import Study, name_run, naming_storage

if TYPE_CHECKING:
    from optuna.trial import Trial


class Pruned(Stopped):
    """The search stopped the run after an epoch, because it was unlikely to become the best."""


class Search:
    """The command: `check` makes the plan of the search, `run` runs it."""

    def __init__(
        self,
        overrides: list[str],
        arguments: Sequence[str] = (),
        threads: int | None = None,
        is_verbose: bool = False,
    ) -> None:
        """Search with `overrides` of brainseg.train.

        `arguments` are all arguments of the command, which its workers get, too. `threads` is the
        number of CPU threads of a worker. `is_verbose` prints every line of each trial.
        """
        self.overrides, self.arguments, self.threads = overrides, arguments, threads
        self.is_verbose = is_verbose

    def check(self, config: SearchConfig) -> None:
        """Check the request before anything is created. Raise RequestError if it cannot be run."""
        check(
            importlib.util.find_spec("optuna") is not None,
            "optuna",
            "not installed",
            "brainseg.search needs it",
            "pip install 'optuna>=4.9,<6'",
        )
        is_driver_missing = (
            config.storage.startswith(POSTGRESQL) and importlib.util.find_spec("psycopg") is None
        )
        check(
            not is_driver_missing,
            "storage",
            config.storage,
            "needs the driver of PostgreSQL",
            "pip install 'psycopg[binary]'",
        )
        # The same command must continue the search, and the last run is then a trial of it.
        for override in self.overrides:
            check(
                (named := replace_last(override)) == override,
                setting_of(override),
                "last",
                "is another run as soon as a trial has begun",
                f"name the run: {named}",
            )
        self.plan = plan_search(self.overrides, config)
        self.launcher = _launcher_settings(self.arguments)
        is_local = self.launcher["_target_"] != SLURM
        check(
            self.plan.jobs[0].wait or not is_local,
            "wait",
            "false",
            "only workers on a cluster go on without this command",
            "leave it out, or use hydra/launcher=submitit_slurm",
        )
        for job in self.plan.jobs:
            # The devices of this machine say nothing about those of a cluster's nodes.
            device = replace(job.device, on_missing=job.device.on_missing if is_local else "skip")
            facts = train.check_request(replace(job, device=device))
            if facts.missing and is_local:
                raise RequestError(facts.missing)
            check(
                facts.has_validation,
                "split",
                job.split.name,
                "has no validation patients, by whom a search chooses",
                "give the split validation patients",
            )
        # Opening an existing study compares its settings with those of the plan. A study on a
        # server is compared when the search begins, because it cannot be opened without a trace.
        if exists_in_file(config.storage, self.plan.database):
            Study(self.plan.database, self.plan.settings, config.storage)

    def run(self, config: SearchConfig) -> int:
        """Run trials until there are `config.trials` in all, print a summary, return the exit code.

        The exit code is 1 if a trial of this process failed, else 0.
        """
        plan, place = self.plan, place_of(config.storage, self.plan.database)
        if plan.jobs[0].dry_run != "false":
            title = f"{config.trials} trials in all, study {place}"
            print(title, *plan.space_lines, sep="\n")
            return 0
        print_log(logging.DEBUG if self.is_verbose else logging.WARNING)
        study = Study(plan.database, plan.settings, config.storage)
        print(
            f"study {study.name}: {study.count()} of {config.trials} trials, in {place}", flush=True
        )
        self._print_charts()
        if config.workers > 1 or self.launcher["_target_"] == SLURM:
            failed = self._run_workers(config, study)
        else:
            failed = self._run_trials(config, study)
        with naming_storage(place):
            proposed = {
                trial.number: search_space.to_overrides(trial.params) for trial in study.trials()
            }
            print(report.format_summary(study, plan.overrides, proposed))
        # A search takes hours, and its start is out of sight.
        self._print_charts()
        return int(failed > 0)

    def _print_charts(self) -> None:
        """Print the link to the charts of all trials, unless tracking is off."""
        tracking = self.plan.jobs[0].tracking
        if tracking.name != "none":
            print(describe_charts(self.plan.database.stem, tracking), flush=True)

    def _run_trials(self, config: SearchConfig, study: Study) -> int:
        """Run trials in this process until none is left or the time is over.

        Returns the number of trials that failed.
        """
        distributions, failed = search_space.distributions(self.plan.space), 0
        end = math.inf if config.hours is None else time.monotonic() + 3600 * config.hours
        with naming_storage(study.place):
            while (trial := study.begin(config, distributions)) is not None:
                failed += not run_trial(study, trial, self.plan, self.threads)
                print(report.format_progress(study, config.trials), flush=True)
                if time.monotonic() >= end and study.count() < config.trials:
                    print(f"hours={config.hours:g} are over; the same command continues the search")
                    break
        return failed

    def _run_workers(self, config: SearchConfig, study: Study) -> int:
        """Run the workers of the search, and return the number of workers with a failed trial.

        Workers on a cluster report to the study alone, so that their number is 0.
        """
        arguments = [
            argument
            for argument in self.arguments
            if setting_of(argument) not in ("workers", "wait") and not is_hydra_setting(argument)
        ]
        job = self.plan.jobs[0]
        if self.launcher["_target_"] == SLURM:
            worker = QueuedWorker(job, arguments, self.launcher["cpus_per_task"])
            submit_workers(worker, config.workers, self.launcher, study.folder, job.wait)
            return 0
        threads = max(1, (os.cpu_count() or 1) // config.workers)
        return sum(run_workers(job, arguments, config.workers, threads, study.folder))


def _launcher_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the launcher that the arguments choose, with the name of its class.

    Raises RequestError for a launcher that cannot run the workers of a search.
    """
    overrides = [argument for argument in arguments if is_hydra_setting(argument)]
    multirun = compose_multirun("search", overrides)
    settings: Any = OmegaConf.to_container(multirun.hydra.launcher)
    name = launcher_name(settings["_target_"])
    check(
        name in ("basic", "submitit_slurm"),
        "hydra/launcher",
        name,
        "a search runs its workers on this machine, or with submitit_slurm",
        "leave it out",
    )
    return settings


def run_worker(config: TrainConfig, arguments: list[str], threads: int | None) -> int:
    """Run one worker of a search in this process, and return its exit code.

    `arguments` are those of the command. The settings of the trials are composed from them, and not
    taken from `config`.
    """
    command, search_arguments = _make_search(arguments, threads)
    try:
        run_command("search", command.run, command.check, search_arguments)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("unreachable: run_command ends with SystemExit")


def _make_search(arguments: list[str], threads: int | None = None) -> tuple[Search, list[str]]:
    """Return the search that a command describes, and those arguments that are its own."""
    search_arguments, train_overrides = split_arguments(arguments)
    is_verbose = bool({"-v", "--verbose"} & set(search_arguments))
    search = Search(add_option_prefixes(train_overrides), arguments, threads, is_verbose)
    return search, search_arguments


def run_trial(study: Study, trial: "Trial", plan: Plan, threads: int | None = None) -> bool:
    """Run one trial, record its end in the study, and return False if it failed.

    A failed trial never ends the search. `threads` is the number of CPU threads, None for all.
    """
    varied = search_space.to_overrides(trial.params)
    job = Job(
        (*plan.overrides, *varied),
        plan.database.stem,
        trial.number,
        tuple(plan.space),
        choosing=True,
        threads=threads,
    )
    print(f"\ntrial {trial.number}: {' '.join(varied)}", flush=True)
    try:
        config = compose_job("train", list(job.overrides))
        outcome = train.run(
            config, job, TrialCallback(trial, by_share=training_budget(config)[0] != "epochs")
        )
        name_run(trial, RunFolder(outcome.folder))
        print(f"trial {trial.number}: val/dice {study.finish(trial):.4f}", flush=True)
    except Pruned as pruned:
        study.end(trial, "PRUNED", str(pruned))
        print(f"trial {trial.number}: {pruned}", flush=True)
    except Stopped:
        study.set_aside(trial)
        print(f"trial {trial.number}: interrupted; the same command resumes it", flush=True)
        raise
    # No error of a trial ends the study. train.run has logged the traceback.
    except Exception as error:
        first_line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        reason = "; ".join([first_line, *getattr(error, "__notes__", [])])
        study.end(trial, "FAIL", reason)
        print(f"trial {trial.number} failed: {reason}", file=sys.stderr, flush=True)
        return False
    return True


class TrialCallback:
    """Callback that reports a trial's epochs to the study and stops runs that are pruned."""

    def __init__(self, trial: "Trial", by_share: bool = False) -> None:
        """Report at tenths of the steps if `by_share`, else at epochs.

        Trials with equal time or steps differ in their number of epochs, so that they are compared
        at equal tenths of their steps.
        """
        self.trial, self.by_share, self.reported, self.last = trial, by_share, 0, -1

    def __call__(self, folder: RunFolder, state: State) -> None:
        """Report new epochs. Raise Pruned if the pruner stops the trial.

        Pruned is never raised after the last epoch, because no time would be saved.
        """
        if "folder" not in self.trial.user_attrs:
            name_run(self.trial, folder)
        # The history of a resumed run also contains the epochs before the interruption.
        for row in state.history[self.reported :]:
            # At half resolution, val/dice does not predict the final score.
            if "val/dice" in row["metrics"] and state.resizing.is_score_meaningful(row["step"]):
                report_at = 10 * row["step"] // state.total_steps if self.by_share else row["epoch"]
                # Several epochs may lie in the same tenth. Optuna keeps only the first report.
                if report_at > self.last:
                    self.trial.report(row["metrics"]["val/dice"], report_at)
                self.last = report_at
        self.reported = len(state.history)
        if state.history and state.step < state.total_steps and self.trial.should_prune():
            raise Pruned(
                f"pruned after epoch {state.epoch - 1}: val/dice {state.best:.4f} is below the "
                "median of the finished trials"
            )


def main() -> None:
    """Run `python -m brainseg.search` or `brainseg search`."""
    command, search_arguments = _make_search(sys.argv[1:])
    run_command("search", command.run, command.check, search_arguments)


if __name__ == "__main__":
    main()
