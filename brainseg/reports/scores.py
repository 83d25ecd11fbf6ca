"""The results of a run or an evaluation and their files.

The files are patients.csv, slices.csv, summary.json, predictions.h5, pictures/ and viewer.html.
"""

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
from brainseg.evaluation.surfaces import TOLERANCE
from brainseg.reports import overlays, tables, viewer
from brainseg.reports.predictions import Prediction, write_predictions

# The prefix of the metrics of each role.
METRIC_PREFIX = {"train": "train", "validation": "val", "test": "test", "unknown": "unknown"}


def summarise_by_role(rows: Sequence[tuple[PatientScore, str]]) -> dict[str, float]:
    """Return the metrics of (score, role) rows, with the prefix of each role.

    A role without a row has no metrics.
    """
    role_scores: dict[str, list[PatientScore]] = {}
    for score, role in rows:
        role_scores.setdefault(role, []).append(score)
    return {
        name: value
        for role, scores in role_scores.items()
        for name, value in summarise(scores, METRIC_PREFIX[role]).items()
    }


def _describe_absences(metric: str, scores: Sequence[PatientScore], noun: str) -> list[str]:
    """Return a line on each mean Dice that contains patients without the tumour, or the class.

    Their Dice is 1 or 0 by definition, so that a network that predicts nothing scores 1 on them.
    The line gives the mean over the other patients. `noun` is what was scored: patient or volume.
    """
    metric_scores: dict[str, Sequence[PatientScore]] = {
        f"{metric}/{label}": [score.classes[label] for score in scores]
        for label in scores[0].classes
    }
    metric_scores = metric_scores or {metric: scores}
    lines = []
    for name, class_scores in metric_scores.items():
        present = [score.dice for score in class_scores if score.tumour_pixels]
        absent = len(class_scores) - len(present)
        if absent:
            label = name.removeprefix(f"{metric}/") if name != metric else "tumour"
            present_mean = (
                f"mean of the other {len(present)}: {np.mean(present):.4f}"
                if present
                else f"no other {noun}"
            )
            lines.append(
                f"{name}: {tables.format_count(absent, noun)} without {label}, "
                f"where Dice is 1 if none is predicted, else 0; {present_mean}"
            )
    return lines


class Results:
    """The scores of patients by role, never pooled over roles, and their predicted masks."""

    def __init__(self, dataset: MRIDataset, predictions: str = "none") -> None:
        """Collect the results of `dataset`.

        `predictions` selects what `write` puts in predictions.h5, which is none, masks or
        probabilities. Probabilities take 64 KB of memory per slice until then.
        """
        self.dataset = dataset
        self.rows: list[tuple[PatientScore, str]] = []
        # The patient of each volume. A patient may have several, such as sessions.
        self._subjects = dict(zip(dataset.store.volumes, dataset.store.patients, strict=True))
        self._masks: dict[str, bytes] = {}
        self._slices: dict[str, np.ndarray] = {}
        self._content = predictions
        self._predictions: list[Prediction] = []

    def add(self, evaluated: Iterable[PatientResult], roles: Mapping[str, str]) -> None:
        """Add the patients of an evaluation, with their roles by volume."""
        for result in evaluated:
            name = result.score.patient
            self.rows.append((result.score, roles[name]))
            # A compressed mask takes 0.3 KB per slice.
            self._masks[name] = zlib.compress(result.prediction.tobytes(), level=1)
            true, predicted = result.truth > 0, result.prediction > 0
            self._slices[name] = np.stack(
                [mask.sum(axis=(1, 2)) for mask in (true, predicted, true & predicted)], axis=1
            )
            if self._content != "none":
                probability = result.probability if self._content == "probabilities" else None
                self._predictions.append(
                    Prediction.of(name, roles[name], result.prediction, probability)
                )

    def metrics(self) -> dict[str, float]:
        """Return the metrics of each role, with the prefix of the role."""
        return summarise_by_role(self.rows)

    @property
    def _noun(self) -> str:
        """Return what a score is of: a patient, or a volume if a scored patient has several."""
        names = [score.patient for score, _ in self.rows]
        patients = {self._subjects.get(name, name) for name in names}
        return "patient" if len(patients) == len(set(names)) else "volume"

    def explain(self) -> str:
        """Return an explanation of the table of metrics.

        It contains the interval of the mean Dice of each role, and a note if no tumour was
        predicted. `legend` describes the metrics.
        """
        lines = []
        for role, prefix in METRIC_PREFIX.items():
            scores = self.scores_of(role)
            dice = np.array([score.dice for score in scores])
            patients = [self._subjects.get(score.patient, score.patient) for score in scores]
            if len(dice):
                interval = (
                    "95 % interval {:.3f} to {:.3f}".format(*bootstrap(dice, patients))
                    if len(set(patients)) > 1
                    else "no interval"
                )
                count = tables.format_patients(len(dice), len(set(patients)))
                lines.append(f"{prefix}/dice of {count}: {interval}")
                lines += _describe_absences(f"{prefix}/dice", scores, self._noun)
        if not lines:
            return "No patient was scored: the split has neither validation nor test patients."
        if not any(score.predicted_pixels for score, _ in self.rows):
            lines.append("The network predicts no tumour yet: train it for more steps.")
        return "\n".join(lines)

    def legend(self) -> str:
        """Return the metrics that are not means over patients, and the unit of HD95."""
        unit = "mm" if self.dataset.in_mm else "pixels"
        noun = f"{self._noun}s"
        lines = [
            f"Metrics are means over {noun}, with these exceptions:",
            f"patients_missed counts {noun} with a tumour and a Dice below {MISSED_DICE}.",
            "empty_slice_false_positives is a share of all slices without tumour.",
            f"hd95 is the median over {noun}, in {unit}.",
            f"nsd is the share of the masks' edges within {TOLERANCE:g} {unit} of each other.",
            f"hd95_undefined counts {noun} without an hd95.",
        ]
        if self.dataset.in_mm:
            lines += [
                f"hd95_3d is the median over {noun} of the distance in 3-D, in mm.",
                "volume_error_ml is the mean of the absolute errors, in millilitres.",
            ]
        return "\n".join(lines)

    def scores_of(self, role: str) -> list[PatientScore]:
        """Return the scores of the patients with a role."""
        return [score for score, row_role in self.rows if row_role == role]

    def write(self, folder: Path, facts: dict[str, Any], pictures: bool = True) -> dict[str, float]:
        """Write the files of the results to `folder`, and return the metrics.

        These are patients.csv, slices.csv and summary.json, which contains the metrics and `facts`.
        predictions.h5 and pictures/overlays.png are written if they are requested. Otherwise those
        of earlier scores are deleted.
        """
        metrics = self.metrics()
        order = list(METRIC_PREFIX)
        self.rows.sort(key=lambda row: (order.index(row[1]), row[0].patient))
        tables.write_patients_csv(self.rows, folder / "patients.csv", self._subjects)
        tables.write_slices_csv(
            {score.patient: self._slices[score.patient] for score, _ in self.rows},
            folder / "slices.csv",
        )
        if self._predictions:
            write_predictions(folder / "predictions.h5", self._predictions)
        else:
            (folder / "predictions.h5").unlink(missing_ok=True)
        write_json(folder / "summary.json", {**facts, "metrics": metrics})
        if pictures and self.rows:
            overlays.draw_overlays(self._cases(), folder / "pictures" / "overlays.png")
        else:
            (folder / "pictures" / "overlays.png").unlink(missing_ok=True)
        return metrics

    def _cases(self) -> list[overlays.Case]:
        """Return the best, median and worst patient of the first role that has patients."""
        # Held-out patients tell most about the network, and training patients least.
        roles = ("test", "unknown", "validation", "train")
        scores = next(scores for role in roles if (scores := self.scores_of(role)))
        store = self.dataset.store
        cases = []
        for label, index in overlays.pick_cases(scores):
            start, stop = store.rows_of(scores[index].patient)
            truth = store.masks(start, stop)[:, 0]
            prediction = self._mask(scores[index].patient, truth.shape)
            channel = main_channel(store.channels)
            cases.append(
                overlays.Case(
                    scores[index].patient,
                    scores[index].dice,
                    store.images(start, stop),
                    truth,
                    prediction,
                    channel,
                    label,
                    store.classes,
                )
            )
        return cases

    def _mask(self, patient: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the predicted mask of a patient, uint8 (S, H, W)."""
        return np.frombuffer(zlib.decompress(self._masks[patient]), np.uint8).reshape(shape)

    def write_viewer(
        self, path: Path, count: int, run: str, title: str, notes: Sequence[str]
    ) -> None:
        """Write viewer.html with the `count` most informative patients.

        `run` is the name of the predictions, and `notes` are the lines at the top of the page.
        """
        chosen = viewer.choose_patients([(role, score.dice) for score, role in self.rows], count)
        left_out = [
            score.patient for index, (score, _) in enumerate(self.rows) if index not in chosen
        ]
        store = self.dataset.store

        def case(score: PatientScore, role: str) -> viewer.Case:
            mask = self._mask(score.patient, (score.slices, *store.shape[2:]))
            return viewer.build_case(store, score.patient, [mask], [score.dice], role)

        viewer.write_viewer(
            path,
            (case(*self.rows[index]) for index in chosen),
            [run],
            title,
            notes,
            store.classes,
            left_out,
        )
