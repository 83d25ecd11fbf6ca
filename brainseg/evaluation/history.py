"""Rows of metrics.jsonl, and the choice of the best epoch among them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the epoch whose weights are in best.pt.

    The best epoch has the highest val/dice. Among equal values the lowest val/loss decides, then
    the earliest epoch, as in training. Without any validation it is the last epoch. `rows` must not
    be empty.
    """
    if not any("val/dice" in row["metrics"] for row in rows):
        return rows[-1]
    return max(rows, key=_rank)


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return a sort key; an epoch without validation ranks below all others."""
    dice, loss = (row["metrics"].get(name) for name in ("val/dice", "val/loss"))
    return (-1.0 if dice is None else dice, -math.inf if loss is None else -loss)
