"""Fair timing on a machine with other load.

The contestants take turns, ratios are computed round by round, and medians are reported.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"


@dataclass(frozen=True)
class Spread:
    """The median, the smallest and the largest of repeated measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.lowest:.{digits}f} to {self.highest:.{digits}f})"


@dataclass(frozen=True)
class Bar:
    """A figure that the project has promised. `met` is None if this machine cannot measure it."""

    what: str
    rule: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Table:
    """A table of the page, with a note on how its figures were measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    tables: Sequence[Table]
    bars: Sequence[Bar] = ()

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def measure_in_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Return the figure of each contestant per round.

    The contestants take turns, so that a slow minute affects all of them.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    # The first round warms up the contestants, and its figures are discarded.
    for name in contestants:
        contestants[name]()
    for _ in range(rounds):
        for name, turn in contestants.items():
            figures[name].append(turn())
    return figures


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Return the ratio of two contestants, computed round by round."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


class Worker:
    """A contestant in a separate process.

    Its threads, precision and allocator settings affect no other contestant. The process runs
    `benchmark.py --worker KIND SETTINGS`, and answers each line of its input with one number.
    Between the lines it is idle.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, str(SCRIPT), "--worker", kind, json.dumps(settings)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        return float(self.ask("turn"))

    def ask(self, question: str) -> Any:
        """Return the worker's answer to a question, which is a key of the turns that it serves."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        # An empty line means that the process has ended.
        if not line:
            raise RuntimeError(
                f"{' '.join(self.process.args[2:4])} ended with {self.process.wait()}"
            )  # type: ignore[index]
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        # The end of its input ends the loop in `serve`.
        self.process.stdin.close()
        self.process.wait()


def serve(turns: Mapping[str, Callable[[], Any]]) -> None:
    """Answer each line of stdin with the result of the turn that it names.

    This is the loop of the process that a Worker starts.
    """
    for line in sys.stdin:
        print(json.dumps(turns[line.strip()]()), flush=True)
