"""Every command of the README and of docs/ really runs, page by page, each in a process of its own, on a tiny cohort.

What is put in place of what a page says: a real run for `runs/RUN`, a second for `runs/b`, fewer epochs or minutes, a small phantom,
the CPU for a GPU, a file for a server; a SLURM queue is only planned for. docs/extending.md, which installs a package, is run by
test_extending.py, docs/tracking_server.md, which needs PostgreSQL, by test_lab_server.py, and docs/own_data.md, which needs cohorts in
many layouts, by data/readers/test_page.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scans import scan, write_dicom, write_nifti
from tiffs import write_clinical

from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import write_cohort
from brainseg.data.volume import CHANNELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in ("extending.md", "tracking_server.md", "own_data.md")
]
SMALL = ["data.phantom.patients=20", "data.phantom.slices=4", "data.phantom.size=32"]
FEW = ["batch_size=8", "device.threads=1"]
PLACED: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"\bepochs=40\b": "epochs=2",  # extends a run of one epoch
    r"\bepochs=(?!2\b)\d+": "epochs=1",
    r"max_minutes=[\d.]+": "max_minutes=0.02",
    r"max_steps=\d+": "max_steps=3",
    r"trials=\d+": "trials=2",
    r"workers=\d+": "workers=2",
    r"storage=postgresql\S+": "storage=sqlite",
    r"model\.width=16,32": "model.width=2,4",
    r"model\.width=\d+\b(?!,)": "model.width=4",
    r"runs/([AB])\b": lambda match: f"runs/{match[1].lower()}",
    r"(optimizer=adam),sgd|loss=dice,bce_dice": r"loss=dice,bce_dice",
    r"\bdevice=cuda\w*|\bdevice=cpu_bf16": "device=cpu",
    r"split\.folds=10": "split.folds=4",
    r"device\.threads=4": "device.threads=1",
    r"range\(5\)": "0,1",
    r"seed=0,1,2": "seed=0,1",
    r"/tmp/try": "try",
    r"split\.path=docs/splits/\S+": "split.path=runs/RUN/split.json",
    r"tracking\.uri=http\S+": "tracking.uri=sqlite:///other.db",
}


def commands(page: Path) -> list[str]:
    fences = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
    blocks = [block for kind, block in fences if kind in ("", "bash")]
    lines = [
        line.split(" #")[0].rstrip()
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.startswith("python ")]


def call(folder: Path, line: str) -> str:
    process = subprocess.Popen(
        [sys.executable, *shlex.split(line.split(" > ")[0])[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed = ""
    if line.startswith("python -m brainseg.ui"):
        # It serves its page until it is stopped.
        assert process.stdout is not None
        while "Ctrl-C ends it" not in printed:
            printed += (following := process.stdout.readline())
            assert following, f"{line} ended by itself: {printed}"
        process.terminate()
    output, errors = process.communicate()
    assert process.returncode == 0, f"{line}\n{printed}{output}\n{errors}"
    return printed + output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what the pages speak of: kaggle_3m, lgg.h5, mine.h5, three runs of one epoch, scans, the repository's scripts, a search space.

    Made for each page: a copy would not do, as MLflow's store has the run folders' paths.
    """
    source = write_cohort(PhantomConfig(patients=20, slices=4, size=32), tmp_path / "kaggle_3m")
    write_clinical(source)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "mine.yaml").write_text(
        re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "search.md").read_text(), re.DOTALL)[1]
    )  # type: ignore[index]
    call(tmp_path, "python -m brainseg.prepare source=kaggle_3m output=lgg.h5")
    write_cohort(PhantomConfig(patients=20, slices=4, size=32, seed=7), tmp_path / "mine")
    call(tmp_path, "python -m brainseg.prepare source=mine output=mine.h5")
    tiny = "python -m brainseg.train data.path=lgg.h5 epochs=1 batch_size=8 model.depth=2 model.width=4 device=cpu device.threads=1"
    for name, seed in (("a", 0), ("b", 1), ("RUN", 2)):
        call(tmp_path, f"{tiny} seed={seed} output=runs/{name}")
    for name in ("pre", "flair", "post", "scan"):
        write_nifti(tmp_path / f"{name}.nii.gz", scan())
    write_dicom(tmp_path / "dicom", scan(), "T2 dark fluid")
    for case in ("P1", "P2"):
        write_nifti(tmp_path / "niftis" / case / f"{case}_flair.nii.gz", scan())
        for number in range(len(CHANNELS)):
            path = tmp_path / "Dataset001" / "imagesTs" / f"{case}_{number:04d}.nii.gz"
            write_nifti(path, scan())
    description = {
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "Dataset001" / "dataset.json").write_text(json.dumps(description))
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((3, 32, 32, 3), np.uint8), photometric="rgb")
    return tmp_path


def placed(line: str) -> str:
    """The command, made small enough to run here."""
    for pattern, instead in PLACED.items():
        line = re.sub(pattern, instead, line)
    of = line.split()[2] if line.split()[1] == "-m" else line.split()[1]
    if of in ("brainseg.train", "brainseg.search", "scripts/leak.py"):
        chosen = re.search(r"(resume|from)=(runs|last)", line)
        if not chosen and "data.path" not in line:
            line += " " + " ".join(SMALL)
        if not chosen and "model" not in line and "sweep=" not in line and "space=" not in line:
            line += " model.depth=2 model.width=4"
        if not re.search(r"epochs=|max_steps=|max_minutes=|(resume|from)=(runs|last)", line):
            line += " max_minutes=0.02" if "experiment=fast" in line else " epochs=1"
        if "device" not in line and not chosen:
            line += " " + " ".join(FEW)
    if "submitit_slurm" in line:
        line += " dry_run=true"
    return line


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    for line in commands(page):
        call(folder, placed(line))
