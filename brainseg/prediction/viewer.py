"""The viewer.html page of the predicted cases.

The cases are read from their output folders, so that the page contains the cases of an earlier
call, too.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.data.cases.input_case import InputCase
from brainseg.data.memory_store import MemoryStore
from brainseg.prediction.output_folder import MASKS, NOTICE, CasePrediction
from brainseg.reports import viewer
from brainseg.reports.predictions import read_predictions


def write_viewer(
    output: Path,
    cases: Mapping[str, InputCase],
    predictions: Sequence[CasePrediction],
    classes: Sequence[str],
    count: int,
    network: str,
) -> None:
    """Write the page of at most `count` cases.

    If there are scores, the cases with the most informative scores are chosen, else the cases
    with the largest tumours. `cases` maps names to cases and contains at least those of
    `predictions`. Raises DataError or OSError if a source or a mask no longer exists.
    """
    has_scores = any(prediction.score is not None for prediction in predictions)
    scores = [
        (prediction.role, prediction.score.dice if prediction.score else math.nan)
        for prediction in predictions
    ]
    volumes = [sum(prediction.voxels.values()) for prediction in predictions]
    by_volume = sorted(range(len(predictions)), key=lambda index: -volumes[index])
    chosen = viewer.choose_patients(scores, count) if has_scores else sorted(by_volume[:count])
    left_out = [
        prediction.name for index, prediction in enumerate(predictions) if index not in chosen
    ]
    # A generator, so that only one case's images are in memory at a time.
    contents = (
        _read_case(output, predictions[index], cases[predictions[index].name], classes)
        for index in chosen
    )
    viewer.write_viewer(
        output / "viewer.html",
        contents,
        ["prediction"],
        f"Tumour segmentation: {network}",
        [NOTICE],
        classes,
        left_out,
    )


def _read_case(
    output: Path, prediction: CasePrediction, case: InputCase, classes: Sequence[str]
) -> viewer.Case:
    scan = case.read()
    name = prediction.name
    mask = read_predictions(output / name / MASKS, name).mask
    dice = prediction.score.dice if prediction.score else None
    store = MemoryStore(name, scan, case.channels, classes)
    content = viewer.build_case(store, name, [mask], [dice], prediction.role)
    # Without a score there are no masks to compare with.
    return content if prediction.score else dataclasses.replace(content, truth=None)
