"""Score a checkpoint on the patients of a file, by the same code as validation and test while training.

    python -m brainseg.evaluate checkpoint=runs/NAME/checkpoints/best.pt
    python -m brainseg.evaluate checkpoint=runs/NAME data.path=other.h5 split=all
    python -m brainseg.evaluate checkpoint=weights.pt model.depth=4 model.width=32 model.growth=1 data.path=lgg.h5 split=all
    python -m brainseg.evaluate checkpoint=[runs/a,runs/b]         their mean, an ensemble

The data are those that the checkpoint was trained on, unless a `data.` setting names others. It writes patients.csv,
slices.csv, summary.json, predictions.h5, viewer.html, an analysis of its failures and pictures/ to `output`, which is
evaluations/ and the checkpoint's name unless given. Each patient carries its role in the split that the checkpoint was
trained under, and "unknown" where the data hold another scan under the patient's name. Scores are summarised by role,
never pooled.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.cli.main import run_command
from brainseg.comparison.runs import count_configurations_tried
from brainseg.config import DataConfig, EvaluateConfig
from brainseg.core.errors import check
from brainseg.data import memory_cache
from brainseg.data.open import open_store, read_dataset_info
from brainseg.data.split import make_split
from brainseg.data.store import Store
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.evaluation.inference import check_components, check_threshold
from brainseg.prediction.trained_model import (
    TrainedModel,
    check_checkpoint_exists,
    inference_of,
    load_members,
    members_that_saw,
    patient_role,
    short_name,
)
from brainseg.prediction.training_data import chosen_data
from brainseg.reports import failures_figure, tables
from brainseg.reports.clinical import read_clinical
from brainseg.reports.scores import PREFIX, Results
from brainseg.runs.find import check_no_run

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("brainseg")


def run(config: EvaluateConfig) -> int:
    """Evaluate, write and print; returns the exit code 0."""
    device = choose_device(
        dataclasses.replace(config.device, compile=False)
    )  # to compile takes longer than all patients do
    seen = DataConfig(volume=config.data.volume, context=config.data.context or 0)
    members = load_members(config.checkpoint, seen, config.model)
    inference = inference_of(members, config.inference)
    data = chosen_data(config.data, members)
    everyone = read_dataset_info(data).patients
    store = open_store(data)
    check_threshold(inference, store.classes)
    check_components(inference)
    _warn_of_other_data(members, everyone, store)
    patients = _chosen(config, members, everyone, store)
    clinical = read_clinical(config.clinical, patients) if config.clinical else None
    leaky = _check_ensemble(config, members, patients, store)
    among = max(count_configurations_tried(name) for name in config.checkpoint)
    datasets = [member.dataset(store, patients) for member in members]
    if data.resident == "yes":
        memory_cache.cache_in_memory(datasets, device.torch, "yes")
        memory_cache.clear_cache()  # from here on by the data sets alone
    (model, dataset), *others = [
        (device.place(member.model(dataset)), dataset)
        for member, dataset in zip(members, datasets, strict=True)
    ]

    roles = {
        volume: patient_role(patient, members, store)
        for volume, patient in zip(store.volumes, store.patients, strict=True)
    }
    results = Results(dataset, config.predictions)
    criterion = None if others else members[0].criterion()  # a mean of probabilities has no logits
    results.add(
        evaluate(model, dataset, inference, device, config.batch_size, criterion, others), roles
    )
    facts = {
        "checkpoint": config.checkpoint,
        "uid": [member.stored.get("uid") for member in members],
        "inference": dataclasses.asdict(inference),
        "device": device.resolved,
        "data": {
            "path": str(store.path),
            "fingerprint": store.fingerprint,
            "trained_on": [member.stored.get("fingerprint") for member in members],
        },
        "chosen_among": among,
        "leaky": leaky
        or any(member.split is not None and member.split.leaky for member in members),
    }
    metrics = results.write(folder_of(config), facts, config.overlays)
    if config.viewer:
        _view(config, results, metrics, facts)
    else:
        (folder_of(config) / "viewer.html").unlink(missing_ok=True)  # of other scores
    _analyse_failures(config, store, clinical)
    print(_said(config, results, metrics, facts))
    return 0


def folder_of(config: EvaluateConfig) -> Path:
    """Where it is written: `output`, else evaluations/ and the checkpoint's name, so that two runs' scores do not meet."""
    return (
        Path(config.output)
        if config.output is not None
        else Path("evaluations", "+".join(map(short_name, config.checkpoint)))
    )


def _said(
    config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]
) -> str:
    written = [
        "patients.csv",
        "slices.csv",
        "summary.json",
        "failures.csv",
        "worst.csv",
        "pictures/",
    ]
    written += ["predictions.h5"] if config.predictions != "none" else []
    page = (
        f"\nlook at them:  {folder_of(config) / 'viewer.html'} (opens offline)"
        if config.viewer
        else ""
    )
    scores = f"{tables.metrics_table(metrics, _title(results, facts))}\n{results.explained()}"
    return f"{scores}\n\nwritten to {folder_of(config)}: {', '.join(written)}{page}"


def _title(results: Results, facts: dict[str, Any]) -> str:
    """Who was scored, and what a reader must know of it."""
    counts = ", ".join(
        f"{sum(role == its for _, its in results.rows)} {role}"
        for role in dict.fromkeys(role for _, role in results.rows)
    )
    title = (
        f"{tables.format_count(len(results.rows), 'patient')} by their role in training: {counts}"
    )
    title += ", leaky=true" if facts["leaky"] else ""
    if facts["chosen_among"] > 1:
        title += f"; one of {facts['chosen_among']} configurations of its sweep"
    return title


def _view(
    config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]
) -> None:
    """The page on which the patients can be looked at, slice by slice."""
    split = config.split.name if config.split is not None else "that of the checkpoint"
    means = [
        f"{role} {metrics[f'{prefix}/dice']:.3f}"
        for role, prefix in PREFIX.items()
        if f"{prefix}/dice" in metrics
    ]
    notes = [
        f"{_title(results, facts)}. Mean Dice: {', '.join(means)}.",
        f"Network: {', '.join(config.checkpoint)}; split: {split}; data: {facts['data']['path']}.",
    ]
    run = (
        "prediction"
        if len(config.checkpoint) == 1
        else f"mean of {len(config.checkpoint)} networks"
    )
    title = "Tumour segmentation: " + " + ".join(map(short_name, config.checkpoint))
    results.view(folder_of(config) / "viewer.html", config.viewer, run, title, notes)


def _analyse_failures(
    config: EvaluateConfig, store: Store, clinical: "pd.DataFrame | None"
) -> None:
    """Where it fails, on the most telling patients: those held out, else of no known role, else those that selected or trained it."""
    folder = folder_of(config)
    patients = tables.read_scores(folder / "patients.csv")
    role = next(
        role for role in ("test", "unknown", "validation", "train") if (patients.role == role).any()
    )
    failures_figure.write(
        folder,
        patients[patients.role == role],
        tables.read_scores(folder / "slices.csv"),
        store,
        clinical,
    )


def _warn_of_other_data(
    members: Sequence[TrainedModel], patients: Sequence[str], store: Store
) -> None:
    """Warn if the data are not those that a member was trained on, with the number of patients that are the same."""
    for member in members:
        trained_on = member.stored.get("fingerprint")
        if trained_on not in (None, store.fingerprint):
            same = sum(member.role(patient, store) != "unknown" for patient in patients)
            log.warning(
                "%s was trained on other data than %s (fingerprints %s and %s): %d of its %d patients are scans of the "
                "training data and keep their role, the others have none",
                member.name,
                store.path,
                str(trained_on)[:10],
                store.fingerprint[:10],
                same,
                len(patients),
            )


def _chosen(
    config: EvaluateConfig, members: Sequence[TrainedModel], patients: list[str], store: Store
) -> list[str]:
    """Return the patients evaluated: `parts` of the split asked for, or of every member's own.

    In a member's own split a patient of `store` counts only if its scan is one of the training data.
    """
    splits = (
        [make_split(config.split, patients)]
        if config.split is not None
        else [member.split for member in members]
    )
    for member, split in zip(members, splits, strict=False):
        check(
            split is not None,
            "split",
            "null",
            f"{member.name} carries no split",
            "say which patients, as split=all",
        )
    of_each = [[name for part in config.parts for name in getattr(split, part)] for split in splits]
    wanted = [name for name in of_each[0] if all(name in of_one for of_one in of_each)]
    there = set(patients)
    if config.split is None:
        there = {
            name
            for name in wanted
            if name in there and all(m.role(name, store) != "unknown" for m in members)
        }
    names = [name for name in wanted if name in there]
    if missing := sorted(set(wanted) - set(names)):
        log.warning(
            "%d of the %d patients of %s are not in these data and not scored: %s",
            len(missing),
            len(wanted),
            " and ".join(config.parts),
            ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
        )
    of_all = " of every checkpoint" if len(splits) > 1 else ""
    rule = f"no patient of {store.path} is in these parts{of_all}"
    check(bool(names), "parts", ",".join(config.parts), rule, _remedy(config, members[0], store))
    return names


def _remedy(config: EvaluateConfig, member: TrainedModel, store: Store) -> str:
    """Return what helps where none of the patients is in the parts: mostly the data are not those of the training."""
    if member.stored.get("fingerprint") in (None, store.fingerprint):
        return "choose other parts, or split=all"
    named = (config.data.path, config.data.name, *dataclasses.asdict(config.data.phantom).values())
    if all(value is None for value in named):
        # The file of the training was found under its name, and holds something else.
        return (
            f"the file was replaced since {member.name} was trained: put the former one back, or say where it is by data.path=FILE; "
            "for the patients of this file, split=all"
        )
    return f"{member.name} was trained on other data: leave data.path out for these; for the patients of this file, split=all"


def _check_ensemble(
    config: EvaluateConfig, members: Sequence[TrainedModel], patients: Sequence[str], store: Store
) -> bool:
    """Whether members saw patients that others held out; refused unless `leaky=true`: their mean would be a score on nobody new."""
    seen = {
        patient: names
        for patient in patients
        if (names := members_that_saw(patient, members, store))
    }
    one = next(iter(seen), "")
    by = ", ".join(seen.get(one, []))
    rule = f"{len(seen)} of {len(patients)} patients were trained or selected on by some of them, as {one} by {by}"
    check(
        not seen or config.leaky,
        "checkpoint",
        f"{len(members)} of them",
        rule,
        "evaluate patients that all held out, or leaky=true, which says so in the summary",
    )
    return bool(seen)


def check_request(config: EvaluateConfig) -> None:
    """All that can be refused before anything is created or read in full. Raises RequestError."""
    choose_device(config.device)
    if config.data.path is not None:
        read_dataset_info(DataConfig(path=config.data.path))
    for name in config.checkpoint:
        check_checkpoint_exists(name)
    check_no_run(folder_of(config))
    check(
        config.clinical is None or Path(config.clinical).is_file(),
        "clinical",
        config.clinical,
        "no such file",
        "a CSV like data.csv",
    )


def main() -> None:
    """Entry point of `python -m brainseg.evaluate` and `brainseg evaluate`."""
    run_command("evaluate", run, check_request)


if __name__ == "__main__":
    main()
