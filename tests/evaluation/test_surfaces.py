"""HD95 and NSD against MONAI's, against all pairs of edge voxels, and by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainseg.evaluation.metrics import score_patient, summarise
from brainseg.evaluation.surfaces import TOLERANCE, score_surfaces

MASKS = arrays(np.bool_, (2, 3, 7, 6), elements=st.booleans(), fill=st.just(False))
SPACING = (5.0, 1.5, 0.7)


def edge(mask: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The voxels with a neighbour outside the mask along one of the axes."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis, step in itertools.product(axes, (-1, 1)):
        inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inside)


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_nsd_in_plane_equals_all_pairs_of_edge_pixels(masks: np.ndarray) -> None:
    points = [edge(mask, (1, 2)) for mask in masks]
    hits = [
        any(p[0] == q[0] and math.dist(p, q) <= TOLERANCE for q in theirs)
        for ours, theirs in (points, points[::-1])
        for p in ours
    ]
    expected = sum(hits) / len(hits) if hits else 1.0
    assert score_surfaces(*masks).nsd == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(MASKS.filter(lambda masks: masks[0].any() and masks[1].any()))
def test_the_scores_in_mm_equal_monais(masks: np.ndarray) -> None:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    prediction, truth = (torch.from_numpy(mask)[None, None] for mask in masks)
    scores = score_surfaces(*masks, SPACING)
    nsd = compute_surface_dice(
        prediction, truth, [TOLERANCE], include_background=True, spacing=SPACING
    )
    assert scores.nsd == pytest.approx(nsd.item(), abs=1e-6)
    distance = compute_hausdorff_distance(
        prediction, truth, include_background=True, percentile=95, spacing=SPACING
    )
    assert scores.hd95_3d == pytest.approx(distance.item(), rel=1e-5)


def box(left: int) -> np.ndarray:
    mask = np.zeros((6, 20, 20), bool)
    mask[1:5, 5:15, left : left + 8] = True
    return mask


@pytest.mark.parametrize(("spacing", "shift"), [(None, 2), ((5.0, 1.0, 0.5), 4)])
def test_a_shift_of_the_tolerance_is_no_error_and_a_larger_one_is(
    spacing: tuple[float, ...] | None, shift: int
) -> None:
    assert score_surfaces(box(3), box(3), spacing)[:2] == (0, 1)
    assert score_surfaces(box(3), box(3 + shift), spacing).nsd == 1
    # Only the two sides along the shift are wrong, which are a part of the edges.
    assert 0.3 < score_surfaces(box(3), box(4 + shift), spacing).nsd < 1
    assert score_surfaces(box(0), box(12), spacing).nsd < 0.4


def test_empty_masks_have_an_nsd_and_no_distance() -> None:
    full, empty = box(3), np.zeros((6, 20, 20), bool)
    for masks, nsd in (((empty, empty), 1), ((full, empty), 0), ((empty, full), 0)):
        scores = score_surfaces(*masks, SPACING)
        assert scores.nsd == nsd and math.isnan(scores.hd95) and math.isnan(scores.hd95_3d)


def test_a_slice_with_one_mask_counts_for_nsd_and_not_for_hd95_in_plane() -> None:
    prediction, truth = np.zeros((2, 2, 9, 9), bool)
    prediction[0, 4, 4] = truth[0, 4, 5] = truth[1, 4, 5] = True
    scores = score_surfaces(prediction, truth)
    assert (scores.hd95, scores.nsd) == (1, pytest.approx(2 / 3)) and math.isnan(scores.hd95_3d)
    assert score_surfaces(prediction, truth, (1.5, 1, 1)).nsd == 1, "1.8 mm, across the slice"


def test_the_volume_error_is_in_millilitres_and_its_mean_absolute() -> None:
    truth = box(3)
    smaller, larger = truth.copy(), truth.copy()
    smaller[1], larger[0] = False, truth[1]
    scores = [score_patient("a", mask, truth, (5.0, 1.0, 0.5)) for mask in (smaller, larger)]
    # 80 pixels of 5 x 1 x 0.5 mm
    assert [score.volume_error_ml for score in scores] == [-0.2, 0.2]
    assert summarise(scores, "val")["val/volume_error_ml"] == pytest.approx(0.2)
    unknown = score_patient("a", smaller, truth)
    assert math.isnan(unknown.volume_error_ml) and math.isnan(unknown.hd95_3d)
    assert {"val/volume_error_ml", "val/hd95_3d"}.isdisjoint(summarise([unknown], "val"))


def test_each_class_has_its_own_scores() -> None:
    truth = box(0).astype(np.uint8) + 2 * box(10)
    prediction = np.where(truth == 2, 0, truth)
    score = score_patient(
        "a", prediction, truth, (5.0, 1.0, 0.5), classes=("background", "oedema", "core")
    )
    assert (score.classes["oedema"].nsd, score.classes["core"].nsd, score.nsd) == (1, 0, 0.5)
    assert score.classes["core"].volume_error_ml == score.volume_error_ml == -0.8
    summary = summarise([score], "val")
    assert (summary["val/nsd"], summary["val/nsd/core"]) == (0.5, 0)
    assert summary["val/hd95_3d/oedema"] == 0 and "val/hd95_3d" not in summary


def test_nothing_is_measured_without_geometry() -> None:
    score = score_patient("a", box(3), box(4), SPACING, with_geometry=False)
    assert (score.hd95, score.nsd, score.hd95_3d, score.volume_error_ml) == (None,) * 4
    assert "val/nsd" not in summarise([score], "val")
