"""Benchmark of scaling: steps by network and batch, prepare by patients, sweeps by runs."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Section, Spread, Table
from benchmarks.process import seconds_of
from benchmarks.steps import REFERENCE, Steps
from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import ensure_cohort

VARIED: dict[str, tuple[int, ...]] = {
    "depth": (2, 3, 4, 5, 6),
    "width": (8, 16, 32, 64),
    "growth": (1, 2),
    "size": (64, 128, 256, 512),
    "batch": (1, 4, 8, 16, 32),
    "channels": (1, 3, 9),
}


def steps(rounds: int) -> Table:
    """Measure images per second while one property varies, with device=auto.

    All other properties are those of the reference network.
    """
    rows: list[list[Any]] = []
    for name, values in VARIED.items():
        for value in values:
            work = Steps(REFERENCE | {name: value}, {"name": "auto", "precision": "auto"})
            parameters = sum(parameter.numel() for parameter in work.model.parameters())
            # The first step is a warm-up and is not counted.
            work.rate(1)
            rates = [work.rate(1) for _ in range(rounds)]
            milliseconds = 1000 * work.shape["batch"] / Spread.of(rates).median
            rows.append(
                [
                    f"{name}={value}",
                    f"{parameters:,}",
                    Spread.of(rates).text(),
                    f"{milliseconds:.0f}",
                ]
            )
    note = (
        f"device=auto: {work.device.description}. "
        "All other properties are those of the reference network."
    )
    columns = ["varied", "parameters", "images/s", "ms per step"]
    return Table("Growth of a step", columns, rows, note)


def cohorts() -> Table:
    """Measure the seconds of prepare by the number of patients."""
    rows = []
    for patients in (8, 16, 32, 64):
        with tempfile.TemporaryDirectory() as folder:
            data = ensure_cohort(
                PhantomConfig(patients=patients, slices=16, size=128, folder=folder)
            )
            source = data.with_suffix("") / "kaggle_3m"
            seconds, memory = seconds_of(
                [sys.executable, "-m", "brainseg.prepare", f"source={source}", "output=again.h5"],
                folder,
            )
        rows.append([str(patients), f"{seconds:.2f}", f"{memory:.2f}"])
    note = "Patients of 16 slices of 128 x 128 pixels. The start of the process is included."
    return Table("Growth of prepare", ["patients", "seconds", "GB at the peak"], rows, note)


def sweeps() -> Table:
    """Measure sweeps of tiny runs by the number of runs.

    The first start includes the comparison at the end. A second start finds all runs finished.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = ensure_cohort(PhantomConfig(patients=6, slices=4, size=32, folder=folder))
        tiny = [
            f"data.path={data}",
            "model.depth=2",
            "model.width=2",
            "epochs=1",
            "split=kfold",
            "split.folds=3",
        ]
        for jobs in (4, 8, 16, 32):
            sweep = [
                sys.executable,
                "-m",
                "brainseg.train",
                "-m",
                f"seed=range({jobs})",
                *tiny,
                f"output=runs{jobs}",
            ]
            first, memory = seconds_of(sweep, folder)
            again, _ = seconds_of(sweep, folder)
            rows.append(
                [str(jobs), f"{first:.1f}", f"{first / jobs:.2f}", f"{again:.1f}", f"{memory:.2f}"]
            )
            assert len(list((Path(folder) / f"runs{jobs}").glob("unet-*"))) == jobs
    columns = [
        "runs",
        "seconds",
        "seconds per run",
        "seconds if all are finished",
        "GB at the peak",
    ]
    note = (
        "The runs have only a few steps, so that everything else is measured: MLflow, pictures, "
        "and the comparison at the end."
    )
    return Table("Growth of a sweep", columns, rows, note)


def measure(rounds: int) -> Section:
    return Section([steps(rounds), cohorts(), sweeps()])
