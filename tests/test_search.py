"""The search: its space and its requests, how trials end and go on, and the real thing on a tiny phantom."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from brainseg import request, search, space
from brainseg.config import SearchConfig, TrainConfig, UNetConfig
from brainseg.errors import RequestError
from brainseg.records.plan import Facts
from brainseg.records.run import Job, Outcome, RunFolder
from brainseg.records.study import Study
from brainseg.signals import Interrupted

TINY = ["data.phantom.patients=8", "data.phantom.slices=8", "data.phantom.size=32", "model.depth=2", "model.width=4", "epochs=2",
        "batch_size=4", "device=cpu", "scheduler=none"]
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["search", *arguments])
    with pytest.raises(SystemExit) as stop:
        search.main()
    return stop.value.code


def studied(name: str = "typed") -> list:
    """The trials of a study, as Optuna has them."""
    import optuna

    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/search/{name}.db").trials


def states(name: str = "typed") -> list[str]:
    return [trial.state.name for trial in studied(name)]


def planned(*overrides: str, **own: object) -> search.Plan:
    request.schema.register()
    with initialize_config_dir(str(request.CONFIGS), job_name="search", version_base="1.3"):
        return search.plan(list(overrides), SearchConfig(**own))


# ------------------------------------------------------------------------------------------------ what is asked for


def test_no_name_means_two_things() -> None:
    assert not set(search.OWN) & ({*TrainConfig.__dataclass_fields__} | {"experiment", "hydra"})


def test_own_settings_and_those_of_train_are_told_apart() -> None:
    own, trains = search.split(["trials=3", "--cfg", "job", "epochs=2", "++optimizer.options.momentum=0.9", "hydra.verbose=true", "seed=1"])
    assert own == ["trials=3", "--cfg", "job", "hydra.verbose=true"]
    assert trains == ["epochs=2", "++optimizer.options.momentum=0.9", "seed=1"]


@pytest.mark.parametrize("name", [path.stem for path in sorted((request.CONFIGS / "search").glob("*.yaml"))])
def test_every_space_composes_and_opens_with_its_command(name: str) -> None:
    head = (request.CONFIGS / "search" / f"{name}.yaml").read_text().splitlines()[0]
    own, trains = search.split(shlex.split(head, comments=False)[4:])
    assert head.startswith("# python -m brainseg.search ") and f"space={name}" in own
    plan = planned(*trains, space=name)
    assert plan.database == Path(f"runs/search/{name}.db")
    assert set(space.distributions(plan.space)) == set(plan.space)
    assert len(plan.jobs) == 1 + sum(len(space.ends(one)) - 1 for one in plan.space.values())


def test_what_is_typed_becomes_a_space_and_wins_over_the_file() -> None:
    plan = planned("model.depth=2,3", "model.width=range(8,33,8)", LR, "optimizer=adam,sgd", "epochs=3")
    assert plan.overrides == ["epochs=3"] and plan.database.stem == "typed"
    assert plan.space == {
        "model.depth": {"choices": ["2", "3"]}, "model.width": {"low": 8, "high": 32, "step": 8, "log": False},
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "step": None, "log": True}, "optimizer": {"choices": ["adam", "sgd"]},
    }
    plan = planned("model.depth=2", "model.width=4,6", space="quick", study="mine")
    assert set(plan.space) == {"optimizer.lr", "model.width"} and plan.space["model.width"] == {"choices": ["4", "6"]}
    assert plan.database.stem == "mine"


def test_values_become_overrides_as_they_are_typed() -> None:
    proposed = {"optimizer.lr": 0.000123456, "model.depth": 3, "patience": None, "device.compile": True, "loss.options.smooth": 1.0}
    assert space.overrides(proposed) == [
        "optimizer.lr=0.0001235", "model.depth=3", "patience=null", "device.compile=true", "++loss.options.smooth=1.0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.lr: {low: 1, high: 0.1}", ["optimizer.lr=1 to 0.1", "below"]),
        ("optimizer.lr: {low: 0, high: 0.1, log: true}", ["optimizer.lr.low=0", "above 0"]),
        ("optimizer.lr: {low: a, high: 0.1}", ["optimizer.lr.low=a", "number"]),
        ("optimizer.lr: {low: 0.1}", ["optimizer.lr.high=None", "number"]),
        ("optimizer.lr: {low: 0.1, high: .inf}", ["optimizer.lr.high=inf", "number"]),
        ("optimizer.lr: {low: 0.1, high: 0.2, log: perhaps}", ["log=perhaps", "true or false"]),
        ("model.width: {low: 8, high: 30, step: 8}", ["model.width.step=8", "evenly"]),
        ("model.width: {low: 8, high: 32, step: 8, log: true}", ["step=8", "no meaning"]),
        ("model.width: {low: 8, high: 32, by: 8}", ["model.width=by", "low, high"]),
        ("model.width: 8", ["model.width=8", "low, high"]),
        ("model.depth: {choices: []}", ["choices=[]", "each value once"]),
        ("model.depth: {choices: [3, 3]}", ["each value once"]),
        ("model.depth: {choices: [[3], [4]]}", ["list of numbers or names"]),
        ("model.depth: {choices: [3], low: 2}", ["either"]),
        ("model.deth: {choices: [3]}", ["model.deth", "did you mean model.depth"]),
        ("model.depth: {choices: [3, 99]}", ["model.depth=99", "between 1 and 12"]),
        ("optimizer: {choices: [adamw, adman]}", ["optimizer=adman", "no such choice"]),
        ("model.depth: {choices: ['3,4']}", ["model.depth"]),
        ("hydra.run.dir: {choices: [a]}", ["hydra.run.dir", "not a setting's name"]),
        ("model: {choices: ['{_target_: os.getcwd}']}", ["import nothing"]),
        ("[1, 2]", ["must hold settings"]),
        ("a: {low: [", ["cannot be read"]),
    ],
)
def test_a_wrong_space_is_one_line_and_exit_code_2(text: str, words: list[str], monkeypatch, capsys, empty_folder: Path) -> None:
    (empty_folder / "mine.yaml").write_text(text)
    assert call(monkeypatch, "space=mine.yaml", "tracking=none", "epochs=1") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
    assert [path.name for path in empty_folder.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["space=nowhere"], ["space=nowhere", "quick"]),
        (["space=../search/quick"], ["no such space"]),
        (["trails=3"], ["trails", "did you mean trials"]),
        (["trials=0"], ["trials=0", "at least 1"]),
        (["prune=sometimes"], ["prune=sometimes", "median, none"]),
        (["study=a/b"], ["study=a/b", "letters"]),
        (["model.deth=3"], ["model.deth", "did you mean model.depth"]),
        (["epochs=0"], ["epochs=0", "at least 1"]),
        (["test=yes"], ["test=yes", "must not see test patients"]),
        (["resume=runs/unet"], ["resume", "makes its own runs"]),
        (["rerun=true"], ["rerun=true", "another study"]),
        (["from=runs/unet"], ["from", "makes its own runs"]),
        (["data.path=nowhere.h5"], ["nowhere.h5", "no such file"]),
        (["loss=glob(*)"], ["loss", "cannot be searched"]),
        (["model.depth=range(3,4)"], ["model.depth", "two values"]),
        (["model.depth=range(3,9,0)"], ["model.depth", "two values"]),
        (["space=quick", "model.depth=3", "model.width=8", "optimizer.lr=1e-3"], ["space=quick", "leave one out"]),
        (["-m", "model.depth=3,4"], ["-m", "only brainseg.train"]),
    ],
)
def test_a_wrong_request_creates_nothing(arguments: list[str], words: list[str], monkeypatch, capsys, empty_folder: Path) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
    assert list(empty_folder.iterdir()) == []


def test_without_optuna_a_line_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    assert call(monkeypatch, "trials=1") == 2
    assert "pip install 'optuna" in capsys.readouterr().err


def test_a_dry_run_creates_nothing(monkeypatch, capsys, empty_folder: Path) -> None:
    assert call(monkeypatch, "dry_run=true", "trials=7") == 0
    assert "7 trials in all" in (shown := capsys.readouterr().out) and "optimizer.lr: low 0.0001, high 0.01, log True" in shown
    assert list(empty_folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------ how trials end and go on


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Runs that take no time: val/dice is `dice(config)` at each of four epochs; `dice` may raise. Keeps what was run.

    Hydra takes a tenth of a second to compose a job, so OmegaConf alone does it here.
    """
    seen = SimpleNamespace(jobs=[], dice=lambda config: 0.5)

    def compose_job(command: str, overrides: list[str]) -> TrainConfig:
        base = OmegaConf.structured(TrainConfig(model=UNetConfig()))
        return OmegaConf.to_object(OmegaConf.merge(base, OmegaConf.from_dotlist(overrides)))

    def run(config: TrainConfig, job: Job, follow: search.Follower) -> Outcome:
        seen.jobs.append(job)
        folder = RunFolder(Path("runs") / f"unet-{len(seen.jobs):03d}")
        folder.path.mkdir(parents=True)
        (folder.path / "run.json").write_text(json.dumps({"uid": f"uid{len(seen.jobs)}"}))
        state = SimpleNamespace(history=[], step=0, total_steps=4, epoch=0, best=0.0)
        follow(folder, state)
        for epoch in range(4):
            state.best = max(state.best, value := seen.dice(config))
            state.history.append({"epoch": epoch, "metrics": {"val/dice": value}})
            state.step = state.epoch = epoch + 1
            follow(folder, state)
        (folder.path / "summary.json").write_text(json.dumps({"best": {"val/dice": state.best}}))
        return Outcome("finished", str(folder.path))

    monkeypatch.setattr(search, "compose_job", compose_job)
    monkeypatch.setattr(search.train, "check", lambda config: Facts(1, "6/1/1", "cpu"))
    monkeypatch.setattr(search.train, "run", run)
    monkeypatch.setattr(search.study_report, "draw", lambda *_: None)
    return seen


def bell(config: TrainConfig) -> float:
    """Best at a rate of 0.01; depth matters little."""
    import math

    return math.exp(-((math.log10(config.optimizer.lr) + 2) ** 2)) - 0.001 * config.model.depth


SPACE = [LR, "model.depth=2,3,4"]


def test_trials_are_runs_of_the_study_that_never_test(fake: SimpleNamespace, monkeypatch) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "trials=3", "study=first", "epochs=4") == 0
    assert [(job.sweep, job.number, job.choosing) for job in fake.jobs] == [("first", number, True) for number in range(3)]
    assert {job.swept for job in fake.jobs} == {("optimizer.lr", "model.depth")}
    for job, trial in zip(fake.jobs, studied("first"), strict=True):
        assert list(job.overrides) == ["epochs=4", *space.overrides(trial.params)]
        assert trial.user_attrs == {"folder": f"runs/unet-{trial.number + 1:03d}", "uid": f"uid{trial.number + 1}"}
        assert trial.intermediate_values == dict.fromkeys(range(4), trial.value)


def test_a_study_gone_on_with_proposes_what_it_would_have_in_one_go(fake: SimpleNamespace, monkeypatch) -> None:
    fake.dice = bell
    own = ["random_trials=4", "prune=none"]
    assert call(monkeypatch, *SPACE, *own, "trials=9", "study=whole") == 0
    for trials in (3, 7, 9, 9, 2):
        assert call(monkeypatch, *SPACE, *own, f"trials={trials}", "study=parts") == 0
    whole, parts = ([trial.params for trial in studied(name)] for name in ("whole", "parts"))
    assert whole == parts and len(parts) == 9
    assert call(monkeypatch, *SPACE, *own, "trials=2", "study=other", "sampler_seed=1") == 0
    assert studied("other")[0].params != whole[0]


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
    assert {trial.user_attrs["reason"] for trial in failed} == {"ArithmeticError: loss nan"} and "folder" in failed[0].user_attrs
    shown = capsys.readouterr()
    assert f"trial {failed[0].number} failed: ArithmeticError: loss nan" in shown.err and f"{len(failed)} failed" in shown.out
    assert call(monkeypatch, *SPACE, "trials=12") == 0, "nothing was left to run, so nothing failed now"


def test_a_poor_trial_is_pruned_and_never_at_its_last_epoch(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "trials=10", "prune_after=2", "prune_warmup=2") == 0
    pruned = [trial for trial in studied() if trial.state.name == "PRUNED"]
    assert pruned and {len(trial.intermediate_values) for trial in pruned} == {2}
    assert "pruned after epoch 1: val/dice" in pruned[0].user_attrs["reason"]
    assert call(monkeypatch, *SPACE, "trials=7", "prune_after=2", "prune_warmup=4", "study=late") == 0
    assert call(monkeypatch, *SPACE, "trials=7", "prune=none", "study=never") == 0
    assert set(states("late") + states("never")) == {"COMPLETE"}


@pytest.mark.parametrize(("stop", "code"), [(Interrupted(signal.SIGTERM), 143), (Interrupted(signal.SIGINT), 130)])
def test_a_stopped_trial_is_gone_on_with(stop: BaseException, code: int, fake: SimpleNamespace, monkeypatch) -> None:
    def stopped_once(config: TrainConfig) -> float:
        if len(fake.jobs) == 3:
            raise stop
        return bell(config)

    fake.dice = stopped_once
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none") == code
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none") == 0
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"], "five that count"
    assert studied()[3].params == studied()[2].params
    assert len({tuple(job.overrides) for job in fake.jobs}) == 5
    fake.jobs = ["so that none is the third"] * 9
    assert call(monkeypatch, *SPACE, "trials=5", "prune=none", "study=unbroken") == 0
    assert [trial.params for trial in studied("unbroken")] == [studied()[number].params for number in (0, 1, 3, 4, 5)]


def test_a_trial_whose_process_is_gone_is_tried_again_once() -> None:
    config, dimensions = SearchConfig(trials=2), space.distributions({"model.depth": {"choices": [2, 3]}})

    def start() -> Study:
        return Study(Path("runs/search/s.db"), {})

    first, other = start(), start()
    lost = first.begin(config, dimensions)
    assert other.begin(config, dimensions).number == 1 and other.begin(config, dimensions) is None, "two are under way"
    first.held.release()  # as the kernel does when a process is killed
    again = (third := start()).begin(config, dimensions)
    assert (again.number, again.params, again.user_attrs["resumes"]) == (2, lost.params, 0)
    third.held.release()
    assert start().begin(config, dimensions) is None
    assert [trial.state.name for trial in first.trials()] == ["FAIL", "RUNNING", "FAIL"]
    assert [trial.number for trial in first.ended()] == [2] and first.count() == 2


def test_a_resumed_trial_tells_its_earlier_epochs(fake: SimpleNamespace, monkeypatch) -> None:
    study = Study(Path("runs/search/s.db"), {})
    trial = study.begin(SearchConfig(), space.distributions({"model.depth": {"choices": [2]}}))
    folder = RunFolder("runs/unet")
    folder.path.mkdir()
    (folder.path / "run.json").write_text('{"uid": "u"}')
    rows = [{"epoch": epoch, "metrics": {"val/dice": epoch / 10}} for epoch in range(3)]
    follow = search.Follower(trial)
    follow(folder, SimpleNamespace(history=rows[:2], step=2, total_steps=4, best=0.1, epoch=2))
    follow(folder, SimpleNamespace(history=rows, step=3, total_steps=4, best=0.2, epoch=3))
    assert study.trials()[0].intermediate_values == {0: 0.0, 1: 0.1, 2: 0.2}


def test_two_processes_never_run_the_same_settings_at_once() -> None:
    config, dimensions = SearchConfig(), space.distributions({"model.depth": {"choices": [2]}})
    one, two = (Study(Path("runs/search/s.db"), {}) for _ in range(2))
    first, second = one.begin(config, dimensions), two.begin(config, dimensions)
    waiting = threading.Thread(target=two.wait_for_twin, args=(second,))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    one.end(first, "FAIL", "done")
    waiting.join(10)
    assert not waiting.is_alive()


def test_another_study_under_the_same_name_is_refused(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    assert call(monkeypatch, *SPACE, "trials=1", "epochs=4") == 0
    for changed, words in (
        ([*SPACE, "epochs=5"], ["epochs was 4, is 5"]),
        ([LR, "model.depth=2,3", "epochs=4"], ["space model.depth was choices ['2', '3', '4'], is choices ['2', '3']"]),
        ([*SPACE, "epochs=4", "data.phantom.seed=1"], ["data.phantom.seed was not set, is 1"]),
    ):
        assert call(monkeypatch, *changed, "trials=2") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "another study=NAME" in error and all(word in error for word in words), error
    assert len(studied()) == 1
    assert call(monkeypatch, *SPACE, "trials=2", "epochs=4", "tracking.name=none") == 0, "what changes no number may change"


def test_a_database_that_is_none_is_refused(monkeypatch, capsys) -> None:
    Path("runs/search").mkdir(parents=True)
    Path("runs/search/typed.db").write_text("this is no SQLite file, however long it may be" * 100)
    assert call(monkeypatch, *SPACE, "trials=1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "typed.db" in error and "another study=NAME" in error, error


def test_the_end_names_the_best_and_what_mattered(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    fake.dice = bell
    assert call(monkeypatch, *SPACE, "epochs=4", "data.context=1", "trials=16") == 0
    shown = capsys.readouterr().out
    best = max(studied(), key=lambda trial: trial.value)
    assert "pruned" in shown
    lines = {line.split(":")[0]: line.split(":", 1)[1].split() for line in shown.splitlines() if ":" in line}
    shares = dict(zip(lines["importance"][::2], (float(share.rstrip(",")) for share in lines["importance"][1::2]), strict=True))
    assert shares["optimizer.lr"] > 0.8 and sum(shares.values()) == pytest.approx(1, abs=0.02)
    assert lines["repeat it"] == ["python", "-m", "brainseg.train", "epochs=4", "data.context=1", *space.overrides(best.params)]
    assert lines["test it"] == ["python", "-m", "brainseg.evaluate", f"checkpoint={best.user_attrs['folder']}", "data.context=1"]


def test_values_that_do_not_differ_have_no_importance(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    fake.dice = lambda config: 0.0
    assert call(monkeypatch, *SPACE, "trials=7") == 0
    assert "importance:  known from 6 trials on, if they differ" in capsys.readouterr().out


def test_a_study_of_failures_ends_too(fake: SimpleNamespace, monkeypatch, capsys) -> None:
    fake.dice = lambda config: 1 / 0
    assert call(monkeypatch, *SPACE, "trials=2") == 1
    assert "no trial has finished yet" in capsys.readouterr().out


def test_the_commands_of_the_page_compose() -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("python -m brainseg.search")]
    assert len(commands) >= 4
    for line in commands:
        own, trains = search.split(shlex.split(line, comments=True)[3:])
        trains = [one for one in trains if not one.startswith("data.path")]
        given = dict(one.split("=") for one in own)
        if given.get("space", "").endswith(".yaml"):
            Path(given["space"]).write_text(page.split("```yaml\n")[1].split("```")[0])
        assert planned(*trains, **({"space": given["space"]} if "space" in given else {})).jobs


# ------------------------------------------------------------------------------------------------ for real

BAR = ["optimizer.lr=0.001,0.002,0.003,0.004,0.005,1e30", "inference.threshold=0.2,0.25,0.3,0.35,1.0"]  # 1e30 fails, 1.0 finds nothing


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "brainseg.search", *TINY, *arguments], cwd=folder, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen, code: int) -> str:
    out, err = process.communicate(timeout=280)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out + err


def test_eight_trials_with_one_failing_and_one_pruned_go_on_to_twelve(empty_folder: Path) -> None:
    command = [*BAR, "tracking=none", "study=bar", "prune_after=2", "prune_warmup=1", "sampler_seed=22"]
    shown = finished(start(empty_folder, *command, "trials=8"), 1)
    eight = studied("bar")
    assert sorted(states("bar")) == ["COMPLETE"] * 6 + ["FAIL", "PRUNED"]
    assert "study bar: 8 trials: 6 finished, 1 pruned, 1 failed" in shown
    (failed,) = (trial for trial in eight if trial.state.name == "FAIL")
    assert failed.params["optimizer.lr"] == "1e+30" and "NonFiniteError" in failed.user_attrs["reason"]
    assert "NonFiniteError" in Path(failed.user_attrs["folder"], "log.txt").read_text()
    (pruned,) = (trial for trial in eight if trial.state.name == "PRUNED")
    status = RunFolder(pruned.user_attrs["folder"]).status
    assert status["state"] == "killed" and status["error"].startswith("pruned after epoch 0: val/dice 0.0000")

    second = start(empty_folder, *command, "trials=12")
    out, err = second.communicate(timeout=280)
    twelve = studied("bar")
    assert second.returncode == int("FAIL" in states("bar")[8:]), out + err
    assert len(twelve) == 12 and [trial.params for trial in twelve[:8]] == [trial.params for trial in eight]
    assert Path("runs/search/bar/search.png").read_bytes().startswith(b"\x89PNG")
    folders = {trial.user_attrs["folder"] for trial in twelve}
    assert {RunFolder(folder).facts["sweep"] for folder in folders} == {"bar"}
    assert {trial.user_attrs["uid"] for trial in twelve} == {RunFolder(folder).facts["uid"] for folder in folders}
    for trial in twelve:
        if trial.state.name == "COMPLETE":
            for name, word in (("summary.json", "test/"), ("patients.csv", ",test,")):
                assert word not in Path(trial.user_attrs["folder"], name).read_text()


def test_mlflow_says_that_a_run_was_pruned(empty_folder: Path, monkeypatch) -> None:
    from mlflow import MlflowClient

    study = Study(Path("runs/search/typed.db"), plan_of(BAR).settings)
    for threshold in ("0.2", "0.25", "1.0"):
        study.optuna.enqueue_trial({"optimizer.lr": "0.001", "inference.threshold": threshold})
    assert call(monkeypatch, *TINY, *BAR, "trials=3", "prune_after=2", "prune_warmup=1") == 0
    client = MlflowClient(f"sqlite:///{empty_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg").experiment_id
    runs = sorted(client.search_runs([experiment], "tags.sweep = 'typed'"), key=lambda run: run.data.tags["job"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "KILLED"]
    assert [run.data.tags["brainseg.uid"] for run in runs] == [trial.user_attrs["uid"] for trial in studied()]
    assert runs[2].data.tags["error"].startswith("pruned after epoch 0") and runs[0].info.run_name == "lr=0.001 threshold=0.2"


def plan_of(varied: list[str]) -> search.Plan:
    return planned(*TINY, *varied)


@pytest.mark.slow
def test_processes_that_share_a_study_make_exactly_its_trials_though_one_is_killed(empty_folder: Path) -> None:
    command = [LR, "tracking=none", "study=shared", "trials=10", "prune=none", "epochs=6"]
    processes = [start(empty_folder, *command) for _ in range(3)]
    while not (empty_folder / "runs/search/shared.db").exists() or states("shared").count("COMPLETE") < 2:
        time.sleep(0.2)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    for process in processes[1:]:
        finished(process, 0)
    finished(start(empty_folder, *command), 0)
    assert states("shared").count("COMPLETE") == 10
    assert set(states("shared")) <= {"COMPLETE", "FAIL"} and states("shared").count("FAIL") <= 1
    assert len({trial.user_attrs["folder"] for trial in studied("shared") if trial.state.name == "COMPLETE"}) == 10


def test_a_bad_space_is_refused_in_python_too() -> None:
    with pytest.raises(RequestError, match=r"model\.depth.*between 1 and 12"):
        planned("model.depth=2,99")


def test_the_file_lies_in_folders_of_any_name(empty_folder: Path) -> None:
    database = empty_folder / "a?b #%20c" / "s.db"
    for _ in range(2):
        Study(database, {"epochs": "4"})
    assert database.is_file() and [path.name for path in empty_folder.iterdir()] == ["a?b #%20c"]
