"""Benchmark this project on this machine, and compare the figures with the promised ones.

    python scripts/benchmark.py source=kaggle_3m                 everything, about half an hour
    python scripts/benchmark.py only=steps,inference rounds=9    a part
    python scripts/benchmark.py                                  on the phantom

    source   a folder with the layout of kaggle_3m (default: that of the phantom)
    only     a list of steps, recipes, epoch, inference, process, growth (default: all)
    rounds   the number of measurements of each contestant (5)
    output   the folder of benchmark.md and benchmark.json (benchmarks)

Run nothing else on the machine meanwhile. Ratios are computed round by round, which reduces the
effect of other load but does not remove it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import epoch, growth, inference, page, process, recipes, steps
from benchmarks.measure import Section
from brainseg.config import PhantomConfig
from brainseg.config.overrides import values_by_setting
from brainseg.data.conversion import convert
from brainseg.data.phantom.cohort import ensure_cohort

DEFAULTS = {
    "source": "",
    "only": "steps,recipes,epoch,inference,process,growth",
    "rounds": "5",
    "output": "benchmarks",
}


def main(arguments: list[str]) -> int:
    # A worker process is started by `benchmarks.measure.Worker`.
    if arguments[:1] == ["--worker"]:
        steps.work(arguments[1], json.loads(arguments[2]))
        return 0
    overrides = values_by_setting(arguments)
    if unknown := overrides.keys() - DEFAULTS.keys():
        if unknown & {"-h", "--help"}:
            print(__doc__)
            return 0
        name = sorted(unknown)[0]
        print(f"error: {name}: no such setting; choose one of {', '.join(DEFAULTS)}")
        return 2
    settings = DEFAULTS | overrides
    rounds = int(settings["rounds"])
    with tempfile.TemporaryDirectory() as folder:
        source = (
            Path(settings["source"])
            if settings["source"]
            else ensure_cohort(PhantomConfig()).with_suffix("") / "kaggle_3m"
        )
        # The data are converted once, and all parts read the same file.
        path = str(Path(folder) / "cohort.h5")
        convert(source, path)
        parts: dict[str, Callable[[], Section]] = {
            "steps": lambda: steps.measure(rounds, steps.REFERENCE),
            "recipes": lambda: recipes.measure(rounds),
            "epoch": lambda: epoch.measure(rounds, path),
            "inference": lambda: inference.measure(rounds, path),
            "process": lambda: process.measure(rounds, source),
            "growth": lambda: growth.measure(rounds),
        }
        if unknown := set(settings["only"].split(",")) - parts.keys():
            value = f"only={','.join(sorted(unknown))}"
            print(f"error: {value}: no such part; choose from {', '.join(parts)}", file=sys.stderr)
            return 2
        sections: dict[str, Section] = {}
        for name in settings["only"].split(","):
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            sections[name] = parts[name]()
    command = " ".join(["python scripts/benchmark.py", *arguments])
    print(page.write(Path(settings["output"]), sections, command))
    print(f"written to {settings['output']}: benchmark.md, benchmark.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
