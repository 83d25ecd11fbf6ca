"""The output folder of `predict`.

The folder contains a subfolder per case. The files volumes.csv, patients.csv, summary.json and the
contact sheet cover all cases.

    NAME/NAME_mask.tif or .nii.gz      the mask in the source's format
    NAME/NAME_<n>_mask.tif             the same for a folder of slices
    NAME/NAME_probability...           on request
    NAME/predictions.h5                the mask in evaluate's format, face up, for viewer.html
    NAME/overlay.png thumbnail.png
    NAME/prediction.json               written last: the digest of all inputs, hashes of the files

A case is complete, and skipped, if its prediction.json has the digest of the request and its files
have the hashes in it.
"""

import csv
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.core.errors import check
from brainseg.core.files import remove_partial, write_json, writing
from brainseg.data.cases.input_case import InputCase
from brainseg.evaluation.metrics import PatientScore
from brainseg.reports import tables
from brainseg.reports.scores import summarise_by_role

NOTICE = "For research only, not for clinical use."
MADE_BY = "brainseg.predict"
MASKS = "predictions.h5"


@dataclass(frozen=True)
class CasePrediction:
    """The contents of prediction.json for one case."""

    name: str
    digest: str
    # SHA-256 of each file, by its name in the case's folder.
    files: dict[str, str]
    # Slices, height, width.
    shape: list[int]
    # Distances between slices, rows and columns in mm.
    spacing: list[float] | None
    # The number of voxels of each foreground class.
    voxels: dict[str, int]
    role: str
    notes: list[str]
    # None for a case without masks.
    score: PatientScore | None
    # The files that the case was read from.
    source: list[str] = field(default_factory=list)
    # None if the spacing is unknown.
    voxel_millilitres: float | None = None

    def millilitres(self, voxels: int) -> float:
        """Return the volume of a number of voxels, or NaN if the spacing is unknown."""
        return math.nan if self.voxel_millilitres is None else voxels * self.voxel_millilitres

    def write(self, folder: Path) -> None:
        write_json(folder / "prediction.json", _finite(dataclasses.asdict(self)))


def digest_of(settings: Mapping[str, Any], case: InputCase) -> str:
    """Return the SHA-256 of everything that the files of a case depend on.

    That is the checkpoint, the settings, the bytes of the source files, and the sequence that each
    file belongs to. Raises OSError.
    """
    digest = hashlib.sha256(
        json.dumps([case.name, dict(settings), list(case.assignment)], sort_keys=True).encode()
    )
    for path in case.files:
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def read_complete(folder: Path, digest: str) -> CasePrediction | None:
    """Return the prediction in a case's folder if it is complete and has the digest, else None."""
    try:
        content = json.loads((folder / "prediction.json").read_text())
        prediction = CasePrediction(**{**content, "score": _restore_score(content["score"])})
        is_intact = prediction.digest == digest and all(
            sha256(folder / Path(name).name) == stored_hash
            for name, stored_hash in prediction.files.items()
        )
    # A prediction that is missing, damaged or of another version is made again.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return prediction if is_intact else None


def check_not_overwriting(
    output: Path, cases: Sequence[InputCase], settings: Mapping[str, Any]
) -> None:
    """Refuse a case whose folder contains the mask of other files.

    Without this check, the second of two patients with the same name would overwrite the first. The
    same bytes in another place belong to the same patient, and so do the same files with an
    additional slice or mask. Raises RequestError, OSError.
    """
    for case in cases:
        try:
            content = json.loads((output / case.name / "prediction.json").read_text())
            source, digest = list(map(str, content["source"])), content["digest"]
        # The prediction is missing, damaged, or of another version.
        except (OSError, ValueError, KeyError, TypeError):
            continue
        is_same = (
            not source
            or not set(source).isdisjoint(source_files(case))
            or digest == digest_of(settings, case)
        )
        rule = f"{case.name} in it was made from other files: {', '.join(source[:3])}"
        check(is_same, "output", output, rule, "choose another folder")


def source_files(case: InputCase) -> list[str]:
    """Return the absolute paths of the files of a case."""
    return sorted(str(path.resolve()) for path in case.files)


def other_cases_in(output: Path, cases: Sequence[InputCase]) -> list[str]:
    """Return the names of the cases that earlier requests left in the folder."""
    return sorted(
        {path.parent.name for path in output.glob("*/prediction.json")}
        - {case.name for case in cases}
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_output(output: Path, sources: Sequence[Path]) -> None:
    """Refuse an output folder that overlaps with the input, or that contains other files.

    The input must lie apart because its masks may have the names of the predicted masks. Raises
    RequestError.
    """
    check(not output.exists() or output.is_dir(), "output", output, "is a file", "name a folder")
    folder = output.resolve()
    overlapping = [
        path
        for path in sources
        if folder.is_relative_to(path.resolve()) or path.resolve().is_relative_to(folder)
    ]
    rule = "must not lie within the input, nor the input within it"
    check(not overlapping, "output", output, rule, "choose another folder")
    try:
        is_usable = (
            not output.exists()
            or not any(output.iterdir())
            or json.loads((output / "summary.json").read_text())["made_by"] == MADE_BY
        )
    except (OSError, ValueError, KeyError, TypeError):
        is_usable = False
    rule = "already contains files, and brainseg.predict did not write them"
    check(is_usable, "output", output, rule, "choose another folder")


def mark_as_output(output: Path, facts: Mapping[str, Any]) -> None:
    """Mark the folder as an output folder of `predict`, before the first case."""
    write_json(
        output / "summary.json", {"made_by": MADE_BY, "notice": NOTICE, "finished": False, **facts}
    )
    remove_partial(output)


def write_results(
    output: Path, predictions: Sequence[CasePrediction], facts: Mapping[str, Any]
) -> dict[str, float]:
    """Write volumes.csv, patients.csv and the final summary.json, and return the metrics by role.

    patients.csv is only written if there are scores.
    """
    _write_volumes(predictions, output / "volumes.csv")
    rows = [
        (prediction.score, prediction.role)
        for prediction in predictions
        if prediction.score is not None
    ]
    metrics = summarise_by_role(rows)
    if rows:
        tables.write_patients_csv(rows, output / "patients.csv")
    else:
        # An earlier request may have left scores of other cases.
        (output / "patients.csv").unlink(missing_ok=True)
    write_json(
        output / "summary.json",
        {"made_by": MADE_BY, "notice": NOTICE, "finished": True, **facts, "metrics": metrics},
    )
    return metrics


def _write_volumes(predictions: Sequence[CasePrediction], path: Path) -> None:
    """Write volumes.csv with one line per case: the tumour's size in voxels and in millilitres.

    The millilitres are empty if the spacing is unknown. If there are several foreground classes,
    each class has its own columns.
    """
    classes = list(predictions[0].voxels) if predictions else []
    labels = classes if len(classes) > 1 else []
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [
            f"{column}/{label}" for label in labels for column in ("tumour_voxels", "tumour_ml")
        ]
        writer.writerow(["patient", "slices", "tumour_voxels", "tumour_ml", *names])
        for prediction in predictions:
            voxels = prediction.voxels
            counts = [sum(voxels.values()), *(voxels[label] for label in labels)]
            cells = [
                tables.format_cell(value)
                for count in counts
                for value in (count, prediction.millilitres(count))
            ]
            writer.writerow([prediction.name, prediction.shape[0], *cells])


def voxels_of(mask: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of voxels of each foreground class in a mask of class indices."""
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    return {label: int(counts[index]) for index, label in enumerate(classes) if index}


def _finite(content: Any) -> Any:
    """Return the content with None in place of NaN and infinity, which JSON cannot represent."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _restore_score(content: dict[str, Any] | None) -> PatientScore | None:
    """Return the score stored in prediction.json, with NaN in place of null."""
    if content is None:
        return None
    numbers: dict[str, Any] = {
        key: math.nan if value is None else value for key, value in content.items()
    }
    classes = {
        label: score
        for label, stored in content["classes"].items()
        if (score := _restore_score(stored)) is not None
    }
    return PatientScore(**{**numbers, "classes": classes})
