"""Search for good settings: Optuna proposes them, and each trial is an ordinary training run.

    python -m brainseg.search space=quick trials=20 data.path=lgg.h5 epochs=10
    python -m brainseg.search trials=20 model.depth=3,4 'optimizer.lr=tag(log,interval(1e-4,1e-2))'

Each trial has the run folder and the MLflow run of `brainseg.train`. The same command resumes the
search until there are `trials` in all, and several processes may share them. Trials are judged by
val/dice alone, and no test patient is used. See docs/search.md.
"""

import importlib.util
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brainseg import train
from brainseg.cli.arguments import add_option_prefixes
from brainseg.cli.main import run_command
from brainseg.config import SearchConfig, TrainConfig
from brainseg.config.compose import check_budget, compose_job
from brainseg.config.hydra_errors import suggest_setting
from brainseg.config.overrides import setting_of, values_by_setting
from brainseg.core.errors import RequestError, check
from brainseg.core.output import print_log
from brainseg.core.signals import Stopped
from brainseg.data.store import Store
from brainseg.runs.identity import drop_non_identity, non_default_settings, training_budget
from brainseg.runs.job import Job
from brainseg.runs.run_folder import RunFolder
from brainseg.sweeps.progress import describe_charts
from brainseg.training.state import State
from brainseg.tuning import report, search_space
from brainseg.tuning.study import Study, name_run, naming_database

if TYPE_CHECKING:
    from optuna.trial import Trial

# Names of the settings of the search itself. All remaining names are settings of brainseg.train.
SEARCH_SETTINGS = tuple(field.name for field in fields(SearchConfig))


class Plan(NamedTuple):
    """The search that a command line describes."""

    # Overrides of brainseg.train that are the same in every trial.
    overrides: list[str]
    space: search_space.Space
    # The settings at the ends of the space. If these are valid, so are the settings between them.
    jobs: list[TrainConfig]
    database: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that all trials share, and the space.

        Trials can be compared only if they agree in all of these.
        """
        job = self.jobs[0]
        shared = {
            name: str(value)
            for name, value in drop_non_identity(non_default_settings(job)).items()
            if name not in self.space
        }
        # The path may change if the content of the data file does not.
        if job.data.path is not None:
            with Store(Path(job.data.path)) as store:
                shared["data"] = store.fingerprint
        return shared | {
            f"space {name}": _format_dimension(dimension) for name, dimension in self.space.items()
        }

    @property
    def space_lines(self) -> list[str]:
        """Return a line of text for each setting of the space."""
        return [
            f"  {name}: {_format_dimension(dimension)}" for name, dimension in self.space.items()
        ]


def _format_dimension(dimension: search_space.Dimension) -> str:
    """Return a dimension as text, such as `low 0.0001, high 0.01, log True`."""
    return ", ".join(
        f"{key} {value}" for key, value in dimension.items() if value not in (None, False)
    )


class Pruned(Stopped):
    """The search stopped the run after an epoch, because it was unlikely to become the best."""


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the search itself, and the overrides of brainseg.train.

    Settings of the search and Hydra's flags and settings belong to the search itself.
    """
    train_overrides = [
        argument
        for argument in argv
        if "=" in argument
        and not argument.startswith("-")
        and setting_of(argument).split(".")[0] not in (*SEARCH_SETTINGS, "hydra")
    ]
    return [argument for argument in argv if argument not in train_overrides], train_overrides


def plan_search(overrides: list[str], config: SearchConfig) -> Plan:
    """Return the plan of a search without creating any files.

    The settings at the ends of the space are composed. Raises RequestError if one is not valid.
    """
    fixed, varied = search_space.split_overrides(overrides)
    fixed_values = values_by_setting(fixed)
    setting_names = [*SEARCH_SETTINGS, *(field.name for field in fields(TrainConfig)), "experiment"]
    for name in ("from", "resume"):
        check(
            fixed_values.get(name, "auto") == "auto",
            name,
            fixed_values.get(name),
            "a search makes its own runs",
            "leave it out",
        )
    # Names with a dot are checked when a job is composed.
    for name, value in {**fixed_values, **varied}.items():
        check(
            "." in name or name in setting_names,
            name,
            value,
            "no such setting of search or train",
            suggest_setting(name, setting_names),
        )
    space_name = config.space or (None if varied else "quick")
    if space_name is not None:
        # Typed overrides have priority. They narrow the space, or fix one of its settings.
        loaded = search_space.load_space(space_name)
        varied = {
            name: dimension for name, dimension in loaded.items() if name not in fixed_values
        } | varied
    check(
        bool(varied),
        "space",
        space_name,
        "every setting of this space is fixed on the command line",
        "leave one out",
    )
    _check_varied(varied)
    # Only one setting at a time leaves its first end: the number of combinations of all ends would
    # grow exponentially with the number of settings.
    ends = {name: search_space.end_values(dimension) for name, dimension in varied.items()}
    first_ends = {name: values[0] for name, values in ends.items()}
    corners = [first_ends] + [
        first_ends | {name: value} for name, values in ends.items() for value in values[1:]
    ]
    jobs = [
        compose_job("train", [*fixed, *search_space.to_overrides(settings)]) for settings in corners
    ]
    for job in jobs:
        check_budget([*overrides, *varied], job)
    _check_job(jobs[0])
    study = config.study or (Path(space_name).stem if space_name else "typed")
    # Checks the name, because not every name of a file is allowed as the name of a study.
    SearchConfig(study=study)
    return Plan(fixed, varied, jobs, Path(jobs[0].output or "runs") / "search" / f"{study}.db")


def _check_varied(varied: search_space.Space) -> None:
    """Raise RequestError if the space varies the patients, who must be the same in all trials."""
    for name in varied:
        selects_patients = (
            name.split(".")[0] == "split"
            or name in ("data.path", "data.limit_patients")
            or name.startswith("data.phantom")
        )
        check(
            not selects_patients,
            name,
            ",".join(map(str, search_space.end_values(varied[name]))),
            "must be the same in all trials, or they would be scored on other patients",
            "give one value",
        )


def _check_job(job: TrainConfig) -> None:
    """Raise RequestError if a trial would see test patients, or could not be resumed."""
    check(
        job.test != "yes",
        "test",
        "yes",
        "a search must not see test patients",
        "leave test=auto and evaluate the chosen run",
    )
    check(
        not job.rerun,
        "rerun",
        "true",
        "an interrupted trial could not be resumed in its folder",
        "leave it out, and choose another study=NAME to begin anew",
    )


class Search:
    """The command: `check` makes the plan of the search, `run` runs it."""

    def __init__(self, overrides: list[str], is_verbose: bool = False) -> None:
        self.overrides, self.is_verbose = overrides, is_verbose

    def check(self, config: SearchConfig) -> None:
        """Check the request before anything is created. Raise RequestError if it cannot be run."""
        check(
            importlib.util.find_spec("optuna") is not None,
            "optuna",
            "not installed",
            "brainseg.search needs it",
            "pip install 'optuna>=4.9,<6'",
        )
        self.plan = plan_search(self.overrides, config)
        for job in self.plan.jobs:
            facts = train.check_request(job)
            if facts.missing:
                raise RequestError(facts.missing)
            check(
                facts.has_validation,
                "split",
                job.split.name,
                "has no validation patients, by whom a search chooses",
                "give the split validation patients",
            )
        # Opening an existing study compares its settings with those of the plan.
        if self.plan.database.exists():
            Study(self.plan.database, self.plan.settings)

    def run(self, config: SearchConfig) -> int:
        """Run trials until there are `config.trials` in all, print a summary, return the exit code.

        The exit code is 1 if a trial of this process failed, else 0.
        """
        plan = self.plan
        if plan.jobs[0].dry_run != "false":
            title = f"{config.trials} trials in all, study {plan.database}"
            print(title, *plan.space_lines, sep="\n")
            return 0
        print_log(logging.DEBUG if self.is_verbose else logging.WARNING)
        study = Study(plan.database, plan.settings)
        print(
            f"study {plan.database.stem}: {study.count()} of {config.trials} trials, "
            f"in {plan.database}",
            flush=True,
        )
        self._print_charts()
        distributions, failed = search_space.distributions(plan.space), 0
        with naming_database(plan.database):
            while (trial := study.begin(config, distributions)) is not None:
                failed += not run_trial(study, trial, plan)
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


def run_trial(study: Study, trial: "Trial", plan: Plan) -> bool:
    """Run one trial, record its end in the study, and return False if it failed.

    A failed trial never ends the search.
    """
    varied = search_space.to_overrides(trial.params)
    job = Job(
        (*plan.overrides, *varied),
        plan.database.stem,
        trial.number,
        tuple(plan.space),
        choosing=True,
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
            if "val/dice" in row["metrics"] and row["step"] > state.half_steps:
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
    search_arguments, train_overrides = split_arguments(sys.argv[1:])
    is_verbose = bool({"-v", "--verbose"} & set(search_arguments))
    command = Search(add_option_prefixes(train_overrides), is_verbose)
    run_command("search", command.run, command.check, search_arguments)


if __name__ == "__main__":
    main()
