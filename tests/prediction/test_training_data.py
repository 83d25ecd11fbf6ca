"""Which data a command means: those of the checkpoint, unless the request names others; and whose role a patient's name gives."""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainseg import evaluate, predict
from brainseg.cli.main import run_command
from brainseg.config import (
    DataOverride,
    DeviceConfig,
    EvaluateConfig,
    PhantomConfig,
    PhantomOverride,
    SplitConfig,
)
from brainseg.core.errors import RequestError
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.data.signatures import is_same_scan, signature, signatures_of
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.prediction.trained_model import load_checkpoint
from brainseg.prediction.training_data import chosen_data
from brainseg.runs import checkpoint

CPU = DeviceConfig("cpu", "float32")
SAME_NAMES = PhantomOverride(seed=7)


@pytest.fixture
def moved(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's run alone, in a folder from which none of its relative paths leads anywhere."""
    shutil.copytree(project / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def scores(config: EvaluateConfig) -> tuple[dict, pd.DataFrame]:
    """Evaluate as the command does; returns summary.json and patients.csv."""
    config = dataclasses.replace(config, device=CPU, overlays=False, viewer=0, output="scores")
    evaluate.check_request(config)
    assert evaluate.run(config) == 0
    return json.loads(Path("scores/summary.json").read_text()), pd.read_csv("scores/patients.csv")


def test_the_checkpoints_own_data_are_evaluated_wherever_the_command_runs(
    project: Path, moved: Path
) -> None:
    """Its phantom has 10 patients of 6 slices; the default phantom, of 32 patients, shares their names."""
    tested = json.loads((project / "run" / "summary.json").read_text())["metrics"]["test/dice"]
    expected = next((project / "data").glob("*.h5"))
    for name in (moved, moved / "checkpoints" / "best.pt"):
        summary, patients = scores(EvaluateConfig(checkpoint=str(name)))
        assert summary["metrics"]["test/dice"] == pytest.approx(tested, abs=1e-6)
        assert Path(summary["data"]["path"]) == expected and set(patients.slices) == {6}
        assert summary["data"]["fingerprint"] == summary["data"]["trained_on"][0]
    assert not Path("data").exists(), "no phantom was made here"


def test_a_checkpoint_that_was_copied_alone_knows_its_data(
    project: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(project / "run" / "checkpoints" / "best.pt", "best.pt")
    summary, _ = scores(EvaluateConfig(checkpoint="best.pt"))
    assert Path(summary["data"]["path"]).parent == project / "data"


def test_a_limit_on_the_command_line_leaves_the_rest_to_the_checkpoint(moved: Path) -> None:
    member = load_checkpoint(str(moved))
    data = chosen_data(DataOverride(limit_patients=4), [member])
    assert (data.limit_patients, data.phantom.patients, data.phantom.size) == (4, 10, 32)
    other = chosen_data(DataOverride(phantom=SAME_NAMES), [member])
    assert (other.phantom.seed, other.phantom.patients, other.limit_patients) == (7, 10, None)


def other_cohort(folder: Path) -> Path:
    """A cohort of other scans, whose patients have the names of the project's."""
    return ensure_cohort(PhantomConfig(patients=10, slices=6, size=32, seed=7, folder=str(folder)))


def test_equal_names_on_other_data_give_no_roles(moved: Path, tmp_path: Path, caplog) -> None:
    other = other_cohort(tmp_path / "other")
    with Store(other) as store:
        assert set(store.patients) == set(load_checkpoint(str(moved)).signatures)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RequestError, match=r"trained on other data.*split=all"),
    ):
        scores(EvaluateConfig(checkpoint=str(moved), data=DataOverride(path=str(other))))
    assert "0 of its 10 patients are scans of the training data" in caplog.text
    assert not Path("scores").exists()
    request = EvaluateConfig(
        checkpoint=str(moved), data=DataOverride(path=str(other)), split=SplitConfig("all")
    )
    summary, patients = scores(request)
    assert set(patients.role) == {"unknown"} and {
        name.split("/")[0] for name in summary["metrics"]
    } == {"unknown"}
    assert summary["data"]["fingerprint"] != summary["data"]["trained_on"][0]


def write_part(source: Path, path: Path, count: int, swap: Path | None = None) -> Path:
    """Write the first patients of a file to another; the first of them has the scan of `swap`."""
    from brainseg.data.volume import compute_volume_stats

    volumes, pixels = [], []
    for index in range(count):
        with Store(swap if swap and index == 0 else source) as store:
            start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
            images, masks = store.images(start, stop), store.masks(start, stop)[:, 0]
            slices = list(zip(store.slice_number[start:stop].tolist(), images, masks, strict=True))
            volumes.append(compute_volume_stats(store.volumes[index], slices, store.channels))
            pixels.append((images, masks[:, None]))
    write_store(path, volumes, iter(pixels))
    return path


def test_a_scan_keeps_its_role_in_a_file_of_fewer_patients(
    project: Path, moved: Path, tmp_path: Path
) -> None:
    """Six patients of the same scans but one: another fingerprint, and five roles that stand."""
    source = next((project / "data").glob("*.h5"))
    part = write_part(source, tmp_path / "part.h5", 6, swap=other_cohort(tmp_path / "other"))
    member = load_checkpoint(str(moved))
    with Store(part) as store:
        names = store.patients
        roles = [member.role(name, store) for name in names]
    split = json.loads((moved / "split.json").read_text())
    of_name = {name: role for role in ("train", "validation", "test") for name in split[role]}
    assert roles == ["unknown", *(of_name[name] for name in names[1:])]
    request = EvaluateConfig(
        checkpoint=str(moved), data=DataOverride(path=str(part)), split=SplitConfig("all")
    )
    _, patients = scores(request)
    assert patients.role.tolist().count("unknown") == 1


def test_a_signature_tells_scans_and_masks_apart(project: Path, tmp_path: Path) -> None:
    with (
        Store(next((project / "data").glob("*.h5"))) as store,
        Store(other_cohort(tmp_path)) as other,
    ):
        ours = [signature(store, index) for index in range(len(store.volumes))]
        assert len(set(ours)) == len(ours) and not set(ours) & {
            name for its in signatures_of(other).values() for name in its
        }
        before = ours[0]
        store.tumour_pixels = store.tumour_pixels.copy()
        store.tumour_pixels[0] += 1
        redrawn = signature(store, 0)
        assert not is_same_scan(before, redrawn) and is_same_scan(before, redrawn, has_masks=False)
        store.high = store.high + np.float32(1)
        assert not is_same_scan(before, signature(store, 0), has_masks=False)


def test_data_that_are_gone_are_named_in_one_line(
    project: Path, moved: Path, tmp_path: Path, capsys
) -> None:
    """A run on a file: the file is removed, and the request refused before anything is written."""
    data = tmp_path / "cohort.h5"
    shutil.copy(next((project / "data").glob("*.h5")), data)
    content = checkpoint.load(moved / "checkpoints" / "best.pt")
    content["config"]["data"] |= {"name": "hdf5", "path": "cohort.h5"}
    checkpoint.save("alone.pt", content | {"data_path": str(data)})
    scores(EvaluateConfig(checkpoint="alone.pt"))
    shutil.rmtree("scores")
    data.unlink()
    with pytest.raises(SystemExit) as stop:
        run_command(
            "evaluate", evaluate.run, evaluate.check_request, ["checkpoint=alone.pt", "device=cpu"]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"alone.pt was trained on {data}, which does not exist; give data.path=FILE" in error
    assert not Path("evaluations").exists()


def test_a_data_file_that_was_replaced_is_said_to_be(
    project: Path, moved: Path, tmp_path: Path
) -> None:
    """Another cohort under the name of the training data: leaving `data.path` out, which was not typed, would help nobody."""
    data = tmp_path / "cohort.h5"
    shutil.copy(next((project / "data").glob("*.h5")), data)
    content = checkpoint.load(moved / "checkpoints" / "best.pt")
    content["config"]["data"] |= {"name": "hdf5", "path": "cohort.h5"}
    checkpoint.save("alone.pt", content | {"data_path": str(data)})
    shutil.copy(other_cohort(tmp_path / "other"), data)
    with pytest.raises(
        RequestError, match=r"replaced since alone.pt was trained.*data.path=FILE"
    ) as refused:
        scores(EvaluateConfig(checkpoint="alone.pt"))
    assert "leave data.path out" not in str(refused.value)


def test_weights_that_name_no_data_are_not_scored_on_the_phantom(moved: Path) -> None:
    content = checkpoint.load(moved / "checkpoints" / "best.pt")
    import torch

    torch.save(content["model"], "weights.pt")
    with pytest.raises(
        RequestError,
        match=r"weights\.pt does not say which data it was trained on; give data\.path=FILE",
    ):
        chosen_data(DataOverride(), [load_checkpoint("weights.pt")])


def test_an_ensemble_of_two_cohorts_needs_to_be_told_which(moved: Path) -> None:
    first = load_checkpoint(str(moved))
    second = dataclasses.replace(
        first, name="second", stored={**first.stored, "fingerprint": "e" * 64}
    )
    assert chosen_data(DataOverride(), [first, first]).phantom.patients == 10
    with pytest.raises(RequestError, match="trained on different data"):
        chosen_data(DataOverride(), [first, second])


def test_predict_takes_no_role_from_a_name_alone(
    project: Path, moved: Path, tmp_path: Path, capsys
) -> None:
    """The slices of the training data have their roles; slices of other patients under the same names have none."""
    own = next(path for path in (project / "data").iterdir() if path.is_dir()) / "kaggle_3m"
    other_cohort(tmp_path / "other")
    other = next(path for path in (tmp_path / "other").iterdir() if path.is_dir()) / "kaggle_3m"
    for source, known in ((own, True), (other, False)):
        patient = sorted(path for path in source.iterdir() if path.is_dir())[0]
        options = [
            f"checkpoint={moved}",
            f"input={patient}",
            f"output=out-{known}",
            "device=cpu",
            "viewer=0",
            "overlays=false",
        ]
        with pytest.raises(SystemExit) as stop:
            run_command("predict", predict.run, predict.check_request, options)
        assert stop.value.code == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        assert ("1 unknown" in said) is not known, said
    assert os.listdir("out-True") == os.listdir("out-False")
