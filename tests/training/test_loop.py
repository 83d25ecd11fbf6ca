"""The loop: stopping anywhere equals never stopping, to the bit; the same run twice is the same run."""

import dataclasses
import io
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainseg.config import (
    AugmentConfig,
    CosineConfig,
    DataConfig,
    DeviceConfig,
    LossConfig,
    OptimizerConfig,
    PlateauConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.data.input_settings import window_size
from brainseg.data.open import open_dataset
from brainseg.data.store import Store
from brainseg.device import choose_device
from brainseg.training import loop as engine
from brainseg.training import losses
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit
from brainseg.training.plan import Plan
from brainseg.training.state import State
from brainseg.training.time_budget import StepTimings, estimate_steps, make_first_plan, measure_pace

AUGMENT = AugmentConfig(
    flip=0.5, rotate=10, scale=0.1, shift=0.05, gamma=0.2, contrast=0.1, brightness=0.1, noise=0.05
)


class Stop(Exception):
    """Stands for a power cut."""


def make_task(path: Path, **changes) -> TrainingContext:
    options = {
        "batch_size": 4,
        "epochs": 2,
        "augment": AUGMENT,
        "scheduler": CosineConfig(warmup=0.2),
        "optimizer": OptimizerConfig("adamw", lr=1e-2),
        "model": UNetConfig(depth=2, width=4, dropout=0.2),
        "loss": LossConfig("bce_dice"),
    } | changes
    config = TrainConfig(device=DeviceConfig("cpu", "float32"), **options)
    store = Store(path)
    names = store.patients
    window = window_size(store, config.data.window, tuple(names[:3]))
    parts = (
        open_dataset(store, config.data, part, size).hold()
        for part, size in ((names[:3], window), (names[3:5], None))
    )
    return TrainingContext(
        config, choose_device(config.device), *parts, losses.build_loss(config.loss)
    )


def to_bytes(state: State) -> bytes:
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    return file.getvalue()


def resumed(task: TrainingContext, saved: bytes | None) -> State:
    """A new state that takes over the bytes of a file."""
    state = build_state(task)
    torch.manual_seed(12345)  # whatever the process did before must not matter
    if saved is not None:
        state.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
    return state


def numbers(state: State) -> list[dict]:
    return [
        {k: v for k, v in row["metrics"].items() if not k.startswith(("speed/", "system/"))}
        for row in state.history
    ]


def assert_equal(one: State, other: State) -> None:
    assert numbers(one) == numbers(other)
    assert (one.step, one.epoch, one.best, one.best_epoch) == (
        other.step,
        other.epoch,
        other.best,
        other.best_epoch,
    )
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    flat = [
        [
            tensor
            for values in state.optimizer.state_dict()["state"].values()
            for tensor in values.values()
        ]
        for state in (one, other)
    ]
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*flat, strict=True)
    )


VARIANTS = {
    "cosine": {},
    "averaged, accumulated, clipped": {
        "ema_decay": 0.9,
        "accumulate": 2,
        "clip_norm": 1.0,
        "batch_size": 2,
    },
    "half resolution, validated every second epoch": {
        "half_resolution": 0.6,
        "validate_every": 2,
        "epochs": 3,
    },
    "steps, the last epoch cut short": {"max_steps": 8, "half_resolution": 0.4, "ema_decay": 0.9},
    "fast on any CPU": {
        "model": UNetConfig(depth=2, width=4, dropout=0.2, stem=2),
        "loss": LossConfig("bce_dice", {"slice_weight": 0.5}),
        "augment": dataclasses.replace(AUGMENT, paste=0.5),
        "data": DataConfig(
            tumour_share=0.6,
            even_patients=True,
            intensity="median",
            context_step="2",
            window="24x20",
        ),
        "half_resolution": 0.5,
    },
    "deep supervision": {
        "model": UNetConfig(depth=3, width=4, dropout=0.2, stem=2, deep_supervision=True),
        "half_resolution": 0.5,
        "ema_decay": 0.9,
    },
    "plateau, tumour share": {
        "scheduler": PlateauConfig(patience=0),
        "data": DataConfig(tumour_share=0.6),
    },
}


@pytest.fixture(scope="module")
def uninterrupted(phantom_file: Path) -> dict[str, State]:
    states = {}
    for name, changes in VARIANTS.items():
        task = make_task(phantom_file, **changes)
        states[name] = build_state(task)
        fit(states[name], task, Callbacks())
    return states


@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    stops=st.lists(st.integers(1, 11), min_size=1, max_size=3),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_stopping_anywhere_equals_never_stopping(
    phantom_file: Path, uninterrupted: dict[str, State], variant: str, stops: list[int]
) -> None:
    task = make_task(phantom_file, **VARIANTS[variant])
    saved = None
    for stop in [*sorted(stops), None]:
        state = resumed(task, saved)

        def cut(state: State, at: int | None = stop) -> None:
            if state.step == at:
                raise Stop

        try:
            fit(state, task, Callbacks(after_step=cut))
        except Stop:
            saved = to_bytes(state)
    assert_equal(state, uninterrupted[variant])


def test_stopping_between_validated_patients_is_resumed(
    phantom_file: Path, uninterrupted: dict[str, State]
) -> None:
    task = make_task(phantom_file)
    state, seen = build_state(task), []

    def cut(state: State) -> None:
        seen.append(1)
        if len(seen) == 3:  # in the validation of the second epoch
            raise Stop

    with pytest.raises(Stop):
        fit(state, task, Callbacks(after_patient=cut))
    again = resumed(task, to_bytes(state))
    fit(again, task, Callbacks())
    assert_equal(again, uninterrupted["cosine"])


def test_training_learns(phantom_file: Path) -> None:
    task = make_task(phantom_file, epochs=20, augment=AugmentConfig())
    state = build_state(task)
    fit(state, task, Callbacks())
    losses = [row["metrics"]["train/loss"] for row in state.history]
    assert losses[-1] < 0.6 * losses[0]


def test_every_metric_of_the_contract_is_there(uninterrupted: dict[str, State]) -> None:
    named = {
        "train/loss",
        "train/learning_rate",
        "val/loss",
        "val/dice",
        "val/dice_median",
        "val/patients_missed",
        "val/iou",
        "val/precision",
        "val/recall",
        "val/dice_tumour_slices",
        "val/empty_slice_false_positives",
        "speed/images_per_second",
        "speed/epoch_seconds",
    }
    for row in uninterrupted["cosine"].history:
        assert set(row["metrics"]) == named, "HD95 is measured once, at the end of the run"


def test_patience_stops_early(phantom_file: Path) -> None:
    task = make_task(phantom_file, epochs=50, patience=1, optimizer=OptimizerConfig("sgd", lr=0.0))
    state = build_state(task)
    fit(state, task, Callbacks())
    assert (state.epoch, state.risen_epoch) == (2, 0)
    assert state.best_epoch == 1, (
        "val/dice is the same, val/loss falls with the statistics of batch norm"
    )


def test_minutes_become_a_number_of_steps(phantom_file: Path) -> None:
    task = make_task(phantom_file)
    pace = StepTimings(
        step=0.1, half_step=0.0, validation=0.06 * task.steps_per_epoch
    )  # so that a step carries 0.06 s of validation
    assert estimate_steps(pace, task, (16 + pace.validation) / 60) == (100, 0)
    assert estimate_steps(pace, task, 1e-6) == (1, 0)
    state = build_state(task._replace(config=dataclasses.replace(task.config, max_minutes=0.05)))
    make_first_plan(
        state,
        build_state(task),
        task._replace(config=dataclasses.replace(task.config, max_minutes=0.05)),
        Callbacks(),
    )
    assert (
        state.plans == [Plan(0, 0.0, state.total_steps, 0)]
        and state.total_steps >= 1
        and state.validation_seconds > 0
    )


def test_minutes_are_shared_between_the_sizes_as_they_take_time(phantom_file: Path) -> None:
    task = make_task(phantom_file, half_resolution=0.75, validate_every=2)
    pace = StepTimings(
        step=0.4, half_step=0.1, validation=0.2 * task.steps_per_epoch
    )  # so that a step carries 0.1 s of validation
    total, half = estimate_steps(pace, task, (100 + pace.validation) / 60)
    assert (half, total - half) == (int(75 / 0.2), int(25 / 0.5))


def test_a_pace_has_both_sizes(phantom_file: Path) -> None:
    task = make_task(phantom_file, half_resolution=0.5)
    sizes: list[tuple[int, ...]] = []
    state = build_state(task)
    state.model.register_forward_pre_hook(
        lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:]))
    )
    pace = measure_pace(state, task, Callbacks())
    assert pace.step > 0 and pace.half_step > 0
    assert set(sizes) == {(16, 16), (32, 32)}


def test_what_disturbs_a_step_does_not_change_the_pace(
    phantom_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the timed steps, nine at most, takes a second longer: the mean would be above 0.11 s."""
    task = make_task(phantom_file, batch_size=2)
    assert task.steps_per_epoch >= 5
    augmented, step = engine.augment_batch, count()

    def disturbed(*arguments: Any) -> Any:
        time.sleep(1.0 * (next(step) == 3))
        return augmented(*arguments)

    monkeypatch.setattr(engine, "augment_batch", disturbed)
    assert 0 < measure_pace(build_state(task), task, Callbacks()).step < 0.1
    assert next(step) > 4, "the disturbed step was timed"


def test_the_first_share_of_a_run_is_at_half_resolution_and_the_rest_at_full(
    phantom_file: Path,
) -> None:
    task = make_task(phantom_file, half_resolution=0.6, validate_every=2, epochs=3)
    state, sizes = build_state(task), list[int]()

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            sizes.append(inputs[0].shape[-1])

    state.model.register_forward_pre_hook(note)
    fit(state, task, Callbacks())
    total = 3 * task.steps_per_epoch
    assert sizes == [16] * round(0.6 * total) + [32] * (total - round(0.6 * total))
    assert ["val/dice" in row["metrics"] for row in state.history] == [False, True, True], (
        "every second epoch, and the last"
    )
    assert all(row["metrics"]["speed/epoch_seconds"] > 0 for row in state.history)


def test_patience_and_plateau_begin_to_count_at_full_size(phantom_file: Path) -> None:
    still = OptimizerConfig("sgd", lr=0.0)  # nothing is learnt, so no dice rises
    task = make_task(
        phantom_file,
        half_resolution=0.5,
        epochs=8,
        patience=2,
        scheduler=PlateauConfig(patience=9),
        optimizer=still,
    )
    state = build_state(task)
    fit(state, task, Callbacks())
    assert len(state.history) == 6, "four epochs at half size, two at full size"
    assert state.plateau is not None and state.plateau.bad_epochs == 1, (
        "the first at full size is the first that counts"
    )


def test_patience_counts_epochs_and_ends_a_run_behind_a_validation(phantom_file: Path) -> None:
    task = make_task(phantom_file, validate_every=2, patience=2, epochs=9)
    state = build_state(task)
    state.best, state.best_epoch, state.risen_epoch = 2.0, 0, 0  # no dice rises above it
    fit(state, task, Callbacks())
    assert ["val/dice" in row["metrics"] for row in state.history] == [False, True, False, True]


def test_equal_dice_is_decided_by_the_lower_loss(
    phantom_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that predicts nothing has a val/dice of 0 while its val/loss falls: the first epoch is not the best of them."""
    task = make_task(phantom_file, epochs=5, patience=2)
    scores = iter([(0.0, 2.76), (0.0, 0.45), (0.0, 0.45), (0.0, 0.9), (0.3, 3.0)])

    def validated(state: State, *_: Any) -> dict[str, float]:
        dice, loss = next(scores)
        return {"val/dice": dice, "val/loss": loss}

    monkeypatch.setattr(engine, "validate", validated)
    state, improved = build_state(task), list[bool]()
    fit(state, task, Callbacks(after_epoch=lambda _, better: improved.append(better)))
    assert improved == [True, True, False], (
        "patience counts from the last rise of val/dice, and ends the run behind the third"
    )
    assert (state.best, state.best_loss, state.best_epoch) == (0.0, 0.45, 1)
