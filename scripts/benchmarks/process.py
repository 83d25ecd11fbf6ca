"""Benchmark of commands: start-up, prepare, and the memory of a training on a full-size cohort."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Bar, Section, Spread, Table, measure_in_turns, ratio
from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import ensure_cohort

# The number of patients of the public dataset, each of one volume.
FULL = 110
# This program ends right after the first step, because the end of a process is no part of its
# start-up.
STARTUP = (
    "import os, sys; from brainseg import train; from brainseg.runs import callbacks; "
    "callbacks.RunCallbacks._after_step = lambda *_: os._exit(0); "
    "sys.argv[1:] = {arguments!r}; train.main()"
)


# A small process between this one and the command. A process inherits the peak memory of its
# parent, and that of this process is gigabytes.
WATCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([time.perf_counter() - started, usage.ru_maxrss, process.returncode]))
"""


def seconds_of(command: list[str], folder: str | Path) -> tuple[float, float]:
    """Return the seconds and the peak memory in GB of a command. Its output is discarded."""
    # The option -S skips the site packages, so that the watcher itself starts quickly.
    watcher = [sys.executable, "-S", "-c", WATCHER, *command]
    seconds, peak, code = json.loads(
        subprocess.run(watcher, cwd=folder, check=True, capture_output=True, text=True).stdout
    )
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    # macOS reports the peak in bytes, Linux in KiB.
    return seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def start_up(rounds: int) -> tuple[list[list[str]], Bar]:
    """Measure the time from the command to the first step, and compare it with the imports alone.

    The phantom and the MLflow store already exist.
    """
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
        # The first run creates MLflow's store, which is not part of the start-up.
        seconds_of([sys.executable, "-m", "brainseg.train", *tiny], folder)
        count = iter(range(10**6))

        def first_step() -> float:
            arguments = [*tiny[:-1], f"output=run{next(count)}"]
            command = [sys.executable, "-c", STARTUP.format(arguments=arguments)]
            return seconds_of(command, folder)[0]

        imports = [sys.executable, "-c", "import torch, mlflow, hydra"]
        times = measure_in_turns(
            {"first step": first_step, "imports": lambda: seconds_of(imports, folder)[0]}, rounds
        )
    slowdown = ratio(times["first step"], times["imports"])
    bar = Bar(
        "start-up to the first step, relative to `import torch, mlflow, hydra`",
        "at most 1.5",
        slowdown.text(2),
        slowdown.median <= 1.5,
    )
    return [[name, Spread.of(seconds).text(2)] for name, seconds in times.items()], bar


def of_full_size(source: Path, folder: Path) -> Path:
    """Write a cohort of 110 volumes, the size of the public dataset, and return its folder.

    If `source` has fewer volumes, some are repeated under other names.
    """
    names = sorted(path.name for path in source.iterdir() if path.is_dir())
    target = folder / "kaggle_3m"
    for number in range(FULL):
        name = names[number % len(names)]
        copy = name if number < len(names) else name.replace("_", f"X{number // len(names)}_", 1)
        (target / copy).mkdir(parents=True)
        for path in (source / name).iterdir():
            shutil.copyfile(path, target / copy / path.name.replace(name, copy))
    return target


def measure(rounds: int, source: Path) -> Section:
    """Measure start-up, prepare and train. `source` is a folder with the layout of kaggle_3m."""
    start_rows, start_bar = start_up(rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cohort = of_full_size(source, folder)
        # A copy of a patient counts as the same patient: `prepare` refuses it otherwise.
        prepare = [
            sys.executable,
            "-m",
            "brainseg.prepare",
            f"source={cohort}",
            "output=lgg.h5",
            "on_duplicate=keep_together",
        ]
        first, memory = seconds_of(prepare, folder)
        # A second start finds the file complete and has nothing to do.
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
            start_rows,
            "The data are prepared, and the MLflow store exists. The first step is complete.",
        ),
        Table(
            "The full set",
            ["", "cost"],
            rows,
            f"{FULL} volumes. If the source has fewer, some are repeated. "
            "Memory is the peak of the process.",
        ),
    ]
    return Section(tables, [start_bar, bar])
