"""The schedules: torch's own as the measure where it has one, and their shape for any length of a run."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from brainseg.config import CosineConfig, OneCycleConfig, PlateauConfig, SchedulerConfig, StepConfig
from brainseg.core.errors import RequestError
from brainseg.training.progressive_resizing import ProgressiveResizing
from brainseg.training.schedules import Plateau, cosine, learning_rate_factor

share = st.floats(0, 1)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def torch_rates(schedule: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """The rate of each step, from 1.0, as torch's schedule gives it."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


def rates(scheduler: SchedulerConfig, total: int, steps_per_epoch: int = 1) -> list[float]:
    resizing = ProgressiveResizing(total)
    return [
        learning_rate_factor(scheduler, step, resizing, steps_per_epoch) for step in range(total)
    ]


@given(total=st.integers(2, 5000), share=st.floats(0.05, 0.95), quicker=st.floats(1, 8))
def test_the_schedule_goes_by_time_when_the_first_steps_are_quicker(
    total: int, share: float, quicker: float
) -> None:
    """Half the size, a quarter of the time: the rate at a moment is that of a run whose steps all take equally long."""
    half = min(total - 1, round(total * share * quicker / (share * quicker + 1 - share)))
    resizing = ProgressiveResizing(total, half)
    places = [resizing.time_position(step, share) for step in range(total)]
    assert (
        places[0] == 0 and all(a < b for a, b in itertools.pairwise(places)) and places[-1] < total
    )
    if half:
        assert places[half] == pytest.approx(share * total)
        assert [
            learning_rate_factor(CosineConfig(), step, resizing, 1, share) for step in (0, half)
        ] == [pytest.approx(cosine(place, total, 0.05, 0.0)) for place in (0, share * total)]


def test_a_run_of_one_size_keeps_its_steps() -> None:
    one_size, two_sizes = ProgressiveResizing(7), ProgressiveResizing(10, 6)
    assert [one_size.time_position(step, 0.0) for step in range(7)] == list(range(7))
    positions = [two_sizes.time_position(step, 0.6) for step in range(10)]
    assert positions == pytest.approx(range(10))


def test_none_and_plateau_leave_the_rate() -> None:
    assert rates(SchedulerConfig(), 5) == rates(PlateauConfig(), 5) == [1.0] * 5


def test_a_schedule_without_a_formula() -> None:
    with pytest.raises(
        RequestError, match=r"scheduler\.name=cosine: has no formula as SchedulerConfig"
    ):
        learning_rate_factor(SchedulerConfig(name="cosine"), 0, ProgressiveResizing(10), 1)


def test_step_drops_at_the_first_step_of_its_epoch() -> None:
    """The reference: epochs 0 to 29 at the full rate, a tenth from epoch 30."""
    got = rates(StepConfig(epochs=[30], factor=0.1), 40 * 7, steps_per_epoch=7)
    assert got[: 30 * 7] == [1.0] * 30 * 7
    assert got[30 * 7 :] == [0.1] * 10 * 7


def test_step_is_torch_multi_step() -> None:
    expected = torch_rates(lr_scheduler.MultiStepLR(optimizer(), [3, 5, 6], gamma=0.5), 10)
    assert rates(StepConfig(epochs=[5, 3, 6], factor=0.5), 10) == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 50])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torch_cosine(total: int, final: float) -> None:
    expected = torch_rates(
        lr_scheduler.CosineAnnealingLR(optimizer(), T_max=total, eta_min=final), total
    )
    assert rates(CosineConfig(warmup=0, final=final), total) == pytest.approx(expected)


def test_cosine_with_warm_up_by_hand() -> None:
    got = rates(CosineConfig(warmup=0.4, final=0.2), 10)
    rising, falling = (
        [0.2, 0.4, 0.6, 0.8],
        [1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * k / 6)) for k in range(1, 6))],
    )
    assert got == pytest.approx(rising + falling)


@pytest.mark.parametrize("total", [10, 33, 100])
def test_one_cycle_is_torch_one_cycle(total: int) -> None:
    """torch's defaults are those of the config: from 1/25 up during 30 % of the steps, down to 1/250,000."""
    expected = torch_rates(
        lr_scheduler.OneCycleLR(optimizer(), max_lr=1.0, total_steps=total), total
    )
    assert rates(OneCycleConfig(), total) == pytest.approx(expected)


@given(total=st.integers(1, 300), warmup=st.floats(0, 0.9), final=share)
def test_cosine_shape(total: int, warmup: float, final: float) -> None:
    got = rates(CosineConfig(warmup=warmup, final=final), total)
    warm = min(round(warmup * total), total - 1)
    assert got[0] > 0 and all(min(final, 1 / (warm + 1)) <= rate <= 1 for rate in got)
    check_shape(got, warm, steepest=max(1 / (warm + 1), math.pi / 2 / (total - warm)))
    assert got[-1] - final <= (1 - final) * (math.pi / (total - warm)) ** 2 / 4 + 1e-12
    assert learning_rate_factor(
        CosineConfig(warmup=warmup, final=final), total, ProgressiveResizing(total), 1
    ) == pytest.approx(final)


@given(total=st.integers(1, 300), warmup=share, start=share, final=share)
def test_one_cycle_shape(total: int, warmup: float, start: float, final: float) -> None:
    scheduler = OneCycleConfig(warmup=warmup, start=start, final=final)
    got = rates(scheduler, total)
    peak = max(warmup * total - 1, 0)
    assert all(min(start, final) - 1e-12 <= rate <= 1 for rate in got)
    assert got[0] == pytest.approx(start if peak > 0 else 1.0)
    if peak < total - 1:
        assert got[-1] == pytest.approx(final)
    if 1 <= peak <= total - 2:
        check_shape(got, math.ceil(peak), steepest=math.pi / 2 / min(peak, total - 1 - peak))
    assert learning_rate_factor(scheduler, total, ProgressiveResizing(total), 1) == pytest.approx(
        final
    )


def check_shape(got: list[float], peak: int, steepest: float) -> None:
    """Up to `peak`, down behind it, and never further in one step than the steepest slope."""
    steps = [after - before for before, after in itertools.pairwise(got)]
    assert all(step >= -1e-12 for step in steps[: max(peak - 1, 0)])
    assert all(step <= 1e-12 for step in steps[peak:])
    assert all(abs(step) <= steepest + 1e-9 for step in steps)


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), max_size=40),
    patience=st.integers(0, 4),
    drop=st.floats(0.1, 0.9),
)
def test_plateau_is_torch_plateau(scores: list[float], patience: int, drop: float) -> None:
    sgd, plateau = optimizer(), Plateau(PlateauConfig(patience=patience, factor=drop, final=0.01))
    theirs = lr_scheduler.ReduceLROnPlateau(
        sgd, mode="max", factor=drop, patience=patience, threshold=0, min_lr=0.01, eps=0
    )
    for score in scores:
        plateau.update(score)
        theirs.step(score)
        assert plateau.factor == pytest.approx(sgd.param_groups[0]["lr"])


def test_plateau_by_hand() -> None:
    """patience=2: two epochs without a rise pass, the third drops; a tie is no rise."""
    plateau = Plateau(PlateauConfig(patience=2, factor=0.5, final=0.3))
    factors = []
    for score in (0.5, 0.5, 0.4, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1):
        plateau.update(score)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.3, 0.3]
    assert (plateau.best, plateau.bad_epochs) == (0.6, 1)


def test_plateau_goes_on_where_it_was() -> None:
    config = PlateauConfig(patience=1, factor=0.5)
    whole, first, second = Plateau(config), Plateau(config), Plateau(config)
    scores = [0.3, 0.2, 0.1, 0.25, 0.4, 0.4, 0.4]
    for score in scores:
        whole.update(score)
    for score in scores[:2]:
        first.update(score)
    second.load_state_dict(first.state_dict())
    for score in scores[2:]:
        second.update(score)
    assert second.state_dict() == whole.state_dict()
    assert all(type(value) in (int, float) for value in second.state_dict().values())
