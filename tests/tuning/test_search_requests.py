"""What a search is asked for: its space, its settings, what is refused before anything is created."""

import shlex
from pathlib import Path

import pytest
from searching import LR, call, planned

from brainseg import search
from brainseg.config import TrainConfig, compose
from brainseg.core.errors import RequestError
from brainseg.tuning import search_space
from brainseg.tuning.plan import SEARCH_SETTINGS

pytestmark = pytest.mark.usefixtures("empty_folder")
ROOT = Path(__file__).resolve().parents[2]


def test_no_name_means_two_things() -> None:
    assert not set(SEARCH_SETTINGS) & (
        {*TrainConfig.__dataclass_fields__} | {"experiment", "hydra"}
    )


def test_own_settings_and_those_of_train_are_told_apart() -> None:
    own, trains = search.split_arguments(
        [
            "trials=3",
            "--cfg",
            "job",
            "epochs=2",
            "++optimizer.options.momentum=0.9",
            "hydra.verbose=true",
            "seed=1",
        ]
    )
    assert own == ["trials=3", "--cfg", "job", "hydra.verbose=true"]
    assert trains == ["epochs=2", "++optimizer.options.momentum=0.9", "seed=1"]


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((compose.CONFIGS / "search").glob("*.yaml"))]
)
def test_every_space_composes_and_opens_with_its_command(name: str) -> None:
    head = (compose.CONFIGS / "search" / f"{name}.yaml").read_text().splitlines()[0]
    own, trains = search.split_arguments(shlex.split(head, comments=False)[4:])
    assert head.startswith("# python -m brainseg.search ") and f"space={name}" in own
    plan = planned(*trains, space=name)
    assert plan.database == Path(f"runs/search/{name}.db")
    assert set(search_space.distributions(plan.space)) == set(plan.space)
    assert len(plan.jobs) == 1 + sum(
        len(search_space.end_values(one)) - 1 for one in plan.space.values()
    )


def test_what_is_typed_becomes_a_space_and_wins_over_the_file() -> None:
    plan = planned(
        "model.depth=2,3", "model.width=range(8,33,8)", LR, "optimizer=adam,sgd", "epochs=3"
    )
    assert plan.overrides == ["epochs=3"] and plan.database.stem == "typed"
    assert plan.space == {
        "model.depth": {"choices": ["2", "3"]},
        "model.width": {"low": 8, "high": 32, "step": 8, "log": False},
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "step": None, "log": True},
        "optimizer": {"choices": ["adam", "sgd"]},
    }
    plan = planned("model.depth=2", "model.width=4,6", space="quick", study="mine")
    assert set(plan.space) == {"optimizer.lr", "model.width"} and plan.space["model.width"] == {
        "choices": ["4", "6"]
    }
    assert plan.database.stem == "mine"


def test_values_become_overrides_as_they_are_typed() -> None:
    proposed = {
        "optimizer.lr": 0.000123456,
        "model.depth": 3,
        "patience": None,
        "device.compile": True,
        "loss.options.smooth": 1.0,
    }
    assert search_space.to_overrides(proposed) == [
        "optimizer.lr=0.0001235",
        "model.depth=3",
        "patience=null",
        "device.compile=true",
        "++loss.options.smooth=1.0",
    ]


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
        ("a: {low: [", ["mine.yaml, line 1: not valid YAML"]),
    ],
)
def test_a_wrong_space_is_one_line_and_exit_code_2(
    text: str, words: list[str], monkeypatch, capsys, empty_folder: Path
) -> None:
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
        (
            ["space=quick", "model.depth=3", "model.width=8", "optimizer.lr=1e-3"],
            ["space=quick", "leave one out"],
        ),
        (["-m", "model.depth=3,4"], ["-m", "only brainseg.train"]),
    ],
)
def test_a_wrong_request_creates_nothing(
    arguments: list[str], words: list[str], monkeypatch, capsys, empty_folder: Path
) -> None:
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
    assert (
        "7 trials in all" in (shown := capsys.readouterr().out)
        and "optimizer.lr: low 0.0001, high 0.01, log True" in shown
    )
    assert list(empty_folder.iterdir()) == []


def test_a_dry_run_leaves_no_study_in_a_journal(monkeypatch, capsys, empty_folder: Path) -> None:
    """Nor does it hold the corrected request to what was typed first."""
    journal = f"storage=journal:{empty_folder / 'j.log'}"
    (empty_folder / "j.log").touch()
    for widths in ("2,4", "2,3"):
        typed = (journal, "study=b", f"model.width={widths}", "dry_run=true")
        assert call(monkeypatch, *typed) == 0, capsys.readouterr().err
    assert (empty_folder / "j.log").read_text() == ""
    assert [path.name for path in empty_folder.iterdir()] == ["j.log"]


def test_last_is_refused_with_the_name_of_the_run(monkeypatch, capsys, empty_folder: Path) -> None:
    assert call(monkeypatch, "initial=last", "dry_run=true") == 2
    assert "initial=last: there is no such run below runs/" in capsys.readouterr().err
    (empty_folder / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (empty_folder / "runs" / "a" / "run.json").write_text('{"created": 1}')
    (empty_folder / "runs" / "a" / "checkpoints" / "best.pt").touch()
    for name in ("initial", "steps_of"):
        assert call(monkeypatch, f"{name}=last", "dry_run=true") == 2
        refusal = f"{name}=last: is another run as soon as a trial has begun; name the run: {name}="
        assert refusal in (error := capsys.readouterr().err) and "runs/a" in error


def test_the_commands_of_the_page_compose() -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    lines = page.replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("python -m brainseg.search")]
    assert len(commands) >= 4
    for line in commands:
        own, trains = search.split_arguments(shlex.split(line, comments=True)[3:])
        trains = [one for one in trains if not one.startswith("data.path")]
        given = dict(one.split("=") for one in own)
        if given.get("space", "").endswith(".yaml"):
            Path(given["space"]).write_text(page.split("```yaml\n")[1].split("```")[0])
        assert planned(*trains, **({"space": given["space"]} if "space" in given else {})).jobs


def test_a_bad_space_is_refused_in_python_too() -> None:
    with pytest.raises(RequestError, match=r"model\.depth.*between 1 and 12"):
        planned("model.depth=2,99")
