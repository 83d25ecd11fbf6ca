"""What a run or an evaluation leaves for a reader: patients.csv, slices.csv, summary.json, predictions.h5, pictures, viewer.html."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.core.files import write_json
from brainseg.data.dataset import MRIDataset
from brainseg.data.volume import main_channel
from brainseg.evaluation.evaluate import PatientResult
from brainseg.evaluation.metrics import MISSED_DICE, PatientScore, summarise
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports import overlays, tables, viewer
from brainseg.reports.predictions import Prediction, write_predictions

PREFIX = {
    "train": "train",
    "validation": "val",
    "test": "test",
    "unknown": "unknown",
}  # role of a patient -> name of its metrics


def summarise_by_role(rows: Sequence[tuple[PatientScore, str]]) -> dict[str, float]:
    """The metrics of (score, role) rows, each role under its own prefix; none without a row."""
    of_role: dict[str, list[PatientScore]] = {}
    for score, role in rows:
        of_role.setdefault(role, []).append(score)
    return {
        name: value
        for role, scores in of_role.items()
        for name, value in summarise(scores, PREFIX[role]).items()
    }


def _absences(metric: str, scores: Sequence[PatientScore]) -> list[str]:
    """Return a line on each mean Dice that contains patients without the tumour, or the class.

    Their Dice is 1 or 0 by definition, so that a network that predicts nothing scores 1 on them.
    The line gives the mean over the other patients.
    """
    of_class: dict[str, Sequence[PatientScore]] = {
        f"{metric}/{label}": [score.classes[label] for score in scores]
        for label in scores[0].classes
    }
    of_class = of_class or {metric: scores}
    lines = []
    for name, its_scores in of_class.items():
        present = [score.dice for score in its_scores if score.tumour_pixels]
        absent = len(its_scores) - len(present)
        if absent:
            what = name.removeprefix(f"{metric}/") if name != metric else "tumour"
            others = (
                f"mean of the other {len(present)}: {np.mean(present):.4f}"
                if present
                else "no other patient"
            )
            lines.append(
                f"{name}: {tables.format_count(absent, 'patient')} without {what}, "
                f"where Dice is 1 if none is predicted, else 0; {others}"
            )
    return lines


class Results:
    """Scores by role, never pooled over roles, and the masks of those to be drawn."""

    def __init__(self, dataset: MRIDataset, predictions: str = "none") -> None:
        """`predictions` says what `write` keeps of each patient: none, masks or probabilities (64 KB a slice until then)."""
        self.dataset = dataset
        self.rows: list[tuple[PatientScore, str]] = []
        self._masks: dict[str, bytes] = {}
        self._slices: dict[str, np.ndarray] = {}
        self._keep = predictions
        self._predictions: list[Prediction] = []

    def add(self, evaluated: Iterable[PatientResult], roles: Mapping[str, str]) -> None:
        """Take the patients of an evaluation; `roles` is by volume. Masks are kept compressed: 0.3 KB a slice."""
        for one in evaluated:
            self.rows.append((one.score, roles[one.score.patient]))
            self._masks[one.score.patient] = zlib.compress(one.prediction.tobytes(), level=1)
            true, predicted = one.truth > 0, one.prediction > 0
            self._slices[one.score.patient] = np.stack(
                [m.sum(axis=(1, 2)) for m in (true, predicted, true & predicted)], axis=1
            )
            if self._keep != "none":
                kept = one.probability if self._keep == "probabilities" else None
                self._predictions.append(
                    Prediction.of(one.score.patient, roles[one.score.patient], one.prediction, kept)
                )

    def metrics(self) -> dict[str, float]:
        """The summary of each role under its own prefix."""
        return summarise_by_role(self.rows)

    def explained(self) -> str:
        """What a reader of the table must know: how sure the mean Dice of each role is, what is no mean over patients, the unit."""
        lines = []
        for role, prefix in PREFIX.items():
            dice = np.array([score.dice for score in self.of(role)])
            if len(dice):
                interval = (
                    "95 % interval {:.3f} to {:.3f}".format(*bootstrap(dice))
                    if len(dice) > 1
                    else "no interval"
                )
                lines.append(
                    f"{prefix}/dice of {tables.format_count(len(dice), 'patient')}: {interval}"
                )
                lines += _absences(f"{prefix}/dice", self.of(role))
        unit = "mm" if self.dataset.in_mm else "pixels"
        lines.append(
            f"Means over patients, but: patients_missed counts those with a tumour and a Dice below {MISSED_DICE}; "
            "empty_slice_false_positives"
        )
        lines.append(
            f"is a share of all slices without tumour; hd95 is the median over patients, in {unit}; hd95_undefined counts those "
            "without."
        )
        return "\n".join(lines)

    def of(self, role: str) -> list[PatientScore]:
        return [score for score, its_role in self.rows if its_role == role]

    def write(
        self, folder: Path, further: dict[str, Any], pictures: bool = True
    ) -> dict[str, float]:
        """Write patients.csv, slices.csv, summary.json ({"metrics", **further}), pictures/overlays.png and what else was asked for.

        Returns the metrics.
        """
        metrics = self.metrics()
        order = list(PREFIX)
        self.rows.sort(key=lambda row: (order.index(row[1]), row[0].patient))
        tables.patients_csv(self.rows, folder / "patients.csv")
        tables.slices_csv(
            {score.patient: self._slices[score.patient] for score, _ in self.rows},
            folder / "slices.csv",
        )
        if self._predictions:
            write_predictions(folder / "predictions.h5", self._predictions)
        else:
            (folder / "predictions.h5").unlink(missing_ok=True)  # of scores that these replace
        write_json(folder / "summary.json", {**further, "metrics": metrics})
        if pictures:
            overlays.draw_overlays(self._cases(), folder / "pictures" / "overlays.png")
        else:
            (folder / "pictures" / "overlays.png").unlink(missing_ok=True)
        return metrics

    def _cases(self) -> list[overlays.Case]:
        """Best, median and worst patient of the most telling role that is there."""
        role = next(role for role in ("test", "unknown", "validation", "train") if self.of(role))
        scores = self.of(role)
        store = self.dataset.store
        cases = []
        for label, index in overlays.pick_cases(scores):
            start, stop = store.rows_of(scores[index].patient)
            truth = store.masks(start, stop)[:, 0]
            kept = self._mask(scores[index].patient, truth.shape)
            channel = main_channel(store.channels)
            cases.append(
                overlays.Case(
                    scores[index].patient,
                    scores[index].dice,
                    store.images(start, stop),
                    truth,
                    kept,
                    channel,
                    label,
                    store.classes,
                )
            )
        return cases

    def _mask(self, patient: str, shape: tuple[int, ...]) -> np.ndarray:
        """What was predicted, uint8 (S, H, W)."""
        return np.frombuffer(zlib.decompress(self._masks[patient]), np.uint8).reshape(shape)

    def view(self, path: Path, count: int, run: str, title: str, notes: Sequence[str]) -> None:
        """Write the page viewer.html of the `count` most telling patients; `run` names what predicted, `notes` stand on top."""
        chosen = viewer.choose_slices([(role, score.dice) for score, role in self.rows], count)
        left_out = [
            score.patient for index, (score, _) in enumerate(self.rows) if index not in chosen
        ]
        store = self.dataset.store

        def case(score: PatientScore, role: str) -> viewer.Case:
            mask = self._mask(score.patient, (score.slices, *store.shape[2:]))
            return viewer.case_of(store, score.patient, [mask], [score.dice], role)

        viewer.write_viewer(
            path,
            (case(*self.rows[index]) for index in chosen),
            [run],
            title,
            notes,
            store.classes,
            left_out,
        )
