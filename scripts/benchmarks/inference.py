"""Benchmark of inference: the forward pass in images per second, and patients in seconds."""

import time
from typing import Any

from benchmarks.measure import Bar, Section, Spread, Table, Worker, measure_in_turns, ratio
from benchmarks.steps import PLAIN_KEPT, REFERENCE, available_settings
from brainseg.config import DeviceConfig, InferenceConfig, UNetConfig
from brainseg.data.dataset import MRIDataset
from brainseg.data.store import Store
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.models import networks


def measure(rounds: int, path: str) -> Section:
    """Measure the forward pass by setting and batch, and the patients of the file at `path`."""
    workers = {
        "plain, batch 8": Worker("forward", {"shape": REFERENCE, "device": None, "batch": 8})
    }
    workers["plain, memory kept, batch 8"] = Worker(
        "forward", {"shape": REFERENCE, "device": PLAIN_KEPT, "batch": 8}
    )
    for name, device in available_settings().items():
        for batch in (1, 8, 16, 32):
            workers[f"{name}, batch {batch}"] = Worker(
                "forward", {"shape": REFERENCE, "device": device, "batch": batch}
            )
    rates = measure_in_turns(workers, rounds)
    for worker in workers.values():
        worker.close()
    rows: list[list[Any]] = []
    for name, values in rates.items():
        speedup = ratio(values, rates["plain, batch 8"])
        rows.append([name, Spread.of(values).text(), speedup.text(2)])
    best = max(
        (name for name in rates if not name.startswith("plain")),
        key=lambda name: Spread.of(rates[name]).median,
    )
    # The plain forward pass is measured twice, because the memory settings alone make it faster.
    speedup = ratio(rates[best], rates["plain, batch 8"])
    kept_speedup = ratio(rates[best], rates["plain, memory kept, batch 8"])
    bar = Bar(
        "speed of inference, relative to the plain float32 forward pass at batch 8",
        "at least 5",
        f"{speedup.text(2)}, {best}; {kept_speedup.text(2)} if the plain pass keeps its memory",
        speedup.median >= 5,
    )
    forward = Table(
        "Inference: the forward pass of the reference's network",
        ["setting", "images/s", "times plain"],
        rows,
        "256 x 256 pixels, images in memory, random weights.",
    )
    return Section([forward, patients(path)], [bar])


def patients(path: str) -> Table:
    """Measure the seconds per patient for reading, normalising, segmenting and scoring.

    The code is that of validation, test and evaluate.
    """
    rows = []
    with Store(path) as store:
        # Eight patients from the whole range of the file.
        chosen = store.patients[:: max(1, len(store.patients) // 8)][:8]
        for name, settings in available_settings().items():
            device = choose_device(DeviceConfig(**settings))
            dataset = MRIDataset(store, patients=chosen)
            model = device.place(
                networks.build_network(
                    UNetConfig(depth=4, width=32, growth=1), dataset.channels, 1, dataset.size
                )
            )
            for flips in ("none", "both"):
                inference = InferenceConfig(flips=flips, components="largest")
                times = []
                # `evaluate` is a generator, so that each patient can be timed separately.
                results = evaluate(model, dataset, inference, device, 8)
                for _ in dataset.volumes:
                    started = time.perf_counter()
                    next(results)
                    times.append(time.perf_counter() - started)
                slices = len(dataset) / len(dataset.volumes)
                rows.append(
                    [
                        name,
                        flips,
                        Spread.of(times).text(2),
                        f"{slices / Spread.of(times).median:.1f}",
                    ]
                )
    note = (
        f"{len(chosen)} patients of {round(slices)} slices on average, read from the file. "
        "Only the largest component is kept."
    )
    columns = ["setting", "flips", "seconds per patient", "slices/s"]
    return Table("Inference: whole patients", columns, rows, note)
