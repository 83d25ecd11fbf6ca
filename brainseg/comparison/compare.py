"""Comparison of configurations on the same patients, without files and figures.

    runs -> configurations -> one score per patient -> table

Runs that differ in `seed` and `split.fold` alone are one configuration. Its folds are pooled, so
that each patient is scored by the model that never saw the patient. Its seeds are averaged per
patient. Intervals and tests are over patients, never over runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.comparison.names import configuration_names
from brainseg.comparison.runs import ScoredRun
from brainseg.core.errors import check
from brainseg.evaluation.metrics import count_missed
from brainseg.evaluation.statistics import (
    adjust_p_values,
    bootstrap,
    compare_paired,
    standard_deviation,
)
from brainseg.reports.tables import shorten_text
from brainseg.runs.identity import REPETITION_SETTINGS

if TYPE_CHECKING:
    import pandas as pd

# Characters of the error of a run that is left out. log.txt of that run has the whole error.
LONGEST_ERROR = 100
# Columns of patients.csv that describe the patient, so that no model changes them.
PATIENT_COLUMNS = ("slices", "tumour_pixels", "tumour_slices", "empty_slices")
# Columns of patients.csv whose mean over patients stands in the table, beside Dice.
SCORE_COLUMNS = ("iou", "precision", "recall", "dice_tumour_slices", "nsd")
# Columns of the difference to the baseline.
DIFFERENCE_COLUMNS = (
    *("difference", "difference_low", "difference_high"),
    *("p", "p_holm", "wins", "ties", "losses"),
)


@dataclass
class Configuration:
    """Runs that are repeats of each other, and their scores on the patients of one role."""

    label: str
    runs: list[ScoredRun]
    # patients.csv of all runs, with the additional columns seed, fold, folder, subject and missed.
    rows: "pd.DataFrame" = field(repr=False)

    @cached_property
    def patients(self) -> "pd.DataFrame":
        """Return the scores of each volume, averaged over seeds and sorted by name.

        `missed` is the share of seeds that missed the patient. Undefined values of hd95 are
        excluded from its average.
        """
        columns = [
            name
            for name in self.rows.select_dtypes("number").columns
            if name not in ("seed", "fold")
        ]
        means = self.rows.groupby("patient")[columns].mean()
        # The average turns these counts into floats.
        return means.astype(dict.fromkeys(PATIENT_COLUMNS, int))

    @cached_property
    def first_rows(self) -> "pd.DataFrame":
        """Return the row of each volume that its smallest seed gave.

        An average over seeds would hide failures, and an average of masks would not be a mask.
        """
        return self.rows.sort_values("seed", kind="stable").drop_duplicates("patient")

    @cached_property
    def first_runs(self) -> dict[str, ScoredRun]:
        """Return the run of `first_rows` that scored each volume."""
        runs = {str(run.path): run for run in self.runs}
        return {row.patient: runs[row.folder] for row in self.first_rows.itertuples()}

    @property
    def dice(self) -> np.ndarray:
        """Return Dice per volume, shape (V,), sorted by name."""
        return self.patients.dice.to_numpy(np.float64)

    @cached_property
    def subjects(self) -> np.ndarray:
        """Return the patient of each volume, shape (V,), in the order of `dice`."""
        subjects = self.rows.drop_duplicates("patient").set_index("patient").subject
        return subjects.loc[self.patients.index].to_numpy(str)


@dataclass
class Comparison:
    """Result of `compare_runs`. `table` has a row for each configuration, the best first."""

    # `test`, `unknown` for other data, or `validation` for an exploratory comparison.
    role: str
    # The best first.
    configurations: list[Configuration]
    baseline: Configuration
    # Pairs (label, reason).
    left_out: list[tuple[str, str]]
    # A sentence on the training budgets: equal time, equal passes, or neither.
    budget: str
    warnings: list[str]
    table: "pd.DataFrame"
    # True if no baseline was named, so that the best configuration became the baseline. Its lead is
    # then biased, because the compared scores selected it.
    is_baseline_picked: bool

    @property
    def exploratory(self) -> bool:
        return self.role == "validation"

    @property
    def role_name(self) -> str:
        """Return the role in words. Patients that no training knows are an external test set."""
        return {"unknown": "external"}.get(self.role, self.role)

    @property
    def volumes(self) -> int:
        return len(self.baseline.patients)

    @property
    def patients(self) -> int:
        return len(set(self.baseline.subjects))

    @property
    def compares_devices(self) -> bool:
        """Return True if the configurations differ in device or precision."""
        return len({_requested_device(item.runs[0]) for item in self.configurations}) > 1


def compare_runs(
    runs: Sequence[ScoredRun], baseline: ScoredRun | None = None, strict: bool = True
) -> Comparison:
    """Compare the configurations of `runs`.

    `baseline` is one of the runs, and its patients are the patients of the comparison. None selects
    the best of the configurations with the most patients. With `strict`, configurations on other
    patients and runs without scores raise RequestError, which names them. Otherwise they are left
    out and listed in `left_out`. RequestError is also raised if no run is finished, if the runs use
    different data, or if runs repeat one another.
    """
    labels = configuration_names(runs)
    finished, unfinished = _split_by_state(runs, labels, strict)
    _check_comparable(finished)
    role = _choose_role(finished)
    repeats: dict[str, list[ScoredRun]] = {}
    for run in finished:
        repeats.setdefault(run.configuration, []).append(run)
    subjects = _subjects_by_volume(finished)
    configurations = [
        Configuration(labels[key], members, _patient_rows(members, role, subjects))
        for key, members in repeats.items()
    ]
    named_baseline = _find_baseline(configurations, baseline)
    comparable, mismatched = _split_by_patients(configurations, named_baseline)
    check(
        not (strict and mismatched),
        "runs",
        ", ".join(label for label, _ in mismatched),
        "; ".join(reason for _, reason in mismatched),
        "all configurations of a comparison need the same patients; use runs of the same split",
    )
    check(
        bool(comparable),
        "runs",
        ", ".join(label for label, _ in mismatched),
        "; ".join(reason for _, reason in mismatched),
        "finish the missing runs by the same command",
    )
    check(
        named_baseline is None or named_baseline in comparable,
        "baseline",
        baseline and baseline.path,
        "; ".join(
            reason
            for label, reason in mismatched
            if named_baseline and label == named_baseline.label
        ),
        "name another run",
    )
    ranked = sorted(comparable, key=lambda configuration: -configuration.dice.mean())
    reference = named_baseline or ranked[0]
    compared = [run for configuration in ranked for run in configuration.runs]
    return Comparison(
        role,
        ranked,
        reference,
        unfinished + mismatched,
        _compare_budgets(compared),
        _warnings(compared),
        _table(ranked, reference),
        is_baseline_picked=named_baseline is None,
    )


def _choose_role(runs: Sequence[ScoredRun]) -> str:
    """Return the role of the patients to compare: test, unknown or validation.

    Validation patients selected each run's best epoch, so they serve only where a run has no other
    scores. Patients of unknown role are those of other data than the training's. Raises
    RequestError if only training patients were scored, or if no role serves.
    """
    roles = [set(run.patients.role) for run in runs]
    for role in ("test", "unknown"):
        if all(role in each for each in roles):
            return role
    listed = "; ".join(
        f"{run.path.name}: {', '.join(sorted(each))}"
        for run, each in zip(runs[:5], roles, strict=False)
    )
    check(
        any("validation" in each for each in roles),
        "runs",
        len(runs),
        f"they have no test, validation or external patients in common ({listed})",
        "evaluate other parts; scores of training patients are not compared",
    )
    return "validation"


def _split_by_state(
    runs: Sequence[ScoredRun], labels: Mapping[str, str], strict: bool
) -> tuple[list[ScoredRun], list[tuple[str, str]]]:
    """Return the finished runs with scores, and (label, reason) of each other one.

    Raises RequestError if no run is finished and, with `strict`, if any is not.
    """
    # A run that trained on all patients has scored none.
    finished = [run for run in runs if run.state == "finished" and len(run.patients)]
    unfinished = [
        (
            _label_run(run, labels),
            "scored no patient" if run.state == "finished" else _describe_state(run),
        )
        for run in runs
        if run not in finished
    ]
    check(
        not (strict and unfinished),
        "runs",
        ", ".join(label for label, _ in unfinished),
        f"not finished ({'; '.join(reason for _, reason in unfinished)})",
        "finish them with resume=RUN, or leave them out",
    )
    examples = "; ".join(f"{label}: {reason}" for label, reason in unfinished[:3])
    check(
        bool(finished),
        "runs",
        len(runs),
        f"none of these runs is finished ({examples})",
        "finish at least one of them, for example with resume=RUN",
    )
    return finished, unfinished


def _find_baseline(
    configurations: Sequence[Configuration], baseline: ScoredRun | None
) -> Configuration | None:
    """Return the configuration of the run `baseline`, or None without a baseline.

    Raises RequestError if no configuration is that of the run.
    """
    selected = next(
        (
            configuration
            for configuration in configurations
            if baseline is not None
            and configuration.runs[0].configuration == baseline.configuration
        ),
        None,
    )
    check(
        baseline is None or selected is not None,
        "baseline",
        baseline and baseline.path,
        "is not among the runs compared, or not finished",
        "name one of them",
    )
    return selected


def _check_comparable(runs: Sequence[ScoredRun]) -> None:
    """Raise RequestError if the runs use different data, or if two of them repeat one another."""
    data = {run.facts["data"]["fingerprint"]: run for run in reversed(runs)}
    listed = " and ".join(f"{run.path} on {run.facts['data']['path']}" for run in data.values())
    check(
        len(data) == 1,
        "runs",
        ",".join(str(run.path) for run in runs[:5]),
        f"they are on different data: {listed}",
        "name runs=[A,B] of one dataset",
    )
    # The patients of a repeated run would count twice.
    first_runs: dict[tuple[Any, ...], ScoredRun] = {}
    for run in runs:
        earlier = first_runs.setdefault(run.repeat, run)
        check(
            earlier is run,
            "runs",
            f"{earlier.path},{run.path}",
            "the same configuration, seed and fold",
            "name one of them",
        )


def _subjects_by_volume(runs: Sequence[ScoredRun]) -> dict[str, str]:
    """Return the patient of each volume that one of the runs, all on the same data, names.

    Runs of older versions do not name the patients of several volumes. In a comparison they take
    them from the others, so that all intervals and tests are over the same patients.
    """
    return {
        volume: subject
        for run in runs
        if "subject" in run.patients
        for volume, subject in zip(run.patients.patient, run.patients.subject, strict=True)
    }


def _patient_rows(
    runs: Sequence[ScoredRun], role: str, subjects: Mapping[str, str]
) -> "pd.DataFrame":
    """Return patients.csv of all runs for the patients of `role` (test or validation).

    The column `subject` has the patient of each volume, which is the volume itself where `subjects`
    does not name it.
    """
    import pandas as pd

    # Runs of older versions have fewer columns. A mean over some of the runs would not be over all
    # patients, so only the columns of all runs are used.
    rows = pd.concat(
        [
            scores.assign(
                seed=run.config.seed,
                fold=run.settings.get("split.fold", 0),
                folder=str(run.path),
                subject=[subjects.get(name, name) for name in scores.patient],
            )
            for run in runs
            for scores in [run.patients[run.patients.role == role]]
        ],
        join="inner",
    )
    rows["missed"] = count_missed(rows).astype(float)
    return rows


def _split_by_patients(
    configurations: list[Configuration], baseline: Configuration | None
) -> tuple[list[Configuration], list[tuple[str, str]]]:
    """Return the configurations on the same patients, and (label, reason) of each other one.

    The patients are those of `baseline`, or those of the configuration with the most patients.
    Every seed of a configuration must have scored the same patients, or some patients would weigh
    more than others.
    """
    reference = baseline or max(
        configurations, key=lambda configuration: len(configuration.patients)
    )
    expected = set(reference.patients.index)
    comparable, mismatched = [], []
    for configuration in configurations:
        patients = set(configuration.patients.index)
        counts = configuration.rows.patient.value_counts()
        if patients != expected:
            missing, additional = _list_names(expected - patients), _list_names(patients - expected)
            reason = f"other patients: lacks {missing}, has also {additional}"
            mismatched.append((configuration.label, reason))
        elif counts.min() < counts.max():
            fewer = _list_names(set(counts[counts < counts.max()].index))
            reason = f"not every seed has every fold: fewer runs scored {fewer}"
            mismatched.append((configuration.label, reason))
        else:
            comparable.append(configuration)
    return comparable, mismatched


def _table(ranked: Sequence[Configuration], baseline: Configuration) -> "pd.DataFrame":
    """Return a table with a row for each configuration and its difference to the baseline.

    The p-values are corrected for the number of comparisons.
    """
    import pandas as pd

    rows = [_table_row(configuration) for configuration in ranked]
    compared = [
        index for index, configuration in enumerate(ranked) if configuration is not baseline
    ]
    for index in compared:
        rows[index]["difference"] = float((ranked[index].dice - baseline.dice).mean())
    # One patient gives a difference, but neither an interval nor a test.
    subjects = baseline.subjects
    pairs = (
        [compare_paired(ranked[index].dice, baseline.dice, subjects) for index in compared]
        if len(set(subjects)) > 1
        else []
    )
    adjusted = adjust_p_values([pair.p for pair in pairs])
    for index, pair, p_holm in zip(compared, pairs, adjusted, strict=False):
        rows[index] |= {
            "difference": pair.mean,
            "difference_low": pair.low,
            "difference_high": pair.high,
            "p": pair.p,
            "p_holm": p_holm,
            "wins": pair.wins,
            "ties": pair.ties,
            "losses": pair.losses,
        }
    table = pd.DataFrame(rows)
    scores = [name for name in table.columns if name not in DIFFERENCE_COLUMNS]
    # The baseline has NaN in the columns of the difference.
    return table.reindex(columns=[*scores, *DIFFERENCE_COLUMNS])


def _table_row(configuration: Configuration) -> dict[str, Any]:
    """Return the scores of a configuration, without its difference to the baseline."""
    dice, patients, subjects = configuration.dice, configuration.patients, configuration.subjects
    # An interval over patients needs at least two of them.
    low, high = bootstrap(dice, subjects) if len(set(subjects)) > 1 else (math.nan, math.nan)
    seeds, folds = (configuration.rows.groupby(name).dice for name in ("seed", "fold"))
    # Seeds that scored different folds differ by their patients, too.
    is_spread_of_seeds = bool((seeds.size() == len(dice)).all())
    return {
        "configuration": configuration.label,
        "runs": len(configuration.runs),
        "patients": len(set(subjects)),
        "volumes": len(dice),
        "dice": float(dice.mean()),
        "dice_low": low,
        "dice_high": high,
        "dice_median": float(np.median(dice)),
        "missed": float(patients.missed.sum()),
        **{
            name: float(patients[name].mean())
            for name in patients.columns
            if name in SCORE_COLUMNS or name.startswith("dice/")
        },
        "hd95_median": float(patients.hd95.median()),
        **_scores_in_mm(patients),
        "spread_over_seeds": standard_deviation(seeds.mean().to_numpy())
        if is_spread_of_seeds
        else math.nan,
        "spread_over_folds": standard_deviation(folds.mean().to_numpy()),
        "parameters": configuration.runs[0].facts["parameters"],
        "seconds": float(np.mean([run.seconds for run in configuration.runs])),
        **{
            name: float(np.mean([run.median_speed(name) for run in configuration.runs]))
            for name in ("images_per_second", "epoch_seconds")
        },
        "memory_gb": _mean_of_measured([run.memory for run in configuration.runs]),
    }


def _mean_of_measured(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if there is none."""
    measured = [value for value in values if not math.isnan(value)]
    return float(np.mean(measured)) if measured else math.nan


def _scores_in_mm(patients: "pd.DataFrame") -> dict[str, float]:
    """Return the median HD95 in 3-D and the mean absolute volume error.

    Runs of older versions have neither, and both are NaN if the spacing is unknown.
    """
    if not {"hd95_3d", "volume_error_ml"} <= set(patients.columns):
        return {}
    return {
        "hd95_3d_median": float(patients.hd95_3d.median()),
        "volume_error_ml": float(patients.volume_error_ml.abs().mean()),
    }


def _compare_budgets(runs: Sequence[ScoredRun]) -> str:
    """Return a sentence that tells whether the runs had the same time, passes or steps."""
    budgets = {run.budget for run in runs}
    stopped = (
        " at most (patience may have stopped some earlier)"
        if any(run.config.patience for run in runs)
        else ""
    )
    unit, budget = budgets.pop()
    nouns = {
        "epochs": ("passes", "epochs"),
        "max_steps": ("number of steps", "optimizer steps"),
        "max_minutes": ("time", "minutes"),
    }
    # The members of an ensemble may be limited by different settings.
    if budgets or unit not in nouns:
        return "the runs had neither the same time nor the same passes"
    noun, plural = nouns[unit]
    return f"each run had the same {noun}: {budget} {plural}{stopped}"


def _warnings(runs: Sequence[ScoredRun]) -> list[str]:
    """Return a sentence for each reason why scores or times of the runs cannot be compared."""
    warnings = []
    if any(run.facts["split"]["leaky"] for run in runs):
        warnings.append(
            "LEAKY SPLIT: the networks were trained on validation patients; "
            "no number here is a score on held-out patients"
        )
    if len({run.facts["code"]["sha256"] for run in runs}) > 1:
        warnings.append("the runs were made by different versions of the code")
    # Under the same settings, the machines differed. Different settings ask for their times.
    devices: dict[str, set[str]] = {}
    for run in runs:
        devices.setdefault(_requested_device(run), set()).add(run.facts["device"]["got"])
    if any(len(used) > 1 for used in devices.values()):
        warnings.append(
            "the same settings ran on different devices or precisions, so their times cannot be "
            "compared"
        )
    return warnings


def _requested_device(run: ScoredRun) -> str:
    """Return the settings of a run's device as JSON text."""
    return json.dumps({key: run.settings[key] for key in run.settings if key.startswith("device.")})


def _describe_state(run: ScoredRun) -> str:
    """Return the state of a run, and the begin of its error if it has one."""
    error = run.folder.status.get("error")
    return f"{run.state}" + (f": {shorten_text(error, LONGEST_ERROR)}" if error else "")


def _label_run(run: ScoredRun, labels: Mapping[str, str]) -> str:
    """Return the label of a run's configuration with seed, fold and folder name in parentheses."""
    repeats = " ".join(
        f"{name.rsplit('.', 1)[-1]}={run.settings[name]}"
        for name in REPETITION_SETTINGS
        if name in run.settings
    )
    return f"{labels[run.configuration]} ({repeats}, {run.path.name})"


def _list_names(names: set[str]) -> str:
    """Return the first five names and the number of the remaining ones, or `none`."""
    ordered = sorted(names)
    if not ordered:
        return "none"
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more
