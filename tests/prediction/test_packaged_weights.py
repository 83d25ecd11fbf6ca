"""The trained network of the package, used without a checkpoint."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from scans import write_nifti

import brainseg
from brainseg import evaluate, predict
from brainseg.config import DeviceConfig, EvaluateConfig, PredictConfig, SplitConfig
from brainseg.core.errors import RequestError
from brainseg.prediction.trained_model import load_checkpoint
from brainseg.runs import checkpoint
from brainseg.runs.find import resolve_checkpoint
from brainseg.weights import DEFAULT, model_card, packaged_file

FLOAT32 = DeviceConfig("cpu", "float32")
SHA256 = "b88dc092deff1fc593ee5b3006cfee26478f648ab1be44b35cf1c53167ac107d"
# Dice of the first patient of the archive, one of the training patients.
DICE = 0.9261


def packaged() -> Path:
    file = packaged_file(DEFAULT)
    assert file is not None
    return file


def test_the_file_is_the_one_that_was_packaged_and_names_no_path() -> None:
    trained = load_checkpoint(DEFAULT)
    assert trained.sha256 == SHA256
    assert trained.config is not None and trained.split is not None
    assert (trained.config.data.path, trained.config.output) == ("lgg.h5", None)
    assert (len(trained.split.train), len(trained.split.test)) == (88, 0)
    assert not trained.split.validation
    assert set(trained.signatures) == set(trained.split.train)
    assert "data_path" not in trained.stored and "optimizer" not in trained.stored
    assert packaged().stat().st_size < 1_100_000
    assert all(
        tensor.dtype == torch.float16
        for tensor in trained.stored["model"].values()
        if tensor.is_floating_point()
    )


def test_the_model_card_gives_the_score_that_predict_prints() -> None:
    about = load_checkpoint(DEFAULT).about
    card = model_card(packaged()).read_text()
    assert about["licence"] in card and f"# lgg {about['version']}:" in card
    mean = about["expected_dice"].split()[1]
    assert f" {mean} (" in card
    assert "/" not in about["name"] + about["trained_on"]


def blob(shape: tuple[int, int, int] = (6, 64, 64)) -> np.ndarray:
    """Return a head with a bright spot in FLAIR, uint8 (S, 3, H, W)."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    head = ((y - 32) / 26) ** 2 + ((x - 32) / 22) ** 2 + 0 * z < 1
    spot = ((y - 28) / 7) ** 2 + ((x - 40) / 6) ** 2 + ((z - 3) / 2.5) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 3, shape)
    tissue = np.clip(np.where(head, 70, 4) + noise, 0, 255)
    flair = np.clip(np.where(spot, 190, np.where(head, 80, 4)) + noise, 0, 255)
    return np.stack([tissue, flair, tissue], axis=1).astype(np.uint8)


def test_a_scan_is_segmented_without_a_checkpoint(tmp_path: Path, capsys) -> None:
    images = blob()
    paths = [
        write_nifti(tmp_path / f"case_{name}.nii.gz", images[:, index].transpose(2, 1, 0))
        for index, name in enumerate(("t1", "flair", "t1ce"))
    ]
    config = PredictConfig(
        input=[str(path) for path in paths], output=str(tmp_path / "masks"), device=FLOAT32
    )
    predict.check_request(config)
    assert predict.run(config) == 0
    printed = capsys.readouterr().out
    assert "network:       lgg" in printed and "CC BY-NC-SA 4.0" in printed
    assert "expected Dice: mean 0." in printed
    (mask,) = (tmp_path / "masks").glob("*/*_mask.nii.gz")
    voxels = np.asarray(nibabel.load(mask).dataobj)
    # Convolutions round differently on other processors, so a few voxels at the edge may differ.
    assert abs(int((voxels > 0).sum()) - 479) <= 5
    (about,) = json.loads((tmp_path / "masks" / "summary.json").read_text())["about"]
    assert about["name"] == DEFAULT


def test_python_segments_arrays_with_it() -> None:
    result = brainseg.segment(DEFAULT, blob(), device=FLOAT32)
    assert result.mask.shape == (6, 64, 64) and result.probability.max() > 0.5


def test_evaluate_gives_patients_of_other_data_no_role(phantom_file: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=DEFAULT,
        output=str(tmp_path),
        overlays=False,
        viewer=0,
        device=FLOAT32,
        split=SplitConfig("all"),
    )
    config.data.path = str(phantom_file)
    evaluate.check_request(config)
    assert evaluate.run(config) == 0
    assert set(pd.read_csv(tmp_path / "patients.csv").role) == {"unknown"}


def test_without_data_evaluate_asks_for_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"lgg was trained on lgg\.h5, which does not exist"):
        evaluate.run(EvaluateConfig(checkpoint=DEFAULT, device=FLOAT32))


@pytest.mark.slow
def test_the_patients_that_it_was_trained_on_are_recognised(
    real_source: Path, tmp_path: Path
) -> None:
    folder = real_source / "TCGA_CS_4943_20000902"
    config = PredictConfig(input=str(folder), output=str(tmp_path), device=FLOAT32)
    assert predict.run(config) == 0
    (row,) = pd.read_csv(tmp_path / "patients.csv").itertuples()
    assert row.role == "train"
    assert abs(row.dice - DICE) < 0.002


def test_a_file_of_the_user_comes_before_the_network_of_the_package(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lgg").mkdir()
    assert resolve_checkpoint("lgg") == packaged()
    Path("lgg").rmdir()
    checkpoint.save("lgg", {"model": {}, "about": {"name": "other"}})
    assert resolve_checkpoint("lgg") == Path("lgg")
    assert load_checkpoint("lgg").about == {}


@pytest.mark.parametrize("name", ["", "../lgg", "lgg.pt", "LICENSE", "__init__", "lgg/"])
def test_other_names_mean_no_network_of_the_package(name: str) -> None:
    assert packaged_file(name) is None


def test_the_licence_file_lies_beside_the_weights() -> None:
    text = (packaged().parent / "LICENSE").read_text()
    assert "CC BY-NC-SA 4.0" in text and "10.1016/j.compbiomed.2019.05.002" in text
