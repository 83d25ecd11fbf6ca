"""Compare runs on the same patients, or pool the folds of a cross-validation.

    python -m brainseg.compare runs=[runs/a,runs/b]             b against a, patient by patient
    python -m brainseg.compare runs=[runs/a,evaluations/b]      b: an ensemble, or another threshold
    python -m brainseg.compare sweep=last                       jobs of the last sweep; or sweep=ID
    python -m brainseg.compare tracking.experiment=NAME         all runs of an MLflow experiment
    python -m brainseg.compare sweep=ID baseline=runs/a         against that run's configuration
    python -m brainseg.compare sweep=ID 'baseline="width=16"'   against this row of the table

Runs that differ in seed and fold alone are one configuration. The command writes report.html and
viewer.html (they open offline), comparison.csv, .md and .tex, effects.csv of a sweep over several
settings, patients.csv, failures.csv and pictures/ to `output`, and one MLflow run that links to the
runs compared.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.cli.main import run_command
from brainseg.comparison import report
from brainseg.comparison.compare import Comparison, Configuration, compare_runs
from brainseg.comparison.effects import setting_effects
from brainseg.comparison.figures import FIGURES
from brainseg.comparison.mlflow_run import log_comparison
from brainseg.comparison.names import configuration_names, differing_settings
from brainseg.comparison.runs import ScoredRun
from brainseg.comparison.selection import find_folder, load_runs, open_scored
from brainseg.config import CompareConfig, CompareTrackingConfig, TrackingConfig
from brainseg.core.errors import DataError, RequestError, check, shorten_error
from brainseg.core.files import writing
from brainseg.core.places import relocated_path
from brainseg.data.store import Store
from brainseg.data.volume import main_channel
from brainseg.reports import failures, failures_figure, figures, overlays, viewer
from brainseg.reports.clinical import read_clinical
from brainseg.reports.predictions import read_predictions
from brainseg.runs.find import check_no_run, resolve_run
from brainseg.runs.sweep_record import last_sweep, sweep_run_folders
from brainseg.tracking import sweep as mlflow_sweep
from brainseg.tracking.client import tracking_uri
from brainseg.tracking.refusals import RefusedError
from brainseg.tracking.result_run import typed_command

if TYPE_CHECKING:
    import pandas as pd


# Configurations whose settings are listed side by side in the report.
MAX_SETTING_COLUMNS = 6


def run(config: CompareConfig) -> int:
    """Load and compare the runs, write and print the comparison, and return the exit code 0."""
    if config.sweep == "last":
        config = replace(config, sweep=last_sweep(Path(config.root)))
    runs = load_runs(
        config.runs, config.sweep, config.tracking.experiment, config.root, config.tracking.uri
    )
    default_baseline = runs[0] if config.runs and len(runs) > 1 else None
    baseline = _find_baseline(config.baseline, runs) if config.baseline else default_baseline
    comparison = compare_runs(runs, baseline, strict=bool(config.runs))
    print(publish(comparison, _output_folder(config), config))
    return 0


def _find_baseline(name: str, runs: Sequence[ScoredRun]) -> ScoredRun:
    """Return the run with this folder or MLflow id, or a run of the configuration of this name.

    Raises RequestError if there is no such run.
    """
    names = configuration_names(runs)
    for run in runs:
        if names[run.configuration] == name:
            return run
    listed = "; ".join(sorted(set(names.values()))[:5])
    # Only the name of a configuration contains "=", except for a folder that really is so named.
    check(
        "=" not in name or Path(name).exists(),
        "baseline",
        name,
        "no configuration has this name",
        f"choose one of: {listed}",
    )
    named = open_scored(find_folder(name, "baseline").resolve())
    # It may be an earlier repeat of a run, whose configuration may be pooled over devices.
    return next(
        (
            run
            for run in runs
            if replace(named, ignored=run.ignored).configuration == run.configuration
        ),
        named,
    )


def summarise_sweep(sweep: str, root: Path, tracking: TrackingConfig) -> str:
    """Write the comparison of a sweep's jobs and return the text to print at the end of the sweep.

    The comparison is the one that `python -m brainseg.compare sweep=ID` writes.
    """
    # The store of this request, not the store of the runs, which a sweep may only have skipped.
    uri = tracking_uri(tracking.uri) if tracking.name != "none" else None
    config = CompareConfig(
        sweep=sweep, root=str(root), tracking=CompareTrackingConfig(tracking.name, uri)
    )
    note = _mirror_jobs(sweep, root, tracking) if tracking.name != "none" else ""
    try:
        comparison = compare_runs(load_runs(None, sweep, None, root, None), None, strict=False)
        return publish(comparison, _output_folder(config), config, tracking.experiment) + note
    # No job may have finished, which the table of jobs has already told. The jobs' results stand
    # without a comparison, so that no error is raised here.
    except (RequestError, DataError, OSError) as error:
        return f"no comparison: {error}"


def _mirror_jobs(sweep: str, root: Path, tracking: TrackingConfig) -> str:
    """Send the sweep's jobs to the store of this request.

    Returns a line that counts the missing jobs and names the command that brings them, or an empty
    text.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        folders = sweep_run_folders(sweep, root)
    except RequestError:
        # No job has begun a run.
        return ""
    try:
        failures = mlflow_sweep.mirror_sweep(sweep, folders, tracking)
    except (MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        # The store itself failed, and with it every job.
        failures = [shorten_error(error)] * len(folders)
    if not failures:
        return ""
    # The same command skips finished jobs, and sends those that are missing.
    command = shlex.join(["python", "-m", "brainseg.train", *sys.argv[1:]])
    return (
        f"\nnot in MLflow: {len(failures)} of {len(folders)} jobs, which are not in its charts "
        f"({failures[0]}); send them with: {command}"
    )


def _output_folder(config: CompareConfig) -> Path:
    """Return `output`, else the folder beside the record of the sweep, else comparisons/NAME."""
    if config.output is not None:
        return Path(config.output)
    if config.sweep:
        return Path(config.root, "sweeps", config.sweep)
    # The name of an experiment may be a path, as on Databricks.
    experiment = (config.tracking.experiment or "").strip("/").replace("/", "-")
    return Path("comparisons", experiment or _name_selection(config))


def _name_selection(config: CompareConfig) -> str:
    """Return a folder name for the runs to compare, so that no comparison overwrites another.

    The name contains the first run, the number of the others, and a hash of all names.
    """
    if not config.runs:
        return Path(config.root).resolve().name or "runs"
    # A name such as ".." would be a folder elsewhere.
    names = [Path(run).resolve().name or "runs" for run in config.runs]
    digest = hashlib.sha256(json.dumps([config.runs, config.baseline]).encode()).hexdigest()[:6]
    return f"{names[0]}-and-{len(names) - 1}-{digest}" if len(names) > 1 else names[0]


def publish(
    comparison: Comparison, folder: Path, config: CompareConfig, experiment: str | None = None
) -> str:
    """Write the folder and the MLflow run of the comparison, and return the text to print.

    `experiment` is the MLflow experiment of that run. None selects the experiment of the compared
    runs.
    """
    pictures, tables = write_comparison(comparison, folder, config.clinical)
    page = (
        write_viewer(comparison, folder / "viewer.html", config.viewer) if config.viewer else None
    )
    if page is None:
        # A page of an earlier comparison would show masks that do not belong to this report.
        (folder / "viewer.html").unlink(missing_ok=True)
    report.write_tables(folder, comparison)
    report.write_page(
        folder / "report.html",
        comparison,
        pictures,
        tables,
        f"Made by {typed_command()}",
        page.name if page else None,
    )
    lines = [report.format_comparison(comparison), "", f"report:        {folder / 'report.html'}"]
    if page is not None:
        lines.append(f"slices:        {page}")
    if config.tracking.name != "none":
        # A single configuration with several folds is a cross-validation.
        folds = {run.settings.get("split.fold") for run in comparison.configurations[0].runs}
        is_pooled = len(comparison.configurations) == 1 and len(folds) > 1
        pooled_kind = "cross_validation" if is_pooled else "comparison"
        kind = "sweep_summary" if config.sweep else pooled_kind
        lines.append(
            log_comparison(comparison, folder, kind, config.sweep, config.tracking.uri, experiment)
        )
    return "\n".join(lines)


def write_comparison(
    comparison: Comparison, folder: Path, clinical: str | None
) -> tuple[dict[str, Path], dict]:
    """Write tables and pictures, and return the page's pictures by name and its tables by title.

    `clinical` is a CSV file whose columns join the failure analysis.
    """
    import pandas as pd

    best = comparison.configurations[0]
    clinical_table = read_clinical(clinical, list(best.rows.patient)) if clinical else None
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    seed_rows = best.first_rows
    store = _open_store(best.runs)
    slices = [
        rows[rows.patient == patient]
        for patient, run in best.first_runs.items()
        if (rows := run.slices) is not None
    ]
    # A mean over some of the runs would not be over all patients.
    all_slices = pd.concat(slices) if len(slices) == len(seed_rows) else None
    tables = {
        "comparison": comparison.table,
        "patients": _patient_table(comparison),
        "failures": failures.summarise_groups(seed_rows, all_slices, store, clinical_table),
        "worst": failures.worst_patients(seed_rows, store=store),
    }
    effects = setting_effects(comparison)
    # A table of an earlier comparison in this folder would be taken for one of this comparison.
    (folder / "effects.csv").unlink(missing_ok=True)
    for name, table in (tables | ({} if effects.empty else {"effects": effects})).items():
        with writing(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6f")

    paths = {name: folder / "pictures" / f"{name}.png" for name in (*FIGURES, "failures", "worst")}
    drawings = {
        name: figure for name, draw in FIGURES.items() if (figure := draw(comparison)) is not None
    }
    for name, figure in drawings.items():
        figures.save_figure(figure, paths[name])
    failures_figure.draw_failures(seed_rows, paths["failures"], all_slices, store, clinical_table)
    pictures = {name: paths[name] for name in (*drawings, "failures")}
    if store is not None and (
        cases := _overlay_cases(tables["worst"].head(5), best.first_runs, store)
    ):
        overlays.draw_overlays(cases, paths["worst"])
        pictures["worst"] = paths["worst"]
    # Pictures of an earlier comparison in this folder would be taken for pictures of this one.
    for name in set(paths) - set(pictures):
        paths[name].unlink(missing_ok=True)
    seeds = ", ".join(map(str, sorted(set(seed_rows.seed))))
    page_tables = {
        f"Where {best.label} fails (seed {seeds})": tables["failures"],
        "Its worst patients": tables["worst"],
    }
    if 1 < len(comparison.configurations) <= MAX_SETTING_COLUMNS:
        settings = {
            configuration.label: configuration.runs[0].settings
            for configuration in comparison.configurations
        }
        page_tables["Settings in which they differ"] = differing_settings(settings)
    return pictures, page_tables


def write_viewer(comparison: Comparison, path: Path, count: int) -> Path | None:
    """Write the viewer page with the `count` most telling patients of the best configuration.

    The page shows the masks of the first `viewer.MAX_RUNS` configurations that kept masks. Returns
    `path`, or None without writing a page if the data file no longer exists or no run kept masks
    (`predictions=none`).
    """
    store = _open_store(comparison.configurations[0].runs)
    masked = [
        (configuration, files)
        for configuration in comparison.configurations
        if (files := _mask_files(configuration))
    ][: viewer.MAX_RUNS]
    if store is None or not masked:
        return None
    scores = [configuration.first_rows.set_index("patient").dice for configuration, _ in masked]
    patients = scores[0].index.to_list()
    selected = viewer.choose_patients([(comparison.role, dice) for dice in scores[0]], count)
    left_out = [patient for index, patient in enumerate(patients) if index not in selected]

    def make_case(patient: str) -> viewer.Case:
        masks = [
            read_predictions(files[patient], patient).mask if patient in files else None
            for _, files in masked
        ]
        dice = [float(run_scores[patient]) for run_scores in scores]
        return viewer.build_case(store, patient, masks, dice, comparison.role)

    notes = [report.headline(comparison) + ".", *comparison.warnings]
    if comparison.exploratory:
        notes.append(
            "Exploratory: these are validation patients, on which each run's best epoch was "
            "selected, so the scores are biased upwards."
        )
    total = len(comparison.configurations)
    if total > len(masked):
        notes.append(
            f"{len(masked)} of {total} configurations are shown, the best of those that kept their "
            "masks."
        )
    if any(configuration.rows.seed.nunique() > 1 for configuration, _ in masked):
        notes.append(
            "Masks and Dice are those of one seed; the scores above are averaged over seeds."
        )
    labels = [configuration.label for configuration, _ in masked]
    subject = labels[0] if len(labels) == 1 else f"{len(labels)} configurations compared"
    viewer.write_viewer(
        path,
        # A lazy map, so that only one patient's volume is in memory at a time.
        map(make_case, (patients[index] for index in selected)),
        labels,
        f"Tumour segmentation: {subject}",
        notes,
        store.classes,
        left_out,
    )
    return path


def _mask_files(configuration: Configuration) -> dict[str, Path]:
    """Return the file with the mask of each patient, from the run of its smallest seed.

    Patients of runs that kept no masks (`predictions`) are missing.
    """
    files = {
        patient: run.path / "predictions.h5" for patient, run in configuration.first_runs.items()
    }
    return {patient: file for patient, file in files.items() if file.is_file()}


def _patient_table(comparison: Comparison) -> "pd.DataFrame":
    """Return the scores of every patient under every configuration, averaged over seeds."""
    import pandas as pd

    tables = [
        configuration.patients.reset_index().assign(
            configuration=configuration.label, role=comparison.role
        )
        for configuration in comparison.configurations
    ]
    return pd.concat(tables)


def _overlay_cases(
    worst: "pd.DataFrame", runs: Mapping[str, ScoredRun], store: Store
) -> list[overlays.Case]:
    """Return the patients of `worst` with the masks of their runs.

    Patients of runs that kept no masks (`predictions`) are missing.
    """
    cases = []
    for row in worst.itertuples():
        file = runs[row.patient].path / "predictions.h5"
        if file.is_file():
            start, stop = store.rows_of(row.patient)
            cases.append(
                overlays.Case(
                    row.patient,
                    row.dice,
                    store.images(start, stop),
                    store.masks(start, stop)[:, 0],
                    read_predictions(file, row.patient).mask,
                    main_channel(store.channels),
                    classes=store.classes,
                )
            )
    return cases


def _open_store(runs: Sequence[ScoredRun]) -> Store | None:
    """Return the data file of the runs, or None if it no longer exists or its content changed."""
    facts = runs[0].facts
    path = relocated_path(facts["data"]["path"], runs[0].path, facts)
    if not path.is_file():
        return None
    store = Store(path)
    # Masks of the runs fit only the very images that they were predicted from.
    return store if store.fingerprint == facts["data"]["fingerprint"] else None


def check_request(config: CompareConfig) -> None:
    """Check the request before anything is created. Raise RequestError if it cannot be run."""
    selections = [
        name
        for name, value in (
            ("runs", config.runs),
            ("sweep", config.sweep),
            ("tracking.experiment", config.tracking.experiment),
        )
        if value
    ]
    if len(selections) > 1:
        raise RequestError(
            f"{' and '.join(selections)}: each of them selects the runs to compare. Only one "
            "selection is allowed. Keep one of them."
        )
    for name in config.runs or ():
        if not Path(name).is_dir():
            resolve_run(name, "runs")
    if config.output is not None:
        check_no_run(Path(config.output))
    check(
        config.clinical is None or Path(config.clinical).is_file(),
        "clinical",
        config.clinical,
        "no such file",
        "give a CSV file such as data.csv",
    )


def main() -> None:
    """Run `python -m brainseg.compare` or `brainseg compare`."""
    run_command("compare", run, check_request)


if __name__ == "__main__":
    main()
