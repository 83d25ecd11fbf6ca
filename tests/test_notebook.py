"""The notebook of the documentation runs from top to bottom, in the order of its cells."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_hour.ipynb"
ABSOLUTE_PATH = re.compile(r"(?:^|[\s\"'=(])/\w+/", re.MULTILINE)
# Jupyter runs a line that begins with ! in a shell. A kernel would add thirty packages to the tests.
SHELL = """
import subprocess
import sys

def shell(command):
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)

"""


def strings_of(node: object) -> Iterator[str]:
    """All texts of the notebook: sources, outputs and metadata."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from strings_of(child)


def script_of(notebook: dict) -> str:
    """The code cells as one script."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return SHELL + "\n".join(
        f"shell({source[1:]!r})" if source.startswith("!") else source for source in sources
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_hour_runs(tmp_path: Path) -> None:
    script = script_of(json.loads(NOTEBOOK.read_text()))
    assert script.count("shell('python -m brainseg.train") == 2
    end = "\nassert result.mask.shape == (16, 64, 64)\nassert len(runs) == 5\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", script + end],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=1100,
    )
    assert (tmp_path / "first" / "pictures" / "overlays.png").is_file()


def test_the_outputs_of_the_notebook_name_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert '"output_type": "error"' not in text and '"image/png"' in text
    paths = [part for part in strings_of(json.loads(text)) if ABSOLUTE_PATH.search(part)]
    assert paths == []
