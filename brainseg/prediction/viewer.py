"""viewer.html of what `predict` segmented: read back from the studies' own folders, so that those done before are in it, too."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.data.cases.study import InputCase
from brainseg.data.memory_store import MemoryStore
from brainseg.prediction.output_folder import MASKS, NOTICE, CasePrediction
from brainseg.reports import viewer
from brainseg.reports.predictions import read_predictions


def write_viewer(
    output: Path,
    studies: Mapping[str, InputCase],
    found: Sequence[CasePrediction],
    classes: Sequence[str],
    count: int,
    network: str,
) -> None:
    """Write the page of at most `count` studies: the most telling of those with scores, else those with the largest tumours.

    `studies` by name hold at least those found. Raises DataError or OSError where a source or a mask is gone.
    """
    scored = any(one.score is not None for one in found)
    telling = [(one.role, one.score.dice if one.score else math.nan) for one in found]
    by_volume = sorted(range(len(found)), key=lambda index: -sum(found[index].voxels.values()))
    chosen = viewer.choose_slices(telling, count) if scored else sorted(by_volume[:count])
    left_out = [one.name for index, one in enumerate(found) if index not in chosen]
    cases = (_case(output, found[index], studies[found[index].name], classes) for index in chosen)
    viewer.write_viewer(
        output / "viewer.html",
        cases,
        ["prediction"],
        f"Tumour segmentation: {network}",
        [NOTICE],
        classes,
        left_out,
    )


def _case(
    output: Path, one: CasePrediction, study: InputCase, classes: Sequence[str]
) -> viewer.Case:
    scan = study.read()
    mask = read_predictions(output / one.name / MASKS, one.name).mask
    dice = one.score.dice if one.score else None
    case = viewer.case_of(
        MemoryStore(one.name, scan, study.channels, classes), one.name, [mask], [dice], one.role
    )
    return case if one.score else dataclasses.replace(case, truth=None)
