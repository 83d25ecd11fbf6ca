"""docs/extending.md: its module, its registration and its commands, as they stand there, on a cohort of 4 channels and 3 classes."""

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from own_cohort import CHANNELS, CLASSES, install, write_arrays, write_niftis

from brainseg.cli.main import run_command
from brainseg.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig
from brainseg.core.errors import RequestError
from brainseg.data.store import Store
from brainseg.models import networks
from brainseg.prediction.trained_model import load_model
from brainseg.training import losses, optimizers

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ")
]
TINY = [
    "split=kfold",
    "split.folds=3",
    "epochs=1",
    "device=cpu",
    "device.threads=1",
    "tracking=none",
    "model.depth=2",
    "model.width=4",
]


@pytest.fixture(scope="module")
def mylab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's module and pyproject.toml, installed beside a folder `scans`."""
    folder = tmp_path_factory.mktemp("mylab")
    (folder / "mylab.py").write_text(
        "\n\n".join(block for kind, block in BLOCKS if kind == "python")
    )
    install(folder, next(block for kind, block in BLOCKS if kind == "toml"))
    write_arrays(folder / "scans")
    write_niftis(folder / "scans", folder / "niftis")
    return folder


@pytest.fixture
def call(
    mylab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command of the page in this process, in the folder; returns what it printed."""
    monkeypatch.chdir(mylab)
    monkeypatch.syspath_prepend(mylab)

    def call(line: str, *further: str) -> str:
        module, *arguments = shlex.split(line)[2:]
        command = import_module(module)
        with pytest.raises(SystemExit) as stop:
            run_command(
                module.removeprefix("brainseg."),
                command.run,
                command.check_request,
                [*arguments, *further],
            )
        shown = capsys.readouterr()
        assert stop.value.code == 0, shown.err
        return shown.out

    return call


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    call: Callable[..., str], mylab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(COMMANDS) == 7
    for number, line in enumerate(COMMANDS):
        if "reader=nifti" in line:
            said = call(line)
            assert "6 patients, 6 volumes, 24 slices of 32x32 pixels" in said
            with Store(mylab / "nifti.h5") as store, Store(mylab / "own.h5") as arrays:
                assert store.spacing.tolist() == [[5.0, 1.0, 0.5]] * 6
                assert (store.masks(0, 24) == (arrays.masks(0, 24) > 0)).all() and store.masks(
                    0, 24
                ).any()
                order = [CHANNELS.index(name) for name in store.channels]
                assert (
                    sorted(order) == [0, 1, 2, 3]
                    and (store.images(0, 24) == arrays.images(0, 24)[:, order]).all()
                )
        elif "prepare" in line:
            said = call(line)
            assert (
                "6 patients, 6 volumes, 24 slices of 32x32 pixels" in said
                and "class 2, core: in 6 of 6 volumes" in said
            )
            with Store(mylab / "own.h5") as store:
                assert (tuple(store.channels), tuple(store.classes)) == (CHANNELS, CLASSES)
                assert store.spacing.tolist() == [[5.0, 1.0, 0.5]] * 6
        elif "evaluate" in line:
            said = call(line.replace("RUN", "command1"), "device=cpu", "output=scores")
            assert "dice/core" in said and (mylab / "scores" / "predictions.h5").is_file()
        else:
            tiny = [
                one for one in TINY if "model=custom" not in line or not one.startswith("model.")
            ]
            said = call(line, f"output=runs/command{number}", *tiny)
            assert "dice/core" in said
    call(
        "python -m brainseg.compare runs=[runs/command1,runs/command4] output=compared tracking.uri=sqlite:///compared.db"
    )
    header = (mylab / "compared" / "comparison.csv").read_text().splitlines()[0].split(",")
    assert {"dice", "dice/oedema", "dice/core"} <= set(header) and (
        mylab / "compared" / "report.html"
    ).is_file()
    # A file with other classes: the network's outputs would mean something else.
    with Store(mylab / "own.h5") as store:
        other = load_model("runs/command1", DataConfig(), ModelConfig())
        monkeypatch.setattr(store, "classes", ["background", "core", "oedema"])
        with pytest.raises(
            RequestError,
            match="segments background, oedema, core, but the data have background, core, oedema",
        ):
            other.model(other.dataset(store, store.patients[:1]))


def test_what_the_page_registers_is_found_by_its_name(
    mylab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(mylab)
    model = networks.build_network(ModelConfig("plain", {"features": 8}), 4, 3, (32, 32))
    logits, mask = (
        model(torch.rand(2, 4, 32, 32)),
        torch.randint(0, 3, (2, 1, 32, 32), dtype=torch.uint8),
    )
    loss = losses.build_loss(LossConfig("squared_dice", {"smooth": 0.5}), 3)
    before = loss(logits, mask)
    optimizer = optimizers.build_optimizer(OptimizerConfig("sign", lr=1e-3), model.parameters())
    before.backward()
    optimizer.step()
    assert type(optimizer).__name__ == "SignDescent"
    sure = 200.0 * (mask == torch.arange(3).view(1, 3, 1, 1))
    assert loss(sure, mask) < 1e-6 < before


def test_a_package_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path,
        '[project]\nname = "broken"\nversion = "1"\n[project.entry-points."brainseg.losses"]\nmine = "nowhere:Mine"\n',
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RequestError, match=r"mine = nowhere:Mine cannot be imported \(ModuleNotFoundError"
    ):
        losses.build_loss(LossConfig("mine", {}))
