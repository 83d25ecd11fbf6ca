"""What several test files need: the real data and the reference where they are, a tiny prepared cohort, an MLflow store."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny tensors: threads would only wait for one another
SHARED = Path(__file__).resolve().parents[2] / "shared"
FIGURES: list[str] = []  # what the fault tests printed as `figure: ...`


def pytest_configure(config: pytest.Config) -> None:
    """No test may reach a tracking server that the developer happens to use."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


# The files that take longest, in this order first, so that two workers end at the same time.
LONGEST = (
    "test_launchers.py",
    "test_sweep.py",
    "test_end_to_end.py",
    "test_sweep_record.py",
    "test_cli.py",
    "test_search.py",
    "test_kills.py",
    "test_readme.py",
    "test_search_processes.py",
    "test_moved_and_copied.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and item.get_closest_marker("faults"):
        name = f"{item.path.name}::{item.name}, {report.duration:.0f} s"
        figures = [
            line.removeprefix("figure: ")
            for line in report.capstdout.splitlines()
            if line.startswith("figure: ")
        ]
        FIGURES.extend(
            f"{name}: {figure}{'' if report.passed else ', FAILED'}" for figure in figures
        )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the figures at the end: `make test-faults` is asked how many times it broke something, not only whether all went well."""
    if FIGURES:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(FIGURES))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the reference's weights and figures."""
    folder = Path(os.environ.get("BRAINSEG_REFERENCE", SHARED / "reference"))
    if not (folder / "unet.pt").is_file():
        pytest.skip("the reference's weights are not here (BRAINSEG_REFERENCE)")
    return folder


@pytest.fixture(scope="session")
def real_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kaggle_3m folder of the 88 real patients: BRAINSEG_REAL_DATA, or unpacked from beside the repository."""
    if named := os.environ.get("BRAINSEG_REAL_DATA"):
        return Path(named)
    if not (SHARED / "data" / "unpack.py").is_file():
        pytest.skip("the real patients are not here (BRAINSEG_REAL_DATA)")
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("real")
    subprocess.run(
        [sys.executable, SHARED / "data" / "unpack.py", folder], check=True, capture_output=True
    )
    return folder / "kaggle_3m"


@pytest.fixture(scope="session")
def phantom_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared phantom of 10 patients, 8 slices of 32 x 32 pixels each."""
    from brainseg.config import PhantomConfig
    from brainseg.data.phantom.cohort import ensure_cohort

    return ensure_cohort(
        PhantomConfig(
            patients=10, slices=8, size=32, folder=str(tmp_path_factory.mktemp("phantom"))
        )
    )


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it after one tiny run: `run`, trained on a phantom of 10 patients, its file in data/, and mlflow.db.

    It learns just enough that its masks are not empty.
    """
    from brainseg import train
    from brainseg.cli.main import run_command

    folder = tmp_path_factory.mktemp("project")
    tiny = [
        "data.phantom.patients=10",
        "data.phantom.slices=6",
        "data.phantom.size=32",
        "model.depth=2",
        "model.width=8",
        "epochs=5",
        "optimizer.lr=0.05",
        "augment=none",
        "data.tumour_share=0.8",
        "device=cpu",
        "output=run",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            run_command("train", train.run, train.check_request, tiny)
    assert stop.value.code == 0
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty MLflow database: making it costs seconds, copying it nothing."""
    from brainseg.tracking.client import connect, short_timeouts

    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    with short_timeouts(1):
        connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def store(tmp_path: Path, template: Path) -> str:
    """The URI of an empty MLflow store in the test's folder."""
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved, to look into."""
    from brainseg.reports import figures

    saved, save = [], figures.save_figure
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: (saved.append(figure), save(figure, path))
    )
    return saved
