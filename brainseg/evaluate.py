"""Score a checkpoint on the patients of a file, by the same code as validation and test while training.

    python -m brainseg.evaluate checkpoint=runs/NAME/checkpoints/best.pt data.path=lgg.h5
    python -m brainseg.evaluate checkpoint=weights.pt model.depth=4 model.width=32 model.growth=1 data.path=lgg.h5 split=all
    python -m brainseg.evaluate checkpoint=[runs/a,runs/b] data.path=lgg.h5         their mean, an ensemble

It writes patients.csv, slices.csv, summary.json, predictions.h5, viewer.html, an analysis of its failures and pictures/ to `output`,
which is evaluations/ and the checkpoint's name unless given. Each patient carries its role in the split that the checkpoint was trained
under; scores are summarised by role, never pooled.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg import cli
from brainseg.config import EvaluateConfig
from brainseg.data import resident
from brainseg.data.cohort import open_store, outline
from brainseg.data.split import draw
from brainseg.data.store import Store
from brainseg.device import choose
from brainseg.errors import check as require
from brainseg.records import failures_figure, tables
from brainseg.records.clinical import read_clinical
from brainseg.records.folders import check_no_run
from brainseg.records.gathering import chosen_among
from brainseg.records.results import PREFIX, Results
from brainseg.trained import Trained, check_name, inference_of, load_members, role_of, saw, short_name
from brainseg.training.evaluation import evaluate
from brainseg.training.inference import check_components, check_threshold

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("brainseg")


def run(config: EvaluateConfig) -> int:
    """Evaluate, write and print; returns the exit code 0."""
    device = choose(dataclasses.replace(config.device, compile=False))  # to compile takes longer than all patients do
    members = load_members(config.checkpoint, config.data, config.model)
    inference = inference_of(members, config.inference)
    store = open_store(config.data)
    check_threshold(inference, store.classes)
    check_components(inference)
    patients = _chosen(config, members, outline(config.data).patients)
    clinical = read_clinical(config.clinical, patients) if config.clinical else None
    leaky = _check_ensemble(config, members, patients)
    among = max(chosen_among(name) for name in config.checkpoint)
    datasets = [member.dataset(store, patients) for member in members]
    if config.data.resident == "yes":
        resident.hold(datasets, device.torch, "yes")
        resident.release()  # from here on by the data sets alone
    (model, dataset), *others = [(device.place(member.model(dataset)), dataset) for member, dataset in zip(members, datasets, strict=True)]

    roles = {volume: role_of(patient, members) for volume, patient in zip(store.volumes, store.patients, strict=True)}
    results = Results(dataset, config.predictions)
    criterion = None if others else members[0].criterion()  # a mean of probabilities has no logits
    results.add(evaluate(model, dataset, inference, device, config.batch_size, criterion, others), roles)
    facts = {
        "checkpoint": config.checkpoint,
        "uid": [member.stored.get("uid") for member in members],
        "inference": dataclasses.asdict(inference),
        "device": device.got,
        "data": {"path": str(store.path), "fingerprint": store.fingerprint},
        "chosen_among": among,
        "leaky": leaky or any(member.split is not None and member.split.leaky for member in members),
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
    return Path(config.output) if config.output is not None else Path("evaluations", "+".join(map(short_name, config.checkpoint)))


def _said(config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]) -> str:
    written = ["patients.csv", "slices.csv", "summary.json", "failures.csv", "worst.csv", "pictures/"]
    written += ["predictions.h5"] if config.predictions != "none" else []
    page = f"\nlook at them:  {folder_of(config) / 'viewer.html'} (opens offline)" if config.viewer else ""
    scores = f"{tables.metrics_table(metrics, _title(results, facts))}\n{results.explained()}"
    return f"{scores}\n\nwritten to {folder_of(config)}: {', '.join(written)}{page}"


def _title(results: Results, facts: dict[str, Any]) -> str:
    """Who was scored, and what a reader must know of it."""
    counts = ", ".join(f"{sum(role == its for _, its in results.rows)} {role}" for role in dict.fromkeys(role for _, role in results.rows))
    title = f"{tables.counted(len(results.rows), 'patient')} by their role in training: {counts}"
    title += ", leaky=true" if facts["leaky"] else ""
    if facts["chosen_among"] > 1:
        title += f"; one of {facts['chosen_among']} configurations of its sweep"
    return title


def _view(config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """The page on which the patients can be looked at, slice by slice."""
    split = config.split.name if config.split is not None else "that of the checkpoint"
    means = [f"{role} {metrics[f'{prefix}/dice']:.3f}" for role, prefix in PREFIX.items() if f"{prefix}/dice" in metrics]
    notes = [f"{_title(results, facts)}. Mean Dice: {', '.join(means)}.",
             f"Network: {', '.join(config.checkpoint)}; split: {split}; data: {config.data.path or 'the phantom'}."]
    run = "prediction" if len(config.checkpoint) == 1 else f"mean of {len(config.checkpoint)} networks"
    title = "Tumour segmentation: " + " + ".join(map(short_name, config.checkpoint))
    results.view(folder_of(config) / "viewer.html", config.viewer, run, title, notes)


def _analyse_failures(config: EvaluateConfig, store: Store, clinical: "pd.DataFrame | None") -> None:
    """Where it fails, on the most telling patients: those held out, else of no known role, else those that selected or trained it."""
    folder = folder_of(config)
    patients = tables.read_scores(folder / "patients.csv")
    role = next(role for role in ("test", "unknown", "validation", "train") if (patients.role == role).any())
    failures_figure.write(folder, patients[patients.role == role], tables.read_scores(folder / "slices.csv"), store, clinical)


def _chosen(config: EvaluateConfig, members: Sequence[Trained], patients: list[str]) -> list[str]:
    """The patients evaluated: `parts` of the split asked for, or those in these parts of every member's own."""
    splits = [draw(config.split, patients)] if config.split is not None else [member.split for member in members]
    for member, split in zip(members, splits, strict=False):
        require(split is not None, "split", "null", f"{member.name} carries no split", "say which patients, as split=all")
    of_each = [[name for part in config.parts for name in getattr(split, part)] for split in splits]
    wanted = [name for name in of_each[0] if all(name in of_one for of_one in of_each)]
    names = [name for name in wanted if name in set(patients)]
    if missing := sorted(set(wanted) - set(names)):
        log.warning("%d of the %d patients of %s are not in these data and not scored: %s", len(missing), len(wanted),
                    " and ".join(config.parts), ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""))
    of_all = " of every checkpoint" if len(splits) > 1 else ""
    require(bool(names), "parts", ",".join(config.parts), f"no patient of {config.data.path or 'the phantom'} is in these parts{of_all}",
            _remedy(config, members[0]))
    return names


def _remedy(config: EvaluateConfig, member: Trained) -> str:
    """What helps where none of the patients is known: mostly the data are not those that the network was trained on."""
    own = member.config.data.path if member.config is not None else None
    if own is not None and config.data.path != own:
        return f"{member.name} was trained on data.path={own}; for other patients, split=all"
    if own is None and member.config is not None and config.data.path is not None:
        return f"{member.name} was trained on the phantom: leave data.path out; for these patients, split=all"
    return "choose other parts, or split=all"


def _check_ensemble(config: EvaluateConfig, members: Sequence[Trained], patients: Sequence[str]) -> bool:
    """Whether members saw patients that others held out; refused unless `leaky=true`: their mean would be a score on nobody new."""
    seen = {patient: names for patient in patients if (names := saw(patient, members))}
    one = next(iter(seen), "")
    by = ", ".join(seen.get(one, []))
    rule = f"{len(seen)} of {len(patients)} patients were trained or selected on by some of them, as {one} by {by}"
    require(not seen or config.leaky, "checkpoint", f"{len(members)} of them", rule,
            "evaluate patients that all held out, or leaky=true, which says so in the summary")
    return bool(seen)


def check(config: EvaluateConfig) -> None:
    """All that can be refused before anything is created or read in full. Raises RequestError."""
    choose(config.device)
    outline(config.data)
    for name in config.checkpoint:
        check_name(name)
    check_no_run(folder_of(config))
    require(config.clinical is None or Path(config.clinical).is_file(), "clinical", config.clinical, "no such file", "a CSV like data.csv")


def main() -> None:
    """Entry point of `python -m brainseg.evaluate` and `brainseg evaluate`."""
    cli.main("evaluate", run, check)


if __name__ == "__main__":
    main()
