r"""Score a checkpoint on the patients of a file, with the code of validation and test.

    python -m brainseg.evaluate checkpoint=runs/NAME/checkpoints/best.pt
    python -m brainseg.evaluate checkpoint=runs/NAME data.path=other.h5 split=all
    python -m brainseg.evaluate checkpoint=weights.pt model.depth=4 model.width=32 \
        model.growth=1 data.path=lgg.h5 split=all
    python -m brainseg.evaluate checkpoint=[runs/a,runs/b]         their mean, an ensemble

The checkpoint is scored on its training data, unless a `data.` setting names other data. The
command writes patients.csv, slices.csv, summary.json, predictions.h5, viewer.html, an analysis of
the failures and pictures/ to `output`. The default of `output` is evaluations/ followed by the name
of the checkpoint. Each patient has its role in the split of the training, or the role "unknown" if
the data contain another scan under the patient's name. Scores are summarised by role and never
pooled.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.cli.main import run_command
from brainseg.comparison.runs import count_configurations_tried
from brainseg.config import DataConfig, EvaluateConfig
from brainseg.core.errors import check, shorten_error
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
    leaking_members,
    load_members,
    patient_role,
    short_name,
)
from brainseg.prediction.training_data import chosen_data
from brainseg.reports import failures_figure, tables
from brainseg.reports.clinical import read_clinical
from brainseg.reports.scores import METRIC_PREFIX, Results
from brainseg.runs.find import check_no_run
from brainseg.runs.metadata import describe_store
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.client import store_of
from brainseg.tracking.refusals import RefusedError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("brainseg")


def run(config: EvaluateConfig) -> int:
    """Evaluate the checkpoints, write and print the scores, and return the exit code 0."""
    started = round(time.time() * 1000)
    # Compiling the network takes longer than the evaluation of all patients.
    device = choose_device(dataclasses.replace(config.device, compile=False))
    input_config = DataConfig(channel=config.data.channel, context=config.data.context or 0)
    members = load_members(config.checkpoint, input_config, config.model)
    inference = inference_of(members, config.inference)
    data = chosen_data(config.data, members)
    all_patients = read_dataset_info(data).patients
    store = open_store(data)
    check_threshold(inference, store.classes)
    check_components(inference)
    _warn_of_other_data(members, all_patients, store)
    patients = _choose_patients(config, members, all_patients, store)
    clinical = read_clinical(config.clinical, patients) if config.clinical else None
    leaky = _check_ensemble(config, members, patients, store)
    # For an ensemble the largest sweep counts.
    configurations_tried = max(count_configurations_tried(name) for name in config.checkpoint)
    datasets = [member.dataset(store, patients) for member in members]
    if data.resident == "yes":
        memory_cache.cache_in_memory(datasets, device.torch, "yes")
        # From here on only the datasets hold the slices.
        memory_cache.clear_cache()
    (model, dataset), *other_members = [
        (device.place(member.model(dataset)), dataset)
        for member, dataset in zip(members, datasets, strict=True)
    ]

    roles = {
        volume: patient_role(patient, members, store)
        for volume, patient in zip(store.volumes, store.patients, strict=True)
    }
    results = Results(dataset, config.predictions)
    # The criterion needs logits, which the mean of several networks' probabilities does not have.
    criterion = None if other_members else members[0].criterion()
    results.add(
        evaluate(model, dataset, inference, device, config.batch_size, criterion, other_members),
        roles,
    )
    facts = {
        "checkpoint": config.checkpoint,
        # `compare` finds the runs by these, also after a move of the whole project.
        "path": str(output_folder(config).absolute()),
        "files": [str(member.path.absolute()) for member in members],
        "uid": [member.stored.get("uid") for member in members],
        "inference": dataclasses.asdict(inference),
        "device": device.description,
        "data": {
            "path": str(store.path.absolute()),
            "fingerprint": store.fingerprint,
            "trained_on": [member.stored.get("fingerprint") for member in members],
        },
        "chosen_among": configurations_tried,
        # A network that was trained under a leaky split has leaky scores, too.
        "leaky": leaky or any(member.is_leaky for member in members),
    }
    metrics = results.write(output_folder(config), facts, config.overlays)
    if config.viewer:
        _write_viewer(config, results, metrics, facts)
    else:
        # A page of an earlier evaluation would show other scores.
        (output_folder(config) / "viewer.html").unlink(missing_ok=True)
    _analyse_failures(config, store, clinical)
    print(_format_summary(config, results, metrics, facts))
    if config.tracking.name != "none":
        _log_to_mlflow(config, members, store, metrics, facts["leaky"], started)
    return 0


def _log_to_mlflow(
    config: EvaluateConfig,
    members: Sequence[TrainedModel],
    store: Store,
    metrics: dict[str, float],
    leaky: bool,
    started: int,
) -> None:
    """Write the scores to the store of the first evaluated run, and print the link.

    Weights that no tracked run wrote are logged only if `tracking.uri` is set. If the store fails,
    a warning is logged, because the files of the evaluation are complete.
    """
    # The checkpoint lies in checkpoints/ of its run folder.
    run = RunFolder(members[0].path.parent.parent)
    facts = run.facts if run.exists else {"tracking": None}
    is_mlflow_name = config.checkpoint[0].startswith(("runs:/", "models:/"))
    if not (config.tracking.uri or facts["tracking"] or is_mlflow_name):
        return
    # MLflow and pandas take seconds to import.
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from brainseg.tracking.evaluation_run import Evaluation, log_evaluation

    evaluation = Evaluation(
        "+".join(map(short_name, config.checkpoint)),
        [str(member.stored["uid"]) for member in members if "uid" in member.stored],
        output_folder(config),
        metrics,
        describe_store(store),
        leaky,
        started,
    )
    tracking = facts["tracking"] or {}
    try:
        link = log_evaluation(
            evaluation,
            store_of(facts, run.path, config.tracking.uri),
            tracking.get("experiment", "brainseg"),
            tracking.get("artifacts"),
        )
        print(f"MLflow run:    {link}")
    except (MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        log.warning("tracking failed: %s", shorten_error(error, 300))


def output_folder(config: EvaluateConfig) -> Path:
    """Return the output folder, which is `output` or else evaluations/ and the checkpoint's name.

    The name keeps the scores of different runs apart.
    """
    return (
        Path(config.output)
        if config.output is not None
        else Path("evaluations", "+".join(map(short_name, config.checkpoint)))
    )


def _format_summary(
    config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]
) -> str:
    """Return the table of metrics, followed by the files that were written."""
    files = ["patients.csv", "slices.csv", "summary.json", "failures.csv", "worst.csv", "pictures/"]
    files += ["predictions.h5"] if config.predictions != "none" else []
    page = (
        f"\nview the masks: {output_folder(config) / 'viewer.html'} (opens offline)"
        if config.viewer
        else ""
    )
    scores = f"{tables.metrics_table(metrics, _title(results, facts))}\n{results.explain()}"
    scores += f"\n{results.legend()}" if results.rows else ""
    return f"{scores}\n\nwritten to {output_folder(config)}: {', '.join(files)}{page}"


def _title(results: Results, facts: dict[str, Any]) -> str:
    """Return the number of patients per role, and whether the scores are leaky or selected."""
    roles = [role for _, role in results.rows]
    counts = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
    title = (
        f"{tables.format_count(len(results.rows), 'patient')} by their role in training: {counts}"
    )
    title += ", leaky=true" if facts["leaky"] else ""
    if facts["chosen_among"] > 1:
        title += f"; one of {facts['chosen_among']} configurations of its sweep"
    return title


def _write_viewer(
    config: EvaluateConfig, results: Results, metrics: dict[str, float], facts: dict[str, Any]
) -> None:
    """Write viewer.html, which shows the patients slice by slice."""
    split = config.split.name if config.split is not None else "the checkpoint's split"
    means = [
        f"{role} {metrics[f'{prefix}/dice']:.3f}"
        for role, prefix in METRIC_PREFIX.items()
        if f"{prefix}/dice" in metrics
    ]
    notes = [
        f"{_title(results, facts)}. Mean Dice: {', '.join(means)}.",
        f"Network: {', '.join(config.checkpoint)}; split: {split}; data: {facts['data']['path']}.",
    ]
    prediction_name = (
        "prediction"
        if len(config.checkpoint) == 1
        else f"mean of {len(config.checkpoint)} networks"
    )
    title = "Tumour segmentation: " + " + ".join(map(short_name, config.checkpoint))
    results.write_viewer(
        output_folder(config) / "viewer.html", config.viewer, prediction_name, title, notes
    )


def _analyse_failures(
    config: EvaluateConfig, store: Store, clinical: "pd.DataFrame | None"
) -> None:
    """Write the failure analysis of the patients whose role is most informative.

    Held-out patients come first, then patients of unknown role, then those used for model selection
    and those used for training.
    """
    folder = output_folder(config)
    patients = tables.read_scores(folder / "patients.csv")
    # Scores of different roles are never pooled, so only a single role is analysed.
    role = next(
        role for role in ("test", "unknown", "validation", "train") if (patients.role == role).any()
    )
    failures_figure.write_failures(
        folder,
        patients[patients.role == role],
        tables.read_scores(folder / "slices.csv"),
        store,
        clinical,
    )


def _warn_of_other_data(
    members: Sequence[TrainedModel], patients: Sequence[str], store: Store
) -> None:
    """Log a warning for each member that was trained on other data than `store`.

    The warning contains the number of patients that both data have in common.
    """
    for member in members:
        trained_on = member.stored.get("fingerprint")
        if trained_on not in (None, store.fingerprint):
            shared = sum(member.role(patient, store) != "unknown" for patient in patients)
            log.warning(
                "%s was trained on other data than %s (fingerprints %s and %s): "
                "%d of its %d patients are scans of the training data and keep their role; "
                "the role of the others is unknown",
                member.name,
                store.path,
                str(trained_on)[:10],
                store.fingerprint[:10],
                shared,
                len(patients),
            )


def _choose_patients(
    config: EvaluateConfig, members: Sequence[TrainedModel], patients: list[str], store: Store
) -> list[str]:
    """Return the patients of `config.parts` in the requested split, or in each member's split.

    In a member's split a patient of `store` counts only if the training data contain its scan.
    Raises RequestError if a member has no split, or if no patient is left.
    """
    splits = (
        [make_split(config.split, patients)]
        if config.split is not None
        else [member.split for member in members]
    )
    # A requested split is the only one, while there may be several members.
    for member, split in zip(members, splits, strict=False):
        check(
            split is not None,
            "split",
            "null",
            f"{member.name} contains no split",
            "choose the patients with a split, such as split=all",
        )
    split_patients = [
        [name for part in config.parts for name in getattr(split, part)] for split in splits
    ]
    requested = [
        name for name in split_patients[0] if all(name in names for names in split_patients)
    ]
    available = set(patients)
    if config.split is None:
        available = {
            name
            for name in requested
            if name in available
            and all(member.role(name, store) != "unknown" for member in members)
        }
    scored = [name for name in requested if name in available]
    if missing := sorted(set(requested) - set(scored)):
        log.warning(
            "%d of the %d patients of %s are not in these data and not scored: %s",
            len(missing),
            len(requested),
            " and ".join(config.parts),
            ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
        )
    scope = " of every checkpoint" if len(splits) > 1 else ""
    rule = f"no patient of {store.path} is in these parts{scope}"
    remedy = _suggest_remedy(config, members[0], store)
    check(bool(scored), "parts", ",".join(config.parts), rule, remedy)
    return scored


def _suggest_remedy(config: EvaluateConfig, member: TrainedModel, store: Store) -> str:
    """Return the remedy if none of the patients is in the requested parts.

    The most frequent cause are data that differ from the training data.
    """
    if member.stored.get("fingerprint") in (None, store.fingerprint):
        # The data are those of the training, so only the parts can be wrong.
        return "choose other parts, or split=all"
    data_settings = (
        config.data.path,
        config.data.name,
        *dataclasses.asdict(config.data.phantom).values(),
    )
    if all(value is None for value in data_settings):
        # The path of the training data exists, but the file there has other contents.
        return (
            f"the file was replaced since {member.name} was trained; restore the former file, or "
            "give its path as data.path=FILE; to score the patients of this file, add split=all"
        )
    return (
        f"{member.name} was trained on other data; leave data.path out to use its training data, "
        "or add split=all to score the patients of this file"
    )


def _check_ensemble(
    config: EvaluateConfig, members: Sequence[TrainedModel], patients: Sequence[str], store: Store
) -> bool:
    """Return True if some members saw patients that other members held out.

    The mean would then be scored on patients that are not held out. Raises RequestError in that
    case unless `leaky=true`.
    """
    members_by_patient = {
        patient: names
        for patient in patients
        if (names := leaking_members(patient, members, store))
    }
    example = next(iter(members_by_patient), "")
    example_members = ", ".join(members_by_patient.get(example, []))
    check(
        not members_by_patient or config.leaky,
        "checkpoint",
        f"{len(members)} checkpoints",
        f"{len(members_by_patient)} of {len(patients)} patients were trained or selected on by "
        f"some of them, such as {example} by {example_members}",
        "evaluate patients that all checkpoints held out, or add leaky=true, which marks the "
        "scores as leaky in summary.json",
    )
    return bool(members_by_patient)


def check_request(config: EvaluateConfig) -> None:
    """Raise RequestError for mistakes that show before a file is created or read in full."""
    # The device and the dataset are only checked here. `run` creates them again.
    choose_device(config.device)
    if config.data.path is not None:
        read_dataset_info(DataConfig(path=config.data.path))
    for name in config.checkpoint:
        check_checkpoint_exists(name)
    check_no_run(output_folder(config))
    check(
        config.clinical is None or Path(config.clinical).is_file(),
        "clinical",
        config.clinical,
        "no such file",
        "give a CSV file with a column Patient, such as data.csv of the public set",
    )


def main() -> None:
    """Run `python -m brainseg.evaluate` or `brainseg evaluate`."""
    run_command("evaluate", run, check_request)


if __name__ == "__main__":
    main()
