"""Settings of the learning rate schedule."""

from dataclasses import dataclass

from brainseg.config.fields import check_choice, check_range, setting

SCHEDULERS = ("none", "step", "cosine", "one_cycle", "plateau")


@dataclass
class SchedulerConfig:
    """Settings that all schedules share."""

    name: str = setting("none", "learning rate schedule; none: constant rate")

    def __post_init__(self) -> None:
        check_choice("scheduler.name", self.name, SCHEDULERS)


@dataclass
class StepConfig(SchedulerConfig):
    """Settings of a schedule with fixed drops."""

    name: str = setting("step", "lower the rate at the epochs listed")
    epochs: list[int] = setting([30], "epochs from which the rate is lowered")
    factor: float = setting(0.1, "factor by which each drop multiplies the rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        for epoch in self.epochs:
            check_range("scheduler.epochs", epoch, 1)
        check_range("scheduler.factor", self.factor, 0, 1)


@dataclass
class CosineConfig(SchedulerConfig):
    """Settings of cosine annealing with a warm-up."""

    name: str = setting("cosine", "linear warm-up, then cosine annealing")
    warmup: float = setting(0.05, "fraction of the steps used for the warm-up")
    final: float = setting(0.0, "final rate as a fraction of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.warmup", self.warmup, 0, 0.9)
        check_range("scheduler.final", self.final, 0, 1)


@dataclass
class OneCycleConfig(SchedulerConfig):
    """Settings of the one-cycle policy."""

    name: str = setting(
        "one_cycle", "one-cycle policy (Smith 2018): the rate rises, then falls far below its start"
    )
    warmup: float = setting(0.3, "fraction of the steps in which the rate rises")
    start: float = setting(0.04, "initial rate as a fraction of optimizer.lr")
    final: float = setting(4e-6, "final rate as a fraction of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup", "start", "final"):
            check_range(f"scheduler.{name}", getattr(self, name), 0, 1)


@dataclass
class PlateauConfig(SchedulerConfig):
    """Settings of a schedule that follows the validation score."""

    name: str = setting("plateau", "lower the rate when val/dice stops improving")
    patience: int = setting(5, "validations without improvement before the rate is lowered")
    factor: float = setting(0.1, "factor by which each drop multiplies the rate")
    final: float = setting(1e-3, "lowest rate as a fraction of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.patience", self.patience, 0)
        check_range("scheduler.factor", self.factor, 0, 1)
        check_range("scheduler.final", self.final, 0, 1)
