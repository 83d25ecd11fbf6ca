"""Inference: images a second of the forward pass against the plain one, and seconds a patient of what evaluate does."""

import time
from typing import Any

from benchmarks.measure import Bar, Section, Spread, Table, Worker, interleaved, ratio
from benchmarks.steps import PLAIN_KEPT, REFERENCE, here
from brainseg.config import DeviceConfig, InferenceConfig, UNetConfig
from brainseg.data.dataset import MRIDataset
from brainseg.data.store import Store
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.models import networks


def measure(rounds: int, path: str) -> Section:
    """The forward pass by setting and batch, and whole patients of the file at `path`."""
    workers = {
        "plain, batch 8": Worker("forward", {"shape": REFERENCE, "device": None, "batch": 8})
    }
    workers["plain, memory kept, batch 8"] = Worker(
        "forward", {"shape": REFERENCE, "device": PLAIN_KEPT, "batch": 8}
    )
    for name, device in here().items():
        for batch in (1, 8, 16, 32):
            workers[f"{name}, batch {batch}"] = Worker(
                "forward", {"shape": REFERENCE, "device": device, "batch": batch}
            )
    rates = interleaved(workers, rounds)
    for worker in workers.values():
        worker.close()
    rows: list[list[Any]] = []
    for name, found in rates.items():
        rows.append([name, Spread.of(found).text(), ratio(found, rates["plain, batch 8"]).text(2)])
    best = max(
        (name for name in rates if not name.startswith("plain")),
        key=lambda name: Spread.of(rates[name]).median,
    )
    faster = ratio(rates[best], rates["plain, batch 8"])
    kept = ratio(rates[best], rates["plain, memory kept, batch 8"])
    said = f"{faster.text(2)}, {best}; {kept.text(2)} where the plain one keeps its memory, too"
    bar = Bar(
        "inference, times the plain float32 forward at batch 8",
        "at least 5",
        said,
        faster.median >= 5,
    )
    forward = Table(
        "Inference: the forward pass of the reference's network",
        ["setting", "images/s", "times plain"],
        rows,
        "256 x 256 pixels, images in memory, random weights.",
    )
    return Section([forward, patients(path)], [bar])


def patients(path: str) -> Table:
    """Seconds a patient of reading, normalising, segmenting and scoring, by the code of validation, test and evaluate."""
    rows = []
    with Store(path) as store:
        chosen = store.patients[:: max(1, len(store.patients) // 8)][:8]
        for name, settings in here().items():
            device = choose_device(DeviceConfig(**settings))
            dataset = MRIDataset(store, patients=chosen)
            model = device.place(
                networks.build_network(
                    UNetConfig(depth=4, width=32, growth=1), dataset.channels, 1, dataset.size
                )
            )
            for flips in ("none", "both"):
                way = InferenceConfig(flips=flips, components="largest")
                times = []
                evaluated = evaluate(model, dataset, way, device, 8)
                for _ in dataset.volumes:
                    started = time.perf_counter()
                    next(evaluated)
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
    note = f"{len(chosen)} patients of {round(slices)} slices on average, read from the file, largest component kept."
    return Table(
        "Inference: whole patients",
        ["setting", "flips", "seconds a patient", "slices/s"],
        rows,
        note,
    )
