"""Signs in names, from end to end: a folder, a file, a patient, an experiment may be called anything that can be printed."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from signs import IN_NAMES
from tiffs import write_volume

from brainseg import prepare, train
from brainseg.cli.main import run_command
from brainseg.config.text import quote
from brainseg.core.errors import RequestError
from brainseg.data.readers.base import Reading
from brainseg.data.readers.registry import choose_scanner
from brainseg.tracking.client import (
    connect,
    experiment_id,
    short_timeouts,
    sqlite_uri,
    tracking_uri,
)

COMMANDS = {
    "train": (train.run, train.check_request),
    "prepare": (prepare.run, prepare.check_request),
}
TINY = ["model.depth=1", "model.width=2", "epochs=1", "augment=none", "device=cpu"]
AS_TYPED = [
    "2024_01_15",
    "true",
    "größe (1)",
    "50% ? #2 %20",
    'it\'s "so" & so;',
    "漢字🧠 한 א",
    "[a] {b} $c =d",
    "a|c*<>",
]
IN_QUOTES = ["a,b", "null"]
PRINTED = [sign for sign in IN_NAMES if sign.isprintable()]


def run(command: str, *argv: str) -> object:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        run_command(command, *COMMANDS[command], list(argv))
    return stop.value.code


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort with a patient for each sign."""
    folder = tmp_path_factory.mktemp("cohort")
    for number, sign in enumerate(PRINTED):
        write_volume(folder, f"TCGA_AA_a{sign}b_{20010101 + number}", slices=3)
    return folder


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `prepare` makes of ten of them."""
    folder = tmp_path_factory.mktemp("ten")
    for patient in sorted(source.iterdir())[:10]:
        shutil.copytree(patient, folder / patient.name)
    assert run("prepare", f"source={folder}", f"output={folder}.h5", "workers=1") == 0
    return folder.with_suffix(".h5")


@pytest.mark.faults
@pytest.mark.parametrize("name", [*AS_TYPED, *IN_QUOTES])
def test_project_file_run_and_experiment_of_any_name(
    name: str, data: Path, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = tmp_path / name
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copy(template, "mlflow.db")
    shutil.copy(data, f"{name}.h5")
    value = quote(name) if name in IN_QUOTES else name
    path = quote(f"{name}.h5") if name in IN_QUOTES else f"{name}.h5"
    assert (
        run("train", f"data.path={path}", f"output={value}", f"tracking.experiment={value}", *TINY)
        == 0
    )
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing lies beside the project"
    assert {path.name for path in project.iterdir()} >= {
        name,
        f"{name}.h5",
        "mlflow.db",
        "mlartifacts",
    }
    with short_timeouts(1):
        client = connect(tracking_uri(None), make=False)
        experiment = client.get_experiment_by_name(name)
        (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED" and "test/dice" in stored.data.metrics


@pytest.mark.faults
def test_patients_of_any_name(source: Path, empty_folder: Path) -> None:
    assert run("prepare", f"source={source}", "output=all.h5", "workers=1") == 0
    assert run("train", "data.path=all.h5", "output=run", "tracking=none", *TINY) == 0
    with open("run/patients.csv", newline="", encoding="utf-8") as file:
        scored = {row["patient"] for row in csv.DictReader(file)}
    assert len(scored) > 20 and scored <= {path.name for path in source.iterdir()}


@pytest.mark.parametrize("sign", ["\u00a0", "\u200d", "\u202e", "\x1b", "\n"])
def test_signs_that_cannot_be_printed_are_refused_in_one_line(
    sign: str, empty_folder: Path, capsys: Any
) -> None:
    write_volume(empty_folder / "source", f"TCGA_AA_a{sign}b_20010101")
    assert run("train", f"output=a{sign}b") == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"error: output={f'a{sign}b'!a}: contains characters that cannot be printed; remove them\n"
    )
    assert run("prepare", "source=source", "output=all.h5", "workers=1") == 1
    assert (
        "the name holds characters that cannot be printed, or bytes that are not UTF-8; rename"
        in capsys.readouterr().err
    )
    assert [path.name for path in empty_folder.iterdir()] == ["source"]


def test_a_name_that_would_be_a_reference_is_refused_in_one_line(
    empty_folder: Path, capsys: Any
) -> None:
    assert run("train", "output='\\${x}'", *TINY) == 2
    assert (
        capsys.readouterr().err == "error: output=\\${x}: must not contain ${; use another name\n"
    )


def test_every_class_name_that_a_reader_may_give_is_taken_by_mlflow(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class name is part of a metric's name, so a sign that MLflow does not take is refused before anything is prepared."""
    shutil.copy(template, tmp_path / "mlflow.db")
    taken = []
    for sign in IN_NAMES:
        reader = type(
            "Reader",
            (),
            {
                "channels": ("FLAIR",),
                "classes": ("background", f"a{sign}b"),
                "volumes": list,
                "read": list,
            },
        )
        monkeypatch.setattr(
            "brainseg.data.readers.registry.load_extension",
            lambda group, name, reader=reader: reader,
        )
        try:
            choose_scanner(tmp_path, Reading(reader="mine"))
        except RequestError as error:
            assert "letters, digits, space, _ . -" in str(error) and "\n" not in str(error)
        else:
            taken.append(sign)
    assert {"ä", "漢", "ع", " ", "-", ".", "_", "7"} <= set(taken) and not {
        "#",
        "/",
        "?",
        ",",
    } & set(taken)
    with short_timeouts(1):
        uri = sqlite_uri(tmp_path / "mlflow.db")
        client = connect(uri, make=False)
        run_id = client.create_run(experiment_id(client, uri, "x", None)).info.run_id
        for sign in taken:
            client.log_metric(run_id, f"val/dice/a{sign}b", 0.5)
        assert len(client.get_run(run_id).data.metrics) == len(taken)
