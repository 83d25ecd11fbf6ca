"""Demonstrate leakage: train one recipe under three splits and compare the scores they report.

    python scripts/leak.py data.path=lgg.h5 max_minutes=10 device=cpu_bf16 output=runs/leak
    python scripts/leak.py epochs=8                                        the same on the phantom

    by patient    80 % of the patients train, 5 % choose the epoch, and 15 % are tested. The score
                  is the test score.
    reference     The split of the reference implementation: 80 % train and 20 % validate. Both
                  parts are drawn independently, so that most validation patients are trained on.
                  The score is the validation score of the best epoch, as it was reported.
    by slice      The slices of each patient are divided at random: 80 % for training and 20 % for
                  validation. The score is the validation score of the held-out slices.

The cost is three trainings, a test, and a second copy of the data in `output`. The copy contains
the divided slices as patients NAME_train and NAME_validation. Every setting of brainseg.train is
allowed except split, test and resume. The same command resumes an interrupted run. With
max_minutes, the first training determines the number of steps of the other two, which validate on
more slices and take a little longer. With epochs, the numbers of steps differ by a few per cent.

In leak.png, a dot is a patient. The dot is orange if the patient, or other slices of the patient,
were trained on. Two pairs of columns are comparable. On whole volumes, compare the split by patient
with the reference. On the held-out fifth of the slices, compare the test patients of the split by
patient with the split by slice. This fifth is harder because the ends of a tumour are thin. Only
blue dots predict the score of a new patient. If the same patients score higher in orange, the
difference is memory. A patient without tumour on the scored slices is left out of the picture and
of the means, because its score is 0 or 1 by convention. leak.csv contains every patient, and the
printed table summarizes it.
"""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra import initialize_config_dir

from brainseg import train
from brainseg.config import TrainConfig
from brainseg.config.compose import CONFIGS, compose_job
from brainseg.config.overrides import setting_of, value_of, values_by_setting, without_settings
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.files import write_json, writing
from brainseg.core.signals import Interrupted
from brainseg.data.open import open_store, read_dataset_info
from brainseg.data.split import Split
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import Volume, compute_volume_stats, patient_of
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from brainseg.reports.tables import read_scores
from brainseg.runs import checkpoint
from brainseg.runs.job import Job
from brainseg.runs.run_folder import RunFolder

# Settings that a user may not change, because the three runs would not be comparable.
OURS = ("split", "test", "resume", "from", "dry_run")
# The split by patient, with as many training patients as the reference split.
HONEST = ["split=holdout", "split.train=0.8", "split.validation=0.05", "split.test=0.15"]
# The held-out share of each patient's slices.
HELD_OUT = 0.2
TRAIN, VALIDATION = "_train", "_validation"
LABELS = {
    "patient": "split by patient",
    "reference": "the reference's split",
    "patient, held-out slices": "split by patient",
    "slice": "split by slice",
}
PATIENT, REFERENCE, PATIENT_SLICES, SLICE = LABELS


def main(overrides: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        table = run(overrides)
    except (RequestError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; run the same command again to resume", file=sys.stderr)
        return stop.exit_code
    print(summary(table).to_string(index=False, float_format="{:.3f}".format))
    return 0


def run(overrides: list[str]) -> pd.DataFrame:
    """Train three times, write leak.csv and leak.png to `output`, and return the rows of leak.csv.

    Raises RequestError for settings that the three runs cannot share.
    """
    for override in overrides:
        key = setting_of(override)
        rule = "is set by this script for all three runs"
        check(not key.startswith(OURS), key, value_of(override), rule, "leave it out")
    experiment = (
        []
        if "tracking.experiment" in values_by_setting(overrides)
        else ["tracking.experiment=brainseg-leak"]
    )
    config = compose([*overrides, *experiment])
    context, rule = config.data.context, "slices that are divided at random have no neighbours"
    check(context == 0, "data.context", context, rule, "set data.context=0")
    with open_store(config.data) as store:
        check(
            len(set(store.patients)) == len(store.volumes),
            "data.path",
            config.data.path,
            "has patients with several volumes, which would count as several patients",
            "use data with one volume per patient",
        )
    folder = Path(config.output or "runs/leak")
    recipe = without_settings([*overrides, *experiment], ("output",))

    honest_run = train_run([*recipe, *HONEST], folder / "patient")
    data, split = deal_slices(config, folder)
    by_slice = [
        f"data.path={quote_path(data)}",
        "data.limit_patients=null",
        "split=file",
        f"split.path={quote_path(split)}",
    ]
    # The time budget is converted to steps only once, because three measurements would differ.
    same_steps = f"steps_of={quote_path(honest_run.path)}"
    reference_run = train_run([*recipe, "split=reference", same_steps], folder / "reference")
    slice_run = train_run([*recipe, *by_slice, same_steps], folder / "slice")

    # The order of the columns in the picture.
    columns = [
        scores(PATIENT, honest_run, "test"),
        scores(REFERENCE, reference_run, "validation"),
        scores_of_held_out(honest_run, config),
        scores(SLICE, slice_run, "validation"),
    ]
    table = pd.concat(columns, ignore_index=True)
    with writing(folder / "leak.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    draw(table, folder / "leak.png")
    print(f"\nwritten to {folder}: leak.csv, leak.png")
    return table


def compose(overrides: list[str]) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        config: TrainConfig = compose_job("train", overrides)
    return config


def train_run(overrides: list[str], folder: Path) -> RunFolder:
    """Train the run of these settings in `folder`, or resume it, and return its folder.

    A finished run is not trained again. Raises RequestError if the folder contains another run.
    """
    config = compose([*overrides, f"output={quote_path(folder)}", "resume=auto"])
    train.check_request(config)
    train.run(config, Job(tuple(overrides)))
    return RunFolder(folder)


def quote_path(path: Path) -> str:
    """Return the path as the value of an override, with any characters in it."""
    return "'" + str(path).replace("'", "\\'") + "'"


def deal_slices(config: TrainConfig, folder: Path) -> tuple[Path, Path]:
    """Write a cohort in which each patient is divided into two, and a split file for both parts.

    Together they are a split by slice. brainseg.train has no such split, so that nobody uses it by
    accident. The images are normalised by the percentiles of the whole volume, so that the two
    parts differ from the other columns only in the split. Returns the paths of the data and of the
    split.
    """
    path, split = folder / "slices_dealt.h5", folder / "slices_dealt.json"
    # The division is deterministic, so that the files of an earlier call are still valid.
    if path.is_file() and split.is_file():
        return path, split
    with open_store(config.data) as store:
        patients = set(read_dataset_info(config.data).patients)
        parts = sorted(divide_slices(store, patients), key=lambda part: part[0])
        folder.mkdir(parents=True, exist_ok=True)
        volumes = [part_of_volume(store, name, rows) for name, rows in parts]
        write_store(
            path,
            volumes,
            ((store_rows(store.images, rows), store_rows(store.masks, rows)) for _, rows in parts),
            store.channels,
            store.classes,
        )
    names = [volume.patient for volume in volumes]
    ends = {"train": TRAIN, "validation": VALIDATION}
    write_json(
        split, {part: [name for name in names if name.endswith(end)] for part, end in ends.items()}
    )
    return path, split


def divide_slices(store: Store, patients: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the rows of both parts of each volume. At least one slice is held out."""
    # The seed is fixed, because `scores_of_held_out` must obtain the same parts again.
    generator = np.random.default_rng(0)
    for volume, name in enumerate(store.volumes):
        rows = np.arange(store.first_slice[volume], store.first_slice[volume + 1])
        held_out = np.isin(rows, generator.permutation(rows)[: max(1, round(HELD_OUT * len(rows)))])
        if store.patients[volume] in patients:
            yield from ((name + TRAIN, rows[~held_out]), (name + VALIDATION, rows[held_out]))


def store_rows(read: Any, rows: np.ndarray) -> np.ndarray:
    """Return some rows of a volume, which is read as one block."""
    return read(int(rows[0]), int(rows[-1]) + 1)[rows - rows[0]]


def part_of_volume(store: Store, name: str, rows: np.ndarray) -> Volume:
    """Return the metadata of a part of a volume, with the intensities of the whole volume."""
    slices = zip(
        store.slice_number[rows],
        store_rows(store.images, rows),
        store_rows(store.masks, rows)[:, 0],
        strict=True,
    )
    volume = store.volume_of(int(rows[0]))
    head = (
        {"head_median": store.head_median[volume], "head_box": store.head_box[volume]}
        if store.head_median is not None and store.head_box is not None
        else {}
    )
    return replace(
        compute_volume_stats(name, slices, store.channels),
        **head,
        low=store.low[volume],
        high=store.high[volume],
        copies=store.copies[volume],
    )


def scores(column: str, folder: RunFolder, part: str) -> pd.DataFrame:
    """Return the scores of the patients of one part of a run's split.

    The columns are split, patient, dice, slices, tumour_pixels, trained_on, steps and best_epoch.
    """
    best = checkpoint.load(folder.best) | {"total_steps": count_steps(folder)}
    split = Split.from_dict(best["split"])
    table = read_scores(folder.path / "patients.csv")
    name = table.patient.map(patient_of)
    # Patients are selected by name and not by role, because the parts of the reference overlap.
    table = table[name.isin(getattr(split, part))]
    is_seen = table.patient.str.endswith(VALIDATION) | name.isin(split.train)
    table = table.assign(trained_on=is_seen, patient=table.patient.str.removesuffix(VALIDATION))
    return add_run_columns(column, table, best)


def count_steps(folder: RunFolder) -> int:
    """Return the optimizer steps of a finished run.

    Under max_minutes, the checkpoint of the best epoch contains only an estimate of them.
    """
    return json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def add_run_columns(column: str, table: pd.DataFrame, best: dict[str, Any]) -> pd.DataFrame:
    """Return the table with the split, the steps and the best epoch of a run in each row."""
    table = table.assign(split=column, steps=best["total_steps"], best_epoch=best["best_epoch"])
    return table[
        ["split", "patient", "dice", "slices", "tumour_pixels", "trained_on", "steps", "best_epoch"]
    ]


def scores_of_held_out(honest_run: RunFolder, config: TrainConfig) -> pd.DataFrame:
    """Return the scores of the split by patient on the held-out slices of its test patients.

    The held-out slices are those of the split by slice.
    """
    best = checkpoint.load(honest_run.best) | {"total_steps": count_steps(honest_run)}
    slices = read_scores(honest_run.path / "slices.csv").set_index(["patient", "slice"])
    table_rows = []
    with open_store(config.data) as store:
        for name, rows in divide_slices(store, set(best["split"]["test"])):
            if name.endswith(VALIDATION):
                volume = store.volume_of(int(rows[0]))
                places = [
                    (store.volumes[volume], int(row - store.first_slice[volume])) for row in rows
                ]
                truth, predicted, overlap = (
                    slices.loc[places, ["truth_pixels", "predicted_pixels", "overlap"]]
                    .sum()
                    .tolist()
                )
                # By convention, Dice is 1 if neither mask has a voxel.
                dice = 2 * overlap / (truth + predicted) if truth + predicted else 1.0
                table_rows.append(
                    {
                        "patient": store.volumes[volume],
                        "dice": dice,
                        "slices": len(rows),
                        "tumour_pixels": truth,
                    }
                )
    table = pd.DataFrame(table_rows).assign(trained_on=False)
    return add_run_columns(PATIENT_SLICES, table, best)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each column of the picture, over the patients with tumour.

    `seen` and `unseen` are the means of the patients that were trained on and of the others. `same`
    is the mean of the patients that the split by patient scored on the held-out slices.
    """
    with_tumour = table[table.tumour_pixels > 0]
    shared = with_tumour.patient[with_tumour.split == PATIENT_SLICES]
    rows = []
    for name in LABELS:
        part = with_tumour[with_tumour.split == name]
        steps = table.steps[table.split == name].iloc[0]
        # An interval needs at least two patients.
        low, high = bootstrap(part.dice.to_numpy()) if len(part) > 1 else (np.nan, np.nan)
        seen, unseen = part.dice[part.trained_on], part.dice[~part.trained_on]
        same = np.nan
        if name in (PATIENT_SLICES, SLICE):
            same = part.dice[part.patient.isin(shared)].mean()
        rows.append(
            (
                name,
                len(part),
                len(seen),
                part.dice.mean(),
                low,
                high,
                seen.mean(),
                unseen.mean(),
                same,
                steps,
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
            "split",
            "patients",
            "trained_on",
            "mean",
            "low",
            "high",
            "seen",
            "unseen",
            "same",
            "steps",
        ],
    )


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the scores of the splits side by side, with a dot per patient, as PNG."""
    figure = new_figure(11, 5)
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    # Each column has the dots at the left, and the mean with its interval at the right.
    for place, row in enumerate(summary(table).itertuples()):
        part = table[(table.split == row.split) & (table.tumour_pixels > 0)]
        # The dots are spread at random, so that equal scores do not cover each other.
        positions = place + generator.uniform(-0.25, 0.05, len(part))
        axes.scatter(
            positions,
            part.dice,
            s=30,
            color=np.where(part.trained_on, ORANGE, BLUE),
            alpha=0.75,
            edgecolor="white",
            linewidth=0.5,
        )
        colour = ORANGE if row.trained_on else BLUE
        axes.plot([place + 0.15] * 2, [row.low, row.high], color=colour, linewidth=2.4)
        axes.plot([place + 0.15], [row.mean], marker="D", markersize=7, color=colour)
        mean, height = (f"{row.mean:.2f}", row.mean) if row.patients else ("none", 0.5)
        axes.text(
            place + 0.19,
            height,
            mean,
            color=colour,
            fontsize=16,
            fontweight="bold",
            verticalalignment="center",
        )
    # The line separates the two comparable pairs.
    axes.axvline(1.5, color=GREY, linewidth=1, linestyle=":")
    for place, text in enumerate(
        ("over whole volumes", "over the same fifth of each patient's slices")
    ):
        axes.text(
            2 * place + 0.5,
            -0.2,
            text,
            color=GREY,
            transform=axes.get_xaxis_transform(),
            horizontalalignment="center",
        )
    steps = sorted(set(table.steps))
    count = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    axes.set_title(
        f"One network, {count} training steps: its score depends on the split",
        loc="left",
        fontweight="bold",
        pad=24,
    )
    for x, text, colour in (
        (0.0, "● patient never seen in training", BLUE),
        (0.28, "● patient trained on", ORANGE),
    ):
        axes.text(x, 1.02, text, color=colour, transform=axes.transAxes)
    axes.text(
        1.0,
        1.02,
        "◆ mean and its 95 % interval over patients",
        color=GREY,
        transform=axes.transAxes,
        horizontalalignment="right",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(ylim=(-0.02, 1.02), xlim=(-0.4, len(LABELS) - 0.5), ylabel="Dice of a patient")
    axes.set_xticks(range(len(LABELS)), [label(row) for row in summary(table).itertuples()])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    save_figure(figure, path)


def label(row: Any) -> str:
    """Return the text below a column: the split, its patients, and the score to compare."""
    part = "test" if row.split in (PATIENT, PATIENT_SLICES) else "validation"
    patients = f"{row.patients} {part} patients"
    if row.split == SLICE:
        same = f"the same patients as in the column to the left: {row.same:.2f}"
        return f"{LABELS[row.split]}\n{patients}, all trained on\n{same}"
    if not row.trained_on:
        return f"{LABELS[row.split]}\n{patients}, none trained on"
    unseen = (
        f"\ntrained on {row.seen:.2f}, never seen {row.unseen:.2f}"
        if row.trained_on < row.patients
        else ""
    )
    return f"{LABELS[row.split]}\n{patients}, {row.trained_on} trained on{unseen}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
