"""A budget of minutes: the number of steps follows the pace, the rate follows the share of the budget, a resume and a repeat are exact."""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_loop import Stop, assert_equal, make_task, numbers, resumed, to_bytes

from brainseg.config import CosineConfig, HoldoutConfig, SchedulerConfig, TrainConfig
from brainseg.core.errors import DataError
from brainseg.data.split import Split
from brainseg.runs.resume import plans_to_repeat, restore_run, save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit
from brainseg.training.plan import Plan, plan_at
from brainseg.training.progressive_resizing import ProgressiveResizing
from brainseg.training.schedules import learning_rate_factor
from brainseg.training.state import State

SPLIT = Split("holdout", ("A",), ("B",), ("C",))
MINUTE = 60.0


class Clock:
    """Stands for time.monotonic and time.perf_counter: each step takes the seconds that `pace` says, all else takes none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pace: Iterator[float]) -> None:
        self.now, self.pace = 1000.0, pace
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        from brainseg.training import loop

        augmented = loop.augment_batch

        def timed(*arguments):
            self.now += next(self.pace)
            return augmented(*arguments)

        monkeypatch.setattr(loop, "augment_batch", timed)


def begun(task: TrainingContext, estimate: int, half_steps: int = 0) -> State:
    state = build_state(task)
    state.adopt_plans([Plan(0, 0.0, estimate, half_steps)])
    return state


@pytest.mark.parametrize("estimate", [1, 10, 30, 300])
def test_a_wrong_estimate_is_put_right_while_the_run_goes_on(
    phantom_file: Path, monkeypatch, estimate: int
) -> None:
    """A step takes one second, so that one minute holds 60 steps, whatever the estimate was."""
    task = make_task(phantom_file, max_minutes=1.0)
    clock = Clock(monkeypatch, itertools.repeat(1.0))
    state = begun(task, estimate)
    fit(state, task, Callbacks())
    assert 59 <= state.step <= 60 and state.total_steps == state.step
    assert clock.now - 1000 <= MINUTE
    assert state.plans[0] == Plan(0, 0.0, estimate, 0) and state.plans[-1].is_settled


def test_a_load_in_the_middle_costs_its_time_and_no_more(phantom_file: Path, monkeypatch) -> None:
    """Ten steps of two seconds, ten of four, then two again: 20 + 40 s, where 30 steps were estimated."""
    task = make_task(phantom_file, max_minutes=1.0)
    Clock(monkeypatch, itertools.chain([2.0] * 5, [4.0] * 5, itertools.repeat(2.0)))
    state = begun(task, 30)
    fit(state, task, Callbacks())
    assert state.step == 25 and 58 <= state.elapsed <= MINUTE


def test_the_rate_ends_where_the_time_does(phantom_file: Path, monkeypatch) -> None:
    """A cosine drawn over the first estimate, ten times too few, would be at its end after six steps."""
    task = make_task(phantom_file, max_minutes=1.0, scheduler=CosineConfig())
    Clock(monkeypatch, itertools.repeat(1.0))
    state, rates = begun(task, 6), list[float]()
    fit(
        state,
        task,
        Callbacks(after_step=lambda state: rates.append(state.optimizer.param_groups[0]["lr"])),
    )
    assert len(rates) == state.step
    whole = [
        1e-2
        * learning_rate_factor(CosineConfig(), step, ProgressiveResizing(60), task.steps_per_epoch)
        for step in range(60)
    ]
    assert max(abs(rate - right) for rate, right in zip(rates[8:], whole[8:], strict=False)) < 5e-4


def test_half_of_the_time_is_spent_at_half_size(phantom_file: Path, monkeypatch) -> None:
    """A step at half size takes one second, at full size three; both were estimated at half a second."""
    task = make_task(phantom_file, max_minutes=1.0, half_resolution=0.5)
    sizes = list[int]()
    state = begun(task, 120, 60)
    state.full_to_half = 1.0
    Clock(monkeypatch, (3.0 if state.step >= state.half_steps else 1.0 for _ in itertools.count()))
    state.model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape[-1]) if module.training else None
    )
    fit(state, task, Callbacks())
    assert sizes == [16] * state.half_steps + [32] * (state.step - state.half_steps)
    assert 29 <= state.half_steps <= 31 and 9 <= state.step - state.half_steps <= 10


@pytest.mark.parametrize("stops", [[3], [7, 20], [1, 2, 41]])
def test_stopping_anywhere_equals_never_stopping(
    phantom_file: Path, monkeypatch, stops: list[int]
) -> None:
    """With the same pace before and behind the stop; what is stored says which step the run is at, and of how many."""
    task = make_task(phantom_file, max_minutes=1.0, scheduler=CosineConfig(warmup=0.1))
    Clock(monkeypatch, itertools.repeat(1.0))
    whole, saved = begun(task, 12), None
    fit(whole, task, Callbacks())
    for stop in [*stops, None]:
        state = resumed(task, saved) if saved else begun(task, 12)

        def cut(state: State, at: int | None = stop) -> None:
            if state.step == at:
                raise Stop

        try:
            fit(state, task, Callbacks(after_step=cut))
        except Stop:
            saved = to_bytes(state)
    assert state.plans == whole.plans
    assert_equal(state, whole)


def recorded(task: TrainingContext, folder: Path, state: State) -> RunFolder:
    with RunFolder(folder).active({"name": "n", "overrides": []}, task.config, SPLIT) as run:
        fit(
            state,
            task,
            Callbacks(
                after_epoch=lambda state, improved: save_checkpoints(
                    run, state, task, SPLIT, improved
                )
            ),
        )
    return run


def test_a_repeat_takes_the_same_steps_whatever_the_pace(
    phantom_file: Path, tmp_path: Path, monkeypatch
) -> None:
    task = make_task(phantom_file, max_minutes=1.0, scheduler=CosineConfig(warmup=0.1))
    Clock(monkeypatch, itertools.cycle([0.5, 1.0, 3.0, 1.0]))
    first = begun(task, 12)
    run = recorded(task, tmp_path / "first", first)
    again = dataclasses.replace(task.config, steps_of=str(run.path))
    state = build_state(task)
    state.adopt_plans(plans_to_repeat(again))
    fit(state, task, Callbacks())
    assert_equal(state, first)
    assert state.plans == first.plans


def test_the_epochs_behind_the_best_one_are_run_again_to_the_same_numbers(
    phantom_file: Path, tmp_path: Path, monkeypatch
) -> None:
    """A finished run keeps its best checkpoint alone, whose plan is not the last one."""
    task = make_task(phantom_file, max_minutes=1.0, scheduler=SchedulerConfig("none"))
    Clock(monkeypatch, itertools.cycle([0.5, 1.0, 3.0, 1.0]))
    first = begun(task, 12)
    run = recorded(task, tmp_path / "first", first)
    run.remove_old_checkpoints("best")
    longer = task._replace(config=dataclasses.replace(task.config, max_minutes=2.0))
    state = build_state(longer)
    restore_run(state, run, longer)
    assert state.step < first.step < state.total_steps
    fit(state, longer, Callbacks())
    assert numbers(state)[: len(first.history) - 1] == numbers(first)[:-1]
    assert 1.7 * first.step < state.step < 2.3 * first.step


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    config = TrainConfig(max_minutes=1.0, steps_of=str(tmp_path), split=HoldoutConfig())
    for text in ("[", "5", "[[1]]", '[["a", 0, 1, 1]]'):
        run.plan.write_text(text)
        with pytest.raises(DataError, match=r"plan\.json: not what a run writes"):
            plans_to_repeat(config)
    run.plan.write_text(json.dumps([[0, 0.0, 5, 0]]))
    # The plan of a run that was stopped is an estimate, and is kept as it is.
    assert plans_to_repeat(config) == [Plan(0, 0.0, 5, 0), Plan(5, 1.0, 5, 0)]
    run.plan.write_text(json.dumps([[0, 0.0, 5, 0], [4, 1.0, 4, 0]]))
    assert plans_to_repeat(config) == [Plan(0, 0.0, 5, 0), Plan(4, 1.0, 4, 0)]


@given(total=st.integers(1, 5000), half_share=st.floats(0, 0.9), step=st.integers(0, 5000))
def test_the_share_rises_from_the_plan_to_the_end(total: int, half_share: float, step: int) -> None:
    plan = Plan(0, 0.0, total, int(half_share * total))
    step = min(step, total - 1)
    assert 0 <= plan.share_at(step, half_share) <= plan.share_at(step + 1, half_share) <= 1 + 1e-9
    assert step < plan.next_step or step >= plan.next_step > 0
    later = Plan(step, 0.5, total + 7, 0)
    assert plan_at([plan, later], step) == later and (
        step == 0 or plan_at([plan, later], step - 1) == plan
    )


def test_a_change_of_the_plan_is_logged_with_both_numbers(
    phantom_file: Path, monkeypatch, caplog
) -> None:
    task = make_task(phantom_file, max_minutes=1.0)
    Clock(monkeypatch, itertools.repeat(1.0))
    with caplog.at_level(logging.INFO, "brainseg"):
        fit(begun(task, 20), task, Callbacks())
    assert (
        "max_minutes=1 gives 60 steps at the pace of the last 2, not 20 as planned" in caplog.text
    )
