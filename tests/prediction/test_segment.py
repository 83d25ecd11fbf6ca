"""`brainseg.segment`: the masks of the command, from arrays."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from scans import scan, threshold_weights, truth, write_nifti
from test_predict import FLOAT32
from torch import nn

import brainseg
from brainseg import train
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    HoldoutConfig,
    InferenceConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.core.errors import DataError, RequestError
from brainseg.data.memory_store import MemoryStore
from brainseg.data.readers.base import Scan
from brainseg.device import choose_device
from brainseg.models import networks
from brainseg.prediction import trained_model
from brainseg.prediction.segmenter import Segmenter
from brainseg.prediction.trained_model import TrainedModel


@pytest.fixture(scope="module")
def run(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        data=DataConfig(path=str(phantom_file), context=1),
        split=HoldoutConfig(),
        epochs=1,
        device=FLOAT32,
        model=UNetConfig(depth=1, width=2),
        tracking=TrackingConfig("none"),
        output=str(folder),
    )
    assert train.run(config).state == "finished"
    return str(folder)


def test_one_volume_from_arrays(run: str) -> None:
    volume = np.stack([scan(np.uint8).transpose(2, 1, 0)] * 3, axis=1)
    checkpoint = brainseg.load_checkpoint(run)
    one = brainseg.segment(checkpoint, volume, FLOAT32)
    assert one.mask.shape == truth().T.shape and one.mask.dtype == np.uint8
    assert one.probability.shape == (9, 1, 16, 20) and np.array_equal(
        one.mask, one.probability[:, 0] >= 0.5
    )
    by_name = brainseg.segment(run, {"FLAIR": volume[:, 1]}, FLOAT32)
    assert np.array_equal(by_name.probability, one.probability), (
        "FLAIR stands in for the two others, which here are equal to it"
    )
    both = brainseg.segment([run, checkpoint], volume, FLOAT32)
    assert np.allclose(both.probability, one.probability, atol=1e-6)


@pytest.fixture
def threshold(tmp_path: Path) -> TrainedModel:
    """A network that marks FLAIR above half of its range."""
    path = threshold_weights(tmp_path / "w.pt")
    return trained_model.load_model(
        str(path), DataConfig(), UNetConfig(depth=1, width=1, norm="none")
    )


@pytest.mark.parametrize("axes", ["LPS", "RAS", "ASR", "PIR"])
def test_a_mask_of_an_image_has_the_images_own_axes(
    axes: str, threshold: TrainedModel, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "flair.nii.gz", scan(), axes)
    image = nibabel.load(path)
    expected = np.asarray(image.dataobj) == 300
    in_memory = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    for images in (
        str(path),
        path,
        image,
        in_memory,
        [None, path, None],
        [None, image, None],
        {"FLAIR": image},
        {"FLAIR": path},
        [path],
    ):
        found = brainseg.segment(threshold, images, FLOAT32)
        assert np.array_equal(found.mask == 1, expected)
        assert found.probability.shape == (*image.shape, 1) and np.array_equal(
            found.probability[..., 0] >= 0.5, expected
        )


def test_arrays_lists_and_tensors_are_the_same_slices(
    threshold: TrainedModel, tmp_path: Path
) -> None:
    slices = scan().transpose(2, 1, 0).copy()
    stack = np.stack([slices] * 3, axis=1)
    tensor = torch.from_numpy(stack)
    tifffile.imwrite(tmp_path / "a.tif", slices, photometric="minisblack")
    for images in (
        stack,
        tensor,
        tensor.float().requires_grad_(),
        tensor.bfloat16(),
        [slices] * 3,
        [None, slices, None],
        [torch.from_numpy(slices)] * 3,
        {"FLAIR": torch.from_numpy(slices)},
        tmp_path / "a.tif",
    ):
        found = brainseg.segment(threshold, images, FLOAT32)
        assert np.array_equal(found.mask == 1, slices == 300) and found.probability.shape == (
            9,
            1,
            16,
            20,
        )


def test_anything_else_is_refused_in_words(threshold: TrainedModel, tmp_path: Path) -> None:
    slices = scan().transpose(2, 1, 0).copy()
    path = write_nifti(tmp_path / "T1w.nii.gz", scan())
    affine_less = nibabel.Nifti1Image(scan(), None)
    moved = nibabel.load(write_nifti(tmp_path / "moved.nii.gz", scan(), shift=3))
    series = nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4))
    colours = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4))
    nothing = np.zeros((0, 3, 4, 4))
    for images, rule in (
        (7, "must be a path, an array, a torch tensor or a nibabel image"),
        (b"flair.nii", "must be a path"),
        (None, "must be a path"),
        (slices, "must be \\(slices, 3 channels, height, width\\)"),
        (slices.tolist(), "a list of 9"),
        ([slices, slices], "a list of 2: must hold one for each sequence"),
        ([slices.tolist()] * 3, "images=list: must be a path"),
        ([slices, slices, slices[:2]], "all of one shape"),
        ([slices, path, None], "all must be of one kind"),
        ([], "a list of 0"),
        ([None, None, None], "only FLAIR can stand in"),
        ({}, "only FLAIR can stand in"),
        ({1: slices}, "no such sequence"),
        (np.array(["a"]), "must hold real numbers"),
        (nothing, "holds no pixel"),
        (np.stack([slices] * 3, axis=1).astype(complex), "must hold real numbers"),
        (tmp_path / "nowhere.nii", "no such file or folder"),
        (path, "is named after T1w"),
        (affine_less, "without a usable affine"),
        ([nibabel.load(path), moved, None], "lie on different grids"),
        (series, "must have three dimensions"),
        (colours, "must hold real numbers"),
    ):
        with pytest.raises(RequestError, match=rule):
            brainseg.segment(threshold, images, FLOAT32)


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


def test_a_size_that_a_network_does_not_take_is_said_and_stops_no_other_case() -> None:
    options = ModelConfig("AttentionUnet", {"channels": [4, 8], "strides": [2]})
    weights = {"model": networks.build_network(options, 3, 1, (32, 32)).state_dict()}
    segmenter = Segmenter(
        [TrainedModel("w.pt", weights, DataConfig(), options)],
        InferenceConfig(),
        choose_device(DeviceConfig("cpu", "float32")),
    )
    channels = ["pre-contrast", "FLAIR", "post-contrast"]
    for size, fits in ((32, True), (33, False), (32, True)):
        images = np.random.default_rng(0).integers(0, 255, (2, 3, size, size)).astype(np.uint8)
        store = MemoryStore("s", Scan(images, None), channels, ["background", "tumour"])
        if fits:
            assert segmenter(store).prediction.shape == (2, size, size)
        else:
            with pytest.raises(
                DataError, match=r"s: w\.pt takes no images of 33x33 pixels \(.*(?i:size)"
            ):
                segmenter(store)


class Divided(nn.Module):
    """As MONAI's SegResNetDS, which says it in another way; and it cannot be copied."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-1] % 8:
            raise ValueError("spatial dimensions must be divisible by 8")
        return image


class Counted(Divided):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * float(image.mean())


class Single(Divided):
    def __deepcopy__(self, memo: dict) -> "Single":
        raise RuntimeError("only leaf tensors can be copied")


def test_only_a_fault_of_the_size_is_one() -> None:
    assert (
        networks.unsupported_size_reason(Divided(), 1, (16, 20))
        == "spatial dimensions must be divisible by 8"
    )
    assert networks.unsupported_size_reason(Divided(), 1, (16, 16)) == ""
    assert networks.unsupported_size_reason(Counted(), 1, (16, 20)) == "", (
        "numbers are not known where there are shapes alone"
    )
    assert networks.unsupported_size_reason(Single(), 1, (16, 20)) == ""
