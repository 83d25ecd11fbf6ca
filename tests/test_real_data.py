"""On the real patients: the reference's weights score what they are known to score. Skipped by name where the data are not."""

from pathlib import Path

import pandas as pd
import pytest

from brainseg import evaluate
from brainseg.config import DataConfig, DeviceConfig, EvaluateConfig, SplitConfig, UNetConfig
from brainseg.data.conversion import convert


@pytest.fixture(scope="session")
def real_file(real_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "lgg.h5"
    summary = convert(real_source, path)
    slices = sum(volume.shape[0] for volume in summary.volumes)
    tumour = sum(int((volume.tumour_pixels > 0).sum()) for volume in summary.volumes)
    assert (len(summary.volumes), slices, tumour) == (88, 3274, 1141)
    return path


def scores(real_file: Path, reference: Path, folder: Path, patients: int | None) -> pd.DataFrame:
    config = EvaluateConfig(
        checkpoint=str(reference / "unet.pt"),
        output=str(folder),
        overlays=False,
        device=DeviceConfig("cpu", "float32"),
        data=DataConfig(path=str(real_file), limit_patients=patients),
        split=SplitConfig("all"),
        model=UNetConfig(depth=4, width=32, growth=1),
    )
    evaluate.check_request(config)
    assert evaluate.run(config) == 0
    found = pd.read_csv(folder / "patients.csv").set_index("patient")
    known = pd.read_csv(reference / "patient_dice.csv").set_index("patient").loc[found.index]
    assert (found.tumour_pixels == known.tumour_pixels).all()
    assert (found.role == "unknown").all()
    return pd.DataFrame({"found": found.dice, "known": known.dice})


def test_the_reference_scores_what_it_is_known_to_score(
    real_file: Path, reference: Path, tmp_path: Path
) -> None:
    table = scores(real_file, reference, tmp_path, 3)
    assert len(table) == 3
    assert (table.found - table.known).abs().max() < 0.003


@pytest.mark.slow
def test_on_every_patient_and_in_the_mean(real_file: Path, reference: Path, tmp_path: Path) -> None:
    table = scores(real_file, reference, tmp_path, None)
    assert len(table) == 88
    assert (table.found - table.known).abs().max() < 0.003
    assert abs(table.found.mean() - table.known.mean()) < 0.001
