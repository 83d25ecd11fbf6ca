"""The text table of a run's metrics, and writers and readers of patients.csv and slices.csv."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg.core.files import writing
from brainseg.evaluation.metrics import PatientScore

if TYPE_CHECKING:
    import pandas as pd

# The columns of patients.csv that docs/contracts.md fixes. They come first.
COLUMNS = (
    "patient",
    "role",
    "slices",
    "tumour_pixels",
    "dice",
    "iou",
    "precision",
    "recall",
    "hd95",
)

# With several foreground classes these columns of each class come last, such as dice/oedema.
CLASS_COLUMNS = (
    "tumour_pixels",
    "predicted_pixels",
    "dice",
    "iou",
    "precision",
    "recall",
    "hd95",
    "nsd",
    "hd95_3d",
    "volume_error_ml",
)
FURTHER_COLUMNS = (
    "dice_tumour_slices",
    "tumour_slices",
    "predicted_pixels",
    "empty_slices",
    "empty_slice_false_positives",
    "loss",
    "nsd",
    "hd95_3d",
    "volume_error_ml",
)


def metrics_table(metrics: Mapping[str, float], title: str) -> str:
    """Return the metrics as a plain text table.

    The scored parts (train, val, test, unknown) stand side by side. The other metrics follow by
    their full name.
    """
    parts = [part for part in ("train", "val", "test", "unknown") if f"{part}/dice" in metrics]
    names = list(
        dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in parts)
    )
    other_names = [name for name in metrics if name.split("/", 1)[0] not in parts]
    width = max((len(name) for name in [*names, *other_names]), default=0)
    lines = [title, "-" * max(len(title), width + 12 * max(len(parts), 1))]
    if parts:
        lines.append(" " * width + "".join(f"{part:>12}" for part in parts))
    for name in names:
        values = [metrics.get(f"{part}/{name}") for part in parts]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{'' if value is None else format_number(value):>12}" for value in values)
        )
    lines += [f"{name:<{width}}{format_number(metrics[name]):>12}" for name in other_names]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table with columns as wide as their widest cell, without the empty columns."""
    lines = [list(head), *rows]
    columns = [column for column in range(len(head)) if any(row[column] for row in rows)]
    widths = {column: max(len(line[column]) for line in lines) for column in columns}
    return "\n".join(
        "  ".join(line[column].ljust(widths[column]) for column in columns).rstrip()
        for line in lines
    )


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun, such as 1 patient or 2 patients."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_patients(volumes: int, patients: int, role: str = "") -> str:
    """Return the number of patients of a role, with that of their volumes if it is another one."""
    count = format_count(patients, f"{role} patient".lstrip())
    return count if volumes == patients else f"{count} ({format_count(volumes, 'volume')})"


def shorten_text(text: str, length: int) -> str:
    """Return the text with at most `length` characters. A longer text ends with three dots."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def format_number(value: float) -> str:
    """Return a number with about four significant digits, such as 17, 0.8412, 12.35, 1.000e-04."""
    if float(value).is_integer():
        return f"{value:.0f}"
    return (
        f"{value:.3e}"
        if 0 < abs(value) < 1e-3
        else f"{value:.4f}"
        if abs(value) < 10
        else f"{value:.2f}"
    )


def format_duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    rounded = round(seconds)
    return f"{rounded // 3600}:{rounded // 60 % 60:02d}:{rounded % 60:02d}"


def format_interval(low: float, high: float, form: str = ".3f") -> str:
    """Return an interval such as "0.812 to 0.901".

    The text is "none" if a limit is NaN, as for the interval over a single patient.
    """
    return (
        f"{low:{form}} to {high:{form}}" if math.isfinite(low) and math.isfinite(high) else "none"
    )


def write_patients_csv(
    rows: Sequence[tuple[PatientScore, str]],
    path: str | Path,
    subjects: Mapping[str, str] | None = None,
) -> None:
    """Write patients.csv with one line for each (score, role).

    The role is train, validation, test or unknown. An undefined value is an empty cell. The column
    `patient` has the name of the volume. If a patient has several, the column `subject` has the
    names of the patients, which `subjects` has by volume.
    """
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        class_columns = [
            (column, label)
            for label in (rows[0][0].classes if rows else ())
            for column in CLASS_COLUMNS
        ]
        names = {score.patient for score, _ in rows}
        subjects = {name: (subjects or {}).get(name, name) for name in names}
        has_several = len(set(subjects.values())) < len(names)
        columns = [*COLUMNS, *FURTHER_COLUMNS, *(["subject"] if has_several else [])]
        writer.writerow([*columns, *(f"{column}/{label}" for column, label in class_columns)])
        for score, role in rows:
            values = vars(score) | {"role": role, "subject": subjects[score.patient]}
            patient_values = [values[column] for column in columns]
            class_values = [
                getattr(score.classes[label], column) for column, label in class_columns
            ]
            writer.writerow(map(format_cell, [*patient_values, *class_values]))


def write_slices_csv(counts: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write slices.csv with one line per slice, numbered from 0 within its volume.

    `counts` is int (S, 3) by patient, with the pixels of the truth, of the prediction and of both.
    """
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "slice", "truth_pixels", "predicted_pixels", "overlap"])
        for patient, rows in counts.items():
            writer.writerows([patient, index, *row] for index, row in enumerate(rows.tolist()))


def read_scores(path: str | Path) -> "pd.DataFrame":
    """Return patients.csv or slices.csv as a table, with NaN for an empty cell.

    Patients remain text, so a patient named 007 or NA does not become 7 or NaN.
    """
    import pandas as pd

    names = {"patient": str, "subject": str}
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])


def subjects_of(patients: "pd.DataFrame") -> "pd.Series":
    """Return the patient of each row of patients.csv.

    Without a column `subject` each volume is another patient.
    """
    return patients.get("subject", patients.patient)


def format_cell(value: str | float | None) -> str:
    """Return the text of a CSV cell.

    Text stays unchanged, counts are integers, and ratios have six decimals. NaN and None, which is
    a value that was not measured, give an empty cell.
    """
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else str(value)
