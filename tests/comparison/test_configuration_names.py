"""What configurations are called: by their settings where these are few, by what was typed or by their folder where they are many."""

import dataclasses
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from scored_runs import scored_run
from test_configs import compose

from brainseg import compare as command
from brainseg.comparison.compare import compare_runs
from brainseg.comparison.names import MAX_NAME_LENGTH, configuration_names
from brainseg.comparison.runs import ScoredRun
from brainseg.config import CompareConfig, CompareTrackingConfig
from brainseg.core.errors import RequestError

DICE = {f"TCGA_A_{number:02d}_20000101": 0.5 + 0.03 * number for number in range(12)}
SHARED = ["split=kfold", "data.path=lgg.h5"]


def typed_run(folder: Path, *overrides: str, further: tuple[str, ...] = ()) -> ScoredRun:
    """A run of these overrides, scored; `further` ones are in its record alone."""
    config = compose(*SHARED, *overrides)
    scored_run(folder, DICE, overrides=[*SHARED, *overrides, *further])
    (folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
    )
    return ScoredRun(folder)


def test_a_few_settings_are_the_name(tmp_path: Path) -> None:
    runs = [
        typed_run(tmp_path / f"{depth}{seed}", f"model.depth={depth}", f"seed={seed}")
        for depth in (3, 4)
        for seed in (0, 1)
    ]
    assert sorted(configuration_names(runs).values()) == ["depth=3", "depth=4"]


def test_the_options_of_a_chosen_loss_are_no_part_of_the_name_unless_typed(tmp_path: Path) -> None:
    """bce_dice has a weight and dice has none, so that the weight says nothing that the name does not."""
    runs = [
        typed_run(tmp_path / f"{loss}{width}", f"loss={loss}", f"model.width={width}")
        for loss in ("dice", "bce_dice")
        for width in (4, 8)
    ]
    names = ["loss=bce_dice width=4", "loss=bce_dice width=8", "loss=dice width=4"]
    assert sorted(configuration_names(runs).values()) == [*names, "loss=dice width=8"]
    heavy = typed_run(tmp_path / "heavy", "loss=bce_dice", "loss.options.weight=0.3")
    light = typed_run(tmp_path / "light", "loss=dice")
    assert list(configuration_names([heavy, light]).values()) == [
        "loss=dice",
        "loss=bce_dice weight=0.3",
    ]


def test_two_experiments_are_called_by_what_was_typed(tmp_path: Path) -> None:
    fast = [
        typed_run(
            tmp_path / f"f{fold}",
            "experiment=fast",
            f"split.fold={fold}",
            further=(f"output=runs/{fold}",),
        )
        for fold in (0, 1)
    ]
    reference = typed_run(tmp_path / "r", "experiment=reference", "max_minutes=30", "split.fold=1")
    plain = typed_run(tmp_path / "p")
    assert list(configuration_names([*fast, reference, plain]).values()) == [
        "defaults",
        "experiment=reference max_minutes=30",
        "experiment=fast",
    ]


def test_experiments_that_differ_in_little_are_still_called_experiments(tmp_path: Path) -> None:
    runs = [typed_run(tmp_path / "fast", "experiment=fast")]
    # As a user's own experiment: its record names it, and its settings are nearly those of fast.
    longer = tmp_path / "longer"
    typed_run(longer, "experiment=fast", "max_minutes=120")
    record = json.loads((longer / "run.json").read_text())
    record["overrides"] = [*SHARED, "experiment=longer"]
    (longer / "run.json").write_text(json.dumps(record))
    names = configuration_names([*runs, ScoredRun(longer)])
    assert sorted(names.values()) == ["experiment=fast", "experiment=longer"]


def test_a_change_to_an_experiment_is_called_with_it(tmp_path: Path) -> None:
    """defaults and augment=standard would not say that both are experiment=fast."""
    runs = [
        typed_run(tmp_path / "a", "experiment=fast"),
        typed_run(tmp_path / "b", "experiment=fast", "augment=standard"),
    ]
    assert sorted(configuration_names(runs).values()) == [
        "experiment=fast",
        "experiment=fast augment=standard",
    ]


def test_the_name_of_a_sweep_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    runs = [
        typed_run(tmp_path / device, f"device={device}", further=("sweep=devices",))
        for device in ("cpu", "cpu_bf16")
    ]
    assert sorted(configuration_names(runs).values()) == ["device=cpu", "device=cpu_bf16"]
    mixed = [*runs, typed_run(tmp_path / "deep", "model.depth=4", "optimizer=sgd", "loss=dice")]
    assert not any("sweep" in name for name in configuration_names(mixed).values())


def test_what_is_neither_few_nor_short_is_called_by_its_folder(tmp_path: Path) -> None:
    many = (
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "scheduler=one_cycle",
        "augment=strong",
        "loss=dice",
        "model.width=24",
    )
    runs = [typed_run(tmp_path / "long", *many), typed_run(tmp_path / "fast", "experiment=fast")]
    assert len(" ".join(many)) > MAX_NAME_LENGTH
    assert sorted(configuration_names(runs).values()) == ["fast", "long"]
    twins = [
        typed_run(tmp_path / "a" / "same", *many),
        typed_run(tmp_path / "b" / "same", "experiment=fast"),
    ]
    assert len(set(configuration_names(twins).values())) == 2


def test_a_baseline_goes_by_the_name_that_the_table_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        str(typed_run(tmp_path / str(depth), f"model.depth={depth}").path) for depth in (3, 4, 5)
    ]
    asked = CompareConfig(
        runs=runs,
        output=str(tmp_path / "out"),
        viewer=0,
        tracking=CompareTrackingConfig(name="none"),
    )
    assert command.run(dataclasses.replace(asked, baseline="depth=5")) == 0
    assert "comparisons with depth=5" in capsys.readouterr().out
    with pytest.raises(
        RequestError,
        match=r"baseline=depth=6: no configuration has this name; choose one of: depth=3; depth=4; depth=5",
    ):
        command.run(dataclasses.replace(asked, baseline="depth=6"))


def test_the_report_lists_the_settings_in_which_experiments_differ(tmp_path: Path) -> None:
    runs = [
        typed_run(tmp_path / "a", "experiment=fast"),
        typed_run(tmp_path / "b", "experiment=reference", "max_minutes=30"),
    ]
    printed = command.publish(
        compare_runs(runs),
        tmp_path / "out",
        CompareConfig(tracking=CompareTrackingConfig(name="none")),
    )
    assert max(map(len, printed.splitlines())) < 200
    page = (tmp_path / "out" / "report.html").read_text()
    table = page[page.index("Settings in which they differ") :]
    for row in (
        ("half_resolution", "0.65", "0.0"),
        ("optimizer.name", "adamw", "adam"),
        ("model.width", "16", "32"),
    ):
        assert "".join(f"<td>{cell}</td>" for cell in row) in "".join(
            line.strip() for line in table.splitlines()
        )
