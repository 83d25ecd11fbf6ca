"""What a step dies of, and when the host learns of it: at once on a CPU, at the end of the epoch on a GPU, which works through a queue."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Stop, assert_equal, make_task, resumed, to_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from brainseg.config import AugmentConfig, CheckpointConfig, CosineConfig, DeviceConfig
from brainseg.core.signals import Signals
from brainseg.data.split import Split
from brainseg.device import Device, choose_device
from brainseg.runs import checkpoint
from brainseg.runs.callbacks import RunCallbacks
from brainseg.runs.run_folder import RunFolder
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit, train_epoch
from brainseg.training.nonfinite import NonFiniteError
from brainseg.training.state import State
from brainseg.training.time_budget import make_first_plan

SHAPES = AugmentConfig(
    flip=0.5, rotate=10, scale=0.1, shift=0.05, gamma=0.2, contrast=0.1, brightness=0.1
)


class Queued(Device):
    """A CPU that is treated like a GPU."""

    is_asynchronous = True  # type: ignore[assignment]


def queued(task: TrainingContext) -> TrainingContext:
    return task._replace(device=Queued(**vars(task.device)))


class Readings(TorchDispatchMode):
    """Counts what makes the host wait for a device: a number, or a size, that depends on what was computed."""

    WAIT = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::equal",
        "aten::masked_select",
        "aten::_unique2",
        "aten::is_nonzero",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] in self.WAIT
        return func(*args, **(kwargs or {}))


def test_a_nonfinite_loss_changes_no_weight_and_names_the_slices(phantom_file: Path) -> None:
    task = make_task(phantom_file)
    state = build_state(task)
    with torch.no_grad():
        next(state.model.parameters())[0, 0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(
        NonFiniteError, match=r"epoch 0 step 0.*optimizer\.lr.*PHANTOM_.* slice \d+"
    ):
        fit(state, task, Callbacks())
    weights = dict(state.model.named_parameters())
    assert all(
        torch.equal(before[name], weights[name].detach().nan_to_num(0))
        or torch.isnan(before[name]).any()
        for name in weights
    )


def test_a_nonfinite_step_can_be_left_out(phantom_file: Path) -> None:
    task = make_task(phantom_file, on_nonfinite="skip", epochs=1)
    state, criterion, weights = build_state(task), task.criterion, []

    def sometimes(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights.append({name: value.clone() for name, value in state.model.state_dict().items()})
        broken = logits.requires_grad and state.step == 2
        return criterion(logits, mask) * (float("inf") if broken else 1)

    fit(state, task._replace(criterion=sometimes), Callbacks())
    assert state.history[0]["metrics"]["train/skipped_steps"] == 1
    assert state.step == 6
    before, after = weights[2], weights[3]  # seen at the third forward pass and at the fourth
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("weight" in name or "bias" in name for name in moved), "no weight was changed"
    assert all(torch.isfinite(value).all() for value in after.values())


def test_a_step_left_out_under_float16_is_not_the_end_of_the_next(phantom_file: Path) -> None:
    """Torch refuses a second unscale_ before the scaler has been told of the first; as on a GPU, where float16 needs the scaler."""
    task = make_task(phantom_file, on_nonfinite="skip", epochs=1)
    state = build_state(task)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fit(state, broken_at(state, task, 2), Callbacks())
    assert state.step == 6 and state.history[0]["metrics"]["train/skipped_steps"] == 1
    assert state.scaler.get_scale() == 2.0, "as after an overflow"


def test_a_full_memory_names_what_to_lower(phantom_file: Path) -> None:
    task = make_task(phantom_file)

    def full(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**60)

    with pytest.raises(MemoryError, match=r"batches of shape \(4, 3, 32, 32\).*lower batch_size=4"):
        fit(build_state(task), task._replace(criterion=full), Callbacks())
    with pytest.raises(MemoryError, match="lower batch_size=4"):
        task = task._replace(
            criterion=full, config=dataclasses.replace(task.config, max_minutes=1.0)
        )
        make_first_plan(build_state(task), build_state(task), task, Callbacks())


def broken_at(state: State, task: TrainingContext, step: int) -> TrainingContext:
    """The task, with a loss that is infinite at this training step."""

    def criterion(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return task.criterion(logits, mask) * (
            float("inf") if logits.requires_grad and state.step == step else 1
        )

    return task._replace(criterion=criterion)


@pytest.mark.parametrize(
    "changes", [{}, {"half_resolution": 0.6, "accumulate": 2, "clip_norm": 1.0}]
)
def test_no_step_waits_for_a_device_with_a_queue(
    phantom_file: Path, changes: dict[str, Any]
) -> None:
    """Without ema_decay: torch's `AveragedModel` reads a counter of its own, which stays on the CPU wherever the weights are."""
    task = queued(make_task(phantom_file, augment=SHAPES, **changes))
    state = build_state(task)
    with Readings() as readings:
        train_epoch(state, task, state.model, Callbacks())
    assert readings.count == 0 and state.step == task.steps_per_epoch and not state.pending_steps
    assert state.slices_seen == len(task.train) and state.loss_sum > 0
    with Readings() as readings:
        float(state.model.layers[0].conv1.weight.detach().sum())
    assert readings.count == 1, "it would have been seen"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_step_waits_for_a_gpu(phantom_file: Path) -> None:
    task = make_task(phantom_file, half_resolution=0.5, ema_decay=0.9)
    task = task._replace(device=choose_device(DeviceConfig("cuda")), train=task.train.hold("cuda"))
    state = build_state(task)
    train_epoch(state, task, state.model, Callbacks())  # what is made once may wait

    def strict(state: State) -> None:
        torch.cuda.set_sync_debug_mode(
            "default" if state.step == 2 * task.steps_per_epoch - 1 else "error"
        )

    state.epoch, state.history = 1, [{"step": task.steps_per_epoch}]
    train_epoch(state, task, state.model, Callbacks(after_step=strict))


def test_looking_late_gives_the_same_bits_and_the_same_sums(phantom_file: Path) -> None:
    task = make_task(phantom_file, augment=SHAPES, scheduler=CosineConfig(warmup=0.2))
    state, late = build_state(task), build_state(task)
    fit(state, task, Callbacks())
    fit(late, queued(task), Callbacks())
    assert_equal(state, late)


def test_a_queue_stopped_in_an_epoch_goes_on_to_the_same_bits(
    phantom_file: Path, tmp_path: Path
) -> None:
    task = queued(make_task(phantom_file))
    whole, state = build_state(task), build_state(task)
    fit(whole, task, Callbacks())

    def cut(state: State) -> None:
        if state.step == task.steps_per_epoch + 2:
            watch(state, task, tmp_path)._save(state)
            raise Stop

    with pytest.raises(Stop):
        fit(state, task, Callbacks(after_step=cut))
    again = resumed(task, to_bytes(state))
    assert again.slices_seen == 2 * task.config.batch_size
    fit(again, task, Callbacks())
    assert_equal(again, whole)


def watch(state: State, task: TrainingContext, path: Path) -> RunCallbacks:
    split = Split("holdout", ("A",), ("B",), ("C",))
    with RunFolder(path / "r").active({"name": "n", "overrides": []}, task.config, split) as folder:
        return RunCallbacks(folder, task, state, split, Signals(), None)


def test_a_queue_names_the_first_step_that_is_not_finite(phantom_file: Path) -> None:
    task = queued(make_task(phantom_file))
    state = build_state(task)
    with pytest.raises(
        NonFiniteError,
        match=r"epoch 0 step 1: not finite, no checkpoint contains it.*PHANTOM_.* slice \d+",
    ):
        fit(state, broken_at(state, task, 1), Callbacks())
    assert state.step == task.steps_per_epoch, "at the end of the epoch"


def test_no_checkpoint_is_written_behind_a_step_that_is_not_finite(
    phantom_file: Path, tmp_path: Path
) -> None:
    task = queued(make_task(phantom_file, checkpoint=CheckpointConfig(every_steps=2)))
    state = build_state(task)
    follower = watch(state, task, tmp_path)
    with pytest.raises(NonFiniteError, match="epoch 0 step 2:"):
        fit(state, broken_at(state, task, 2), follower.hooks())
    assert state.step == 4, "when the next checkpoint was due"
    kept = checkpoint.load(follower.folder.last)
    assert kept["step"] == 2 and all(
        torch.isfinite(value).all() for value in kept["model"].values()
    )


def test_a_queue_that_leaves_steps_out_looks_at_each(phantom_file: Path) -> None:
    task = queued(make_task(phantom_file, on_nonfinite="skip", epochs=1))
    state = build_state(task)
    fit(state, broken_at(state, task, 2), Callbacks())
    assert state.history[0]["metrics"]["train/skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in state.model.state_dict().values())
