"""Pictures of a run's progress: its curves, and one validation patient with truth and prediction.

They are drawn while the run trains, at most once per `pictures.every_minutes`, and for at most 1 %
of the time: a drawing takes about a second on a CPU.
"""

import time
from pathlib import Path

from brainseg.data.dataset import MRIDataset
from brainseg.data.volume import main_channel
from brainseg.evaluation.evaluate import PatientResult
from brainseg.training.state import State

# The pause until the next drawing is at least this many times the duration of the last one.
PATIENCE = 100


class LivePictures:
    """Drawings in `pictures/` of a run folder: curves.png and validation.png.

    The patient of validation.png is the one with the most tumour pixels, so that all drawings of a
    run show the same patient.
    """

    def __init__(self, folder: Path, validation: MRIDataset, every_minutes: float | None) -> None:
        self.folder, self.store, self.every_minutes = folder, validation.store, every_minutes
        self.due_at = time.monotonic() + 60 * (every_minutes or 0)
        self.result: PatientResult | None = None
        sizes = {
            name: self.store.tumour_pixels[slice(*self.store.rows_of(name))].sum()
            for name in (self.store.volumes[volume] for volume in validation.volumes)
        }
        self.patient = max(sizes, key=lambda name: sizes[name], default=None)

    def add(self, result: PatientResult) -> None:
        """Keep the result of the patient that is drawn."""
        if result.score.patient == self.patient:
            self.result = result

    def draw(self, state: State) -> bool:
        """Draw the pictures if they are due, and return True if so. Call this after an epoch."""
        started = time.monotonic()
        if self.every_minutes is None or started < self.due_at:
            return False
        # matplotlib takes a second to import, and many runs end before the first drawing.
        from brainseg.reports import figures, overlays

        figures.draw_curves(state.history, self.folder / "curves.png")
        if self.result is not None:
            start, stop = self.store.rows_of(self.result.score.patient)
            case = overlays.Case(
                self.result.score.patient,
                self.result.score.dice,
                self.store.images(start, stop),
                self.result.truth,
                self.result.prediction,
                main_channel(self.store.channels),
                f"epoch {state.epoch - 1}",
                self.store.classes,
            )
            overlays.draw_overlays([case], self.folder / "validation.png")
            self.result = None
        seconds = time.monotonic() - started
        self.due_at = started + max(60 * self.every_minutes, PATIENCE * seconds)
        return True
