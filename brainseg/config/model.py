"""Settings of the network, of what it is trained by, and of how its images are changed at random."""

from dataclasses import dataclass
from typing import Any

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check


@dataclass
class ModelConfig:
    name: str = setting(
        "unet", "unet, a class of monai.networks.nets, or a name registered under brainseg.models"
    )
    options: dict[str, Any] = setting({}, "further arguments of a model that is not unet")


@dataclass
class UNetConfig(ModelConfig):
    name: str = setting("unet", "U-Net of any depth and width")
    depth: int = setting(4, "resolution levels; depth - 1 poolings")
    width: int = setting(32, "features of the first level")
    growth: int = setting(1, "factor on the features from level to level: 1 or 2")
    max_width: int | None = setting(None, "cap on the features of a level")
    norm: str = setting("batch", "batch, instance, group or none")
    dropout: float = setting(0.0, "probability that a feature map is dropped, at every level")

    def __post_init__(self) -> None:
        check_range("model.depth", self.depth, 1, 12)
        check_range("model.width", self.width, 1, 4096)
        check_choice("model.growth", str(self.growth), ("1", "2"))
        check_range(
            "model.max_width",
            self.max_width,
            self.width,
            remedy="a cap below model.width would cut the first level",
        )
        check_choice("model.norm", self.norm, ("batch", "instance", "group", "none"))
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")


@dataclass
class LossConfig:
    name: str = setting(
        "bce_dice",
        "dice, bce_dice, a class of monai.losses, or a name registered under brainseg.losses",
    )
    options: dict[str, Any] = setting({}, "arguments of the loss, as smooth or per_sample")


@dataclass
class OptimizerConfig:
    name: str = setting("adamw", "a class of torch.optim by its name in any case, as adamw")
    lr: float = setting(1e-3, "learning rate, before the schedule")
    weight_decay: float | None = setting(None, "weight decay; null: torch's default")
    options: dict[str, Any] = setting({}, "further arguments, as momentum or betas")

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, 0, remedy="usual values are 1e-4 to 1e-2")
        check_range("optimizer.weight_decay", self.weight_decay, 0)


@dataclass
class AugmentConfig:
    flip: float = setting(0.0, "probability of a left-right flip")
    rotate: float = setting(0.0, "largest rotation in degrees")
    scale: float = setting(0.0, "largest relative change of size, as 0.1")
    shift: float = setting(0.0, "largest shift as a share of the image")
    gamma: float = setting(0.0, "largest change of the logarithm of gamma, as 0.2")
    contrast: float = setting(0.0, "largest relative change of contrast, per channel")
    brightness: float = setting(0.0, "largest shift of intensity, per channel")
    noise: float = setting(0.0, "largest standard deviation of Gaussian noise")
    missing: float = setting(
        0.0,
        "probability that a sequence is missing, each by itself; FLAIR then stands in, as in such patients",
    )

    def __post_init__(self) -> None:
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.missing", self.missing, 0, 1)
        check_range("augment.rotate", self.rotate, 0, 180)
        for name in ("scale", "shift", "gamma", "contrast", "brightness", "noise"):
            check_range(f"augment.{name}", getattr(self, name), 0, 0.9)
