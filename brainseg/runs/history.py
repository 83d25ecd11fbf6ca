"""The rows of metrics.jsonl: which epoch best.pt is of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the epoch whose weights are best.pt; `rows` must not be empty.

    That is the highest val/dice, of equal ones the lowest val/loss, then the earliest, as in training.
    """
    return max(rows, key=_rank)


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    dice, loss = (row["metrics"].get(name) for name in ("val/dice", "val/loss"))
    return (-1.0 if dice is None else dice, -math.inf if loss is None else -loss)
