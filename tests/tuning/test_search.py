"""How the trials of a search end, go on and are told from one another; its runs take no time here."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from searching import LR, call, states, studied

from brainseg import search
from brainseg.config import SearchConfig, TrainConfig, UNetConfig
from brainseg.core.signals import Interrupted
from brainseg.runs.dry_run import JobCheck
from brainseg.runs.job import Job, Outcome
from brainseg.runs.run_folder import RunFolder
from brainseg.training.progressive_resizing import ProgressiveResizing
from brainseg.tuning import search_space
from brainseg.tuning.study import Study

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Runs that take no time: val/dice is `dice(config)` at each of four epochs; `dice` may raise. Keeps what was run.

    Hydra takes a tenth of a second to compose a job, so OmegaConf alone does it here.
    """
    seen = SimpleNamespace(jobs=[], dice=lambda config: 0.5)

    def compose_job(command: str, overrides: list[str]) -> TrainConfig:
        base = OmegaConf.structured(TrainConfig(model=UNetConfig()))
        return OmegaConf.to_object(OmegaConf.merge(base, OmegaConf.from_dotlist(overrides)))

    def run(config: TrainConfig, job: Job, follow: search.TrialCallback) -> Outcome:
        seen.jobs.append(job)
        folder = RunFolder(Path("runs") / f"unet-{len(seen.jobs):03d}")
        folder.path.mkdir(parents=True)
        (folder.path / "run.json").write_text(json.dumps({"uid": f"uid{len(seen.jobs)}"}))
        state = SimpleNamespace(
            history=[], step=0, resizing=ProgressiveResizing(4), total_steps=4, epoch=0, best=0.0
        )
        follow(folder, state)
        for epoch in range(4):
            state.best = max(state.best, value := seen.dice(config))
            state.history.append(
                {"epoch": epoch, "step": epoch + 1, "metrics": {"val/dice": value}}
            )
            state.step = state.epoch = epoch + 1
            follow(folder, state)
        (folder.path / "summary.json").write_text(json.dumps({"best": {"val/dice": state.best}}))
        return Outcome("finished", str(folder.path))

    monkeypatch.setattr(search, "compose_job", compose_job)
    monkeypatch.setattr(search.train, "check_request", lambda config: JobCheck(1, "6/1/1", "cpu"))
    monkeypatch.setattr(search.train, "run", run)
    monkeypatch.setattr(search.report, "draw_search", lambda *_: None)
    monkeypatch.setattr(search, "describe_charts", lambda study, _: f"MLflow charts: {study}")
    return seen


def bell(config: TrainConfig) -> float:
    """Best at a rate of 0.01; depth matters little."""
    import math

    return math.exp(-((math.log10(config.optimizer.lr) + 2) ** 2)) - 0.001 * config.model.depth


SPACE = [LR, "model.depth=2,3,4"]


def test_trials_are_runs_of_the_study_that_never_test(fake: SimpleNamespace, monkeypatch) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "trials=3", "study=first", "epochs=4") == 0
    assert [(job.sweep, job.number, job.choosing) for job in fake.jobs] == [
        ("first", number, True) for number in range(3)
    ]
    assert {job.swept for job in fake.jobs} == {("optimizer.lr", "model.depth")}
    for job, trial in zip(fake.jobs, studied("first"), strict=True):
        assert list(job.overrides) == ["epochs=4", *search_space.to_overrides(trial.params)]
        assert trial.user_attrs == {
            "folder": f"runs/unet-{trial.number + 1:03d}",
            "uid": f"uid{trial.number + 1}",
        }
        assert trial.intermediate_values == dict.fromkeys(range(4), trial.value)


def test_no_trial_begins_after_the_given_hours(
    fake: SimpleNamespace, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "trials=3", "study=timed", "epochs=4", "hours=0") == 0
    printed = capsys.readouterr().out
    assert "1 of 3 trials, about 0:00:0" in printed and "hours=0 are over" in printed
    assert call(monkeypatch, *SPACE, "trials=3", "study=timed", "epochs=4", "hours=1") == 0
    printed = capsys.readouterr().out
    assert "3 of 3 trials\n" in printed and "are over" not in printed
    assert len(studied("timed")) == 3


def test_a_study_gone_on_with_proposes_what_it_would_have_in_one_go(
    fake: SimpleNamespace, monkeypatch
) -> None:
    fake.dice = bell
    own = ["random_trials=4", "prune=none"]
    assert call(monkeypatch, *SPACE, *own, "trials=9", "study=whole") == 0
    for trials in (3, 7, 9, 9, 2):
        assert call(monkeypatch, *SPACE, *own, f"trials={trials}", "study=parts") == 0
    whole, parts = ([trial.params for trial in studied(name)] for name in ("whole", "parts"))
    assert whole == parts and len(parts) == 9
    assert call(monkeypatch, *SPACE, *own, "trials=2", "study=other", "sampler_seed=1") == 0
    assert studied("other")[0].params != whole[0]


def test_the_trials_of_a_seed_are_the_same_in_optuna_4_and_5(
    fake: SimpleNamespace, monkeypatch
) -> None:
    """Optuna 5 changed a default of the sampler. These are the proposals of 4.9.0 and 5.0.0.

    Of the proposed trials only the rates are compared: two depths are often equally promising, and
    then the last bit of numpy's logarithm decides, which differs between processors.
    """
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "random_trials=3", "prune=none", "trials=8") == 0
    proposals = [
        (trial.params["model.depth"], f"{trial.params['optimizer.lr']:.6f}") for trial in studied()
    ]
    # Optuna takes the first three at random.
    assert proposals[:3] == [("4", "0.009655"), ("2", "0.095192"), ("4", "0.017639")]
    rates = [rate for _, rate in proposals[3:]]
    assert rates == ["0.000166", "0.001137", "0.004656", "0.000106", "0.001160"]


def test_a_failed_trial_never_ends_the_study(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    def fails_at_depth_3(config: TrainConfig) -> float:
        if config.model.depth == 3:
            raise ArithmeticError("loss nan")
        return bell(config)

    fake.dice = fails_at_depth_3
    assert call(monkeypatch, *SPACE, "trials=12") == 1
    failed = [trial for trial in studied() if trial.state.name == "FAIL"]
    assert failed and len(studied()) == 12
    assert {trial.params["model.depth"] for trial in failed} == {"3"}
    assert {trial.user_attrs["reason"] for trial in failed} == {
        "ArithmeticError: loss nan"
    } and "folder" in failed[0].user_attrs
    shown = capsys.readouterr()
    assert (
        f"trial {failed[0].number} failed: ArithmeticError: loss nan" in shown.err
        and f"{len(failed)} failed" in shown.out
    )
    assert call(monkeypatch, *SPACE, "trials=12") == 0, (
        "nothing was left to run, so nothing failed now"
    )


def test_a_poor_trial_is_pruned_and_never_at_its_last_epoch(
    fake: SimpleNamespace, monkeypatch, capsys
) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "trials=10", "prune_after=2", "prune_warmup=2") == 0
    pruned = [trial for trial in studied() if trial.state.name == "PRUNED"]
    assert pruned and {len(trial.intermediate_values) for trial in pruned} == {2}
    assert "pruned after epoch 1: val/dice" in pruned[0].user_attrs["reason"]
    assert (
        call(monkeypatch, *SPACE, "trials=7", "prune_after=2", "prune_warmup=4", "study=late") == 0
    )
    assert call(monkeypatch, *SPACE, "trials=7", "prune=none", "study=never") == 0
    assert set(states("late") + states("never")) == {"COMPLETE"}


@pytest.mark.parametrize(
    ("stop", "code"), [(Interrupted(signal.SIGTERM), 143), (Interrupted(signal.SIGINT), 130)]
)
def test_a_stopped_trial_is_gone_on_with(
    stop: BaseException, code: int, fake: SimpleNamespace, monkeypatch
) -> None:
    def stopped_once(config: TrainConfig) -> float:
        if len(fake.jobs) == 3:
            raise stop
        return bell(config)

    fake.dice = stopped_once
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none") == code
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none") == 0
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"], (
        "five that count"
    )
    assert studied()[3].params == studied()[2].params
    assert len({tuple(job.overrides) for job in fake.jobs}) == 5
    fake.jobs = ["so that none is the third"] * 9
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none", "study=unbroken") == 0
    assert [trial.params for trial in studied("unbroken")] == [
        studied()[number].params for number in (0, 1, 3, 4, 5)
    ]


def test_a_trial_whose_process_is_gone_is_tried_again_once() -> None:
    config, dimensions = (
        SearchConfig(trials=2),
        search_space.distributions({"model.depth": {"choices": [2, 3]}}),
    )

    def start() -> Study:
        return Study(Path("runs/search/s.db"), {})

    first, other = start(), start()
    lost = first.begin(config, dimensions)
    assert (
        other.begin(config, dimensions).number == 1 and other.begin(config, dimensions) is None
    ), "two are under way"
    first.locks.release_trial(lost.number)  # as the kernel does when a process is killed
    again = (third := start()).begin(config, dimensions)
    assert (again.number, again.params, again.user_attrs["resumes"]) == (2, lost.params, 0)
    third.locks.release_trial(again.number)
    assert start().begin(config, dimensions) is None
    assert [trial.state.name for trial in first.trials()] == ["FAIL", "RUNNING", "FAIL"]
    assert [trial.number for trial in first.ended_trials()] == [2] and first.count() == 2


def followed(
    study: Study,
    dice: list[float],
    half_steps: int = 0,
    total_steps: int = 4,
    by_time: bool = False,
) -> Callable[[int], None]:
    """A trial whose epochs, of a step each, give these Dice; what is returned tells the study of the first so many."""
    trial = study.begin(
        SearchConfig(), search_space.distributions({"model.depth": {"choices": [2, 3]}})
    )
    folder = RunFolder("runs/unet")
    folder.path.mkdir(exist_ok=True)
    (folder.path / "run.json").write_text('{"uid": "u"}')
    rows = [
        {"epoch": epoch, "step": epoch + 1, "metrics": {"val/dice": value}}
        for epoch, value in enumerate(dice)
    ]
    follow = search.TrialCallback(trial, by_time)

    def tell(done: int) -> None:
        resizing = ProgressiveResizing(total_steps, half_steps)
        counts = {"step": done, "epoch": done, "resizing": resizing, "total_steps": total_steps}
        follow(folder, SimpleNamespace(history=rows[:done], best=0.1, **counts))

    return tell


def test_a_resumed_trial_tells_its_earlier_epochs(fake: SimpleNamespace, monkeypatch) -> None:
    study = Study(Path("runs/search/s.db"), {})
    tell = followed(study, [0.0, 0.1, 0.2])
    tell(2)
    tell(3)
    assert study.trials()[0].intermediate_values == {0: 0.0, 1: 0.1, 2: 0.2}


def test_a_trial_is_judged_by_its_epochs_at_full_size_alone(
    fake: SimpleNamespace, monkeypatch
) -> None:
    """At half size val/dice is low whatever is learnt, and how many such epochs there are differs from trial to trial."""
    study = Study(Path("runs/search/s.db"), {})
    tell = followed(study, [0.0, 0.1, 0.2, 0.3], half_steps=2, total_steps=9)
    for done in range(1, 5):
        tell(done)
    assert study.trials()[0].intermediate_values == {2: 0.2, 3: 0.3}


def test_trials_of_equal_minutes_are_compared_at_equal_tenths_of_their_steps(
    fake: SimpleNamespace,
) -> None:
    """A narrow network does more epochs in the same minutes: at the same epoch it is far earlier on its curve."""
    study = Study(Path("runs/search/s.db"), {})
    for epochs in (5, 20):
        tell = followed(
            study,
            [(epoch + 1) / epochs for epoch in range(epochs)],
            total_steps=epochs,
            by_time=True,
        )
        for done in range(1, epochs):
            tell(done)
    quick, slow = (one.intermediate_values for one in study.trials())
    assert quick == {2: 0.2, 4: 0.4, 6: 0.6, 8: 0.8}
    assert slow.keys() == set(range(10)) and all(
        abs(slow[at] - value) <= 0.05 for at, value in quick.items()
    )


@pytest.mark.parametrize(
    "varied",
    ["split.fold=range(5)", "split.seed=0,1", "data.path=a.h5,b.h5", "data.limit_patients=5,9"],
)
def test_trials_scored_on_other_patients_cannot_be_compared(
    varied: str, fake: SimpleNamespace, monkeypatch, capsys
) -> None:
    assert call(monkeypatch, "split=kfold", varied, "trials=3") == 2
    assert (
        "must be the same in all trials, or they would be scored on other patients"
        in capsys.readouterr().err
    )


def test_two_processes_never_run_the_same_settings_at_once() -> None:
    """They would share a run folder."""
    config, dimensions = (
        SearchConfig(),
        search_space.distributions({"model.depth": {"choices": [2, 3]}}),
    )
    one, two, three = (Study(Path("runs/search/s.db"), {}) for _ in range(3))
    first, second = one.begin(config, dimensions), two.begin(config, dimensions)
    assert {first.params["model.depth"], second.params["model.depth"]} == {2, 3}
    assert three.begin(config, dimensions) is None and one.count() == 2


def test_another_study_under_the_same_name_is_refused(
    fake: SimpleNamespace, monkeypatch, capsys
) -> None:
    assert call(monkeypatch, *SPACE, "trials=1", "epochs=4") == 0
    for changed, words in (
        ([*SPACE, "epochs=5"], ["epochs was 4, is 5"]),
        (
            [LR, "model.depth=2,3", "epochs=4"],
            ["space model.depth was choices ['2', '3', '4'], is choices ['2', '3']"],
        ),
        ([*SPACE, "epochs=4", "data.phantom.seed=1"], ["data.phantom.seed was not set, is 1"]),
    ):
        assert call(monkeypatch, *changed, "trials=2") == 2
        error = capsys.readouterr().err
        assert (
            error.count("\n") == 1
            and "another study=NAME" in error
            and all(word in error for word in words)
        ), error
    assert len(studied()) == 1
    assert call(monkeypatch, *SPACE, "trials=2", "epochs=4", "tracking.name=none") == 0, (
        "what changes no number may change"
    )


def test_a_database_that_is_none_is_refused(monkeypatch, capsys) -> None:
    Path("runs/search").mkdir(parents=True)
    Path("runs/search/typed.db").write_text("this is no SQLite file, however long it may be" * 100)
    assert call(monkeypatch, *SPACE, "trials=1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "typed.db" in error and "another study=NAME" in error, error


def test_the_end_names_the_best_and_what_mattered(
    fake: SimpleNamespace, monkeypatch, capsys
) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "epochs=4", "data.context=1", "trials=16") == 0
    shown = capsys.readouterr().out
    assert shown.count("MLflow charts: typed\n") == 2 and shown.endswith("MLflow charts: typed\n")
    best = max(studied(), key=lambda trial: trial.value)
    assert "pruned" in shown
    lines = {
        line.split(":")[0]: line.split(":", 1)[1].split()
        for line in shown.splitlines()
        if ":" in line
    }
    shares = dict(
        zip(
            lines["importance"][::2],
            (float(share.rstrip(",")) for share in lines["importance"][1::2]),
            strict=True,
        )
    )
    assert shares["optimizer.lr"] > 0.8 and sum(shares.values()) == pytest.approx(1, abs=0.02)
    assert lines["repeat it"] == [
        "python",
        "-m",
        "brainseg.train",
        "epochs=4",
        "data.context=1",
        *search_space.to_overrides(best.params),
    ]
    assert lines["test it"] == [
        "python",
        "-m",
        "brainseg.evaluate",
        f"checkpoint={best.user_attrs['folder']}",
    ]


def test_values_that_do_not_differ_have_no_importance(
    fake: SimpleNamespace, monkeypatch, capsys
) -> None:
    fake.dice = lambda config: 0.0
    assert call(monkeypatch, *SPACE, "trials=7") == 0
    assert "importance:  known from 6 trials on, if they differ" in capsys.readouterr().out


def test_a_study_of_failures_ends_too(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    fake.dice = lambda config: 1 / 0
    assert call(monkeypatch, *SPACE, "trials=2") == 1
    assert "no trial has finished yet" in capsys.readouterr().out
