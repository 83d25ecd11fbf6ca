"""Check that a finished run still gives the scores that it stored.

    python -m brainseg.verify run=runs/RUN
    python -m brainseg.verify run=runs/RUN data.path=lgg.h5 tolerance=0.001

The command compares the hashes of the run's files, the fingerprint of the data, the split and the
code with those that the run recorded. It then scores the run's checkpoint again, and prints the
stored score, the new score and the largest difference of each patient. Nothing is written. The exit
code is 1 if a difference exceeds the tolerance or if the data are not those of the run.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from brainseg.cli.main import run_command
from brainseg.comparison.compare import PATIENT_COLUMNS, SCORE_COLUMNS
from brainseg.config import DataConfig, DataOverride, TrainConfig, VerifyConfig
from brainseg.core.errors import DataError, DeviceMissingError, check
from brainseg.data.open import open_store, read_dataset_info
from brainseg.data.signatures import signatures_of
from brainseg.data.split import Split
from brainseg.data.store import Store
from brainseg.device import Device, choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.evaluation.metrics import PatientScore
from brainseg.prediction.trained_model import TrainedModel, load_checkpoint
from brainseg.prediction.training_data import chosen_data
from brainseg.reports import tables
from brainseg.reports.scores import METRIC_PREFIX, summarise_by_role
from brainseg.runs.code_version import code_version
from brainseg.runs.find import resolve_run
from brainseg.runs.repeat import HASHES, find_changed_files
from brainseg.runs.run_folder import RunFolder

COMPARED = ("dice", *SCORE_COLUMNS, "loss")


class ScoreCheck(NamedTuple):
    """The stored and the new Dice of a volume, or of the mean over a role, and the difference."""

    name: str
    role: str
    stored_dice: str
    new_dice: str
    # The largest difference of a score, infinite if a number of the ground truth differs.
    difference: float
    # The column with this difference.
    column: str


def run(config: VerifyConfig) -> int:
    """Verify the run, print the report and return the exit code."""
    folder = RunFolder(resolve_run(config.run, "run"))
    _check_files(folder)
    member = load_checkpoint(str(folder.path))
    split = _read_split(folder, member)
    store = open_store(chosen_data(DataOverride(path=config.data.path), [member]))
    print(f"data:          {store.path}")
    problems = _find_data_problems(folder, member, store)
    for line in problems:
        print(line)
    _print_code(folder)
    rows = _score_again(folder, member, split, store)
    print(f"\n{_format_table(rows)}\n")
    deviating = [row.name for row in rows if row.difference > config.tolerance]
    if deviating:
        print(
            f"FAILED: {len(deviating)} of {len(rows)} rows differ by more than "
            f"tolerance={config.tolerance:g}: {', '.join(deviating)}"
        )
    elif problems:
        print("FAILED: the scores are those of the run, but the data are not")
    else:
        print(f"verified: the largest difference is {max(row.difference for row in rows):g}")
    return int(bool(deviating or problems))


def _check_files(folder: RunFolder) -> None:
    """Raise RequestError if the run has not finished, DataError if its files were changed."""
    state = folder.state
    check(state == "finished", "run", folder.path, f"is {state}, not finished", "resume it first")
    for path in (folder.best, folder.path / "patients.csv", folder.path / "summary.json"):
        check(path.is_file(), "run", folder.path, f"{path.name} is missing", "restore the file")
    changed = find_changed_files(folder.path)
    if changed:
        raise DataError(
            f"run={folder.path}: {', '.join(changed)} since the run ended; restore the files"
        )
    if changed is None:
        print(f"files:         not verified, the run recorded no {HASHES}")
    else:
        print("files:         unchanged since the run ended")


def _read_split(folder: RunFolder, member: TrainedModel) -> Split:
    """Return the split in split.json. Raises DataError if run and checkpoint have another one."""
    split = Split.from_dict(json.loads((folder.path / "split.json").read_text()))
    facts = folder.facts
    hashes = {split.sha256, facts["split"]["sha256"], member.split.sha256 if member.split else ""}
    if len(hashes) > 1 or member.stored.get("uid") != facts["uid"]:
        raise DataError(
            f"run={folder.path}: split.json, run.json and best.pt are of different runs; "
            "restore the files"
        )
    print(f"split:         {split.name} {split.sha256[:10]}, as in the run")
    return split


def _find_data_problems(folder: RunFolder, member: TrainedModel, store: Store) -> list[str]:
    """Return a line for each way in which the data differ from those of the run."""
    problems = []
    expected = folder.facts["data"]["fingerprint"]
    if store.fingerprint != expected:
        problems.append(
            f"data differ:   fingerprint {store.fingerprint[:10]}, the run has {expected[:10]}"
        )
    else:
        try:
            store.verify()
        # The message of a checksum error names the damaged slice.
        except DataError as error:
            problems.append(f"data differ:   {error}")
    if problems:
        changed = _find_changed_patients(member, store)
        problems += [f"data differ:   {', '.join(changed)}"] if changed else []
    return problems


def _find_changed_patients(member: TrainedModel, store: Store) -> list[str]:
    """Return the patients whose scans or masks are not those of the training data.

    A change that keeps the percentiles and the tumour pixels of each slice is not detected.
    """
    present = signatures_of(store)
    changed = {
        patient
        for patient, signatures in member.signatures.items()
        if present.get(patient) != signatures
    }
    for index, patient in enumerate(store.patients):
        start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
        counts = (store.masks(start, stop) > 0).sum(axis=(1, 2, 3))
        if not np.array_equal(counts, store.tumour_pixels[start:stop]):
            changed.add(patient)
    return sorted(changed)


def _print_code(folder: RunFolder) -> None:
    """Print whether this code is that of the run. Other code is no failure if the scores agree."""
    stored, code = folder.facts["code"], code_version()
    relation = (
        "as in the run"
        if stored["sha256"] == code.sha256
        else f"the run had other sources, {stored['version']} {stored['commit'][:10]}".rstrip()
    )
    print(f"code:          {code.version} {code.commit[:10]}".rstrip() + f", {relation}")


def _choose_device(folder: RunFolder, config: TrainConfig) -> Device:
    """Return the device, precision and number of threads of the run, or what this machine has."""
    device = folder.facts["device"]
    name, precision = device["got"].split()[:2]
    settings = replace(config.device, name=name, precision=precision, compile=False)
    try:
        chosen = choose_device(replace(settings, threads=device["threads"]))
    except DeviceMissingError:
        chosen = choose_device(replace(settings, name="auto", precision="auto"))
    is_same = chosen.description == device["got"]
    print(
        f"device:        {chosen.description}, "
        + ("as in the run" if is_same else f"the run had {device['got']}")
    )
    return chosen


def _score_again(
    folder: RunFolder, member: TrainedModel, split: Split, store: Store
) -> list[ScoreCheck]:
    """Return the comparison of each volume in patients.csv, followed by the mean of each role."""
    config = member.config or TrainConfig()
    with (folder.path / "patients.csv").open(newline="", encoding="utf-8") as file:
        stored_rows = list(csv.DictReader(file))
    missing = sorted({row["patient"] for row in stored_rows} - set(store.volumes))
    if missing or not stored_rows:
        rule = f"the data lack {', '.join(missing[:5])}" if missing else "patients.csv is empty"
        raise DataError(f"run={folder.path}: {rule}; give data.path=FILE with the run's patients")
    device = _choose_device(folder, config)
    scores: list[tuple[PatientScore, str]] = []
    for role in dict.fromkeys(row["role"] for row in stored_rows):
        dataset = member.dataset(store, getattr(split, role))
        results = evaluate(
            device.place(member.model(dataset)),
            dataset,
            config.inference,
            device,
            config.batch_size,
            member.criterion(),
            with_geometry=True,
        )
        scores += [(result.score, role) for result in results]
    by_name = {(score.patient, role): score for score, role in scores}
    rows = [
        _compare_patient(row, by_name.get((row["patient"], row["role"]))) for row in stored_rows
    ]
    summary = json.loads((folder.path / "summary.json").read_text())["metrics"]
    return rows + _compare_means(summary, summarise_by_role(scores))


def _compare_patient(stored: Mapping[str, str], score: PatientScore | None) -> ScoreCheck:
    """Return the comparison of a line of patients.csv with a new score, None if there is none."""
    cells = {} if score is None else _cells_of(score)
    differences = {
        name: math.inf
        if name.split("/")[0] in PATIENT_COLUMNS and cells[name] != stored[name]
        else _difference(stored[name], cells[name])
        for name in cells
        if name in stored
    }
    column = max(differences, key=differences.__getitem__, default="patient")
    return ScoreCheck(
        stored["patient"],
        stored["role"],
        stored["dice"],
        cells.get("dice", ""),
        differences.get(column, math.inf),
        column,
    )


def _cells_of(score: PatientScore) -> dict[str, str]:
    """Return the compared columns of patients.csv for a score, as text."""
    cells = {
        name: tables.format_cell(getattr(score, name)) for name in (*PATIENT_COLUMNS, *COMPARED)
    }
    for label, class_score in score.classes.items():
        for name in ("tumour_pixels", "dice", "iou", "precision", "recall"):
            cells[f"{name}/{label}"] = tables.format_cell(getattr(class_score, name))
    return cells


def _difference(stored: str, new: str) -> float:
    """Return the difference of two cells, infinite if only one of them is empty."""
    if stored == new:
        return 0.0
    return abs(float(stored) - float(new)) if stored and new else math.inf


def _compare_means(stored: Mapping[str, float], new: Mapping[str, float]) -> list[ScoreCheck]:
    """Return the comparison of summary.json with the new means, one row for each role."""
    rows = []
    for role, prefix in METRIC_PREFIX.items():
        names = [f"{prefix}/{name}" for name in COMPARED if f"{prefix}/{name}" in new]
        differences = {name: abs(stored.get(name, math.inf) - new[name]) for name in names}
        if differences:
            column = max(differences, key=differences.__getitem__)
            dice = f"{prefix}/dice"
            rows.append(
                ScoreCheck(
                    f"mean of {role}",
                    role,
                    f"{stored.get(dice, math.nan):.6f}",
                    f"{new[dice]:.6f}",
                    differences[column],
                    column,
                )
            )
    return rows


def _format_table(rows: Sequence[ScoreCheck]) -> str:
    """Return the rows as a text table."""
    return tables.format_table(
        ["patient", "role", "stored dice", "new dice", "largest difference"],
        [[row.name, row.role, row.stored_dice, row.new_dice, _format(row)] for row in rows],
    )


def _format(row: ScoreCheck) -> str:
    if row.difference == 0:
        return "0"
    return (
        f"{row.difference:.2g} ({row.column})"
        if math.isfinite(row.difference)
        else f"{row.column} differs"
    )


def check_request(config: VerifyConfig) -> None:
    """Raise RequestError if the run or the data file does not exist."""
    resolve_run(config.run, "run")
    if config.data.path is not None:
        read_dataset_info(DataConfig(path=config.data.path))


def main() -> None:
    """Run `python -m brainseg.verify` or `brainseg verify`."""
    run_command("verify", run, check_request)


if __name__ == "__main__":
    main()
