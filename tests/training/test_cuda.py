"""Training and evaluation on a GPU: precisions, CUDA graphs, resuming, and agreement with the CPU.

`python scripts/gpu.py` runs these tests on a machine with a GPU. Elsewhere they are skipped.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Stop, assert_equal, make_task, numbers, resumed, to_bytes

from brainseg.config import DeviceConfig, InferenceConfig, UNetConfig
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.cuda_graphs import GraphedForward, training_forward
from brainseg.training.loop import fit
from brainseg.training.state import State

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
PRECISIONS = ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    """cuDNN chooses among several algorithms, of which some add in another order each time."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def on_gpu(
    path: Path, precision: str = "float32", graphs: str = "auto", **changes: Any
) -> TrainingContext:
    """A task of twelve steps a epoch on the GPU, with its data there."""
    task = make_task(path, **changes)
    device = DeviceConfig("cuda", precision, graphs=graphs)
    config = dataclasses.replace(task.config, device=device)
    chosen = choose_device(device)
    return task._replace(
        config=config,
        device=chosen,
        train=task.train.hold("cuda"),
        validation=task.validation.hold("cuda"),
        criterion=task.criterion.to("cuda"),
    )


def trained(task: TrainingContext, hooks: Callbacks | None = None) -> State:
    state = build_state(task)
    fit(state, task, hooks or Callbacks())
    return state


@pytest.mark.parametrize("graphs", ["yes", "no"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_falls(phantom_file: Path, precision: str, graphs: str) -> None:
    state = trained(on_gpu(phantom_file, precision, graphs, epochs=6))
    losses = [row["metrics"]["train/loss"] for row in state.history]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.05, losses
    assert "val/dice" in state.history[-1]["metrics"]


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_gives_the_same_bits(
    phantom_file: Path, precision: str, deep_supervision: bool
) -> None:
    """Both image sizes of a run are recorded, and dropout draws the same numbers in a graph."""
    model = UNetConfig(depth=3, width=4, dropout=0.2, deep_supervision=deep_supervision)
    changes: dict[str, Any] = {"half_resolution": 0.5, "ema_decay": 0.9, "epochs": 3}
    changes["model"] = model
    with_graphs, without = (
        trained(on_gpu(phantom_file, precision, graphs, **changes)) for graphs in ("yes", "no")
    )
    assert_equal(with_graphs, without)


@pytest.mark.parametrize("graphs", ["yes", "no"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_stopping_equals_never_stopping(phantom_file: Path, precision: str, graphs: str) -> None:
    task = on_gpu(phantom_file, precision, graphs, epochs=3)
    whole = trained(task)
    saved: list[bytes] = []

    def cut(state: State) -> None:
        if state.step == task.steps_per_epoch + 2:
            from brainseg.training.nonfinite import collect_step_results

            collect_step_results(state, task)
            saved.append(to_bytes(state))
            raise Stop

    with pytest.raises(Stop):
        trained(task, Callbacks(after_step=cut))
    state = resumed(task, saved[0])
    fit(state, task, Callbacks())
    assert_equal(whole, state)


def test_graphs_are_for_full_batches_and_the_callable_is_that_of_the_settings(
    phantom_file: Path,
) -> None:
    task = on_gpu(phantom_file, graphs="auto")
    state = build_state(task)
    full, rest, half = (
        torch.rand(n, 3, s, s, device="cuda") for n, s in ((4, 32), (3, 32), (4, 16))
    )
    state.model.train()
    with training_forward(state.model, task.config, task.device) as forward:
        assert isinstance(forward, GraphedForward)
        for image in (half, full, rest):
            assert forward(task.device.format(image)).shape == (len(image), 1, *image.shape[2:])
        assert list(forward.recorded) == [(4, 3, 32, 32)], "the memory of the other size is free"
    assert not forward.recorded
    accumulating = dataclasses.replace(task.config, accumulate=2)
    with training_forward(state.model, accumulating, task.device) as forward:
        assert forward is state.model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_scores_are_those_of_the_cpu(phantom_file: Path, precision: str) -> None:
    task = on_gpu(phantom_file, precision, epochs=6)
    state = trained(task)
    inference = InferenceConfig(flips="horizontal", components="largest")
    on_cpu = make_task(phantom_file)
    gpu = list(evaluate(state.model, task.validation, inference, task.device, 4))
    cpu = list(evaluate(state.model.cpu(), on_cpu.validation, inference, on_cpu.device, 4))
    limit = 1e-3 if precision == "float32" else 0.03
    for ours, theirs in zip(gpu, cpu, strict=True):
        assert abs(ours.probability - theirs.probability).max() < limit * 10
        assert abs(ours.score.dice - theirs.score.dice) < limit


def test_validation_costs_no_hd95(phantom_file: Path) -> None:
    state = trained(on_gpu(phantom_file))
    assert not any("hd95" in name or "nsd" in name for row in numbers(state) for name in row)
