"""What is released: the wheel and the source distribution hold every file of the package and work elsewhere; one version everywhere."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

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
    assert wheel.name == f"brainseg_runner-{__version__}-py3-none-any.whl"


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
    assert {path.name for path in folder.iterdir()} == {"run", "data"}
    scored = python(
        "-m", "brainseg.evaluate", "checkpoint=run", *tiny[:3], "device=cpu", "output=scores"
    )
    assert "1 patient by their role in training: 1 test" in scored
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


def pins() -> dict[str, str]:
    """The pinned versions by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def test_every_pin_accepts_the_oldest_python_that_the_metadata_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = f"{project['requires-python'].removeprefix('>=')}.0"
    pinned = {
        distribution.name.lower(): distribution
        for distribution in distributions()
        if pins().get(distribution.name.lower()) == distribution.version.partition("+")[0]
    }
    assert len(pinned) > 100
    refusing = {
        name: requirement
        for name, distribution in pinned.items()
        if oldest
        not in SpecifierSet(requirement := distribution.metadata.get("Requires-Python", ""))
    }
    assert not refusing, f"pin versions that accept Python {oldest}"


def test_the_pins_satisfy_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in itertools.chain(project["dependencies"], *extras):
        requirement = Requirement(text)
        if requirement.name != project["name"]:
            assert pins()[requirement.name.lower()] in requirement.specifier, text


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("make") is None:
        pytest.skip("no make")
    # A make that runs these tests would pass its own variables on.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def installs(folder: Path, *arguments: str) -> list[str]:
    """What pip would be asked to install, without the pins."""
    printed = make(folder, "-n", *arguments).stdout
    install = ".venv/bin/python -m pip install --constraint constraints.txt "
    return [line.removeprefix(install) for line in printed.splitlines() if line.startswith(install)]


def test_make_installs_what_the_target_needs(makefile: Path) -> None:
    user = ["torch", "--editable '.[all]'"]
    assert installs(makefile, "train") == installs(makefile, "setup") == user
    assert installs(makefile, "test") == [*user, "--editable '.[test]'"]
    assert installs(makefile, "lint") == [*user, "--editable '.[lint]'"]
    assert installs(makefile, "docs") == [*user, "--editable '.[docs]'"]


def test_make_installs_the_build_of_torch_that_was_chosen(makefile: Path) -> None:
    version = pins()["torch"]

    def build(name: str) -> str:
        index = f"--extra-index-url https://download.pytorch.org/whl/{name}"
        return f"torch=={version}+{name} {index}"

    assert installs(makefile, "setup", "TORCH=cu126") == [build("cu126"), "--editable '.[all]'"]
    (makefile / ".venv").mkdir()
    for stamp in (".torch-cpu", ".installed"):
        (makefile / ".venv" / stamp).touch()
    assert installs(makefile, "train") == [], "the choice is kept"
    assert installs(makefile, "train", "TORCH=cu130")[0] == build("cu130")
    os.utime(makefile / "constraints.txt")
    assert installs(makefile, "train") == [build("cpu"), "--editable '.[all]'"]
    refused = make(makefile, "setup", "TORCH=cuda")
    assert refused.returncode == 2
    assert "TORCH=cuda: no such build of PyTorch; choose one of: default cpu" in refused.stderr


def test_make_refuses_an_old_python_and_names_the_remedy(makefile: Path) -> None:
    old = makefile / "python3.10"
    disguise = "import sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'"
    old.write_text(f"#!{sys.executable}\n{disguise}\nexec(sys.argv[2])\n")
    old.chmod(0o755)
    refused = make(makefile, "setup", f"PYTHON={old}")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0] == (
        "Python 3.10.13 is too old; install Python 3.11 or newer and name it, for example: "
        "make setup PYTHON=python3.11"
    )
    assert not (makefile / ".venv").exists()


def test_the_container_has_the_files_and_a_build_of_torch_that_exist() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    builds = re.search(r"^BUILDS := default (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (
        builds
        and dict(line.split("=") for line in lines if line.startswith("ARG"))["ARG TORCH"]
        in builds[1].split()
    )
    assert any('".[all]"' in line for line in lines)
