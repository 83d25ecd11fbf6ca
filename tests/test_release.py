"""What is released: the wheel and the source distribution hold every file of the package and work elsewhere; one version everywhere."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from brainseg import __version__

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_{}('{}')"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, so that building leaves nothing in the checkout."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("builds with setuptools 77 or newer")
    tracked = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    folder = tmp_path_factory.mktemp("tree")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():  # not one that is deleted, but not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree: Path, kind: str) -> Path:
    """Build a wheel or sdist of the tree as pip does, without the network."""
    subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, "dist")],
        cwd=tree,
        capture_output=True,
        check=True,
    )
    (made,) = (tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build(tree, "wheel")


def expected(tree: Path) -> set[str]:
    """The files of the package by the names that they have when installed: conf/ lies in it."""
    files = [
        path.relative_to(tree).as_posix()
        for path in (*tree.glob("brainseg/**/*"), *tree.glob("conf/**/*.yaml"))
        if path.is_file()
    ]
    return {
        f"brainseg/{name}" if name.startswith("conf/") else name
        for name in files
        if "__pycache__" not in name
    }


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected(tree)
    assert {
        "brainseg/py.typed",
        "brainseg/conf/train.yaml",
        "brainseg/conf/loss/dice.yaml",
    } <= names
    assert wheel.name == f"brainseg-{__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(
    tree: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(build(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    beside = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "tests",
        "docs",
    }
    assert beside <= {path.name for path in folder.iterdir()}
    assert expected(folder) == expected(tree)
    with zipfile.ZipFile(build(folder, "wheel")) as again, zipfile.ZipFile(wheel) as first:
        assert sorted(again.namelist()) == sorted(first.namelist())


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    library, folder = tmp_path / "library", tmp_path / "empty"
    folder.mkdir()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        library,
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import brainseg; print(brainseg.__file__)").strip() == str(
        library / "brainseg" / "__init__.py"
    )
    tiny = [
        "data.phantom.patients=10",
        "data.phantom.slices=4",
        "data.phantom.size=32",
        "model.depth=2",
        "model.width=4",
        "epochs=1",
    ]
    said = python("-m", "brainseg", "train", *tiny, "device=cpu", "tracking=none", "output=run")
    assert (
        "Scores of the best epoch" in said
        and (folder / "run" / "checkpoints" / "best.pt").is_file()
    )
    assert {path.name for path in folder.iterdir()} == {"run", "runs", "data"}
    scored = python(
        "-m", "brainseg.evaluate", "checkpoint=run", *tiny[:3], "device=cpu", "output=scores"
    )
    assert "patients by their role in training" in scored
    assert python(str(library / "bin" / "brainseg"), "train", "--help").startswith(
        "brainseg train: "
    )


def test_there_is_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert 'version = { attr = "brainseg.__version__" }' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert (
        f"[{__version__}]" in changelog
        or f"## [Unreleased]\n\nThe first version, {__version__}." in changelog
    )


def test_the_citation_has_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: required keys, of each reference, too."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited[
        "cff-version"
    ] == "1.2.0"
    assert cited["license"] == "MIT" and cited["type"] == "software"
    for work in (cited, *cited["references"]):
        assert isinstance(work["title"], str) and work["authors"]
        assert all(
            author.keys() <= {"family-names", "given-names", "name"} and author
            for author in work["authors"]
        )
    article, data = cited["references"]
    assert (article["type"], article["journal"], article["year"]) == (
        "article",
        "Computers in Biology and Medicine",
        2019,
    )
    assert data["type"] == "data" and all(
        re.fullmatch(r"10\.\d{4,9}/\S+", work["doi"]) for work in cited["references"]
    )


def test_pre_commit_fetches_nothing_and_checks_what_make_lint_does() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {
        "system"
    }
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    linted = [
        line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .")
        for line in recipe[1].splitlines()
    ]
    assert [hook["entry"] for hook in repository["hooks"]] == linted
