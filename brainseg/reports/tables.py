"""The text table of a run's metrics, and its patients.csv and slices.csv, written and read."""

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
)  # the contract's, first

# With several foreground classes these of each come last, as dice/oedema.
CLASS_COLUMNS = ("tumour_pixels", "predicted_pixels", "dice", "iou", "precision", "recall", "hd95")
FURTHER_COLUMNS = (
    "dice_tumour_slices",
    "tumour_slices",
    "predicted_pixels",
    "empty_slices",
    "empty_slice_false_positives",
    "loss",
)


def metrics_table(metrics: Mapping[str, float], title: str) -> str:
    """A plain text table: the parts that were scored (val, test, ...) side by side, then the other metrics by their whole name."""
    parts = [part for part in ("train", "val", "test", "unknown") if f"{part}/dice" in metrics]
    names = list(
        dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in parts)
    )
    others = [name for name in metrics if name.split("/", 1)[0] not in parts]
    width = max((len(name) for name in [*names, *others]), default=0)
    lines = [title, "-" * max(len(title), width + 12 * max(len(parts), 1))]
    if parts:
        lines.append(" " * width + "".join(f"{part:>12}" for part in parts))
    for name in names:
        cells = [metrics.get(f"{part}/{name}") for part in parts]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{'' if cell is None else number(cell):>12}" for cell in cells)
        )
    lines += [f"{name:<{width}}{number(metrics[name]):>12}" for name in others]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def format_count(count: int, what: str) -> str:
    """1 patient, 2 patients."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def number(value: float) -> str:
    """Four digits that say something: 17, 0.8412, 12.35, 1.000e-04."""
    if float(value).is_integer():
        return f"{value:.0f}"
    return (
        f"{value:.3e}"
        if 0 < abs(value) < 1e-3
        else f"{value:.4f}"
        if abs(value) < 10
        else f"{value:.2f}"
    )


def interval(low: float, high: float, form: str = ".3f") -> str:
    """Return "0.812 to 0.901", and "none" where there is no interval, as over one patient (NaN)."""
    return (
        f"{low:{form}} to {high:{form}}" if math.isfinite(low) and math.isfinite(high) else "none"
    )


def patients_csv(rows: Sequence[tuple[PatientScore, str]], path: str | Path) -> None:
    """Write one line for each (score, role), role being train, validation, test or unknown; an undefined value is an empty cell."""
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        of_classes = [
            (column, label)
            for label in (rows[0][0].classes if rows else ())
            for column in CLASS_COLUMNS
        ]
        writer.writerow(
            [*COLUMNS, *FURTHER_COLUMNS, *(f"{column}/{label}" for column, label in of_classes)]
        )
        for score, role in rows:
            values = vars(score) | {"role": role}
            own = [values[column] for column in (*COLUMNS, *FURTHER_COLUMNS)]
            writer.writerow(
                map(
                    cell,
                    [
                        *own,
                        *(getattr(score.classes[label], column) for column, label in of_classes),
                    ],
                )
            )


def slices_csv(counts: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write one line a slice, counted from 0 in its volume: pixels of truth, prediction and both; `counts` is int (S, 3) by patient."""
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "slice", "truth_pixels", "predicted_pixels", "overlap"])
        for patient, rows in counts.items():
            writer.writerows([patient, index, *row] for index, row in enumerate(rows.tolist()))


def read_scores(path: str | Path) -> "pd.DataFrame":
    """patients.csv or slices.csv as a table, an empty cell as NaN. A patient called 007 or NA is called so, not 7 or NaN."""
    import pandas as pd

    return pd.read_csv(path, dtype={"patient": str}, keep_default_na=False, na_values=[""])


def cell(value: str | float | None) -> str:
    """Text as it is, counts as integers, ratios with six decimals, and nothing for NaN or what was not measured."""
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else str(value)
