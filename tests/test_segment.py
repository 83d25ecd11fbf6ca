"""`brainseg.segment`: the masks of the command, from arrays."""

from pathlib import Path

import numpy as np
import pytest
from scans import scan, truth
from test_predict import FLOAT32

import brainseg
from brainseg import train
from brainseg.config import DataConfig, HoldoutConfig, TrackingConfig, TrainConfig, UNetConfig
from brainseg.errors import DataError, RequestError


@pytest.fixture(scope="module")
def run(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(data=DataConfig(path=str(phantom_file), context=1), split=HoldoutConfig(), epochs=1, device=FLOAT32,
                         model=UNetConfig(depth=1, width=2), tracking=TrackingConfig("none"), output=str(folder))
    assert train.run(config).state == "finished"
    return str(folder)


def test_one_volume_from_arrays(run: str) -> None:
    volume = np.stack([scan(np.uint8).transpose(2, 1, 0)] * 3, axis=1)
    checkpoint = brainseg.load_checkpoint(run)
    one = brainseg.segment(checkpoint, volume, FLOAT32)
    assert one.mask.shape == truth().T.shape and one.mask.dtype == np.uint8
    assert one.probability.shape == (9, 1, 16, 20) and np.array_equal(one.mask, one.probability[:, 0] >= 0.5)
    by_name = brainseg.segment(run, {"FLAIR": volume[:, 1]}, FLOAT32)
    assert np.array_equal(by_name.probability, one.probability), "FLAIR stands in for the two others, which here are equal to it"
    both = brainseg.segment([run, checkpoint], volume, FLOAT32)
    assert np.allclose(both.probability, one.probability, atol=1e-6)


def test_arrays_that_do_not_fit_are_refused(run: str) -> None:
    volume = np.zeros((4, 3, 16, 16))
    for images, rule in (
        (volume[:, :2], "3 channels"),
        ({"T1": volume[:, 0]}, "no such sequence"),
        ({"post-contrast": volume[:, 0]}, "only FLAIR can stand in"),
        ({"FLAIR": volume[:, 0], "post-contrast": volume[:2, 0]}, "of one shape"),
        ({"FLAIR": volume}, "of one shape"),
    ):
        with pytest.raises(RequestError, match=rule):
            brainseg.segment(run, images, FLOAT32)
    with pytest.raises(DataError, match="not finite"):
        brainseg.segment(run, volume + np.nan, FLOAT32)
