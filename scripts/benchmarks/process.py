"""Whole commands: start-up, prepare, and the memory of a training on a cohort of the full set's size."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Bar, Section, Spread, Table, interleaved, ratio
from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import ensure_cohort

FULL = 110  # patients of the public set
# Up to the end of the first step. What a process does when it ends is no part of its start, so it ends there and then.
STARTUP = (
    "import os, sys; from brainseg import train; from brainseg.runs import callbacks; "
    "callbacks.Watch._after_step = lambda *_: os._exit(0); sys.argv[1:] = {arguments!r}; train.main()"
)


# Between us and the command, because a process begins with the peak of the one that started it, and ours is of gigabytes.
WATCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([time.perf_counter() - started, usage.ru_maxrss, process.returncode]))
"""


def seconds_of(command: list[str], folder: str | Path) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command; what it prints is thrown away."""
    watched = [sys.executable, "-S", "-c", WATCHER, *command]
    seconds, peak, code = json.loads(
        subprocess.run(watched, cwd=folder, check=True, capture_output=True, text=True).stdout
    )
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    return seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def start_up(rounds: int) -> tuple[list[list[str]], Bar]:
    """From the command to the first step on a prepared phantom and an initialised store, against the imports alone."""
    with tempfile.TemporaryDirectory() as folder:
        data = ensure_cohort(PhantomConfig(patients=6, slices=4, size=32, folder=folder))
        tiny = [
            f"data.path={data}",
            "model.depth=2",
            "model.width=2",
            "epochs=1",
            "split=kfold",
            "split.folds=3",
            "output=first",
        ]
        seconds_of([sys.executable, "-m", "brainseg.train", *tiny], folder)  # makes MLflow's store
        count = iter(range(10**6))

        def first_step() -> float:
            arguments = [*tiny[:-1], f"output=run{next(count)}"]
            return seconds_of([sys.executable, "-c", STARTUP.format(arguments=arguments)], folder)[
                0
            ]

        imports = [sys.executable, "-c", "import torch, mlflow, hydra"]
        said = interleaved(
            {"first step": first_step, "imports": lambda: seconds_of(imports, folder)[0]}, rounds
        )
    slower = ratio(said["first step"], said["imports"])
    bar = Bar(
        "start-up to the first step, times `import torch, mlflow, hydra`",
        "at most 1.5",
        slower.text(2),
        slower.median <= 1.5,
    )
    return [[name, Spread.of(found).text(2)] for name, found in said.items()], bar


def of_full_size(source: Path, folder: Path) -> Path:
    """A cohort of the public set's 110 patients: those of `source`, the first ones again under other names."""
    names = sorted(path.name for path in source.iterdir() if path.is_dir())
    target = folder / "kaggle_3m"
    for number in range(FULL):
        name = names[number % len(names)]
        again = name if number < len(names) else name.replace("_", f"X{number // len(names)}_", 1)
        (target / again).mkdir(parents=True)
        for path in (source / name).iterdir():
            shutil.copyfile(path, target / again / path.name.replace(name, again))
    return target


def measure(rounds: int, source: Path) -> Section:
    """`source` is a folder as kaggle_3m."""
    started, start_bar = start_up(rounds)
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        cohort = of_full_size(source, folder)
        prepare = [sys.executable, "-m", "brainseg.prepare", f"source={cohort}", "output=lgg.h5"]
        first, memory = seconds_of(prepare, folder)
        again, _ = seconds_of(prepare, folder)
        size = (folder / "lgg.h5").stat().st_size / 1e6
        train = [
            sys.executable,
            "-m",
            "brainseg.train",
            "data.path=lgg.h5",
            "data.context=1",
            "max_minutes=0.5",
            "tracking=none",
        ]
        _, resident = seconds_of([*train, "output=a"], folder)
        _, lazy = seconds_of([*train, "data.resident=no", "output=b"], folder)
    rows = [
        ["prepare, first time", f"{first:.1f} s, {memory:.2f} GB"],
        ["prepare, nothing to do", f"{again:.1f} s"],
        ["the file", f"{size:.0f} MB"],
        ["train, slices in memory", f"{resident:.2f} GB"],
        ["train, slices from the file (data.resident=no)", f"{lazy:.2f} GB"],
    ]
    bar = Bar(
        "memory of a training on the full set", "under 3 GB", f"{resident:.2f} GB", resident < 3
    )
    tables = [
        Table(
            "Start-up",
            ["to", "seconds"],
            started,
            "Prepared data, an MLflow store that is there. The first step is a whole one.",
        ),
        Table(
            "The full set",
            ["", "cost"],
            rows,
            f"{FULL} patients: those at hand, some twice. Memory is the process's peak.",
        ),
    ]
    return Section(tables, [start_bar, bar])
