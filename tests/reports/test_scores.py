"""What the table of scores says about patients and classes of which the truth has no pixel."""

import math
from pathlib import Path

import numpy as np
import pytest

from brainseg.data.dataset import MRIDataset
from brainseg.evaluation.metrics import score_patient
from brainseg.reports.scores import Results
from brainseg.reports.tables import read_scores, write_patients_csv


def explained(
    phantom: MRIDataset,
    cases: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: tuple[str, ...] = (),
) -> list[str]:
    """Return the lines under a table of validation patients, each a prediction and a truth."""
    results = Results(phantom)
    for name, (prediction, truth) in cases.items():
        results.rows.append((score_patient(name, prediction, truth, classes=classes), "validation"))
    return results.explain().splitlines()


@pytest.fixture
def phantom(phantom_file: Path) -> MRIDataset:
    return MRIDataset(phantom_file)


def mask(*pixels: int) -> np.ndarray:
    """Return one slice of 4 x 4 pixels whose first ones have these class indices."""
    flat = np.zeros(16, np.uint8)
    flat[: len(pixels)] = pixels
    return flat.reshape(1, 4, 4)


def test_the_mean_over_patients_with_tumour_is_given_beside_one_that_contains_others(
    phantom: MRIDataset,
) -> None:
    """A network that predicts nothing has a mean Dice of 0.5 here, and 0 where there is tumour."""
    lines = explained(phantom, {"healthy": (mask(), mask()), "ill": (mask(), mask(1, 1))})
    assert (
        lines[1]
        == "val/dice: 1 patient without tumour, where Dice is 1 if none is predicted, else 0; mean of the other 1: 0.0000"
    )


def test_the_volumes_of_a_patient_are_one_patient(phantom: MRIDataset, tmp_path: Path) -> None:
    sessions = {"a_1": "a", "a_2": "a", "b_1": "b"}
    results = Results(phantom)
    results._subjects = sessions
    for name in sessions:
        score = score_patient(name, mask(1), mask(1, 1) if name == "b_1" else mask(1))
        results.rows.append((score, "validation"))
    assert results.explain().startswith("val/dice of 2 patients (3 volumes): 95 % interval")
    assert results.legend().startswith("Metrics are means over volumes, with these exceptions:")
    del results.rows[2]
    assert results.explain().startswith("val/dice of 1 patient (2 volumes): no interval")
    write_patients_csv(results.rows, tmp_path / "patients.csv", sessions)
    table = read_scores(tmp_path / "patients.csv")
    assert table.patient.tolist() == ["a_1", "a_2"] and table.subject.tolist() == ["a", "a"]


def test_a_network_that_predicts_nothing_is_named(phantom: MRIDataset) -> None:
    note = "The network predicts no tumour yet: train it for more steps."
    assert note in explained(phantom, {"a": (mask(), mask(1)), "b": (mask(), mask())})
    assert note not in explained(phantom, {"a": (mask(), mask(1)), "b": (mask(1), mask())})


def test_nothing_is_said_where_every_patient_has_tumour(phantom: MRIDataset) -> None:
    lines = explained(phantom, {"a": (mask(1), mask(1)), "b": (mask(1), mask(1, 1))})
    assert not any("without" in line for line in lines[:2])


def test_each_class_that_a_patient_lacks_is_counted(phantom: MRIDataset) -> None:
    cases = {"a": (mask(1), mask(1)), "b": (mask(1, 2), mask(1, 2, 2, 2)), "c": (mask(2), mask(1))}
    lines = explained(phantom, cases, ("background", "oedema", "core", "never"))
    ours = [line for line in lines if " without " in line and line.startswith("val/dice/")]
    assert [line.split(",")[0] for line in ours] == [
        "val/dice/core: 2 patients without core",
        "val/dice/never: 3 patients without never",
    ]
    core = 2 * 1 / (1 + 3)
    assert ours[0].endswith(f"mean of the other 1: {core:.4f}") and math.isclose(core, 0.5)
    assert ours[1].endswith("no other patient")
