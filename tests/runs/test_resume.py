"""From a state to the folder's checkpoints and back: order, fallback, extension, refusals."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from test_loop import make_task, numbers

from brainseg.config import CosineConfig, SchedulerConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.dataset import MRIDataset
from brainseg.data.split import Split
from brainseg.runs.resume import check_extension, restore_run, save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit, train_epoch

SPLIT = Split("holdout", ("A",), ("B",), ("C",))


@pytest.fixture
def saved(phantom_file: Path, tmp_path: Path) -> tuple[RunFolder, TrainingContext]:
    """A run of two epochs, saved after each."""
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"))
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        state = build_state(task)
        fit(
            state,
            task,
            Callbacks(
                after_epoch=lambda state, improved: save_checkpoints(
                    folder, state, task, SPLIT, improved
                )
            ),
        )
    return folder, task


def changed(task: TrainingContext, **settings) -> TrainingContext:
    return task._replace(config=dataclasses.replace(task.config, **settings))


def test_nothing_to_resume(phantom_file: Path, tmp_path: Path) -> None:
    task = make_task(phantom_file)
    assert not restore_run(build_state(task), RunFolder(tmp_path), task)


def test_a_damaged_last_is_passed_over_for_the_one_before_with_a_warning(
    saved: tuple[RunFolder, TrainingContext], caplog
) -> None:
    folder, task = saved
    folder.last.write_bytes(folder.last.read_bytes()[:-1000])
    state = build_state(task)
    with caplog.at_level(logging.WARNING):
        assert restore_run(state, folder, task)
    assert state.epoch == 1
    assert "last.pt" in caplog.text
    for path in (folder.previous, folder.best):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its checkpoints"):
        restore_run(state, folder, task)


def test_a_kill_between_the_last_checkpoint_and_the_history_loses_no_epoch(
    saved: tuple[RunFolder, TrainingContext],
) -> None:
    """No epoch is left to train then, and so nothing else would write it."""
    folder, task = saved
    history = (folder.path / "metrics.jsonl").read_bytes()
    (folder.path / "metrics.jsonl").write_bytes(history.splitlines(keepends=True)[0])
    assert restore_run(build_state(task), folder, task)
    assert (folder.path / "metrics.jsonl").read_bytes() == history and history.count(b"\n") == 2


def test_a_longer_run_equals_one_that_was_long_from_the_start(
    saved: tuple[RunFolder, TrainingContext],
) -> None:
    folder, task = saved
    longer = changed(task, epochs=3)
    state, whole = build_state(longer), build_state(longer)
    restore_run(state, folder, longer)
    fit(state, longer, Callbacks())
    fit(whole, longer, Callbacks())
    assert len(numbers(state)) == 3
    assert numbers(state) == numbers(whole)


def test_a_planned_curve_is_extended_only_by_force(
    saved: tuple[RunFolder, TrainingContext], caplog
) -> None:
    folder, task = saved
    longer = changed(task, epochs=3, scheduler=CosineConfig())
    with pytest.raises(RequestError, match=r"epochs=3.*cosine.*epochs=2.*force=true"):
        restore_run(build_state(longer), folder, longer)
    state = build_state(longer)
    assert restore_run(state, folder, changed(longer, force=True))
    assert state.total_steps == 3 * longer.steps_per_epoch
    assert "another curve" in caplog.text
    with pytest.raises(RequestError, match="ask for more"):
        restore_run(build_state(task), folder, changed(task, epochs=1))
    with pytest.raises(RequestError, match="extend it by epochs"):
        restore_run(build_state(task), folder, changed(task, max_minutes=5.0))


def test_minutes_are_extended_in_proportion(phantom_file: Path, tmp_path: Path) -> None:
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"), max_minutes=1.0)
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        state = build_state(task)
        state.total_steps = 7  # as timed
        fit(
            state,
            task,
            Callbacks(
                after_epoch=lambda state, improved: save_checkpoints(
                    folder, state, task, SPLIT, improved
                )
            ),
        )
    longer = changed(task, max_minutes=2.0)
    state = build_state(longer)
    restore_run(state, folder, longer)
    assert (state.step, state.total_steps) == (7, 14)
    fit(state, longer, Callbacks())
    assert [row["step"] for row in state.history] == [6, 7, 13, 14], (
        "the epoch that the first budget cut short stays short"
    )
    assert [row["epoch"] for row in state.history] == [0, 1, 2, 3] and state.step == 14


def test_the_epoch_behind_one_cut_short_sees_every_slice_once(
    phantom_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"))
    seen: list[int] = []
    gather = MRIDataset.gather
    monkeypatch.setattr(
        MRIDataset,
        "gather",
        lambda data, rows, device: (seen.extend(rows), gather(data, rows, device))[1],
    )
    state = build_state(task)
    state.total_steps = 7
    fit(state, task, Callbacks())
    state.total_steps = 13
    seen.clear()
    train_epoch(state, task, state.model, Callbacks())
    assert sorted(seen) == list(range(len(task.train)))


def test_minutes_added_are_minutes_at_full_size(phantom_file: Path, tmp_path: Path) -> None:
    """At the pace of the full-size epochs: 6 steps in 12 s are 30 a minute, though the first 80 steps took less than one."""
    task = make_task(
        phantom_file, scheduler=SchedulerConfig("none"), max_minutes=1.0, half_resolution=0.6
    )
    rows = [
        {"epoch": 0, "step": 80, "time": 0, "metrics": {"speed/epoch_seconds": 36.0}},
        {"epoch": 1, "step": 86, "time": 0, "metrics": {"speed/epoch_seconds": 12.0}},
    ]
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        state = build_state(task)
        state.total_steps, state.half_steps, state.step, state.epoch, state.history = (
            100,
            80,
            86,
            2,
            rows,
        )
        save_checkpoints(folder, state, task, SPLIT, improved=True)
    for minutes, total in ((2.0, 130), (3.0, 160)):
        state = build_state(task)
        restore_run(state, folder, changed(task, max_minutes=minutes))
        assert (state.step, state.half_steps, state.total_steps) == (86, 80, total)
    with pytest.raises(
        RequestError,
        match=r"max_minutes=0\.2: the run has already done 86 steps, and this would make 76 in all; "
        "ask for more",
    ):
        restore_run(build_state(task), folder, changed(task, max_minutes=0.2))
    rows[1]["step"] = state.step = (
        85  # an epoch cut short says little of the pace: as planned, 20 steps in 0.4 minutes
    )
    state.history, state.total_steps = rows, 100
    save_checkpoints(folder, state, task, SPLIT)
    restore_run(state, folder, changed(task, max_minutes=2.0))
    assert state.total_steps == 150


def test_a_run_counted_in_minutes_may_be_counted_in_epochs(
    phantom_file: Path, tmp_path: Path
) -> None:
    """Whatever epochs= it had by default while minutes overruled it."""
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"), max_minutes=1.0, epochs=4)
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        state = build_state(task)
        state.total_steps = 12
        save_checkpoints(folder, state, task, SPLIT, improved=True)
    state = build_state(task)
    restore_run(state, folder, changed(task, max_minutes=None))
    assert state.total_steps == 4 * task.steps_per_epoch == 24


def test_steps_are_extended_to_exactly_as_many(saved: tuple[RunFolder, TrainingContext]) -> None:
    """From epochs to steps, and on; no schedule here depends on the length."""
    folder, task = saved
    longer = changed(task, max_steps=15)
    state, whole = build_state(longer), build_state(longer)
    restore_run(state, folder, longer)
    assert (state.step, state.total_steps) == (12, 15)
    fit(state, longer, Callbacks())
    fit(whole, longer, Callbacks())
    assert numbers(state) == numbers(whole) and [row["step"] for row in state.history] == [
        6,
        12,
        15,
    ]
    with pytest.raises(RequestError, match=r"max_steps=11: the run has already done 12 steps"):
        restore_run(build_state(task), folder, changed(task, max_steps=11))
    folder._write_config(longer.config)
    with pytest.raises(
        RequestError, match=r"started with max_steps=15.*extend it by epochs or max"
    ):
        check_extension(folder, changed(task, max_minutes=5.0))
    with pytest.raises(RequestError, match=r"max_steps=20.*cosine.*max_steps=15.*force=true"):
        check_extension(folder, changed(longer, max_steps=20, scheduler=CosineConfig()))


def test_an_extension_stopped_before_its_first_checkpoint_goes_on(
    saved: tuple[RunFolder, TrainingContext],
) -> None:
    """It was allowed by force, which no run stores; the folder says 3 epochs by then, its checkpoints still 2."""
    folder, task = saved
    longer = changed(task, epochs=3, scheduler=CosineConfig())
    with pytest.raises(RequestError, match="another curve"):
        check_extension(folder, longer)
    folder._write_config(longer.config)
    check_extension(folder, longer)
    state = build_state(longer)
    restore_run(state, folder, longer)
    assert state.total_steps == 3 * task.steps_per_epoch


def test_another_number_of_threads_is_refused(
    saved: tuple[RunFolder, TrainingContext], caplog
) -> None:
    folder, task = saved
    other = task._replace(device=dataclasses.replace(task.device, threads=task.device.threads + 1))
    with pytest.raises(
        RequestError,
        match=rf"device\.threads={other.device.threads}.*set device\.threads={task.device.threads}",
    ):
        restore_run(build_state(task), folder, other)
    assert restore_run(build_state(task), folder, changed(other, force=True))
    assert "the bits will differ" in caplog.text


def test_best_is_never_behind_last(
    saved: tuple[RunFolder, TrainingContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two files must not leave a last.pt that counts on a best.pt which is not there."""
    from brainseg.runs import checkpoint

    folder, task = saved
    written: list[str] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, content: written.append(path.name))
    save_checkpoints(folder, build_state(task), task, SPLIT, improved=True)
    assert written == ["best.pt", "last.pt"]


def test_a_checkpoint_needs_no_folder(saved: tuple[RunFolder, TrainingContext]) -> None:
    from brainseg.runs import checkpoint

    folder, _ = saved
    content = checkpoint.load(folder.best)
    assert content["channels"] == ["pre-contrast", "FLAIR", "post-contrast"]
    assert content["config"]["inference"]["threshold"] == 0.5
    assert Split.from_dict(content["split"]) == SPLIT
    assert set(content) >= {
        "model",
        "optimizer",
        "history",
        "fingerprint",
        "threads",
        "versions",
        "uid",
        "classes",
    }
    assert torch.load(folder.best, weights_only=True)["model"].keys() == content["model"].keys()
