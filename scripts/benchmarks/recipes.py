"""Benchmark of the training steps of `experiment=fast`, and of the recipe before it.

Both with their loss and AdamW, on random images. Reading slices and augmentation are not measured.
"""

from typing import Any

from benchmarks.measure import Bar, Section, Spread, Table, Worker, measure_in_turns, ratio
from benchmarks.steps import available_settings

# Three slices of three sequences, in batches of 16, as in both recipes.
SHARED = {"channels": 9, "batch": 16, "width": 16, "growth": 2, "optimizer": "adamw"}
FORMER = SHARED | {"depth": 5, "stem": 1, "loss": {"name": "bce_dice"}}
FAST = SHARED | {
    "depth": 4,
    "stem": 2,
    "loss": {"name": "bce_dice", "options": {"slice_weight": 0.5}},
}
# Progressive resizing halves both sides of the training image. The window of the public dataset is
# 224 x 192 pixels.
CONTESTANTS: dict[str, dict[str, Any]] = {
    "the former recipe, 256 x 256": FORMER | {"size": 256},
    "the former recipe, half size": FORMER | {"size": 128},
    "the former network with `data.window=auto`, 224 x 192": FORMER | {"size": [224, 192]},
    "`model.stem=2 model.depth=4`, 256 x 256": FAST | {"size": 256},
    "`fast`, 224 x 192": FAST | {"size": [224, 192]},
    "`fast`, half size": FAST | {"size": [112, 96]},
}


def baseline(name: str) -> str:
    """Return the former recipe at the same stage of progressive resizing."""
    return f"the former recipe, {'half size' if name.endswith('half size') else '256 x 256'}"


def measure(rounds: int) -> Section:
    """Measure the steps of both recipes, in each precision that this machine supports."""
    tables, bars = [], []
    for setting, device in available_settings().items():
        workers = {
            name: Worker("recipe", {"shape": shape, "device": device})
            for name, shape in CONTESTANTS.items()
        }
        rates = measure_in_turns(workers, rounds)
        rows = []
        for name in workers:
            speedup = ratio(rates[name], rates[baseline(name)])
            rows.append([name, Spread.of(rates[name]).text(), speedup.text(2)])
            if setting == "cpu" and name.startswith("`fast`"):
                figure = f"speed of a step in float32: {name}, relative to {baseline(name)}"
                bars.append(Bar(figure, "at least 2", speedup.text(2), speedup.median >= 2))
        description = next(iter(workers.values())).ask("device")
        for worker in workers.values():
            worker.close()
        columns = ["network and training image", "images/s", "times the former recipe"]
        note = (
            f"{description}. A step is forward, backward and the optimizer. Half size is compared "
            f"with half size, all others with 256 x 256. Medians of {rounds} rounds, with the "
            "smallest and the largest value in brackets."
        )
        tables.append(Table(f"Steps of the recipes, {setting}", columns, rows, note))
    return Section(tables, bars)
