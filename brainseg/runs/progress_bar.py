"""The progress of a run: a bar on a terminal, and elsewhere a line about once a minute."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from brainseg.reports import tables
from brainseg.training.state import State

# Seconds between two lines of progress where stdout is no terminal.
PROGRESS_SECONDS = 60
log = logging.getLogger("brainseg")


class ProgressBar:
    """The progress bar of a run, which vanishes at the end."""

    def __init__(self, bar: tqdm, state: State) -> None:
        self.bar = bar
        self.printed_at = time.monotonic()
        self.restart_pace(state)

    def restart_pace(self, state: State) -> None:
        """Measure the pace of the logged lines from now on."""
        self.started_at, self.first_step = time.monotonic(), state.step

    def advance(self, state: State) -> None:
        """Advance the progress bar, or log a line if the last line is a minute old."""
        if not self.bar.disable:
            self.bar.set_description_str(describe_epoch(state), refresh=False)
            # Under a time budget the number of steps changes with the pace.
            self.bar.total = state.total_steps
            self.bar.update(1)
            return
        now = time.monotonic()
        if now - self.printed_at < PROGRESS_SECONDS:
            return
        self.printed_at = now
        pace = (now - self.started_at) / max(1, state.step - self.first_step)
        log.info(
            "step %d of %d, %s, %s left",
            state.step,
            state.total_steps,
            describe_epoch(state),
            tables.format_duration(pace * (state.total_steps - state.step)),
        )


@contextmanager
def show_progress(state: State) -> Iterator[ProgressBar]:
    """Show the progress of a run during the block."""
    with tqdm(
        desc=describe_epoch(state),
        total=state.total_steps,
        initial=state.step,
        bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} steps, {remaining} left",
        # The mean pace, validations included. The pace of the last steps would jump.
        smoothing=0,
        leave=False,
        disable=None,
        dynamic_ncols=True,
    ) as bar:
        yield ProgressBar(bar, state)


def describe_epoch(state: State) -> str:
    """Return epoch, loss of the last step that was read, and last and best val/dice."""
    # On a GPU the losses of the first epoch are not read before it ends.
    loss = f"{state.last_loss:.3f}" if math.isfinite(state.last_loss) else "-"
    text = f"epoch {state.epoch}, loss {loss}"
    scores = [row["metrics"]["val/dice"] for row in state.history if "val/dice" in row["metrics"]]
    if scores and state.predicts_nothing:
        return f"{text}, no tumour predicted yet"
    return f"{text}, val/dice {scores[-1]:.3f} (best {state.best:.3f})" if scores else text
