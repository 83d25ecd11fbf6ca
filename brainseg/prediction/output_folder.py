"""What `predict` leaves: a folder a study, and over all of them volumes.csv, patients.csv, summary.json, one contact sheet.

    NAME/NAME_mask.tif or .nii.gz      the mask in the source's format; NAME_<n>_mask.tif for a folder of slices
    NAME/NAME_probability...           on request
    NAME/predictions.h5                the mask as evaluate keeps it, face up: what viewer.html is made from
    NAME/overlay.png thumbnail.png
    NAME/prediction.json               written last: digest of all that the files depend on, and their hashes

A study whose prediction.json has the digest of the request, and whose files have their hashes, is done and left alone.
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
from brainseg.data.cases.study import InputCase
from brainseg.evaluation.metrics import PatientScore
from brainseg.reports import tables
from brainseg.reports.scores import summarise_by_role

NOTICE = "For research only, not for clinical use."
MAKER = "brainseg.predict"
MASKS = "predictions.h5"


@dataclass(frozen=True)
class CasePrediction:
    """What prediction.json holds of one study."""

    name: str
    digest: str
    files: dict[str, str]  # SHA-256 by name within the study's folder
    shape: list[int]  # slices, height, width
    spacing: list[float] | None  # mm between slices, rows and columns
    voxels: dict[str, int]  # of each foreground class
    role: str
    notes: list[str]
    score: PatientScore | None  # where masks were there
    source: list[str] = field(default_factory=list)  # the files that it was made from
    voxel_millilitres: float | None = None  # None where the spacing is unknown

    def millilitres(self, voxels: int) -> float:
        """Return the volume of so many voxels, NaN where the spacing is unknown."""
        return math.nan if self.voxel_millilitres is None else voxels * self.voxel_millilitres

    def write(self, folder: Path) -> None:
        write_json(folder / "prediction.json", _finite(dataclasses.asdict(self)))


def digest_of(settings: Mapping[str, Any], study: InputCase) -> str:
    """SHA-256 of everything that the files of a study depend on: checkpoint and settings, the source's bytes, and which sequence each is.

    Raises OSError.
    """
    digest = hashlib.sha256(
        json.dumps([study.name, dict(settings), list(study.assignment)], sort_keys=True).encode()
    )
    for path in study.files:
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def is_complete(folder: Path, digest: str) -> CasePrediction | None:
    """The prediction that lies in a study's folder, if it is the one asked for and whole."""
    try:
        held = json.loads((folder / "prediction.json").read_text())
        found = CasePrediction(**{**held, "score": _score(held["score"])})
        whole = found.digest == digest and all(
            sha256(folder / Path(name).name) == own for name, own in found.files.items()
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # none there, damaged, or of another version: it is made again
        return None
    return found if whole else None


def check_free(output: Path, studies: Sequence[InputCase], settings: Mapping[str, Any]) -> None:
    """Refuse a study whose folder holds the mask of other files: of two patients of one name only the last would be left.

    The same bytes in another place, and the same files with a slice or mask more, are the same patient. Raises RequestError, OSError.
    """
    for study in studies:
        try:
            content = json.loads((output / study.name / "prediction.json").read_text())
            held, digest = list(map(str, content["source"])), content["digest"]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # none there, damaged, or of another version
            continue
        same = (
            not held
            or not set(held).isdisjoint(files_of(study))
            or digest == digest_of(settings, study)
        )
        check(
            same,
            "output",
            output,
            f"{study.name} in it was made from other files: {', '.join(held[:3])}",
            "name another folder",
        )


def files_of(study: InputCase) -> list[str]:
    """The files that a study is made from."""
    return sorted(str(path.resolve()) for path in study.files)


def other_files_in(output: Path, studies: Sequence[InputCase]) -> list[str]:
    """Studies that earlier requests left in the folder."""
    return sorted(
        {path.parent.name for path in output.glob("*/prediction.json")}
        - {study.name for study in studies}
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_output(output: Path, sources: Sequence[Path]) -> None:
    """Refuse a folder that holds anything but predictions, or in which the source lies: its masks have the names of ours."""
    check(not output.exists() or output.is_dir(), "output", output, "is a file", "name a folder")
    own = output.resolve()
    inside = [
        path
        for path in sources
        if own.is_relative_to(path.resolve()) or path.resolve().is_relative_to(own)
    ]
    check(
        not inside,
        "output",
        output,
        "lies within the input, or the input within it",
        "name another folder",
    )
    try:
        ours = (
            not output.exists()
            or not any(output.iterdir())
            or json.loads((output / "summary.json").read_text())["made_by"] == MAKER
        )
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    check(
        ours,
        "output",
        output,
        "is there already, and not made by brainseg.predict",
        "name another folder",
    )


def begin(output: Path, facts: Mapping[str, Any]) -> None:
    """Mark the folder as one of predictions, before the first study."""
    write_json(
        output / "summary.json", {"made_by": MAKER, "notice": NOTICE, "finished": False, **facts}
    )
    remove_partial(output)


def conclude(
    output: Path, found: Sequence[CasePrediction], facts: Mapping[str, Any]
) -> dict[str, float]:
    """Write volumes.csv, patients.csv where there are scores, and the final summary.json; returns the metrics by role."""
    _volumes_csv(found, output / "volumes.csv")
    rows = [(one.score, one.role) for one in found if one.score is not None]
    metrics = summarise_by_role(rows)
    if rows:
        tables.patients_csv(rows, output / "patients.csv")
    else:
        (output / "patients.csv").unlink(missing_ok=True)  # of an earlier request
    write_json(
        output / "summary.json",
        {"made_by": MAKER, "notice": NOTICE, "finished": True, **facts, "metrics": metrics},
    )
    return metrics


def _volumes_csv(found: Sequence[CasePrediction], path: Path) -> None:
    """A line a study: voxels and millilitres, the latter empty where the spacing is unknown; of several classes each has its columns."""
    classes = list(found[0].voxels) if found else []
    of_each = classes if len(classes) > 1 else []
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [
            f"{column}/{label}" for label in of_each for column in ("tumour_voxels", "tumour_ml")
        ]
        writer.writerow(["patient", "slices", "tumour_voxels", "tumour_ml", *names])
        for one in found:
            counts = [sum(one.voxels.values()), *(one.voxels[label] for label in of_each)]
            cells = [
                tables.cell(value) for count in counts for value in (count, one.millilitres(count))
            ]
            writer.writerow([one.name, one.shape[0], *cells])


def voxels_of(mask: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """How many voxels each foreground class has in a mask of class indices."""
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    return {label: int(counts[index]) for index, label in enumerate(classes) if index}


def _finite(content: Any) -> Any:
    """NaN, which is not JSON, as null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _score(held: dict[str, Any] | None) -> PatientScore | None:
    if held is None:
        return None
    numbers: dict[str, Any] = {
        key: math.nan if value is None else value for key, value in held.items()
    }
    classes = {
        label: score for label, one in held["classes"].items() if (score := _score(one)) is not None
    }
    return PatientScore(**{**numbers, "classes": classes})
