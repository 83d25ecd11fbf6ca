"""Fair times on a machine that is not quiet: contestants take turns, ratios are taken round by round, medians are reported."""

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
    """The median of repeated measurements, and the least and the largest of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


@dataclass(frozen=True)
class Bar:
    """A figure that the project has promised. `met` is None where it could not be measured here."""

    what: str
    rule: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Table:
    """One table of the page: rows of numbers and words under these columns, and a line or two on how they were taken."""

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


def interleaved(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """What each contestant says per round, all of them in turn, so that a slow minute slows all; one round before is thrown away."""
    said: dict[str, list[float]] = {name: [] for name in contestants}
    for name in contestants:
        contestants[name]()
    for _ in range(rounds):
        for name, turn in contestants.items():
            said[name].append(turn())
    return said


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of two contestants, round by round."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


class Worker:
    """A contestant in a process of its own: its threads, precision and allocator settings are nobody else's.

    It runs `benchmark.py --worker KIND SETTINGS`, and answers each line it is sent with one number. Idle, it only waits for the next.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, str(SCRIPT), "--worker", kind, json.dumps(settings)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        return float(self.ask("turn"))

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{' '.join(self.process.args[2:4])} ended with {self.process.wait()}"
            )  # type: ignore[index]
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(turns: Mapping[str, Callable[[], Any]]) -> None:
    """The other end of a Worker: answer each line of stdin by calling what it names."""
    for line in sys.stdin:
        print(json.dumps(turns[line.strip()]()), flush=True)
