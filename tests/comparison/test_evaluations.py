"""Evaluations in a comparison, by real commands: ensembles, another threshold, other data."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from warm_processes import call

from brainseg.compare import check_request
from brainseg.comparison.compare import Comparison, compare_runs
from brainseg.comparison.report import reader_notes
from brainseg.comparison.runs import ScoredRun
from brainseg.comparison.selection import load_runs
from brainseg.config import CompareConfig
from brainseg.core.errors import RequestError

COHORT = ["data.phantom.patients=9", "data.phantom.slices=6", "data.phantom.size=32"]
TINY = [*COHORT, "model.depth=2", "model.width=4", "epochs=2", "device=cpu", "optimizer.lr=1e-2"]
QUIET = ["viewer=0", "overlays=false", "tracking=none", "device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two folds, each evaluated alone and as an ensemble, on the test patients."""
    folder = tmp_path_factory.mktemp("evaluations")
    kfold = ["split=kfold", "split.folds=3", "split.fold=0,1", "seed=0,1", "test=yes"]
    call(folder, "train", "-m", *TINY, *kfold, "tracking=none")
    for fold in range(2):
        members = f"checkpoint=[{','.join(map(str, runs_of(folder, fold=fold)))}]"
        call(folder, "evaluate", members, f"output=ensemble/{fold}", *QUIET)
        (first,) = runs_of(folder, fold=fold, seed=0)
        low = ["inference.threshold=0.2", f"output=low/{fold}"]
        call(folder, "evaluate", f"checkpoint={first}", *low, *QUIET)
    return folder


def runs_of(folder: Path, **settings: int) -> list[Path]:
    """The run folders with this seed or fold, in order."""
    names = {"seed": "seed", "fold": "split.fold"}
    return [
        path.parent
        for path in sorted(folder.glob("runs/*/run.json"))
        if all(
            ScoredRun(path.parent).settings[names[name]] == value
            for name, value in settings.items()
        )
    ]


def compare(folder: Path, *names: str) -> Comparison:
    loaded = load_runs([str(folder / name) for name in names], None, None, folder, None)
    return compare_runs(loaded, loaded[0])


def test_folds_of_an_ensemble_are_pooled_and_compared_with_the_single_seeds(folder: Path) -> None:
    comparison = compare(folder, "runs", "ensemble")
    labels = {configuration.label: configuration for configuration in comparison.configurations}
    assert comparison.role == "test" and len(labels) == 2
    (ensemble,) = [labels[name] for name in labels if "members=2" in name]
    scores = pd.concat([pd.read_csv(file) for file in folder.glob("ensemble/*/patients.csv")])
    assert len(ensemble.runs) == 2 and len(ensemble.dice) == len(scores) == 6
    assert ensemble.dice.mean() == pytest.approx(scores.dice.mean(), abs=1e-6)
    table = comparison.table.set_index("configuration")
    single = next(name for name in labels if name != ensemble.label)
    assert table.loc[ensemble.label].parameters == 2 * table.loc[single].parameters
    assert table.loc[ensemble.label].seconds > table.loc[single].seconds
    assert comparison.budget == "the runs had neither the same time nor the same passes"


def test_a_threshold_is_compared_with_the_run_that_has_another(folder: Path) -> None:
    comparison = compare(folder, *map(str, runs_of(folder, seed=0)), "low")
    assert sorted(each.label for each in comparison.configurations) == [
        "threshold=0.2",
        "threshold=0.5",
    ]
    assert comparison.baseline.label == "threshold=0.5"
    assert comparison.budget == "each run had the same passes: 2 epochs"


def test_the_command_writes_a_report_with_masks(folder: Path) -> None:
    text = call(folder, "compare", "runs=[ensemble,low]", "tracking=none", "output=report")
    assert "members=2" in text and (folder / "report" / "viewer.html").is_file()
    alone = call(folder, "compare", "runs=[ensemble]", "tracking=none", "output=alone")
    assert "unet ensemble of 2: mean Dice" in alone


def test_other_data_are_external_patients(folder: Path) -> None:
    other = ["data.phantom.seed=5", *COHORT, "split=all", *QUIET]
    (run,) = runs_of(folder, seed=0, fold=0)
    for threshold in ("0.2", "0.5"):
        output = [f"inference.threshold={threshold}", f"output=external/{threshold}"]
        call(folder, "evaluate", f"checkpoint={run}", *output, *other)
    text = call(folder, "compare", "runs=[external]", "tracking=none", "output=third")
    assert "of 9 external patients missed" in text and "threshold=0.2" in text
    with pytest.raises(RequestError, match="different data"):
        compare(folder, "external/0.2", "low/0")


def test_an_evaluation_whose_run_is_gone_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "low" / "0", tmp_path / "moved")
    summary = json.loads((tmp_path / "moved" / "summary.json").read_text())
    for files in ([], [str(tmp_path / "nothing" / "checkpoints" / "best.pt")]):
        (tmp_path / "moved" / "summary.json").write_text(json.dumps(summary | {"files": files}))
        with pytest.raises(RequestError, match="without its run folder"):
            compare(tmp_path, "moved")
    (tmp_path / "moved" / "summary.json").write_text(json.dumps(summary | {"uid": ["0" * 32]}))
    with pytest.raises(RequestError, match="contains another run now than the one"):
        compare(tmp_path, "moved")
    (tmp_path / "moved" / "summary.json").write_text("{")
    with pytest.raises(RequestError, match="holds no run"):
        compare(tmp_path, "moved")


def test_a_project_that_was_moved_uses_its_own_runs(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    loaded = load_runs([str(tmp_path / "copy" / "low")], None, None, folder, None)
    assert all(run.trained_runs[0].path.is_relative_to(tmp_path / "copy") for run in loaded)


def test_mixed_ensembles_are_pooled_over_folds_whatever_the_order(
    folder: Path, tmp_path: Path
) -> None:
    wide = ["split=kfold", "split.folds=3", "split.fold=0,1", "test=yes", "model.width=6"]
    call(folder, "train", "-m", *TINY, *wide, "tracking=none", "output=wide", "epochs=3")
    for fold in range(2):
        narrow = str(runs_of(folder, fold=fold, seed=0)[0])
        others = (path for path in sorted(folder.glob("wide/*/")) if (path / "run.json").exists())
        other = next(str(path) for path in others if ScoredRun(path).config.split.fold == fold)
        pair = [narrow, other] if fold else [other, narrow]
        call(folder, "evaluate", f"checkpoint=[{','.join(pair)}]", f"output=mixed/{fold}", *QUIET)
    comparison = compare(folder, "mixed", "ensemble")
    labels = {each.label for each in comparison.configurations}
    assert len(labels) == 2 and all("members=2" in label for label in labels)
    mixed = comparison.baseline.runs
    assert "model.width" not in mixed[0].settings and mixed[0].budget == ("epochs", 5)


def test_the_next_command_scores_the_same_networks_in_the_same_way(folder: Path) -> None:
    (run,) = runs_of(folder, seed=0, fold=0)
    parts = ["parts=[validation]", "inference.threshold=0.2", "output=selected/0"]
    call(folder, "evaluate", f"checkpoint={run}", *parts, *QUIET)
    comparison = compare(folder, "selected/0")
    note = next(each for each in reader_notes(comparison) if each.startswith("Exploratory"))
    arguments = note.partition("brainseg.evaluate ")[2].split()
    assert arguments[1:] == ["inference.threshold=0.2"]
    call(folder, "evaluate", *arguments, "output=tested", *QUIET)
    trained = ["parts=[train]", "output=trained/0"]
    call(folder, "evaluate", f"checkpoint={run}", *trained, *QUIET)
    with pytest.raises(RequestError, match="scores of training patients are not compared"):
        compare(folder, "trained/0")


def test_the_last_checkpoint_is_another_configuration(folder: Path) -> None:
    (run,) = runs_of(folder, seed=0, fold=0)
    # A finished run has kept its best epoch alone.
    shutil.copy(run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt")
    last = [f"checkpoint={run}/checkpoints/last.pt", "output=last/0"]
    call(folder, "evaluate", *last, *QUIET)
    comparison = compare(folder, str(run), "last/0")
    assert any("checkpoint=last" in each.label for each in comparison.configurations)


def test_a_folder_that_is_neither_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="holds no run"):
        compare(folder, "data")
    with pytest.raises(RequestError, match="holds no run"):
        check_request(CompareConfig(runs=[str(folder / "nothing")]))
