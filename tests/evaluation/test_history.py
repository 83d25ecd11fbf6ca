"""Which row of a run's history is that of its best checkpoint."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from brainseg.evaluation.history import best_row

VALUES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5]))


def row(epoch: int, dice: float | None, loss: float | None) -> dict[str, Any]:
    values = {"val/dice": dice, "val/loss": loss}
    return {
        "epoch": epoch,
        "metrics": {name: value for name, value in values.items() if value is not None},
    }


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8))
def test_the_best_row_is_the_last_that_training_called_an_improvement(
    scores: list[tuple[float | None, float | None]],
) -> None:
    """Training walks through the epochs and writes best.pt where one is strictly better than the best before it."""
    rows = [row(epoch, dice, loss) for epoch, (dice, loss) in enumerate(scores)]
    best, expected = (-math.inf, -math.inf), None
    for epoch, (dice, loss) in enumerate(scores):
        if dice is not None and (dice, -(math.inf if loss is None else loss)) > best:
            best, expected = (dice, -(math.inf if loss is None else loss)), epoch
    if expected is not None:
        assert best_row(rows)["epoch"] == expected
