"""Settings of network, loss, optimizer and augmentation."""

from dataclasses import dataclass
from typing import Any

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check


@dataclass
class ModelConfig:
    """Settings of any network."""

    name: str = setting(
        "unet",
        "unet, a class of monai.networks.nets, smp.CLASS of segmentation_models_pytorch, or a name "
        "registered under brainseg.models",
    )
    options: dict[str, Any] = setting({}, "arguments of the network class; not used by unet")


@dataclass
class UNetConfig(ModelConfig):
    """Settings of the U-Net."""

    name: str = setting("unet", "U-Net with the depth and width set below")
    depth: int = setting(4, "number of resolution levels; the network has depth - 1 poolings")
    width: int = setting(32, "number of channels of the first level")
    growth: int = setting(1, "channel multiplier from level to level: 1 or 2")
    max_width: int | None = setting(None, "largest number of channels of a level; null: no limit")
    norm: str = setting("batch", "normalization layers: batch, instance, group or none")
    dropout: float = setting(0.0, "probability of dropping a feature map, at every level")
    stem: int = setting(
        1,
        "the first level works at 1/stem of the image's resolution: 1, 2 or 4; with 2 a step takes "
        "0.3 times as long",
    )
    deep_supervision: bool = setting(
        False,
        "add a 1x1 head to each decoder level below the first in training; the losses of the "
        "levels have the weights 1, 1/2, 1/4, ... divided by their sum",
    )

    def __post_init__(self) -> None:
        check_range("model.depth", self.depth, 1, 12)
        check_range("model.width", self.width, 1, 4096)
        check_choice("model.growth", str(self.growth), ("1", "2"))
        check_range(
            "model.max_width",
            self.max_width,
            self.width,
            remedy="a limit below model.width would reduce the first level",
        )
        check_choice("model.norm", self.norm, ("batch", "instance", "group", "none"))
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")
        check_choice("model.stem", str(self.stem), ("1", "2", "4"))


@dataclass
class LossConfig:
    """Settings of the loss."""

    name: str = setting(
        "bce_dice",
        "dice, bce_dice, a class of monai.losses, or a name registered under brainseg.losses",
    )
    options: dict[str, Any] = setting({}, "arguments of the loss, such as smooth or per_sample")


@dataclass
class OptimizerConfig:
    """Settings of the optimizer."""

    name: str = setting(
        "adamw",
        "class of torch.optim in upper or lower case, or a name registered under "
        "brainseg.optimizers",
    )
    lr: float = setting(1e-3, "learning rate, before the schedule is applied")
    weight_decay: float | None = setting(None, "weight decay; null: default of the class")
    options: dict[str, Any] = setting({}, "further arguments, such as momentum or betas")

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, 0, remedy="usual values are 1e-4 to 1e-2")
        check_range("optimizer.weight_decay", self.weight_decay, 0)


@dataclass
class AugmentConfig:
    """Settings of the augmentation."""

    flip: float = setting(0.0, "probability of a left-right flip")
    rotate: float = setting(0.0, "maximum rotation in degrees")
    scale: float = setting(0.0, "maximum relative change of size, such as 0.1")
    shift: float = setting(0.0, "maximum shift as a fraction of the image size")
    gamma: float = setting(0.0, "maximum change of the logarithm of gamma, such as 0.2")
    contrast: float = setting(0.0, "maximum relative change of contrast, drawn per channel")
    brightness: float = setting(0.0, "maximum shift of intensity, drawn per channel")
    noise: float = setting(0.0, "maximum standard deviation of Gaussian noise")
    paste: float = setting(
        0.0,
        "probability of pasting the tumour of another slice of the batch, with a soft edge, as in "
        "CarveMix",
    )
    missing: float = setting(
        0.0, "probability, per MRI sequence, of replacing it by FLAIR, as in patients without it"
    )

    def __post_init__(self) -> None:
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.missing", self.missing, 0, 1)
        check_range("augment.paste", self.paste, 0, 1)
        check_range("augment.rotate", self.rotate, 0, 180)
        for name in ("scale", "shift", "gamma", "contrast", "brightness", "noise"):
            check_range(f"augment.{name}", getattr(self, name), 0, 0.9)
