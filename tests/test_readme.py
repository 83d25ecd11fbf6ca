"""Every command of the README and of docs/ composes; the README's Python example runs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from brainseg import config as schema
from brainseg import search
from brainseg.cli.arguments import add_option_prefixes
from brainseg.config.compose import CONFIGS, compose_job, expand_sweep
from brainseg.config.text import quote_text_values

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
]
LINES = [
    line
    for kind, block in BLOCKS
    if kind in ("", "bash")
    for line in block.replace("\\\n", " ").splitlines()
]  # a backslash goes on
COMMANDS = [line for line in LINES if line.startswith("python -m brainseg.")]
ELSEWHERE = re.compile(
    r"resume=runs/|from=runs/|=custom |=own.h5|brainseg.sync|brainseg.runs"
)  # need a run or a package: test_extending.py has the latter


@pytest.mark.parametrize("line", [line for line in COMMANDS if not ELSEWHERE.search(line)])
def test_every_command_of_the_pages_is_a_valid_request(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, block in BLOCKS:
        if kind == "yaml":  # as docs/search.md's own space
            Path("mine.yaml").write_text(block)
    command, *words = add_option_prefixes(shlex.split(line, comments=True)[2:])
    overrides = [word for word in words if word != "-v"]
    command = command.removeprefix("brainseg.")
    schema.register_schema()
    with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
        if command == "search":
            own, trains = search.split_arguments(overrides)
            data = [one for one in trains if not one.startswith("data.path=")]
            assert search.plan_search(data, compose_job("search", own)).space
        elif overrides[:1] == ["-m"]:
            jobs = expand_sweep(command, quote_text_values(command, overrides[1:], sweeps=True))[1]
            assert all(compose_job(command, job) for job in jobs)
        else:
            assert compose_job(command, quote_text_values(command, overrides))


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", (ROOT / "README.md").read_text())
    assert {"train", "ui", "help"} <= set(targets)
    for target in set(targets):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_example_runs(phantom_file: Path) -> None:
    example = next(block for kind, block in BLOCKS if kind == "python").replace(
        "lgg.h5", str(phantom_file)
    )
    names: dict = {}
    exec(example, names)
    assert names["sample"].image.shape == (3, 32, 32)
    assert 0 < names["loss"].item() <= 1
