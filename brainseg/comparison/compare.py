"""Configurations compared on the same patients: pooled over folds, averaged over seeds, then in pairs. No files, no figures.

    runs -> configurations -> one score per patient -> table

Runs that differ in `seed` and `split.fold` alone are one configuration. Its folds are pooled (each patient is scored by the
model that never saw it), its seeds averaged per patient; intervals and tests are over patients, never over runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.comparison.names import configuration_names
from brainseg.comparison.runs import REPEATED, ScoredRun
from brainseg.core.errors import check
from brainseg.evaluation.metrics import count_missed
from brainseg.evaluation.statistics import bootstrap, compare_paired, holm, spread

if TYPE_CHECKING:
    import pandas as pd

OF_THE_PATIENT = (
    "slices",
    "tumour_pixels",
    "tumour_slices",
    "empty_slices",
)  # columns that no model changes
SCORES = (
    "iou",
    "precision",
    "recall",
    "dice_tumour_slices",
)  # averaged over patients in the table, behind Dice


@dataclass
class Configuration:
    """Runs that are repeats of each other, and what they scored on patients of one role."""

    label: str
    runs: list[ScoredRun]
    rows: "pd.DataFrame" = field(
        repr=False
    )  # patients.csv of all runs, with the columns seed, fold and missed

    @cached_property
    def patients(self) -> "pd.DataFrame":
        """By patient, sorted by name: scores averaged over seeds, `count_missed` as a share of them; undefined hd95 are left out."""
        numbers = [
            name
            for name in self.rows.select_dtypes("number").columns
            if name not in ("seed", "fold")
        ]
        return (
            self.rows.groupby("patient")[numbers].mean().astype(dict.fromkeys(OF_THE_PATIENT, int))
        )

    @property
    def dice(self) -> np.ndarray:
        """(P,), in the order of the patients' names."""
        return self.patients.dice.to_numpy(np.float64)


@dataclass
class Comparison:
    """What `compare` found out; `table` has a row for each configuration, best first."""

    role: str  # test, or validation: then it is exploratory
    configurations: list[Configuration]  # best first
    baseline: Configuration
    left_out: list[tuple[str, str]]  # (label, why)
    chances: str  # whether each had the same time or the same passes
    warnings: list[str]
    table: "pd.DataFrame"
    picked: (
        bool  # whether the baseline was picked by the scores compared, as the best, and not named
    )

    @property
    def exploratory(self) -> bool:
        return self.role == "validation"

    @property
    def patients(self) -> int:
        return len(self.baseline.patients)


def compare(
    runs: Sequence[ScoredRun], baseline: ScoredRun | None = None, strict: bool = True
) -> Comparison:
    """Compare the configurations of `runs`.

    `baseline` is one of the runs, and its patients are those compared; None: the best of those with the most patients. `strict`
    refuses configurations with other patients than the rest, and runs without scores (RequestError naming them); else they are left
    out, and said. Raises RequestError also when no run is finished, when the runs are on different data, or repeat one another.
    """
    labels = configuration_names(runs)
    scored = [run for run in runs if run.state == "finished"]
    left_out = [(_named(run, labels), _reason(run)) for run in runs if run.state != "finished"]
    check(
        not (strict and left_out),
        "runs",
        ", ".join(name for name, _ in left_out),
        "; ".join(why for _, why in left_out),
        "finish them with resume=RUN, or leave them out",
    )
    check(
        bool(scored),
        "runs",
        f"{len(runs)} found",
        "none of them is finished",
        "; ".join(f"{name}: {why}" for name, why in left_out[:3]),
    )
    _check_comparable(scored)

    role = "test" if all((run.patients.role == "test").any() for run in scored) else "validation"
    grouped: dict[str, list[ScoredRun]] = {}
    for run in scored:
        grouped.setdefault(run.configuration, []).append(run)
    found = [
        Configuration(labels[key], members, _rows(members, role))
        for key, members in grouped.items()
    ]
    wanted = next(
        (
            one
            for one in found
            if baseline is not None and one.runs[0].configuration == baseline.configuration
        ),
        None,
    )
    check(
        baseline is None or wanted is not None,
        "baseline",
        baseline and baseline.path,
        "is not among the runs compared, or not finished",
        "name one of them",
    )
    complete, others = _same_patients(found, wanted)
    check(
        not (strict and others),
        "runs",
        ", ".join(name for name, _ in others),
        "; ".join(why for _, why in others),
        "a comparison needs the same patients on both sides: the same split",
    )
    ranked = sorted(complete, key=lambda one: -one.dice.mean())
    whole = wanted is None or wanted in complete
    check(
        whole,
        "baseline",
        baseline and baseline.path,
        "; ".join(why for name, why in others if wanted and name == wanted.label),
        "name another run",
    )
    against = wanted or ranked[0]
    table = _table(ranked, against)
    return Comparison(
        role,
        ranked,
        against,
        left_out + others,
        _chances(scored),
        _warnings(scored),
        table,
        picked=wanted is None,
    )


def _check_comparable(runs: Sequence[ScoredRun]) -> None:
    """All on the same data, and none asking what another asks, or its patients would count twice. Raises RequestError."""
    data = {run.facts["data"]["fingerprint"]: run for run in reversed(runs)}
    each = " and ".join(f"{run.path} on {run.facts['data']['path']}" for run in data.values())
    check(
        len(data) == 1,
        "runs",
        ",".join(str(run.path) for run in runs[:5]),
        f"they are on different data: {each}",
        "name runs=[A,B] of one data set",
    )
    first: dict[tuple[Any, ...], ScoredRun] = {}
    for run in runs:
        other = first.setdefault(run.repeat, run)
        check(
            other is run,
            "runs",
            f"{other.path},{run.path}",
            "the same configuration, seed and fold",
            "name one of them",
        )


def _rows(runs: Sequence[ScoredRun], role: str) -> "pd.DataFrame":
    """patients.csv of every run, the patients of `role` (test or validation) alone."""
    import pandas as pd

    rows = pd.concat(
        run.patients[run.patients.role == role].assign(
            seed=run.config.seed, fold=run.settings.get("split.fold", 0)
        )
        for run in runs
    )
    rows["missed"] = count_missed(rows).astype(float)
    return rows


def _same_patients(
    found: list[Configuration], wanted: Configuration | None
) -> tuple[list[Configuration], list[tuple[str, str]]]:
    """Those that scored the same patients as `wanted`, or as the one with the most, and (label, why) of the others.

    A configuration's seeds must also have scored the same patients each, or some would weigh more.
    """
    everyone = set((wanted or max(found, key=lambda one: len(one.patients))).patients.index)
    complete, others = [], []
    for one in found:
        own = set(one.patients.index)
        counts = one.rows.patient.value_counts()
        if own != everyone:
            others.append(
                (
                    one.label,
                    f"other patients: lacks {_some(everyone - own)}, has also {_some(own - everyone)}",
                )
            )
        elif counts.min() < counts.max():
            few = set(counts[counts < counts.max()].index)
            others.append(
                (one.label, f"not every seed has every fold: fewer runs scored {_some(few)}")
            )
        else:
            complete.append(one)
    return complete, others


def _table(ranked: Sequence[Configuration], baseline: Configuration) -> "pd.DataFrame":
    """A row for each configuration; differences are to the baseline, p-values corrected for the number of comparisons."""
    import pandas as pd

    rows = [_row(one) for one in ranked]
    others = [one for one in ranked if one is not baseline]
    for other in others:
        rows[ranked.index(other)]["difference"] = float((other.dice - baseline.dice).mean())
    # One patient gives a difference, but neither an interval nor a test.
    pairs = (
        [compare_paired(one.dice, baseline.dice) for one in others]
        if len(baseline.dice) > 1
        else []
    )
    for one, pair, adjusted in zip(others, pairs, holm([pair.p for pair in pairs]), strict=False):
        row = rows[ranked.index(one)]
        row |= {
            "difference": pair.mean,
            "difference_low": pair.low,
            "difference_high": pair.high,
            "p": pair.p,
            "p_holm": adjusted,
            "wins": pair.wins,
            "ties": pair.ties,
            "losses": pair.losses,
        }
    return pd.DataFrame(rows)


def _row(one: Configuration) -> dict[str, Any]:
    interval = bootstrap(one.dice) if len(one.dice) > 1 else (math.nan, math.nan)
    seeds, folds = (one.rows.groupby(name).dice.mean().to_numpy() for name in ("seed", "fold"))
    return {
        "configuration": one.label,
        "runs": len(one.runs),
        "patients": len(one.patients),
        "dice": float(one.dice.mean()),
        "dice_low": interval[0],
        "dice_high": interval[1],
        "dice_median": float(np.median(one.dice)),
        "missed": float(one.patients.missed.sum()),
        **{
            name: float(one.patients[name].mean())
            for name in one.patients.columns
            if name in SCORES or name.startswith("dice/")
        },
        "hd95_median": float(one.patients.hd95.median()),
        "spread_over_seeds": spread(seeds),
        "spread_over_folds": spread(folds),
        "parameters": one.runs[0].facts["parameters"],
        "seconds": float(np.mean([run.seconds for run in one.runs])),
        **dict.fromkeys(
            (
                "difference",
                "difference_low",
                "difference_high",
                "p",
                "p_holm",
                "wins",
                "ties",
                "losses",
            ),
            math.nan,
        ),
    }


def _chances(runs: Sequence[ScoredRun]) -> str:
    """Which means each run was given: the same time, the same passes, or neither."""
    minutes, epochs = (
        {getattr(run.config, name) for run in runs} for name in ("max_minutes", "epochs")
    )
    stopped = (
        " at most (patience stopped some earlier)"
        if any(run.config.patience for run in runs)
        else ""
    )
    if minutes == {None} and len(epochs) == 1:
        return f"each run had the same passes: {epochs.pop()} epochs{stopped}"
    if len(minutes) == 1 and minutes != {None}:
        return f"each run had the same time: {minutes.pop()} minutes{stopped}"
    return "the runs had neither the same time nor the same passes"


def _warnings(runs: Sequence[ScoredRun]) -> list[str]:
    found = []
    if any(run.facts["split"]["leaky"] for run in runs):
        found.append(
            "LEAKY SPLIT: validation patients were trained on; no number here is a score on new patients"
        )
    if len({run.facts["code"]["sha256"] for run in runs}) > 1:
        found.append("the runs were made by different versions of the code")
    if len({run.facts["device"]["got"] for run in runs}) > 1:
        found.append(
            "the runs were made on different devices or precisions: their times do not compare"
        )
    return found


def _reason(run: ScoredRun) -> str:
    error = run.folder.status.get("error")
    return f"{run.state}" + (f": {error}" if error else "")


def _named(run: ScoredRun, labels: dict[str, str]) -> str:
    repeats = " ".join(
        f"{name.rsplit('.', 1)[-1]}={run.settings[name]}"
        for name in REPEATED
        if name in run.settings
    )
    return f"{labels[run.configuration]} ({repeats}, {run.path.name})"


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return (
        ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
        if listed
        else "none"
    )
