"""Compare runs on the same patients, or pool the folds of a cross-validation.

    python -m brainseg.compare runs=[runs/a,runs/b]             b against a, patient by patient
    python -m brainseg.compare sweep=last                       the jobs of the last sweep; or sweep=ID
    python -m brainseg.compare tracking.experiment=NAME         all runs of an MLflow experiment
    python -m brainseg.compare sweep=ID baseline=runs/a         against that run's configuration
    python -m brainseg.compare sweep=ID 'baseline="width=16"'   against the one that the table calls so

Runs that differ in seed and fold alone are one configuration. It writes report.html and viewer.html (they open offline),
comparison.csv, patients.csv, failures.csv and pictures/ to `output`, and one MLflow run that links to the runs compared.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.cli.main import run_command
from brainseg.comparison import report
from brainseg.comparison.compare import Comparison, Configuration, compare
from brainseg.comparison.figures import FIGURES
from brainseg.comparison.mlflow_run import log_comparison
from brainseg.comparison.names import configuration_names, differing_settings
from brainseg.comparison.runs import ScoredRun, load_runs
from brainseg.config import CompareConfig, CompareTrackingConfig, TrackingConfig
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.files import writing
from brainseg.core.places import relocated_path
from brainseg.data.store import Store
from brainseg.data.volume import main_channel
from brainseg.reports import failures, failures_figure, figures, overlays, viewer
from brainseg.reports.clinical import read_clinical
from brainseg.reports.predictions import read_predictions
from brainseg.runs.find import check_no_run, resolve_run
from brainseg.runs.sweep_record import jobs_of, last_sweep
from brainseg.tracking import sweep as mlflow_sweep
from brainseg.tracking.client import tracking_uri
from brainseg.tracking.refusals import RefusedError

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = 6  # configurations whose settings are listed side by side


def run(config: CompareConfig) -> int:
    """Gather, compare, write and print; returns the exit code 0."""
    if config.sweep == "last":
        config = replace(config, sweep=last_sweep(Path(config.root)))
    runs = load_runs(
        config.runs, config.sweep, config.tracking.experiment, config.root, config.tracking.uri
    )
    first = runs[0] if config.runs and len(runs) > 1 else None
    baseline = _baseline(config.baseline, runs) if config.baseline else first
    comparison = compare(runs, baseline, strict=bool(config.runs))
    print(publish(comparison, _folder(config), config))
    return 0


def _baseline(name: str, runs: Sequence[ScoredRun]) -> ScoredRun:
    """The run of this folder or MLflow id, or the first of the configuration that the table calls so. Raises RequestError."""
    names = configuration_names(runs)
    for run in runs:
        if names[run.configuration] == name:
            return run
    listed = "; ".join(sorted(set(names.values()))[:5])
    check(
        "=" not in name or Path(name).exists(),
        "baseline",
        name,
        "no configuration is called so",
        f"they are: {listed}",
    )
    return ScoredRun(resolve_run(name, "baseline").resolve())


def summarise_sweep(sweep: str, root: Path, tracking: TrackingConfig) -> str:
    """What `python -m brainseg.compare sweep=ID` writes and prints, for the end of the sweep itself."""
    # The store of this request, and not that of the runs, which a sweep may only have skipped.
    uri = tracking_uri(tracking.uri) if tracking.name != "none" else None
    config = CompareConfig(
        sweep=sweep, root=str(root), tracking=CompareTrackingConfig(tracking.name, uri)
    )
    note = _bring(sweep, root, tracking) if tracking.name != "none" else ""
    try:
        comparison = compare(load_runs(None, sweep, None, root, None), None, strict=False)
        return publish(comparison, _folder(config), config, tracking.experiment) + note
    except (
        RequestError,
        DataError,
        OSError,
    ) as error:  # as when no job has finished: the jobs' table has said so
        return f"no comparison: {error}"


def _bring(sweep: str, root: Path, tracking: TrackingConfig) -> str:
    """Bring the sweep's jobs to the store of this request; returns a line about those that are not there, or nothing."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        failure = mlflow_sweep.mirror_sweep(sweep, jobs_of(sweep, root), tracking)
    except (RequestError, MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        failure = " ".join(str(error).split())[:200]
    return (
        f"\nnot in MLflow: {failure}; the same command again, or python -m brainseg.sync, brings it there"
        if failure
        else ""
    )


def _folder(config: CompareConfig) -> Path:
    """Where it is written: `output`, else a sweep's beside its record, else comparisons/NAME."""
    if config.output is not None:
        return Path(config.output)
    return (
        Path(config.root, "sweeps", config.sweep)
        if config.sweep
        else Path("comparisons", config.tracking.experiment or "runs")
    )


def publish(
    comparison: Comparison, folder: Path, config: CompareConfig, experiment: str | None = None
) -> str:
    """Write the comparison's folder and its MLflow run; returns what is to be printed.

    `experiment` is the MLflow experiment of the run; None: that of the runs compared.
    """
    pictures, tables = write_comparison(comparison, folder, config.clinical)
    page = (
        write_viewer(comparison, folder / "viewer.html", config.viewer) if config.viewer else None
    )
    if page is None:
        (folder / "viewer.html").unlink(missing_ok=True)  # of an earlier comparison
    command = f"python -m brainseg.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}"
    report.write_page(
        folder / "report.html",
        comparison,
        pictures,
        tables,
        f"Made by {command}",
        page.name if page else None,
    )
    lines = [report.text(comparison), "", f"report:        {folder / 'report.html'}"]
    if page is not None:
        lines.append(f"slices:        {page}")
    if config.tracking.name != "none":
        folds = {run.settings.get("split.fold") for run in comparison.configurations[0].runs}
        pooled = len(comparison.configurations) == 1 and len(folds) > 1
        kind = "sweep_summary" if config.sweep else "cross_validation" if pooled else "comparison"
        lines.append(
            log_comparison(comparison, folder, kind, config.sweep, config.tracking.uri, experiment)
        )
    return "\n".join(lines)


def write_comparison(
    comparison: Comparison, folder: Path, clinical: str | None
) -> tuple[dict[str, Path], dict]:
    """Write CSVs and pictures; returns the pictures by name and the tables by title, for the page."""
    import pandas as pd

    best = comparison.configurations[0]
    table = read_clinical(clinical, list(best.rows.patient)) if clinical else None
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    seed = (
        best.rows.seed.min()
    )  # failures are those of one training: an average over seeds would hide them
    of_seed = [run for run in best.runs if run.config.seed == seed]
    store = _store(of_seed)
    slices = [run.slices_of(comparison.role) for run in of_seed]
    analysed = (
        best.rows[best.rows.seed == seed],
        None if any(one is None for one in slices) else pd.concat(slices),
        store,
        table,
    )
    tables = {
        "comparison": comparison.table,
        "patients": _patients(comparison),
        "failures": failures.groups(*analysed),
        "worst": failures.worst(analysed[0], store=store),
    }
    for name, table in tables.items():
        with writing(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6f")

    pictures = {name: folder / "pictures" / f"{name}.png" for name in FIGURES}
    drawn = {
        name: figure for name, draw in FIGURES.items() if (figure := draw(comparison)) is not None
    }
    for name, figure in drawn.items():
        figures.save_figure(figure, pictures[name])
    failures_figure.figure(analysed[0], folder / "pictures" / "failures.png", *analysed[1:])
    shown = {name: pictures[name] for name in drawn} | {
        "failures": folder / "pictures" / "failures.png"
    }
    if store is not None and (
        cases := _cases(tables["worst"].head(5), of_seed, store, comparison.role)
    ):
        shown["worst"] = folder / "pictures" / "worst.png"
        overlays.draw_overlays(cases, shown["worst"])
    for name in {*FIGURES, "failures", "worst"} - set(shown):
        (folder / "pictures" / f"{name}.png").unlink(missing_ok=True)  # of an earlier comparison
    titled = {
        f"Where {best.label} fails (seed {seed})": tables["failures"],
        "Its worst patients": tables["worst"],
    }
    if 1 < len(comparison.configurations) <= COLUMNS:
        settings = {one.label: one.runs[0].settings for one in comparison.configurations}
        titled["Settings in which they differ"] = differing_settings(settings)
    return shown, titled


def write_viewer(comparison: Comparison, path: Path, count: int) -> Path | None:
    """Write the page of the `count` patients most telling of the best configuration, with the masks of the first `viewer.RUNS` of them.

    Returns its path; None, and no page, where the data file is gone or no run kept masks (`predictions=none`).
    """
    store = _store(comparison.configurations[0].runs)
    found = [
        (one, masks) for one in comparison.configurations if (masks := _kept(one, comparison.role))
    ][: viewer.RUNS]
    if store is None or not found:
        return None
    dice = [_of_first_seed(one).set_index("patient").dice for one, _ in found]
    patients = dice[0].index.to_list()
    chosen = viewer.choose_slices([(comparison.role, value) for value in dice[0]], count)
    left_out = [patient for index, patient in enumerate(patients) if index not in chosen]

    def case(patient: str) -> viewer.Case:
        masks = [
            read_predictions(kept[patient], patient).mask if patient in kept else None
            for _, kept in found
        ]
        return viewer.case_of(
            store, patient, masks, [float(of_run[patient]) for of_run in dice], comparison.role
        )

    several = len(comparison.configurations)
    exploratory = [
        "Exploratory: on validation patients each run's best epoch was selected; scores are flattered."
    ]
    notes = [
        report.headline(comparison) + ".",
        *comparison.warnings,
        *(exploratory if comparison.exploratory else []),
    ]
    if several > len(found):
        notes.append(
            f"{len(found)} of {several} configurations are shown, the best of those that kept their masks."
        )
    if any(one.rows.seed.nunique() > 1 for one, _ in found):
        notes.append(
            "Masks and Dice are those of one seed; the scores above are averaged over seeds."
        )
    labels = [one.label for one, _ in found]
    title = "Tumour segmentation: " + (
        labels[0] if len(labels) == 1 else f"{len(labels)} configurations compared"
    )
    viewer.write_viewer(
        path,
        map(case, (patients[index] for index in chosen)),
        labels,
        title,
        notes,
        store.classes,
        left_out,
    )
    return path


def _of_first_seed(one: Configuration) -> "pd.DataFrame":
    """Its patients under one training each: an average of masks is no mask."""
    return one.rows[one.rows.seed == one.rows.seed.min()]


def _kept(one: Configuration, role: str) -> dict[str, Path]:
    """The file with the first seed's mask of each patient scored in `role`, as far as the runs kept them (`predictions`)."""
    files = {
        run.path / "predictions.h5": run
        for run in one.runs
        if run.config.seed == one.rows.seed.min()
    }
    return {
        patient: file
        for file, run in files.items()
        if file.is_file()
        for patient in run.patients.patient[run.patients.role == role]
    }


def _patients(comparison: Comparison) -> "pd.DataFrame":
    """Every patient under every configuration, seeds averaged."""
    import pandas as pd

    shown = [
        one.patients.reset_index().assign(configuration=one.label, role=comparison.role)
        for one in comparison.configurations
    ]
    return pd.concat(shown)


def _cases(
    worst: "pd.DataFrame", runs: Sequence[ScoredRun], store: Store, role: str
) -> list[overlays.Case]:
    """The patients of `worst` with the masks of the runs that scored them in `role`, as far as those kept them (`predictions`)."""
    cases = []
    for row in worst.itertuples():
        scored = [
            run
            for run in runs
            if row.patient in set(run.patients.patient[run.patients.role == role])
        ]
        for run in [run for run in scored if (run.path / "predictions.h5").is_file()][:1]:
            start, stop = store.rows_of(row.patient)
            mask = read_predictions(run.path / "predictions.h5", row.patient).mask
            channel = main_channel(store.channels)
            truth = store.masks(start, stop)[:, 0]
            cases.append(
                overlays.Case(
                    row.patient,
                    row.dice,
                    store.images(start, stop),
                    truth,
                    mask,
                    channel,
                    classes=store.classes,
                )
            )
    return cases


def _store(runs: Sequence[ScoredRun]) -> Store | None:
    """The data file that the runs were made on, if it is still there."""
    path = relocated_path(runs[0].facts["data"]["path"], runs[0].path, runs[0].facts)
    store = Store(path) if path.is_file() else None
    return (
        store
        if store is not None and store.fingerprint == runs[0].facts["data"]["fingerprint"]
        else None
    )


def check_request(config: CompareConfig) -> None:
    """All that can be refused before anything is created. Raises RequestError."""
    asked = [
        name
        for name, value in (
            ("runs", config.runs),
            ("sweep", config.sweep),
            ("tracking.experiment", config.tracking.experiment),
        )
        if value
    ]
    check(
        len(asked) < 2, " and ".join(asked), "given", "say the runs in one way", "keep one of them"
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
        "a CSV like data.csv",
    )


def main() -> None:
    """Entry point of `python -m brainseg.compare` and `brainseg compare`."""
    run_command("compare", run, check_request)


if __name__ == "__main__":
    main()
