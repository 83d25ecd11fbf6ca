"""Where a model fails: Dice by tumour volume, institution, missing sequence, place in the tumour and clinical column; the worst patients.

Pure functions over the tables of a run or of a comparison, one row a patient. They describe and test nothing: of seventy groups a
few stand out by chance, so a low one is a question to ask, not a finding. The figure of it is in failures_figure.py.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import MISSED_DICE, count_missed
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.clinical import match_clinical

if TYPE_CHECKING:
    import pandas as pd

    from brainseg.data.store import Store

ALL, VOLUME, INSTITUTION, SEQUENCES = (
    "all patients",
    "tumour volume (voxels)",
    "institution",
    "sequences",
)
POSITION, FALSE_ALARMS = "position in the tumour", "false alarms"  # by slice
THIRDS = ("lowest third of its slices", "middle third", "highest third")
COMPLETE, MISSING = "all there", "missing"
BY_VALUE = 6  # a numeric column with more values than this is dealt into thirds
NAMES = 12  # a text column with more values than this names patients and groups none


def groups(
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """How each group of patients scored: factor, group, patients, mean, low, high (95 % bootstrap over patients), median, missed.

    Dice throughout, over a patient's volume or, by POSITION, over its slices there; FALSE_ALARMS is each patient's share of
    tumour-free slices with any predicted pixel. A group of one patient has no interval. Arguments and errors as `observe`.
    """
    import pandas as pd

    rows = []
    for (factor, group), part in observe(patients, slices, store, clinical).groupby(
        ["factor", "group"], sort=False
    ):
        values = part.value.to_numpy()
        low, high = bootstrap(values) if len(values) > 1 else (np.nan, np.nan)
        missed = pd.NA if factor == FALSE_ALARMS else int(part.missed.sum())
        rows.append((factor, group, len(part), values.mean(), low, high, np.median(values), missed))
    columns = ["factor", "group", "patients", "mean", "low", "high", "median", "missed"]
    return pd.DataFrame(rows, columns=columns).astype({"missed": "Int64"})


def observe(
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """One row for each patient in each factor: factor, group, patient, value, missed; factors and groups in the order they are read.

    `patients` are rows of patients.csv, one a patient and of one role; `slices` those of slices.csv; `store` says which sequences
    are missing; `clinical` is the public set's data.csv. Raises DataError where they are not that.
    """
    import pandas as pd

    _check(patients, store)
    scores = pd.DataFrame(
        {"patient": patients.patient, "value": patients.dice, "missed": count_missed(patients)}
    )
    parts = [
        _grouped(scores, factor, labels) for factor, labels in _factors(patients, store).items()
    ]
    if slices is not None:
        parts += _by_slice(
            slices[slices.patient.isin(patients.patient)].sort_values(["patient", "slice"])
        )
    if clinical is not None:
        if taken := sorted(
            {ALL, VOLUME, INSTITUTION, SEQUENCES, POSITION, FALSE_ALARMS} & set(clinical)
        ):
            raise DataError(
                f"clinical columns {', '.join(taken)}: factors of this analysis already; give them another name"
            )
        rows = match_clinical(clinical, patients.patient)
        usable = [
            name
            for name in rows
            if pd.api.types.is_numeric_dtype(rows[name]) or rows[name].nunique() <= NAMES
        ]
        parts += [_grouped(scores, name, _by_column(rows[name])) for name in usable]
    return pd.concat(parts, ignore_index=True)[["factor", "group", "patient", "value", "missed"]]


def worst(patients: "pd.DataFrame", n: int = 10, store: "Store | None" = None) -> "pd.DataFrame":
    """The `n` patients of lowest Dice, the lowest first, with what may explain it."""
    _check(patients, store)
    shown = (
        "patient",
        "dice",
        "tumour_pixels",
        "predicted_pixels",
        "precision",
        "recall",
        "hd95",
        "slices",
        "tumour_slices",
    )
    found = (
        patients.sort_values(["dice", "patient"])
        .head(n)[[column for column in shown if column in patients]]
        .reset_index(drop=True)
    )
    found.insert(1, "institution", found.patient.map(institution))
    if store is not None:
        found["sequences"] = found.patient.map(sequences(store))
    return found


def institution(patient: str) -> str:
    """The second part of TCGA_<institution>_<number>."""
    return (patient.split("_") + ["", ""])[1] or "unknown"


def sequences(store: "Store") -> dict[str, str]:
    """For each volume, which sequences are missing: FLAIR's copy stands in their place."""
    absent = [
        [name for name, copied in zip(store.channels, row, strict=True) if copied]
        for row in store.copies
    ]
    return {
        volume: "no " + " or ".join(names) if names else COMPLETE
        for volume, names in zip(store.volumes, absent, strict=True)
    }


def _check(patients: "pd.DataFrame", store: "Store | None") -> None:
    """Patients must be scored once and in one role: scores of training and test patients are never pooled."""
    if not len(patients):
        raise DataError("no patient: a failure analysis needs scored patients")
    if twice := patients.patient[patients.patient.duplicated()].tolist():
        raise DataError(
            f"patients scored twice: {', '.join(twice[:5])}; a failure analysis takes each once, as out of the folds"
        )
    roles = sorted(patients.role.astype(str).unique()) if "role" in patients else []
    if len(roles) > 1:
        raise DataError(
            f"patients of several roles: {', '.join(roles)}; their scores mean different things, give those of one"
        )
    if store is not None and (foreign := sorted(set(patients.patient) - set(store.volumes))):
        raise DataError(
            f"patients not in {store.path}: {', '.join(foreign[:5])}; give the file that they come from"
        )


def _grouped(scores: "pd.DataFrame", factor: str, labels: "pd.Categorical") -> "pd.DataFrame":
    """The rows of `scores` under a factor, sorted by group and name."""
    return (
        scores.assign(factor=factor, group=labels)
        .sort_values(["group", "patient"])
        .astype({"group": str})
    )


def _factors(patients: "pd.DataFrame", store: "Store | None") -> "dict[str, pd.Categorical]":
    """The group of each row of `patients`, by factor."""
    import pandas as pd

    pixels = patients.tumour_pixels
    found = {
        ALL: pd.Categorical([ALL] * len(patients)),
        VOLUME: thirds(pixels.where(pixels > 0), "no tumour"),
    }
    of_patient = patients.patient.map(institution)
    if of_patient.nunique() < len(patients) or len(patients) == 1:  # names as case_001 have none
        found[INSTITUTION] = pd.Categorical(of_patient)
    if store is not None:
        absent = patients.patient.map(sequences(store))
        found[SEQUENCES] = pd.Categorical(
            absent,
            sorted(set(absent), key=lambda label: (label != COMPLETE, " or " in label, label)),
        )
    return found


def _by_column(values: "pd.Series") -> "pd.Categorical":
    """Numbers of many values in thirds, anything else by value; what is missing is a group of its own, and the last."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values) and values.nunique() > BY_VALUE:
        return thirds(values, MISSING)
    labels = {value: _text(value) for value in sorted(values.dropna().unique())}
    return _categories(values.map(labels), list(labels.values()), MISSING)


def thirds(values: "pd.Series", undefined: str) -> "pd.Categorical":
    """The third that each number lies in, named by the numbers found there, as `3 to 17` or `3`; equal numbers lie together."""
    if not values.notna().any():
        return _categories(values.astype(object), [], undefined)
    third = np.searchsorted(
        np.nanquantile(values, [1 / 3, 2 / 3]), values
    )  # NaN: beyond the last, put apart below
    ends = values.groupby(third).agg(["min", "max"]).dropna()
    names = {
        number: " to ".join(dict.fromkeys(map(_text, found)))
        for number, *found in ends.itertuples()
    }
    labels = values.astype(object).mask(values.notna(), [names.get(number) for number in third])
    return _categories(labels, list(names.values()), undefined)


def _categories(labels: "pd.Series", order: list[str], undefined: str) -> "pd.Categorical":
    import pandas as pd

    several = dict.fromkeys([*order, undefined])  # once each: two numbers may read the same
    return pd.Categorical(labels.astype(object).where(labels.notna(), undefined), list(several))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"


def _by_slice(slices: "pd.DataFrame") -> "list[pd.DataFrame]":
    """Dice over the lowest, middle and highest third of each patient's tumour slices; share of false alarms on the others.

    Of fewer than three tumour slices, a single one counts as the middle, two as the ends.
    """
    tumour, empty = slices[slices.truth_pixels > 0], slices[slices.truth_pixels == 0]
    ranks = tumour.groupby("patient").cumcount()
    counts = tumour.groupby("patient").patient.transform("size")
    third = (3 * (2 * ranks + 1) // (2 * counts)).rename(
        "third"
    )  # of its own middle: (rank + 1/2) / count, in whole numbers
    sums = (
        tumour.groupby([third, "patient"])[["overlap", "predicted_pixels", "truth_pixels"]]
        .sum()
        .reset_index()
    )
    dice = 2 * sums.overlap / (sums.predicted_pixels + sums.truth_pixels)
    position = sums.assign(
        factor=POSITION,
        group=sums.third.map(dict(enumerate(THIRDS))),
        value=dice,
        missed=dice < MISSED_DICE,
    )
    share = (empty.predicted_pixels > 0).groupby(empty.patient).mean().rename("value").reset_index()
    return [
        position,
        share.assign(factor=FALSE_ALARMS, group="with a predicted pixel", missed=False),
    ]
