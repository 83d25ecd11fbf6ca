"""A model over whole patients: while training, by `evaluate`, in other batches and orders; and under the reference's leaky split."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainseg import evaluate, train
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    EvaluateConfig,
    HoldoutConfig,
    InferenceOverride,
    LossConfig,
    OptimizerConfig,
    PhantomConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.core.errors import RequestError
from brainseg.data.dataset import MRIDataset
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.device import choose_device
from brainseg.evaluation import evaluate as evaluation
from brainseg.evaluation.statistics import bootstrap
from brainseg.models import networks
from brainseg.prediction.trained_model import load_checkpoint
from brainseg.runs import checkpoint
from brainseg.runs.run_folder import RunFolder

FLOAT32 = DeviceConfig("cpu", "float32")


def trained(data: Path, folder: Path, epochs: int, split: SplitConfig) -> RunFolder:
    config = TrainConfig(
        data=DataConfig(path=str(data)),
        split=split,
        model=UNetConfig(depth=2, width=8),
        loss=LossConfig("dice"),
        epochs=epochs,
        optimizer=OptimizerConfig("adamw", lr=1e-2),
        device=FLOAT32,
        tracking=TrackingConfig("none"),
        output=str(folder),
    )
    train.check_request(config)
    assert train.run(config).state == "finished"
    return RunFolder(folder)


@pytest.fixture(scope="module")
def run(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(phantom_file, tmp_path_factory.mktemp("runs") / "run", 16, HoldoutConfig())


def best_epoch(run: RunFolder) -> dict[str, float]:
    rows = [
        json.loads(line)["metrics"]
        for line in (run.path / "metrics.jsonl").read_text().splitlines()
    ]
    best = max(rows, key=lambda row: row["val/dice"])
    return {name: value for name, value in best.items() if name.startswith("val/")}


def without_surfaces(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an epoch: surface distances are measured at the end of a run alone."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("val/hd95", "val/nsd"))
    }


def test_validation_while_training_equals_evaluate_of_the_checkpoint_exactly(
    run: RunFolder, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        parts=["validation"],
        data=run.config.data,
        device=FLOAT32,
    )
    evaluate.check_request(config)
    assert evaluate.run(config) == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert without_surfaces(metrics) == best_epoch(run) and {"val/hd95", "val/nsd"} <= set(metrics)
    assert 0.1 < metrics["val/dice"] < 0.95, (
        "a model that segments nothing would agree with anything"
    )


def test_evaluate_writes_a_page_of_its_patients_with_their_roles_and_masks(
    run: RunFolder, tmp_path: Path, capsys
) -> None:
    everyone = ["train", "validation", "test"]
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        parts=everyone,
        data=run.config.data,
        device=FLOAT32,
        viewer=3,
    )
    assert evaluate.run(config) == 0
    assert f"{tmp_path / 'viewer.html'} (opens offline)" in capsys.readouterr().out
    index = json.loads(
        (tmp_path / "viewer.html").read_text().split('id="index">')[1].split("</script>")[0]
    )
    scores = pd.read_csv(tmp_path / "patients.csv").set_index("patient")
    assert (
        run.path.name in index["title"] and [one["role"] for one in index["patients"]][-1] == "test"
    )
    assert len(index["patients"]) == 3 and len(index["left_out"]) == 7
    for one in index["patients"]:
        row = scores.loc[one["name"]]
        assert one["dice"] == pytest.approx([row.dice], abs=1e-6) and one["role"] == row.role
        assert one["voxels"] == [row.tumour_pixels, row.predicted_pixels]


def test_the_table_says_how_sure_it_is_and_in_which_unit(
    run: RunFolder, tmp_path: Path, capsys
) -> None:
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        parts=["train", "test"],
        data=run.config.data,
        device=FLOAT32,
    )
    assert evaluate.run(config) == 0
    said = capsys.readouterr().out
    scores = pd.read_csv(tmp_path / "patients.csv")
    low, high = bootstrap(scores.dice[scores.role == "train"].to_numpy())
    assert f"train/dice of 7 patients: 95 % interval {low:.3f} to {high:.3f}" in said
    assert "test/dice of 1 patient: no interval" in said and "val/dice of" not in said
    assert "hd95 is the median over patients, in pixels" in said, (
        "the phantom's slices have no spacing"
    )
    assert "nsd is the share of the masks' edges within 2 pixels" in said and "3-D" not in said
    assert {"nsd", "hd95_3d", "volume_error_ml"} <= set(scores) and scores.nsd.between(0, 1).all()


def test_viewer_0_writes_no_page(run: RunFolder, tmp_path: Path, capsys) -> None:
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        data=run.config.data,
        device=FLOAT32,
        viewer=0,
    )
    assert evaluate.run(config) == 0
    assert not (tmp_path / "viewer.html").exists() and "viewer.html" not in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["rnu", "run/checkpoints/bst.pt"])
def test_a_misspelt_checkpoint_is_met_with_the_nearest(
    run: RunFolder, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    meant = wrong.replace("rnu", "run").replace("bst", "best")
    with pytest.raises(
        RequestError, match=f"checkpoint={wrong}: no such file; did you mean {meant}?"
    ):
        evaluate.check_request(
            EvaluateConfig(checkpoint=wrong, output="scores", data=run.config.data, device=FLOAT32)
        )
    with pytest.raises(RequestError, match="no such file; give a checkpoint, a run folder"):
        evaluate.check_request(
            EvaluateConfig(
                checkpoint="quite/other", output="scores", data=run.config.data, device=FLOAT32
            )
        )


def test_without_an_output_two_runs_do_not_meet(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        evaluate.run(
            EvaluateConfig(
                checkpoint=str(run.path),
                data=run.config.data,
                device=FLOAT32,
                overlays=False,
                viewer=0,
            )
        )
        == 0
    )
    assert (
        tmp_path / "evaluations" / "run" / "summary.json"
    ).is_file() and "written to evaluations/run:" in capsys.readouterr().out
    other = ["a/run", "b/checkpoints/best.pt", "runs:/0123"]
    assert evaluate.output_folder(EvaluateConfig(checkpoint=other)) == Path(
        "evaluations/run+b+0123"
    )
    assert evaluate.output_folder(EvaluateConfig(checkpoint=".")) == Path(
        "evaluations", tmp_path.name
    )
    assert evaluate.output_folder(EvaluateConfig(checkpoint="..")) == Path(
        "evaluations", tmp_path.parent.name
    )


def test_patients_of_the_split_that_the_data_lack_are_named(
    run: RunFolder, tmp_path: Path, caplog
) -> None:
    """Fewer patients are another score: whoever evaluates on a part of the data is told."""
    data = dataclasses.replace(run.config.data, limit_patients=5)
    known = MRIDataset(data.path).store.patients[:5]
    training = json.loads((run.path / "split.json").read_text())["train"]
    lost = [name for name in training if name not in known]
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        parts=["train"],
        data=data,
        device=FLOAT32,
        overlays=False,
    )
    assert evaluate.run(config) == 0
    assert (
        f"{len(lost)} of the 7 patients of train are not in these data and not scored: {lost[0]}"
        in caplog.text
    )
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 7 - len(lost) < 7


def dice(run: RunFolder, dataset: MRIDataset, batch_size: int) -> dict[str, float]:
    """Dice by volume, through the one loop behind validation, test and evaluate, with the weights of best.pt."""
    model = networks.build_network(run.config.model, dataset.channels, 1, dataset.size)
    model.load_state_dict(checkpoint.load(run.best)["model"])
    device = choose_device(FLOAT32)
    found = evaluation.evaluate(
        device.place(model), dataset, run.config.inference, device, batch_size
    )
    return {one.score.patient: one.score.dice for one in found}


def test_other_batches_and_orders_give_the_same_dice(run: RunFolder, phantom_file: Path) -> None:
    everyone = MRIDataset(phantom_file)
    expected = dice(run, everyone, run.config.batch_size)
    assert len(expected) == 10 and np.mean(list(expected.values())) > 0.1
    for batch_size in (1, 3, 64):
        assert dice(run, everyone, batch_size) == pytest.approx(expected, abs=1e-4)
    shuffled = np.random.default_rng(0).permutation(
        len(everyone)
    )  # so that other slices share a batch
    assert dice(run, MRIDataset(phantom_file, indices=shuffled), 3) == pytest.approx(
        expected, abs=1e-4
    )
    alone = {}
    for patient in reversed(everyone.store.patients):
        alone |= dice(run, MRIDataset(phantom_file, patients=[patient]), run.config.batch_size)
    assert alone == expected, "a patient's score depends on that patient alone"


def test_the_references_split_gives_validation_numbers_only_and_says_that_they_leak(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ensure_cohort(PhantomConfig(patients=25, slices=4, size=32, folder=str(tmp_path)))
    with caplog.at_level(logging.INFO, "brainseg"):
        leaky = trained(data, tmp_path / "run", 1, SplitConfig("reference"))
    split = json.loads((leaky.path / "split.json").read_text())
    shared = len(set(split["train"]) & set(split["validation"]))
    assert (len(split["train"]), len(split["validation"]), split["test"]) == (
        20,
        5,
        [],
    ) and 0 < shared < 5
    assert f"LEAKY SPLIT:  {shared} of 5 validation patients are trained on" in caplog.text
    assert "LEAKY SPLIT" in (leaky.path / "log.txt").read_text()
    assert "over whole patients, leaky=true" in caplog.text

    summary = json.loads((leaky.path / "summary.json").read_text())
    assert summary["leaky"] and leaky.facts["split"]["leaky"]
    assert without_surfaces(summary["metrics"]) == best_epoch(leaky), (
        "over all 5, as while training, and under no other name"
    )
    rows = pd.read_csv(leaky.path / "patients.csv")
    assert (rows.role == "validation").all() and len(rows) == 5

    config = EvaluateConfig(
        checkpoint=str(leaky.path),
        output=str(tmp_path / "all"),
        data=leaky.config.data,
        device=FLOAT32,
        split=SplitConfig("all"),
    )
    assert evaluate.run(config) == 0
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["leaky"]
    roles = pd.read_csv(tmp_path / "all" / "patients.csv").role.value_counts().to_dict()
    assert roles == {"train": 20, "validation": 5 - shared, "unknown": shared}, (
        "who was trained on is a training patient there"
    )


def test_an_honest_run_is_not_called_leaky(run: RunFolder) -> None:
    assert "LEAKY" not in (run.path / "log.txt").read_text()
    assert json.loads((run.path / "summary.json").read_text())["leaky"] is False
    assert set(pd.read_csv(run.path / "patients.csv").role) == {"validation", "test"}


def test_other_sequences_than_the_networks_own_are_refused(
    run: RunFolder, phantom_file: Path
) -> None:
    """As many channels fit the weights: a Dice would be printed of a network that is shown T1 for FLAIR."""
    data, known = MRIDataset(phantom_file), load_checkpoint(str(run.path))
    assert known.model(data) is not None
    other = dataclasses.replace(known, stored={**known.stored, "channels": ["FLAIR", "T1", "T1c"]})
    with pytest.raises(
        RequestError,
        match="was trained on FLAIR, T1, T1c, but the data have pre-contrast, FLAIR, post-contrast",
    ):
        other.model(data)


def test_an_evaluation_does_not_take_the_place_of_a_runs_own_scores(run: RunFolder) -> None:
    with pytest.raises(RequestError, match="already contains a run, and its scores would be"):
        evaluate.check_request(
            EvaluateConfig(
                checkpoint=str(run.path), output=str(run.path), data=run.config.data, device=FLOAT32
            )
        )


def test_what_an_evaluation_does_not_write_is_not_left_from_the_one_before(
    run: RunFolder, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(run.path), output=str(tmp_path), data=run.config.data, device=FLOAT32
    )
    further = [
        tmp_path / name for name in ("viewer.html", "predictions.h5", "pictures/overlays.png")
    ]
    assert evaluate.run(config) == 0 and all(path.is_file() for path in further)
    assert (
        evaluate.run(dataclasses.replace(config, viewer=0, predictions="none", overlays=False)) == 0
    )
    assert not any(path.exists() for path in further)


def test_a_volume_that_a_component_needs_is_said_with_the_rule_that_asks_for_it(
    run: RunFolder, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(run.path),
        output=str(tmp_path),
        data=run.config.data,
        device=FLOAT32,
        inference=InferenceOverride(min_volume=20),
    )
    with pytest.raises(
        RequestError,
        match=r"inference\.min_volume=20: has no effect under inference\.components=all; add",
    ):
        evaluate.run(config)
