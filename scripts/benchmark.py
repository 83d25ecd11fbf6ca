"""Measure this machine and this project: steps, epoch, inference, start-up, memory, growth; say of each promised figure whether it is met.

    python scripts/benchmark.py source=kaggle_3m                 all of it, about half an hour; writes benchmarks/benchmark.md and .json
    python scripts/benchmark.py only=steps,inference rounds=9    a part
    python scripts/benchmark.py                                  on the phantom

    source   a folder as kaggle_3m; without it the phantom's
    only     of steps, epoch, inference, process, growth
    rounds   how many times the contestants take turns (5)
    output   the folder written to (benchmarks)

Quiet the machine first: ratios are taken round by round, and forgive much, but not everything.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import epoch, growth, inference, page, process, steps
from benchmarks.measure import Section
from brainseg.config import PhantomConfig
from brainseg.config.overrides import values_by_setting
from brainseg.data.conversion import convert
from brainseg.data.phantom.cohort import ensure_cohort

DEFAULTS = {
    "source": "",
    "only": "steps,epoch,inference,process,growth",
    "rounds": "5",
    "output": "benchmarks",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        steps.work(arguments[1], json.loads(arguments[2]))
        return 0
    typed = values_by_setting(arguments)
    if unknown := typed.keys() - DEFAULTS.keys():
        print(
            __doc__
            if unknown & {"-h", "--help"}
            else f"error: {sorted(unknown)[0]}: no such setting; known: {', '.join(DEFAULTS)}"
        )
        return 0 if unknown & {"-h", "--help"} else 2
    asked = DEFAULTS | typed
    rounds = int(asked["rounds"])
    with tempfile.TemporaryDirectory() as folder:
        source = (
            Path(asked["source"])
            if asked["source"]
            else ensure_cohort(PhantomConfig()).with_suffix("") / "kaggle_3m"
        )
        path = str(Path(folder) / "cohort.h5")
        convert(source, path)
        parts: dict[str, Callable[[], Section]] = {
            "steps": lambda: steps.measure(rounds, steps.REFERENCE),
            "epoch": lambda: epoch.measure(rounds, path),
            "inference": lambda: inference.measure(rounds, path),
            "process": lambda: process.measure(rounds, source),
            "growth": lambda: growth.measure(rounds),
        }
        if unknown := set(asked["only"].split(",")) - parts.keys():
            print(
                f"error: only={','.join(sorted(unknown))}: no such part; known: {', '.join(parts)}",
                file=sys.stderr,
            )
            return 2
        done: dict[str, Section] = {}
        for name in asked["only"].split(","):
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            done[name] = parts[name]()
    print(
        page.write(
            Path(asked["output"]), done, " ".join(["python scripts/benchmark.py", *arguments])
        )
    )
    print(f"written to {asked['output']}: benchmark.md, benchmark.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
