"""The leak, shown: one recipe, trained for as many steps under three splits, and the score that each split would have reported.

    python scripts/leak.py data.path=lgg.h5 max_minutes=10 device=cpu_bf16 output=runs/leak
    python scripts/leak.py epochs=8                                                          the same on the phantom

    by patient    80 % of the patients train, 5 % choose the epoch, 15 % are tested: the test score
    reference     the reference's own draw: 80 % train, 20 % validate, drawn apart, so that most validate what they trained:
                  the validation score of the best epoch, as it was reported
    by slice      each patient's slices dealt at random, 80 % to training and 20 % to validation: the same of the held-out slices

Cost: three trainings, a test, and a second copy of the data in `output` (the slices dealt apart, as patients NAME_train and
NAME_validation). Every setting of brainseg.train may be given but split, test and resume; the same command goes on where it was stopped.
With max_minutes the first training sets the number of steps of the other two, which validate on more slices and take a little longer;
with epochs the steps differ by a few per cent.

What leak.png means: a dot is a patient, orange if it, or other slices of it, were trained on. Two pairs are comparable: on whole volumes
the honest score beside the reference's; on the held-out fifth of the slices, which is harder because the ends of a tumour are thin, the
honest model's score of its test patients beside that of the split by slice. Only the blue ones say what to expect of a new patient; what
the same patients score more once they are orange is memory. A patient without tumour on the slices scored is left out of the picture and
of the means: it scores 0 or 1 by convention. leak.csv holds every patient; the table printed sums it up.
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

OURS = ("split", "test", "resume", "from", "dry_run")  # what would make the three incomparable
HONEST = [
    "split=holdout",
    "split.train=0.8",
    "split.validation=0.05",
    "split.test=0.15",
]  # as many training patients as the reference
HELD_OUT = 0.2  # of each patient's slices
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
        print(f"{stop}; the same command goes on", file=sys.stderr)
        return stop.exit_code
    print(summary(table).to_string(index=False, float_format="{:.3f}".format))
    return 0


def run(overrides: list[str]) -> pd.DataFrame:
    """Train three times, write leak.csv and leak.png to `output`; returns the rows of leak.csv."""
    for override in overrides:
        key = setting_of(override)
        check(
            not key.startswith(OURS),
            key,
            value_of(override),
            "is set here, alike for all three",
            "leave it out",
        )
    experiment = (
        []
        if "tracking.experiment" in values_by_setting(overrides)
        else ["tracking.experiment=brainseg-leak"]
    )
    asked = compose([*overrides, *experiment])
    check(
        asked.data.context == 0,
        "data.context",
        asked.data.context,
        "slices dealt apart have no neighbours",
        "set data.context=0",
    )
    folder = Path(asked.output or "runs/leak")
    recipe = without_settings([*overrides, *experiment], ("output",))

    honest = trained([*recipe, *HONEST], folder / "patient")
    dealt, split = deal_slices(asked, folder)
    by_slice = [
        f"data.path={quoted(dealt)}",
        "data.limit_patients=null",
        "split=file",
        f"split.path={quoted(split)}",
    ]
    # Minutes are measured once: three measurements would differ.
    same_steps = f"steps_of={quoted(honest.path)}"
    reference = trained([*recipe, "split=reference", same_steps], folder / "reference")
    sliced = trained([*recipe, *by_slice, same_steps], folder / "slice")

    columns = [
        scores(PATIENT, honest, "test"),
        scores(REFERENCE, reference, "validation"),
        scores_of_held_out(honest, asked),
        scores(SLICE, sliced, "validation"),
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


def trained(overrides: list[str], folder: Path) -> RunFolder:
    """The finished run of these settings in `folder`: trained, resumed or found. Raises RequestError if another one is there."""
    config = compose([*overrides, f"output={quoted(folder)}", "resume=auto"])
    train.check_request(config)
    train.run(config, Job(tuple(overrides)))
    return RunFolder(folder)


def quoted(path: Path) -> str:
    """As the value of an override, whatever is in it."""
    return "'" + str(path).replace("'", "\\'") + "'"


def deal_slices(config: TrainConfig, folder: Path) -> tuple[Path, Path]:
    """The cohort with each patient as two, and the split file that parts them: what a split by slice amounts to.

    The runner itself has no such split, so that nobody takes it by accident. Images are normalised by the whole volume's
    percentiles, so that the two parts differ from the other columns in nothing but the split.
    """
    path, split = folder / "slices_dealt.h5", folder / "slices_dealt.json"
    if path.is_file() and split.is_file():
        return path, split
    with open_store(config.data) as store:
        known = set(read_dataset_info(config.data).patients)
        parts = sorted(dealt(store, known), key=lambda part: part[0])
        folder.mkdir(parents=True, exist_ok=True)
        volumes = [halved(store, name, rows) for name, rows in parts]
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


def dealt(store: Store, patients: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of both parts of each volume; at least one slice is held out."""
    generator = np.random.default_rng(0)
    for volume, name in enumerate(store.volumes):
        rows = np.arange(store.first_slice[volume], store.first_slice[volume + 1])
        held_out = np.isin(rows, generator.permutation(rows)[: max(1, round(HELD_OUT * len(rows)))])
        if store.patients[volume] in patients:
            yield from ((name + TRAIN, rows[~held_out]), (name + VALIDATION, rows[held_out]))


def store_rows(read: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows of one volume, which is read in one go."""
    return read(int(rows[0]), int(rows[-1]) + 1)[rows - rows[0]]


def halved(store: Store, name: str, rows: np.ndarray) -> Volume:
    """What the file says of a part of a volume: its own slices, the whole volume's percentiles."""
    slices = zip(
        store.slice_number[rows],
        store_rows(store.images, rows),
        store_rows(store.masks, rows)[:, 0],
        strict=True,
    )
    whole = store.volume_of(int(rows[0]))
    return replace(
        compute_volume_stats(name, slices, store.channels),
        low=store.low[whole],
        high=store.high[whole],
        copies=store.copies[whole],
    )


def scores(column: str, folder: RunFolder, part: str) -> pd.DataFrame:
    """The patients of one part of a run's split: split, patient, dice, slices, tumour_pixels, trained_on, steps, best_epoch."""
    best = checkpoint.load(folder.best) | {"total_steps": steps_done(folder)}
    split = Split.from_dict(best["split"])
    table = read_scores(folder.path / "patients.csv")
    name = table.patient.map(patient_of)
    table = table[name.isin(getattr(split, part))]  # by name: the reference's parts overlap
    seen = table.patient.str.endswith(VALIDATION) | name.isin(split.train)
    table = table.assign(trained_on=seen, patient=table.patient.str.removesuffix(VALIDATION))
    return labelled(column, table, best)


def steps_done(folder: RunFolder) -> int:
    """Return the optimizer steps of a finished run: under max_minutes the best epoch's checkpoint only estimates them."""
    return json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def labelled(column: str, table: pd.DataFrame, best: dict[str, Any]) -> pd.DataFrame:
    table = table.assign(split=column, steps=best["total_steps"], best_epoch=best["best_epoch"])
    return table[
        ["split", "patient", "dice", "slices", "tumour_pixels", "trained_on", "steps", "best_epoch"]
    ]


def scores_of_held_out(honest: RunFolder, asked: TrainConfig) -> pd.DataFrame:
    """The honest model's test patients again, but over the slices that the split by slice holds out of them."""
    best = checkpoint.load(honest.best) | {"total_steps": steps_done(honest)}
    slices = read_scores(honest.path / "slices.csv").set_index(["patient", "slice"])
    found = []
    with open_store(asked.data) as store:
        for name, rows in dealt(store, set(best["split"]["test"])):
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
                dice = 2 * overlap / (truth + predicted) if truth + predicted else 1.0
                found.append(
                    {
                        "patient": store.volumes[volume],
                        "dice": dice,
                        "slices": len(rows),
                        "tumour_pixels": truth,
                    }
                )
    return labelled(PATIENT_SLICES, pd.DataFrame(found).assign(trained_on=False), best)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each column of the picture, over the patients with tumour on the slices scored.

    seen, unseen: means of those trained on and of the others; same: mean of those that the honest model scored on these slices.
    """
    there = table[table.tumour_pixels > 0]
    both = there.patient[there.split == PATIENT_SLICES]
    rows = []
    for name in LABELS:
        part, steps = there[there.split == name], table.steps[table.split == name].iloc[0]
        low, high = bootstrap(part.dice.to_numpy()) if len(part) > 1 else (np.nan, np.nan)
        seen, unseen = part.dice[part.trained_on], part.dice[~part.trained_on]
        same = (
            part.dice[part.patient.isin(both)].mean() if name in (PATIENT_SLICES, SLICE) else np.nan
        )
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
    """The scores side by side, a dot a patient, as PNG."""
    figure = new_figure(11, 5)
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    for place, row in enumerate(summary(table).itertuples()):
        part = table[(table.split == row.split) & (table.tumour_pixels > 0)]
        beside = place + generator.uniform(-0.25, 0.05, len(part))
        axes.scatter(
            beside,
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
        said, height = (f"{row.mean:.2f}", row.mean) if row.patients else ("none", 0.5)
        axes.text(
            place + 0.19,
            height,
            said,
            color=colour,
            fontsize=16,
            fontweight="bold",
            verticalalignment="center",
        )
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
    told = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    axes.set_title(
        f"One network, {told} training steps: its score depends on the split",
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
    """What stands below a column of the picture: the split, who was scored, and what to compare."""
    who = f"{row.patients} {'test' if row.split in (PATIENT, PATIENT_SLICES) else 'validation'} patients"
    if row.split == SLICE:
        return f"{LABELS[row.split]}\n{who}, all trained on\nthe same patients as at its left: {row.same:.2f}"
    if not row.trained_on:
        return f"{LABELS[row.split]}\n{who}, none trained on"
    unseen = (
        f"\ntrained on {row.seen:.2f}, never seen {row.unseen:.2f}"
        if row.trained_on < row.patients
        else ""
    )
    return f"{LABELS[row.split]}\n{who}, {row.trained_on} trained on{unseen}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
