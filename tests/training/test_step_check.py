"""What the first step would fail on is refused in one line before anything is created."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainseg import train
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    HoldoutConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PhantomConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.core.errors import RequestError
from brainseg.data.conversion import convert
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.models import networks
from brainseg.training.trial_step import smallest_batch


def config(
    folder: Path, model: ModelConfig | UNetConfig | None = None, size: int = 32, **settings
) -> TrainConfig:
    """A request on a phantom of 10 patients of 6 slices, of whom 7 are trained on: 42 slices an epoch."""
    data = DataConfig(phantom=PhantomConfig(patients=10, slices=6, size=size, folder=str(folder)))
    options = {
        "data": data,
        "model": model or UNetConfig(depth=2, width=4),
        "device": DeviceConfig("cpu"),
        "split": HoldoutConfig(),
        "loss": LossConfig("bce_dice"),
        "optimizer": OptimizerConfig("adamw"),
        "tracking": TrackingConfig("none"),
    } | settings
    return TrainConfig(**options)


@pytest.mark.parametrize(
    ("slices", "batch_size", "smallest"),
    [(42, 8, 2), (42, 7, 7), (42, 41, 1), (42, 100, 42), (42, 1, 1)],
)
def test_the_smallest_batch_is_the_last_one(slices: int, batch_size: int, smallest: int) -> None:
    assert smallest_batch(slices, batch_size) == smallest


@pytest.mark.parametrize(
    ("norm", "batch_size", "half", "rule"),
    [
        (
            "batch",
            41,
            0.0,
            r"batch_size=41: the last batch of an epoch holds 1 of 42 slices.*Expected more than 1 value",
        ),
        ("batch", 1, 0.0, r"batch_size=1: a batch holds 1 slice.*choose a batch_size"),
        (
            "instance",
            8,
            0.0,
            r"model.name=unet: takes no images of 32x32 pixels in training \(Expected more than 1 spatial element",
        ),
        ("batch", 8, 0.0, None),
        ("group", 41, 0.0, None),
        ("none", 41, 0.0, None),
    ],
)
def test_norms_that_cannot_train_on_one_pixel_are_refused(
    tmp_path: Path, norm: str, batch_size: int, half: float, rule: str | None
) -> None:
    """With a depth of 6 the lowest level has one pixel of 32 x 32."""
    request = config(
        tmp_path,
        UNetConfig(depth=6, width=16, growth=1, norm=norm),
        batch_size=batch_size,
        half_resolution=half,
    )
    if rule is None:
        assert train.check_request(request).parameters > 0
    else:
        with pytest.raises(RequestError, match=rule):
            train.check_request(request)
    assert not list(tmp_path.iterdir())


def test_the_size_of_the_first_part_of_the_run_is_rehearsed_too(tmp_path: Path) -> None:
    model = UNetConfig(depth=5, width=4, growth=1, norm="instance")
    assert train.check_request(config(tmp_path, model)).parameters > 0
    with pytest.raises(RequestError, match=r"model.name=unet: takes no images of 16x16 pixels"):
        train.check_request(config(tmp_path, model, half_resolution=0.5))


DEEP = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 4, 4],
}


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("DynUNet", DEEP | {"deep_supervision": True}, None),
        ("DynUNet", DEEP, None),
        ("BasicUNetPlusPlus", {"features": [4] * 6, "deep_supervision": True}, None),
        ("SegResNetDS", {"init_filters": 4, "dsdepth": 2}, None),
        ("SegResNetDS", {"init_filters": 4}, None),
        (
            "VarAutoEncoder",
            {"in_shape": [3, 32, 32], "latent_size": 2, "channels": [4, 4], "strides": [2, 2]},
            "returns a tuple, where one tensor of logits.*not a classifier or an autoencoder",
        ),
        (
            "Classifier",
            {"in_shape": [3, 32, 32], "classes": 2, "channels": [4, 4], "strides": [2, 2]},
            r"returns the shape \(2, 2\)",
        ),
        (
            "DenseNet",
            {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]},
            r"returns the shape \(2, 1\)",
        ),
        ("AHNet", {}, "takes no images of 32x32 pixels"),
        ("VNet", {}, "out channels should be divisible by in_channels"),
        ("SwinUNETR", {"feature_size": 12, "depths": [1, 1, 1, 1]}, None),
        ("UNETR", {"hidden_size": 8, "num_heads": 2, "mlp_dim": 8, "feature_size": 4}, None),
    ],
)
def test_networks_of_monai_train_or_are_refused_in_one_line(
    tmp_path: Path, name: str, options: dict, rule: str | None
) -> None:
    request = config(tmp_path, ModelConfig(name, options), size=64 if name == "SwinUNETR" else 32)
    if rule is None:
        assert train.check_request(request).parameters > 0
    else:
        with pytest.raises(RequestError, match=rule) as refused:
            train.check_request(request)
        assert "\n" not in str(refused.value) and name in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"loss": LossConfig("TverskyLoss", {"reduction": "none"})},
            r"loss.name=TverskyLoss: cannot do a training step \(",
        ),
        (
            {"optimizer": OptimizerConfig("adadelta", options={"capturable": True})},
            r"optimizer.name=adadelta: cannot do a training step \(",
        ),
    ],
)
def test_losses_and_optimizers_that_cannot_do_a_step_are_refused(
    tmp_path: Path, settings: dict, rule: str
) -> None:
    with pytest.raises(RequestError, match=rule):
        train.check_request(config(tmp_path, **settings))


class Mixed(nn.Module):
    """A network that makes its first weight with values wherever it is built, as smp.Unet does."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.from_numpy(np.ones((4, in_channels, 1, 1), np.float32)))
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(F.conv2d(images, self.first)))


def test_a_network_with_some_weights_on_the_meta_device_is_tried_with_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "load_extension", lambda group, name: Mixed)
    with torch.device("meta"):
        built = Mixed(3, 1)
    assert not built.first.is_meta and built.last.weight.is_meta
    assert train.check_request(config(tmp_path, ModelConfig("mixed"))).parameters == 4 * 3 + 8 + 5


@pytest.fixture
def without_tumour(tmp_path: Path) -> Path:
    """A prepared cohort of 7 patients in none of whose slices a pixel is tumour."""
    import tifffile

    for patient in range(7):
        folder = tmp_path / "source" / f"TCGA_AB_{patient:04d}_20000101"
        folder.mkdir(parents=True)
        for number in (1, 2):
            image = np.random.default_rng([patient, number]).integers(
                0, 255, (32, 32, 3), dtype=np.uint8
            )
            tifffile.imwrite(folder / f"{folder.name}_{number}.tif", image, photometric="rgb")
            tifffile.imwrite(
                folder / f"{folder.name}_{number}_mask.tif",
                np.zeros((32, 32), np.uint8),
                photometric="minisblack",
            )
    convert(tmp_path / "source", tmp_path / "cohort.h5", workers=1)
    return tmp_path / "cohort.h5"


def test_a_share_of_tumour_slices_that_are_not_there_is_refused(without_tumour: Path) -> None:
    for share, fine in ((0.5, False), (1.0, False), (0.0, True), (None, True)):
        data = DataConfig(path=str(without_tumour), tumour_share=share)
        request = config(without_tumour.parent, data=data, allow_empty=True)
        if fine:
            assert train.check_request(request).parameters > 0
        else:
            with pytest.raises(
                RequestError, match=rf"data.tumour_share={share}: no training slice has tumour"
            ):
                train.check_request(request)


def test_an_epoch_of_the_phantom_is_as_long_before_it_is_made_as_behind(tmp_path: Path) -> None:
    request = config(tmp_path, UNetConfig(depth=6, width=4, growth=1), batch_size=41)
    messages = set()
    for _ in range(2):
        with pytest.raises(RequestError) as refused:
            train.check_request(request)
        messages.add(str(refused.value))
        ensure_cohort(request.data.phantom)
    assert len(messages) == 1
