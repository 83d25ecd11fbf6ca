"""The request: a wrong one is one line and exit code 2 with nothing created, a right one reaches `run` as dataclasses."""

import signal
from pathlib import Path
from typing import Any

import pytest

import brainseg
from brainseg.cli.main import run_command
from brainseg.config import TrainConfig
from brainseg.core.errors import DataError, DeviceMissingError, InUseError, RequestError
from brainseg.core.signals import Interrupted
from brainseg.runs.dry_run import JobCheck
from brainseg.runs.job import Job, Outcome

pytestmark = pytest.mark.usefixtures("empty_folder")


def facts(config: Any, missing: str = "") -> JobCheck:
    return JobCheck(
        1234, "7/2/1", config.device.name if isinstance(config, TrainConfig) else "", missing
    )


def no_gpu(config: TrainConfig) -> JobCheck:
    missing = "device=cuda: no CUDA device is visible" if config.device.name == "cuda" else ""
    if missing and config.device.on_missing == "error":
        raise DeviceMissingError(missing)
    return facts(config, missing)


def call(*argv: str, command: str = "train", run=None, check=facts) -> tuple[int, list]:
    """Exit code and the arguments of each call of `run`."""
    calls: list = []

    def record(*arguments):
        calls.append(arguments)
        return Outcome("finished") if command == "train" else 0

    with pytest.raises(SystemExit) as stop:
        run_command(command, run or record, check, list(argv))
    return stop.value.code, calls


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("model.depth=0", ["model.depth=0", "between 1 and 12"]),
        ("model.deth=3", ["model.deth", "no such setting", "model.depth"]),
        ("modle.depth=3", ["modle.depth", "did you mean model.depth"]),
        ("+new=1", ["new=1", "no such setting"]),
        ("+model.new=1", ["model.new=1", "no such setting"]),
        ("batch_size=0", ["batch_size=0", "at least 1"]),
        ("batch_size=many", ["batch_size=many", "must be a whole number"]),
        ("optimizer=adman", ["optimizer=adman", "no such choice", "did you mean adam", "adamw"]),
        ("optimizer=AdamW", ["optimizer=AdamW", "no such choice", "did you mean adamw?"]),
        ("device=gpu", ["did you mean cuda?"]),
        ("model=SegResNet", ["model=monai model.name=SegResNet"]),
        ("data=lgg.h5", ["for a file write data.path=lgg.h5"]),
        ("lr=0.01", ["lr: no such setting; did you mean optimizer.lr?"]),
        (
            "model.depth=3,4",
            ["model.depth=3,4: several values; for a sweep write -m model.depth=3,4\n"],
        ),
        (
            "loss.options.x=a=b",
            ["loss.options.x=a=b: cannot be parsed; put text in quotes: 'loss.options.x=\"a=b\"'"],
        ),
        ("model.options.act=größe", ["put text in quotes: 'model.options.act=\"größe\"'"]),
        ("größe=3", ["größe: no such setting"]),
        ("model.depth=größe", ["model.depth=größe: must be a whole number"]),
        ("runs/unet-0123", ["runs/unet-0123: is not a setting", "NAME=VALUE"]),
        ("from=runs/none", ["from=runs/none: holds no run"]),
        ("optimizer.momentum=0.9", ["optimizer.momentum", "optimizer.options.momentum"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan"]),
        ("loss.options=${epochs}", ["int", "Dict"]),
        ("split=half", ["split=half", "holdout"]),
        ("split=all", ["split=all", "evaluate"]),
        (
            "split.name=kfold",
            ["split.name=kfold", "those of another choice", "choose it as split=kfold"],
        ),
        (
            "scheduler.name=one_cycle",
            ["scheduler.name=one_cycle", "choose it as scheduler=one_cycle"],
        ),
        ("scheduler.name=none", ["scheduler.name=none", "choose it as scheduler=none"]),
        ("split.train=0.9", ["shares must add up to 1"]),
        ("split=file", ["split.path", "must be given"]),
        ("data=hdf5", ["data.path", "data.path=FILE"]),
        ("from=nowhere", ["nowhere", "no run"]),
        ("resume=nowhere", ["nowhere", "no run"]),
        ("+model._target_=os.mkdir", ["_target_", "import nothing"]),
        ("model={_target_:os.mkdir}", ["import nothing"]),
        ("hydra/launcher={_target_:os.mkdir}", ["import nothing"]),
        ("hydra.launcher._target_=os.mkdir", ["import nothing"]),
        ("+hydra.callbacks.a.b=1", ["callbacks"]),
        ("seed=[1", ["seed=[1: must be a whole number"]),
        ("--config-name=other", ["--config-name", "not offered"]),
        ("test=perhaps", ["test=perhaps", "auto, yes, no"]),
        ("dry_run=perhaps", ["dry_run=perhaps", "false, true, measure"]),
        ("device.on_missing=ignore", ["device.on_missing=ignore", "error, skip"]),
        ("hydra/launcher=dask", ["hydra/launcher=dask", "no such choice", "joblib", "ray"]),
        ("hydra.launcher._target_=hydra_plugins.x.RayLauncher", ["import nothing"]),
        ("hydra.launcher.n_jobs=2", ["hydra.launcher.n_jobs"]),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    argument: str, words: list[str], capsys, empty_folder: Path
) -> None:
    code, calls = call(argument)
    error = capsys.readouterr().err
    assert code == 2, error
    assert calls == []
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("epochs 20", "epochs: has no value; write epochs=20 without spaces"),
        ("resume", "resume: has no value; write resume=VALUE"),
        ("model.depth = 3", "model.depth: has no value; write model.depth=3 without spaces"),
        (
            "-m model.depth=3, 4",
            "model.depth=3,: a value is missing after the comma; write model.depth=3,4 without spaces",
        ),
        (
            "-m loss.name=dice, x",
            "loss.name=dice,: a value is missing beside a comma; write the values without spaces",
        ),
        ("epochs=ten", "epochs=ten: must be a whole number"),
        ("force=maybe", "force=maybe: must be true or false"),
        ("augment.flip=true", "augment.flip=true: must be a number"),
        (
            "scheduler=step scheduler.epochs=3",
            "scheduler.epochs=3: must be a list in brackets; write 'scheduler.epochs=[3]'",
        ),
        (
            "data.name=null",
            "data.name=null: must have a value; for the text null write 'data.name=\"null\"'",
        ),
        (
            "output=[a]",
            "output=[a]: must be a single text, not a list; for text with brackets write 'output=\"[a]\"'",
        ),
        (
            "optimizer=rmsprop",
            "optimizer=rmsprop: no such choice; for a class of torch.optim write optimizer=custom optimizer.name=rmsprop",
        ),
        ("optimizer.lr=-1", "optimizer.lr=-1.0: must be at least 0; usual values are 1e-4 to 1e-2"),
        (
            "split.train=0.9",
            "split.train+validation+test=1.2: the shares must add up to 1; set all three, for example split.train=0.7",
        ),
        ("trackin=none", "trackin: no such setting; did you mean tracking?"),
        (
            "model=attention_unet model.depth=5",
            "model.depth: is a setting of model=unet, not of the chosen model; arguments of another",
        ),
        (
            "model.name=SegResNet",
            "model.name=SegResNet: the settings of model are those of another choice; choose it as model=monai",
        ),
        (
            "split.fold=1",
            "split.fold: is a setting of split=kfold, not of the chosen split; add split=kfold",
        ),
        (
            "scheduler=step scheduler.warmup=0.1",
            "scheduler.warmup: is a setting of scheduler=cosine or sch",
        ),
        (
            "device=cuda:0",
            "device=cuda:0: no such choice; write device=cuda device.name=cuda:0; known:",
        ),
        (
            "hydra/launcher=joblib hydra.launcher.x=1",
            "hydra.launcher.x: no such setting; settings of hydra/launcher=joblib: n_jobs",
        ),
        (
            "hydra.launcher.n_jobs=2",
            "hydra.launcher.n_jobs: no such setting; settings of hydra/launcher=basic: none; choose another",
        ),
        (
            "hydra.run.dir=D",
            "hydra.run.dir=D: sets Hydra's folder, not the run folder; write output=D",
        ),
        (
            "-m seed=0,1 hydra.sweep.dir=D",
            "hydra.sweep.dir=D: sets Hydra's folder, not the run folder; write output=D",
        ),
        (
            "sweep=architecture",
            "sweep=architecture: varies model.depth, model.width; to run a sweep, put -m first",
        ),
        (
            "split.validation=none",
            "split.validation=none: must be a number with split=holdout, which is chosen here; it must be text with split=kfold",
        ),
        ("+experiment=fast", "+experiment=fast: experiment exists already; write experiment=fast"),
        (
            "output=a,b",
            "output=a,b: several values; for a sweep put -m first, for text with a comma write",
        ),
        (
            "-m optimizer.lr=interval(1,2)",
            "optimizer.lr=interval(1,2): an interval does not list the values of a sweep; list values, or use range(...)",
        ),
        ("-e 5", "-e: no such flag; --help lists the flags"),
    ],
)
def test_mistakes_of_newcomers_are_answered_with_what_to_type(
    typed: str, answer: str, capsys, empty_folder: Path
) -> None:
    assert call(*typed.split(" ")) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {answer}") and error.count("\n") == 1, error
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "typed", "answer"),
    [
        ("register", "checkpoint=runs/x name=y", "checkpoint: no such setting; did you mean run?"),
        (
            "evaluate",
            "parts=test checkpoint=a.pt",
            "parts=test: must be a list in brackets; write 'parts=[test]'",
        ),
        (
            "evaluate",
            "split.fold=1 checkpoint=a.pt",
            "split.fold: is a setting of split=kfold, not of the chosen split",
        ),
        (
            "predict",
            "output=null checkpoint=a input=b",
            "output=null: must have a value; for the text null write",
        ),
        ("predict", "-m output=a,b checkpoint=a input=b", "-m: only brainseg.train takes a sweep"),
    ],
)
def test_mistakes_at_other_commands_are_answered_too(
    command: str, typed: str, answer: str, capsys
) -> None:
    assert call(*typed.split(" "), command=command) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {answer}") and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("model:\n\tdepth: 3\n", "found character"),
        ("model:\n  depth: 3\n  depth: 4\n", "found duplicate key depth"),
    ],
)
def test_an_experiment_that_is_no_yaml_is_named_with_its_line(
    content: str, problem: str, capsys, empty_folder: Path
) -> None:
    path = empty_folder / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(f"# @package _global_\n{content}")
    assert call(f"--config-dir={empty_folder}", "experiment=mine") == (2, [])
    error = capsys.readouterr().err
    line = 3 if "\t" in content else 4
    assert (
        error.startswith(f"error: {path}, line {line}: not valid YAML ({problem}")
        and error.count("\n") == 1
    ), error


def test_an_experiment_without_its_package_line_is_told_so(capsys, empty_folder: Path) -> None:
    folder = empty_folder / "eigene (1) größe?"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("model: {depth: 3}\n")
    assert call(f"--config-dir={folder}", "experiment=mine") == (2, [])
    answer = "error: experiment=mine: its file must begin with the line '# @package _global_', and be UTF-8 without a byte-order mark\n"
    assert capsys.readouterr().err == answer
    # The editor of Windows writes this mark before the first line, where nobody sees it.
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {depth: 3}\n", encoding="utf-8-sig"
    )
    assert call(f"--config-dir={folder}", "experiment=mine") == (2, [])
    assert capsys.readouterr().err == answer
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {depth: 3}\n")
    assert call(f"--config-dir={folder}", "experiment=mine")[1][0][0].model.depth == 3


@pytest.mark.parametrize(
    "typed", ["-m seed=0,1 epochs=2", "seed=0,1 -m epochs=2", "epochs=2 seed=0,1 -m"]
)
def test_flags_may_stand_anywhere(typed: str) -> None:
    code, calls = call(*typed.split())
    assert (code, [(config.seed, config.epochs) for config, _ in calls]) == (0, [(0, 2), (1, 2)])


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder_is_refused_before_anything_is_made(
    output: str, capsys, empty_folder: Path
) -> None:
    (empty_folder / "file").write_text("not a folder")
    assert call(f"output={output}") == (2, [])
    error = capsys.readouterr().err
    assert error.startswith(f"error: output={output}: ") and error.endswith(
        "is a file; choose a folder\n"
    )
    assert [path.name for path in empty_folder.iterdir()] == ["file"]


def test_text_reaches_the_run_as_it_was_typed() -> None:
    [(config, job)] = call(
        "output=2024_01_15", "tracking.experiment=größe & (1)", "data.channel=1.10"
    )[1]
    assert (config.output, config.tracking.experiment, config.data.channel) == (
        "2024_01_15",
        "größe & (1)",
        "1.10",
    )
    [(config, _)] = call(*job.overrides)[1]
    assert config.output == "2024_01_15", (
        "the overrides that a run stores mean the same when they are repeated"
    )
    swept = call("-m", "tracking.experiment=1.10,größe #2,'a,b'")[1]
    assert [config.tracking.experiment for config, _ in swept] == ["1.10", "größe #2", "a,b"]
    [(config,)] = call("run=1.10", "name=2024_01", "alias=null", command="register")[1]
    assert (config.run, config.name, config.alias) == ("1.10", "2024_01", None)


def test_a_wrong_job_late_in_a_sweep_stops_all_of_it(capsys, empty_folder: Path) -> None:
    code, calls = call("-m", "model.depth=2,3,99")
    assert (code, calls) == (2, [])
    assert "model.depth=99" in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


def test_errors_of_the_check_are_requests_too(capsys) -> None:
    def refuse(config: TrainConfig) -> None:
        raise DataError("a.h5: not such a file")

    assert call(check=refuse)[0] == 2
    assert capsys.readouterr().err == "error: a.h5: not such a file\n"


def test_run_gets_a_dataclass_and_its_overrides() -> None:
    code, [(config, job)] = call("model.depth=3", "optimizer=sgd", "optimizer.options.momentum=0.5")
    assert code == 0
    assert config.model.depth == 3
    assert config.optimizer.options == {"momentum": 0.5, "nesterov": True}
    _, [(config, _)] = call("loss=monai", "loss.options={batch: true}")
    assert config.loss.options == {"batch": True}
    assert job.swept == ()
    assert job == Job(
        overrides=("model.depth=3", "optimizer=sgd", "++optimizer.options.momentum=0.5")
    )


@pytest.mark.parametrize(
    ("arguments", "choosing"),
    [
        (["seed=0,1"], False),
        (["split=kfold", "split.fold=range(3)"], False),
        (["seed=0,1", "model.depth=2,3"], True),
        (["seed=0"], False),
    ],
)
def test_a_sweep_knows_whether_it_chooses(arguments: list[str], choosing: bool) -> None:
    code, calls = call("-m", *arguments)
    assert code == 0
    assert {job.choosing for _, job in calls} == {choosing}
    assert len({job.sweep for _, job in calls}) == 1
    assert [job.number for _, job in calls] == list(range(len(calls)))


def test_a_setting_given_twice_is_not_swept() -> None:
    """`from=RUN` and `resume=RUN` put the stored overrides before the typed ones: such a run must go on to see its test patients."""
    _, [(config, job)] = call("epochs=2", "epochs=5")
    assert (config.epochs, job.choosing, job.swept) == (5, False, ())


def test_a_choosing_sweep_must_not_test(capsys) -> None:
    assert call("-m", "model.depth=2,3", "test=yes")[0] == 2
    assert "must not see test patients" in capsys.readouterr().err


def test_one_failed_job_does_not_end_the_sweep(capsys) -> None:
    def fail_second(config: TrainConfig, job: Job) -> Outcome:
        if job.number == 1:
            raise ArithmeticError("loss nan")
        return Outcome("finished", f"runs/{job.number}")

    assert call("-m", "seed=0,1,2", run=fail_second)[0] == 1
    shown = capsys.readouterr()
    assert "job 2 of 3 failed in 0:00:00: ArithmeticError: loss nan" in shown.err
    assert "3 jobs: 2 finished, 0 skipped, 1 failed" in shown.out


def test_minus_v_belongs_to_commands_that_train(capsys) -> None:
    assert call("-v", "checkpoint=x", command="evaluate")[0] == 2
    assert capsys.readouterr().err == ("error: -v: evaluate prints no more with it; leave it out\n")


def test_a_failed_single_run_exits_1(capsys) -> None:
    def fail(config: TrainConfig, job: Job) -> Outcome:
        raise ArithmeticError("loss nan")

    assert call(run=fail)[0] == 1
    assert "loss nan" in capsys.readouterr().err


def test_a_refusal_at_the_start_of_a_run_exits_2(capsys) -> None:
    def refuse(config: TrainConfig, job: Job) -> Outcome:
        raise RequestError("output=x: in use")

    assert call(run=refuse)[0] == 2
    assert capsys.readouterr().err.endswith("error: output=x: in use\n")


def test_dry_run_prints_a_line_a_job_and_creates_nothing(capsys, empty_folder: Path) -> None:
    code, calls = call("-m", "model.depth=2,3", "dry_run=true", "device=cpu")
    assert (code, calls) == (0, [])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "swept", "parameters", "patients", "device", "would"]
    assert [row.split() for row in rows] == [
        ["1", "model.depth=2", "1,234", "7/2/1", "cpu", "run"],
        ["2", "model.depth=3", "1,234", "7/2/1", "cpu", "run"],
    ]
    assert list(empty_folder.iterdir()) == []


def test_a_missing_device_refuses_the_whole_request(capsys, empty_folder: Path) -> None:
    assert call("-m", "device=cpu,cuda", check=no_gpu) == (2, [])
    assert capsys.readouterr().err == "error: device=cuda: no CUDA device is visible\n"
    assert list(empty_folder.iterdir()) == []


def test_a_missing_device_is_skipped_when_asked_to_and_the_other_jobs_run(capsys) -> None:
    asked = []

    def run(config: TrainConfig, job: Job) -> Outcome:
        asked.append(config.device.name)
        if config.device.name == "cuda":
            raise DeviceMissingError("device=cuda: no CUDA device is visible")
        return Outcome("finished", "runs/x")

    assert call("-m", "device=cuda,cpu", "device.on_missing=skip", run=run, check=no_gpu)[0] == 0
    shown = capsys.readouterr()
    assert asked == ["cuda", "cpu"], "never as something else"
    assert "2 jobs: 1 finished, 1 skipped, 0 failed" in shown.out
    assert "device=cuda: no CUDA device is visible" in shown.out
    call("-m", "device=cuda,cpu", "device.on_missing=skip", "dry_run=true", check=no_gpu)
    assert "skip: device=cuda: no CUDA device is visible" in capsys.readouterr().out


def test_a_job_that_another_sweep_is_at_work_on_is_left_to_it(capsys) -> None:
    def busy(config: TrainConfig, job: Job) -> Outcome:
        raise InUseError("output=runs/x: in use by pid 7")

    assert call("-m", "seed=0,1", run=busy)[0] == 0
    assert "2 jobs: 0 finished, 2 skipped, 0 failed" in capsys.readouterr().out
    assert call(run=busy)[0] == 2


@pytest.mark.parametrize(
    ("argv", "how"),
    [
        (["-m", "seed=0,1"], "run the same command to resume\n"),
        (["seed=1"], "run the same command with resume=auto to resume\n"),
    ],
)
def test_who_is_stopped_is_told_how_to_go_on(argv: list[str], how: str, capsys) -> None:
    def stopped(config: TrainConfig, job: Job) -> Outcome:
        raise Interrupted(signal.SIGINT)

    assert call(*argv, run=stopped)[0] == 130
    assert capsys.readouterr().err.endswith(f"stopped by SIGINT; {how}")


def test_only_train_takes_a_sweep(capsys) -> None:
    assert call("-m", "source=a,b", "output=c", command="prepare")[0] == 2
    assert call("source=a", "output=c", command="prepare")[0] == 0
    assert call("source=a", command="prepare")[0] == 2
    assert "output must be given; add output=..." in capsys.readouterr().err


def test_a_page_may_be_cut_short() -> None:
    """`--help | head -1` says nothing of broken pipes; here the reader is gone before the first line."""
    import subprocess
    import sys

    command = f"{sys.executable} -m brainseg.train --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "0\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["-m", "brainseg.train", "--epochs", "5"],
            "error: --epochs: no such flag; write the setting without dashes, as epochs=VALUE",
        ),
        (
            ["-m", "brainseg.train", "--max-minutes=5"],
            "error: --max-minutes=5: no such flag; write the setting without dashes, as max_",
        ),
        (
            ["-m", "brainseg.train", "-m"],
            "error: -m: nothing to vary; give a list of values, such as -m model.width=16,32, or "
            "leave out -m for a single run",
        ),
        (["-m", "brainseg.predict"], "error: input must be given; add input=..."),
        (["-m", "brainseg", "trian"], "error: trian: no such command; did you mean train?"),
        (
            ["-S", "-m", "brainseg.train"],
            "error: brainseg's packages are not installed in this Python",
        ),  # -S: without site-packages
    ],
)
def test_slips_of_a_newcomer_are_answered_in_one_line(
    command: list[str], said: str, tmp_path: Path
) -> None:
    import os
    import subprocess
    import sys

    environment = {**os.environ, "PYTHONPATH": str(Path(brainseg.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
    assert done.returncode == (1 if "-S" in command else 2) and not list(tmp_path.iterdir())


def test_epochs_that_minutes_would_overrule_are_refused(capsys) -> None:
    """experiment=fast counts in minutes: its user's epochs=3 would have trained for half an hour."""
    for argv in (
        ["experiment=fast", "epochs=3"],
        ["-m", "experiment=fast", "epochs=3", "seed=0,1"],
    ):
        assert call(*argv) == (2, [])
        assert (
            "epochs=3: has no effect with max_minutes=30.0; add max_minutes=null"
            in capsys.readouterr().err
        )
    assert call("max_minutes=3", "seed=1")[0] == 0
    for further in (["max_minutes=null"], ["max_minutes=2"]):
        assert len(call("experiment=fast", "epochs=3", *further)[1]) == 1, "both were typed"


def test_two_limits_are_refused(capsys) -> None:
    for argv, why in (
        (["max_steps=5", "epochs=3"], "epochs=3: has no effect with max_steps=5; add max_steps"),
        (["-m", "epochs=3", "max_steps=5,6"], "epochs=3: has no effect with max_steps=5; add max_"),
        (["max_steps=5", "max_minutes=3"], "max_steps=5: a run has one limit, and max_minutes=3.0"),
        (["experiment=fast", "max_steps=5"], "max_steps=5: a run has one limit, and max_minutes="),
        (["max_steps=0"], "max_steps=0: must be at least 1"),
    ):
        assert call(*argv) == (2, [])
        error = capsys.readouterr().err
        assert error.startswith(f"error: {why}") and error.count("\n") == 1
    [(config, _)] = call("experiment=fast", "max_steps=5", "max_minutes=null")[1]
    assert (config.max_steps, config.max_minutes) == (5, None)


def test_a_network_that_gives_no_number_is_an_error_of_one_line(capsys) -> None:
    def run(config):
        raise FloatingPointError("the model's output is NaN")

    assert call("checkpoint=x.pt", command="evaluate", run=run, check=lambda config: None)[0] == 1
    assert capsys.readouterr().err == "error: the model's output is NaN\n"
