"""Settings of the learning rate over a run."""

from dataclasses import dataclass

from brainseg.config.fields import check_choice, check_range, setting

SCHEDULERS = ("none", "step", "cosine", "one_cycle", "plateau")


@dataclass
class SchedulerConfig:
    name: str = setting("none", "how the learning rate goes over the run")

    def __post_init__(self) -> None:
        check_choice("scheduler.name", self.name, SCHEDULERS)


@dataclass
class StepConfig(SchedulerConfig):
    name: str = setting("step", "drops at given epochs")
    epochs: list[int] = setting([30], "epochs from which the rate is dropped")
    factor: float = setting(0.1, "factor of each drop")

    def __post_init__(self) -> None:
        super().__post_init__()
        for epoch in self.epochs:
            check_range("scheduler.epochs", epoch, 1)
        check_range("scheduler.factor", self.factor, 0, 1)


@dataclass
class CosineConfig(SchedulerConfig):
    name: str = setting("cosine", "half a cosine down, after a linear warm-up")
    warmup: float = setting(0.05, "share of the steps spent warming up")
    final: float = setting(0.0, "last rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.warmup", self.warmup, 0, 0.9)
        check_range("scheduler.final", self.final, 0, 1)


@dataclass
class OneCycleConfig(SchedulerConfig):
    name: str = setting("one_cycle", "up, then far down (Smith 2018)")
    warmup: float = setting(0.3, "share of the steps spent rising")
    start: float = setting(0.04, "first rate as a share of optimizer.lr")
    final: float = setting(4e-6, "last rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup", "start", "final"):
            check_range(f"scheduler.{name}", getattr(self, name), 0, 1)


@dataclass
class PlateauConfig(SchedulerConfig):
    name: str = setting("plateau", "drops when val/dice has not risen")
    patience: int = setting(5, "validations without a rise before a drop")
    factor: float = setting(0.1, "factor of each drop")
    final: float = setting(1e-3, "lowest rate as a share of optimizer.lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scheduler.patience", self.patience, 0)
        check_range("scheduler.factor", self.factor, 0, 1)
        check_range("scheduler.final", self.final, 0, 1)
