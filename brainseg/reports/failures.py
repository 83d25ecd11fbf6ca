"""Analysis of a model's failures: Dice by patient group, and the patients of lowest Dice.

The groups are formed by tumour volume, institution, missing sequence, position in the tumour and
clinical column. The functions are pure and work on the tables of a run or of a comparison, with one
row per patient. They describe the scores and test no hypothesis. Of seventy groups a few stand out
by chance, so a low score is a question to ask and not a finding. failures_figure.py draws the
analysis.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import MISSED_DICE, count_missed
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.clinical import match_clinical
from brainseg.reports.tables import subjects_of

if TYPE_CHECKING:
    import pandas as pd

    from brainseg.data.store import Store

ALL, VOLUME, INSTITUTION, SEQUENCES = (
    "all patients",
    "tumour volume (voxels)",
    "institution",
    "sequences",
)
# The factors that are computed from slices.
POSITION, FALSE_POSITIVES = "position in the tumour", "false positives"
THIRDS = ("lowest third of its slices", "middle third", "highest third")
COMPLETE, MISSING = "all there", "missing"
# A numeric column with more values than this is divided into thirds.
MAX_GROUPS_BY_VALUE = 6
# A text column with more values than this identifies patients, so it forms no groups.
MAX_TEXT_VALUES = 12


def summarise_groups(
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """Return the scores of each group of patients.

    The columns are factor, group, patients, volumes, mean, low, high, median and missed. Mean,
    median and missed are over volumes. `low` and `high` are the 95 % bootstrap interval over
    patients. A group of a single patient has no interval. The scored value is the Dice of a
    patient's volume. Under POSITION it is the Dice of the patient's slices at that position, and
    under FALSE_POSITIVES the patient's share of tumour-free slices with any predicted pixel.
    Arguments and errors are those of `collect_group_values`.
    """
    import pandas as pd

    rows = []
    subjects = dict(zip(patients.patient, subjects_of(patients), strict=True))
    for (factor, group), part in collect_group_values(patients, slices, store, clinical).groupby(
        ["factor", "group"], sort=False
    ):
        values = part.value.to_numpy()
        names = [subjects[patient] for patient in part.patient]
        low, high = bootstrap(values, names) if len(set(names)) > 1 else (np.nan, np.nan)
        missed = pd.NA if factor == FALSE_POSITIVES else int(part.missed.sum())
        scores = (values.mean(), low, high, np.median(values), missed)
        rows.append((factor, group, len(set(names)), len(part), *scores))
    columns = ["factor", "group", "patients", "volumes", "mean", "low", "high", "median", "missed"]
    return pd.DataFrame(rows, columns=columns).astype({"missed": "Int64"})


def collect_group_values(
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """Return one row for each patient in each factor: factor, group, patient, value, missed.

    Factors and groups are in the order in which a reader sees them. `patients` are rows of
    patients.csv, one per patient and all of the same role. `slices` are rows of slices.csv, `store`
    contains which sequences are missing, and `clinical` is a table such as the public set's
    data.csv. Raises DataError if an argument does not have that form.
    """
    import pandas as pd

    _check_patients(patients, store)
    scores = pd.DataFrame(
        {"patient": patients.patient, "value": patients.dice, "missed": count_missed(patients)}
    )
    parts = [
        _assign_groups(scores, factor, labels)
        for factor, labels in _patient_factors(patients, store).items()
    ]
    if slices is not None:
        parts += _score_slices(
            slices[slices.patient.isin(patients.patient)].sort_values(["patient", "slice"])
        )
    if clinical is not None:
        if reserved := sorted(
            {ALL, VOLUME, INSTITUTION, SEQUENCES, POSITION, FALSE_POSITIVES} & set(clinical)
        ):
            raise DataError(
                "the analysis has its own factors with the names of the clinical columns "
                f"{', '.join(reserved)}; rename the columns"
            )
        rows = match_clinical(clinical, patients.patient)
        factor_columns = [
            name
            for name in rows
            if pd.api.types.is_numeric_dtype(rows[name]) or rows[name].nunique() <= MAX_TEXT_VALUES
        ]
        parts += [
            _assign_groups(scores, name, _group_by_value(rows[name])) for name in factor_columns
        ]
    return pd.concat(parts, ignore_index=True)[["factor", "group", "patient", "value", "missed"]]


def worst_patients(
    patients: "pd.DataFrame", n: int = 10, store: "Store | None" = None
) -> "pd.DataFrame":
    """Return the `n` patients of lowest Dice, the lowest first.

    Further columns contain values that may explain the Dice.
    """
    _check_patients(patients, store)
    columns = (
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
    table = (
        patients.sort_values(["dice", "patient"])
        .head(n)[[column for column in columns if column in patients]]
        .reset_index(drop=True)
    )
    table.insert(1, "institution", table.patient.map(institution_of))
    if store is not None:
        table["sequences"] = table.patient.map(missing_sequences(store))
    return table


def institution_of(patient: str) -> str:
    """Return the institution in a name such as TCGA_<institution>_<number>, else "unknown"."""
    return (patient.split("_") + ["", ""])[1] or "unknown"


def missing_sequences(store: "Store") -> dict[str, str]:
    """Return a label for each volume with its missing sequences, which a copy of FLAIR replaces."""
    absent = [
        [name for name, copied in zip(store.channels, row, strict=True) if copied]
        for row in store.copies
    ]
    return {
        volume: "no " + " or ".join(names) if names else COMPLETE
        for volume, names in zip(store.volumes, absent, strict=True)
    }


def _check_patients(patients: "pd.DataFrame", store: "Store | None") -> None:
    """Raise DataError unless each patient is scored once, and all patients have the same role.

    Scores of training and test patients are never pooled.
    """
    if not len(patients):
        raise DataError("there is no patient; a failure analysis needs at least one scored patient")
    if twice := patients.patient[patients.patient.duplicated()].tolist():
        raise DataError(
            f"patients scored twice: {', '.join(twice[:5])}; a failure analysis needs one row per "
            "patient, such as the held-out scores of a cross-validation"
        )
    roles = sorted(patients.role.astype(str).unique()) if "role" in patients else []
    if len(roles) > 1:
        raise DataError(
            f"patients of several roles: {', '.join(roles)}; their scores can't be pooled, "
            "so give the patients of a single role"
        )
    if store is not None and (foreign := sorted(set(patients.patient) - set(store.volumes))):
        raise DataError(
            f"patients not in {store.path}: {', '.join(foreign[:5])}; give the data file that "
            "contains them"
        )


def _assign_groups(scores: "pd.DataFrame", factor: str, labels: "pd.Categorical") -> "pd.DataFrame":
    """Return the rows of `scores` with a factor and their groups, sorted by group and name."""
    return (
        scores.assign(factor=factor, group=labels)
        .sort_values(["group", "patient"])
        .astype({"group": str})
    )


def _patient_factors(
    patients: "pd.DataFrame", store: "Store | None"
) -> "dict[str, pd.Categorical]":
    """Return the group of each row of `patients`, by factor."""
    import pandas as pd

    pixels = patients.tumour_pixels
    factors = {
        ALL: pd.Categorical([ALL] * len(patients)),
        VOLUME: group_in_thirds(pixels.where(pixels > 0), "no tumour"),
    }
    institutions = patients.patient.map(institution_of)
    # Names such as case_001 contain no institution, and would give each patient its own group.
    if institutions.nunique() < len(patients) or len(patients) == 1:
        factors[INSTITUTION] = pd.Categorical(institutions)
    if store is not None:
        labels = patients.patient.map(missing_sequences(store))
        factors[SEQUENCES] = pd.Categorical(
            labels,
            sorted(set(labels), key=lambda label: (label != COMPLETE, " or " in label, label)),
        )
    return factors


def _group_by_value(values: "pd.Series") -> "pd.Categorical":
    """Return the groups of a clinical column.

    A numeric column of many values is divided into thirds. Any other column is grouped by value.
    Missing values form the last group.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values) and values.nunique() > MAX_GROUPS_BY_VALUE:
        return group_in_thirds(values, MISSING)
    labels = {value: _format_value(value) for value in sorted(values.dropna().unique())}
    return _categories(values.map(labels), list(labels.values()), MISSING)


def group_in_thirds(values: "pd.Series", undefined: str) -> "pd.Categorical":
    """Return the third that each number lies in.

    A third is named by the smallest and largest number in it, such as `3 to 17`, or `3` if they are
    equal. Equal numbers lie in the same third. Missing numbers form the group `undefined`.
    """
    if not values.notna().any():
        return _categories(values.astype(object), [], undefined)
    # NaN sorts into the last third. The mask below gives NaN its own group.
    third = np.searchsorted(np.nanquantile(values, [1 / 3, 2 / 3]), values)
    ends = values.groupby(third).agg(["min", "max"]).dropna()
    names = {
        number: " to ".join(dict.fromkeys(map(_format_value, limits)))
        for number, *limits in ends.itertuples()
    }
    labels = values.astype(object).mask(values.notna(), [names.get(number) for number in third])
    return _categories(labels, list(names.values()), undefined)


def _categories(labels: "pd.Series", order: list[str], undefined: str) -> "pd.Categorical":
    """Return the labels as categories in the given order.

    NaN becomes the last category, whose name is `undefined`.
    """
    import pandas as pd

    # Categories must be distinct, but two numbers may have the same text.
    categories = list(dict.fromkeys([*order, undefined]))
    return pd.Categorical(labels.astype(object).where(labels.notna(), undefined), categories)


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"


def _score_slices(slices: "pd.DataFrame") -> "list[pd.DataFrame]":
    """Return each patient's Dice by position in the tumour, and its share of false positives.

    The Dice is computed over the lowest, middle and highest third of the patient's tumour slices,
    and the share over its tumour-free slices. A single tumour slice is the middle third, and two
    tumour slices are the lowest and the highest.
    """
    tumour, empty = slices[slices.truth_pixels > 0], slices[slices.truth_pixels == 0]
    ranks = tumour.groupby("patient").cumcount()
    counts = tumour.groupby("patient").patient.transform("size")
    # A slice belongs to the third that contains its middle, (rank + 1/2) / count. Integers make
    # the borders exact.
    third = (3 * (2 * ranks + 1) // (2 * counts)).rename("third")
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
        share.assign(factor=FALSE_POSITIVES, group="with a predicted pixel", missed=False),
    ]
