"""Fine-tuning: initial weights from a run, held-out patients that the source has seen, resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainseg import evaluate, train
from brainseg.cli.main import run_command
from brainseg.config import PhantomConfig, TrainConfig
from brainseg.config.compose import compose_job
from brainseg.core.signals import Stopped
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import compute_volume_stats
from brainseg.runs import checkpoint
from brainseg.tracking.contents import tags_of

SMALL = ["model.depth=2", "model.width=4", "epochs=2", "scheduler=none", "augment=none"]
CPU = ["device=cpu", "device.threads=1", "tracking=none", "predictions=none"]
COMMANDS = {"train": train, "evaluate": evaluate}
FOUR = ("T1", "T2", "FLAIR", "T1c")


def call(command: str, *argv: str) -> int:
    module: Any = COMMANDS[command]
    with pytest.raises(SystemExit) as stop:
        run_command(command, module.run, module.check_request, list(argv))
    return int(stop.value.code or 0)


def phantom(folder: Path, seed: int) -> Path:
    return ensure_cohort(
        PhantomConfig(patients=8, slices=12, size=32, seed=seed, folder=str(folder))
    )


def with_four_channels(source: Path, path: Path) -> Path:
    """The same scans with a fourth sequence, the mean of the others."""
    volumes, pixels = [], []
    with Store(source) as store:
        for index, name in enumerate(store.volumes):
            start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
            images = store.images(start, stop)
            images = np.concatenate([images, images.mean(1, keepdims=True).astype(np.uint8)], 1)
            masks = store.masks(start, stop)
            slices = list(
                zip(store.slice_number[start:stop].tolist(), images, masks[:, 0], strict=True)
            )
            volumes.append(compute_volume_stats(name, slices, FOUR))
            pixels.append((images, masks))
    write_store(path, volumes, iter(pixels), channels=FOUR)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two cohorts of equal names, each also with four channels, and a run on the first."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    for name, seed in (("first", 0), ("second", 7)):
        source = phantom(folder / name, seed)
        with_four_channels(source, folder / f"{name}4.h5")
        source.rename(folder / f"{name}.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("train", *SMALL, *CPU, "data.path=first.h5", "output=source") == 0
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts_of(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "run.json").read_text())


def weights_of(run: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(run, "checkpoints", "best.pt"))["model"]


def config_of(*argv: str) -> TrainConfig:
    from hydra import initialize_config_dir

    from brainseg.config.compose import CONFIGS

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose_job("train", [*SMALL, *CPU, *argv])


# Six of eight patients are held out, and the source was trained on six.
OTHER = ["split.train=0.25", "split.validation=0.25", "split.test=0.5"]
TUNED = ["data.path=second4.h5", "initial=source"]


def test_a_cohort_with_other_channels_begins_with_the_weights_and_resumes_to_the_same_bits(
    here: Path,
) -> None:
    assert call("train", *SMALL, *CPU, *TUNED, "output=whole") == 0
    log = Path("whole/log.txt").read_text()
    assert "initial:      45 of 45 tensors of source" in log
    assert "input channels repeated: layers.0.conv1.weight" in log
    assert "trained on the sequences pre-contrast, FLAIR, post-contrast, now T1, T2, " in log
    facts = facts_of("whole")
    assert facts["initial"]["adapted"] == ["layers.0.conv1.weight"]
    assert not facts["initial"]["missing"] and not facts["split"]["leaky"]

    def stop_early(folder: Any, state: Any) -> None:
        if state.epoch == 1:
            raise Stopped("for the test")

    config = config_of(*TUNED, "output=halved")
    with pytest.raises(Stopped):
        train.run(config, epoch_callback=stop_early)
    assert call("train", *SMALL, *CPU, *TUNED, "resume=halved", "output=halved") == 0
    for name, weight in weights_of("whole").items():
        assert torch.equal(weight, weights_of("halved")[name]), name
    assert facts_of("halved")["identity"] == facts["identity"]
    assert call("train", *SMALL, *CPU, TUNED[0], "output=random") == 0
    assert facts_of("random")["identity"] != facts["identity"]
    first = {
        run: json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[0])["metrics"]
        for run in ("whole", "random")
    }
    assert first["whole"]["train/loss"] != first["random"]["train/loss"]


def test_a_source_that_saw_held_out_patients_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under their names or with another sequence; of the same split, no patient is leaked."""
    for data in ("first.h5", "first4.h5"):
        other = [*SMALL, *CPU, f"data.path={data}", "initial=source", *OTHER, "output=bad"]
        assert call("train", *other) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: initial=source: was trained or selected on ")
        assert "PHANTOM_" in error and "add leaky=true" in error and error.count("\n") == 1
        assert not Path("bad").exists()
        assert (
            call("train", *SMALL, *CPU, f"data.path={data}", "initial=source", "dry_run=true") == 0
        )


def test_a_leaky_source_is_accepted_on_request_and_tagged(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["data.path=first.h5", "initial=source", *OTHER, "leaky=true"]
    assert call("train", *SMALL, *CPU, *request, "output=leaky") == 0
    assert "LEAKY:        the initial weights have seen held-out" in capsys.readouterr().out
    assert facts_of("leaky")["split"]["leaky"]
    assert json.loads(Path("leaky/summary.json").read_text())["leaky"]
    assert tags_of(Path("leaky"), facts_of("leaky"))["leaky"] == "true"
    assert call("evaluate", "checkpoint=leaky", "device=cpu", "viewer=0", "output=scores") == 0
    summary = json.loads(Path("scores/summary.json").read_text())
    seen = set(json.loads(Path("source/split.json").read_text())["train"])
    held_out = set(json.loads(Path("leaky/split.json").read_text())["test"])
    assert summary["leaky"] and seen & held_out and "train/dice" in summary["metrics"]


def test_the_patients_of_the_sources_own_source_count_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["data.path=second.h5", "initial=source", *OTHER, "output=middle"]
    assert call("train", *SMALL, *CPU, *request) == 0
    assert "also named in the training of source, with other scans" in capsys.readouterr().out
    last = [*SMALL, *CPU, "data.path=first.h5", "initial=middle", *OTHER, "output=last"]
    assert call("train", *last) == 2
    assert "initial=middle: was trained or selected on " in capsys.readouterr().err


def test_weights_that_do_not_fit_are_missing_or_others_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(3, 3)}, "foreign.pt")
    for argv, why in (
        (["initial=none.pt"], "initial=none.pt: no such file"),
        (["initial=foreign.pt"], "initial=foreign.pt: none of its weights fits the network"),
        (["leaky=true"], "leaky=true: accepts initial weights, and initial is not set"),
    ):
        assert call("train", *SMALL, *CPU, "data.path=second.h5", *argv, "output=bad") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {why}") and error.count("\n") == 1
        assert not Path("bad").exists()
    assert call("train", *SMALL, *CPU, *TUNED, "output=tuned") == 0
    torch.save({name: weight + 1 for name, weight in weights_of("source").items()}, "other.pt")
    capsys.readouterr()
    longer = ["epochs=3", "resume=tuned"]
    for source, code in (("other.pt", 2), ("null", 2), ("source/checkpoints/best.pt", 0)):
        assert call("train", *longer, f"initial={source}") == code, "the hash counts, not the path"
        assert code == 0 or "initial weights differ from those" in capsys.readouterr().err


def test_weights_of_another_program_say_nothing_of_their_patients(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights_of("source"), "plain.pt")
    request = ["data.path=first.h5", "initial=plain.pt", "output=plain"]
    assert call("train", *SMALL, *CPU, *request) == 0
    assert "plain.pt does not store which patients it was trained" in capsys.readouterr().out
    assert checkpoint.load(Path("plain/checkpoints/best.pt"))["initial"]["is_complete"] is False
