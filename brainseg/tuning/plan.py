"""The plan of a search: the settings of all trials, the space, and the checks of both."""

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from brainseg.config import SearchConfig, TrainConfig
from brainseg.config.compose import check_budget, compose_job, is_hydra_setting
from brainseg.config.hydra_errors import suggest_setting
from brainseg.config.overrides import setting_of, values_by_setting
from brainseg.core.errors import check
from brainseg.data.store import Store
from brainseg.runs.identity import drop_non_identity, non_default_settings
from brainseg.tuning import search_space

# Names of the settings of the search itself. All remaining names are settings of brainseg.train.
SEARCH_SETTINGS = tuple(field.name for field in fields(SearchConfig))


class Plan(NamedTuple):
    """The search that a command line describes."""

    # Overrides of brainseg.train that are the same in every trial.
    overrides: list[str]
    space: search_space.Space
    # The settings at the ends of the space. If these are valid, so are the settings between them.
    jobs: list[TrainConfig]
    # Its name is the study's, also if the study is stored elsewhere.
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


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the search itself, and the overrides of brainseg.train.

    Settings of the search and Hydra's flags and settings belong to the search itself.
    """
    train_overrides = [
        argument
        for argument in argv
        if "=" in argument
        and not argument.startswith("-")
        and not is_hydra_setting(argument)
        and setting_of(argument).split(".")[0] not in SEARCH_SETTINGS
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
