"""The run folder: identity, claim, lock, status."""

import dataclasses
import json
from pathlib import Path

import pytest
from filelock import FileLock

from brainseg.config import TrackingConfig, TrainConfig, UNetConfig
from brainseg.core.errors import RequestError
from brainseg.core.signals import Interrupted
from brainseg.data.split import Split
from brainseg.runs import identity as identity_module
from brainseg.runs.find import claim_run_folder, stored_overrides
from brainseg.runs.identity import compute_identity, non_default_settings
from brainseg.runs.job import Job
from brainseg.runs.metadata import run_label
from brainseg.runs.run_folder import RunFolder

SPLIT = Split("holdout", ("A",), ("B",), ("C",))
FACTS = {
    "name": "unet-0123456789",
    "overrides": ["seed=3", "output=x", "resume=auto"],
    "data": {"fingerprint": "f"},
    "split": {"sha256": SPLIT.sha256},
}
SWEEP = Job(sweep="s", number=0)


def make(**changes) -> TrainConfig:
    return TrainConfig(model=UNetConfig(), **changes)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_identity_is_of_what_makes_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    base = compute_identity(make(), "data", SPLIT)
    aside = [
        make(output="x"),
        make(resume="auto"),
        make(dry_run=True),
        make(test="no"),
        make(tracking=TrackingConfig("none", experiment="e")),
        make(allow_empty=True),
    ]
    assert {compute_identity(config, "data", SPLIT) for config in aside} == {base}
    others = [
        compute_identity(make(seed=1), "data", SPLIT),
        compute_identity(make(epochs=3), "data", SPLIT),
        compute_identity(make(), "other data", SPLIT),
        compute_identity(make(), "data", Split("holdout", ("B",), ("A",), ("C",))),
        compute_identity(dataclasses.replace(make(), model=UNetConfig(depth=3)), "data", SPLIT),
    ]
    assert len({base, *others}) == len(others) + 1
    monkeypatch.setattr(identity_module, "code_version", other_code)
    assert compute_identity(make(), "data", SPLIT) != base


def other_code():
    from brainseg.runs.code_version import Code

    return Code("1", "c", False, "", "other sources")


def test_only_settings_that_differ_from_the_defaults_count() -> None:
    found = non_default_settings(make(seed=1))
    assert found["seed"] == 1
    assert "epochs" not in found
    assert found["model.name"] == "unet"


def active(path: Path, config: TrainConfig | None = None, **facts):
    return RunFolder(path).active({**FACTS, **facts}, config or make(), SPLIT)


def test_a_run_that_ends_well_is_finished(tmp_path: Path) -> None:
    with active(tmp_path / "r") as folder:
        assert folder.status["state"] == "running"
        assert folder.facts["uid"]
    assert folder.status["state"] == "finished"
    assert folder.status["ended"] >= folder.status["started"]
    assert json.loads((folder.path / "split.json").read_text())["sha256"] == SPLIT.sha256
    assert "depth: 4" in (folder.path / "config.yaml").read_text()


def test_a_crash_is_failed_with_its_traceback_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), active(tmp_path / "r"):
        raise ZeroDivisionError("deep inside")
    assert RunFolder(tmp_path / "r").status["state"] == "failed"
    assert RunFolder(tmp_path / "r").status["error"] == "ZeroDivisionError: deep inside"
    assert "Traceback" in (tmp_path / "r" / "log.txt").read_text()


def test_a_signal_is_killed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), active(tmp_path / "r"):
        raise Interrupted(15)
    assert RunFolder(tmp_path / "r").status["state"] == "killed"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with active(tmp_path / "r"):
        pass
    with (
        FileLock(tmp_path / "r" / ".lock"),
        pytest.raises(RequestError, match="in use by pid"),
        active(tmp_path / "r"),
    ):
        pass
    assert RunFolder(tmp_path / "r").status["state"] == "finished", "the loser writes nothing"


def test_the_uid_survives_a_resume(tmp_path: Path) -> None:
    with active(tmp_path / "r") as folder:
        uid = folder.facts["uid"]
    with active(tmp_path / "r", name="other") as folder:
        assert (folder.facts["uid"], folder.facts["name"]) == (uid, FACTS["name"])


def test_a_single_run_makes_siblings_and_a_sweep_finds_the_same_again() -> None:
    first = claim_run_folder(make(), Job(), "unet-a")
    assert first.path == Path("runs/unet-a")
    with active(first.path):
        pass
    second = claim_run_folder(make(), Job(), "unet-a")
    assert second.path == Path("runs/unet-a-2")
    assert claim_run_folder(make(), SWEEP, "unet-a").path == first.path
    assert claim_run_folder(make(resume="auto"), Job(), "unet-a").path == first.path
    assert claim_run_folder(make(output="elsewhere"), SWEEP, "unet-a").path == Path(
        "elsewhere/unet-a"
    )
    with pytest.raises(Interrupted), active(second.path):
        raise Interrupted(2)
    assert claim_run_folder(make(), SWEEP, "unet-a").path == first.path, (
        "a finished sibling counts before an interrupted one"
    )


def test_a_named_output_is_used_as_it_is_and_never_overwritten() -> None:
    config = make(output="mine")
    with active(claim_run_folder(config, Job(), FACTS["name"]).path):
        pass
    with pytest.raises(RequestError, match="output=mine: already contains a run"):
        claim_run_folder(config, Job(), FACTS["name"])
    assert claim_run_folder(make(output="mine", resume="auto"), Job(), FACTS["name"]).path == Path(
        "mine"
    )
    with pytest.raises(RequestError, match="other settings"):
        claim_run_folder(make(output="mine", resume="auto"), Job(), "unet-other")


def test_a_run_can_be_named_to_repeat_it() -> None:
    with active(Path("runs/r")):
        pass
    assert stored_overrides("runs/r", "from") == ["seed=3"]
    assert claim_run_folder(make(resume="runs/r"), Job(), "unet-z").path == Path("runs/r")
    with pytest.raises(RequestError, match="holds no run"):
        stored_overrides("runs/none", "from")


@pytest.mark.parametrize(
    ("overrides", "swept", "shown"),
    [
        (["split.fold=0", "experiment=fast"], (), "fast fold=0"),
        (["+experiment=fast"], (), "fast"),
        (["model.depth=3", "seed=1", "experiment=fast"], ("model.depth",), "depth=3"),
        (["model.depth=3", "model.depth=4"], ("model.depth",), "depth=4"),
        (["seed=1", "split.seed=2"], (), "seed=1 split.seed=2"),
        (["data.path=a.h5", "resume=runs/a", "output=b"], (), ""),
        ([], (), ""),
        (["device=cpu_bf16", "experiment=reference"], ("device",), "cpu_bf16"),
        (
            ["model.depth=3", "optimizer=sgd", "augment=none", "seed=0"],
            ("model.depth", "optimizer", "augment", "seed"),
            "depth=3 sgd augment=none seed=0",
        ),
        (
            ["data.path=/a/b.h5", "model=unet", f"model.options.list=[{'1,' * 40}]", "epochs=3"],
            (),
            "unet ... unet-01",
        ),
    ],
)
def test_mlflow_names_a_run_by_what_was_typed_or_by_what_was_swept(
    overrides: list[str], swept: tuple[str, ...], shown: str
) -> None:
    assert run_label(Job(tuple(overrides), swept=swept), "unet-01") == shown
