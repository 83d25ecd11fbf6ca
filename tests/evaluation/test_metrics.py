"""Metrics against brute-force sets, against MONAI, and at the edges of their definitions."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import PatientScore, score_patient, summarise
from brainseg.evaluation.surfaces import score_surfaces

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))


@st.composite
def pairs(draw):
    """A prediction and a truth of one shape; whole volumes and single slices are often empty."""
    shape = draw(SHAPES)
    pixels, full = (
        arrays(np.uint8, shape, elements=st.integers(0, 2)),
        arrays(np.uint8, (shape[0], 1, 1), elements=st.integers(0, 1)),
    )
    return [draw(pixels) * draw(full) for _ in ("prediction", "truth")]


def as_set(mask):
    return {tuple(point) for point in np.argwhere(mask)}


def brute_dice(p, t):
    return 1.0 if not p and not t else 2 * len(p & t) / (len(p) + len(t))


def brute_hd95(p, t):
    """Edges by looking at each pixel's neighbours, distances by comparing all pairs, the percentile by its definition."""

    def edge(points):
        return [
            q
            for q in points
            if any(
                (q[0], q[1] + dy, q[2] + dx) not in points
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
            )
        ]

    def percentile(values):
        values, position = sorted(values), 0.95 * (len(values) - 1)
        low = math.floor(position)
        return values[low] + (position - low) * (
            values[min(low + 1, len(values) - 1)] - values[low]
        )

    def directed(a, b):
        slices = {q[0] for q in a} & {q[0] for q in b}
        return [
            min(math.dist(q[1:], r[1:]) for r in b if r[0] == q[0]) for q in a if q[0] in slices
        ]

    p, t = edge(p), edge(t)
    forth, back = directed(p, t), directed(t, p)
    return max(percentile(forth), percentile(back)) if forth else math.nan


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_a_patient_equals_brute_force_sets(pair):
    prediction, truth = pair
    score, p, t = score_patient("a", prediction, truth), as_set(prediction), as_set(truth)
    both_empty = not p and not t
    assert score.dice == brute_dice(p, t)
    assert score.iou == (1.0 if both_empty else len(p & t) / len(p | t))
    assert score.precision == (1.0 if both_empty else len(p & t) / len(p) if p else 0.0)
    assert score.recall == (1.0 if both_empty else len(p & t) / len(t) if t else 0.0)
    assert score.hd95 == pytest.approx(brute_hd95(p, t), abs=1e-9, nan_ok=True)
    assert (score.tumour_pixels, score.predicted_pixels, score.slices) == (
        len(t),
        len(p),
        len(truth),
    )


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_slice_metrics_equal_a_loop_over_slices(pair):
    score = score_patient("a", *pair, with_geometry=False)
    slices = [(as_set(p), as_set(t)) for p, t in zip(*pair, strict=True)]
    with_tumour = [brute_dice(p, t) for p, t in slices if t]
    assert score.dice_tumour_slices == pytest.approx(
        statistics.mean(with_tumour) if with_tumour else math.nan, nan_ok=True
    )
    assert score.tumour_slices == len(with_tumour)
    assert score.empty_slices == len(slices) - len(with_tumour)
    assert score.empty_slice_false_positives == sum(bool(p) for p, t in slices if not t)


@settings(max_examples=100, deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_dice_is_symmetric_and_blind_to_the_order_of_slices(pair, random):
    prediction, truth = pair
    order = random.sample(range(len(truth)), len(truth))
    score, swapped = score_patient("a", prediction, truth), score_patient("a", truth, prediction)
    shuffled = score_patient("a", prediction[order], truth[order])
    assert (score.dice, score.iou, score.precision) == (swapped.dice, swapped.iou, swapped.recall)
    assert (score.dice, score.hd95) == pytest.approx((shuffled.dice, shuffled.hd95), nan_ok=True)


def blob(random, size=40):
    y, x = np.mgrid[:size, :size]
    centre, radius = random.uniform(2, size - 2, 2), random.uniform(2, 12, 2)
    wobble = 1 + 0.3 * np.sin(3 * np.arctan2(y - centre[0], x - centre[1]) + random.uniform(0, 6))
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < wobble


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class 0 is all 0")
@pytest.mark.parametrize(
    ("count", "spacing"),
    [(200, None), (100, (5.0, 0.5, 1.25)), pytest.param(1000, None, marks=pytest.mark.slow)],
)
def test_hd95_of_single_slices_equals_monai(count, spacing):
    """Half of them blobs, half specks, up to the border. With a mask empty MONAI says inf or NaN; ours is undefined: NaN."""
    from monai.metrics import compute_hausdorff_distance

    random = np.random.default_rng(0)
    blobs = np.array([[blob(random, 24), blob(random, 24)] for _ in range(count // 2)])
    specks = random.random((count // 2, 2, 24, 24)) < random.choice(
        [0, 0.002, 0.02, 0.2], (count // 2, 2, 1, 1)
    )
    p, t = np.concatenate([blobs, specks]).swapaxes(0, 1)
    ours = np.array(
        [score_surfaces(a[None], b[None], spacing).hd95 for a, b in zip(p, t, strict=True)]
    )
    defined = p.any(axis=(1, 2)) & t.any(axis=(1, 2))
    assert 0.7 * count < defined.sum() < 0.9 * count and np.array_equal(np.isfinite(ours), defined)
    options = {
        "include_background": True,
        "percentile": 95,
        "spacing": spacing[1:] if spacing else None,
    }
    theirs = compute_hausdorff_distance(
        torch.tensor(p)[:, None], torch.tensor(t)[:, None], **options
    )[:, 0].numpy()
    assert not np.isfinite(theirs[~defined]).any()
    np.testing.assert_allclose(ours[defined], theirs[defined], rtol=1e-5)


def test_a_thousand_volumes_equal_monai():
    """Two rules differ: MONAI's precision without prediction and recall without truth are NaN; ours are 0, or 1 if both are empty."""
    from monai.metrics import (
        compute_confusion_matrix_metric,
        compute_dice,
        compute_iou,
        get_confusion_matrix,
    )

    random = np.random.default_rng(1)
    p, t = random.random((2, 1000, 1, 2, 5, 5)) < random.choice(
        [0, 0.1, 0.5, 1], (2, 1000, 1, 1, 1, 1)
    )
    scores = [
        score_patient("a", a[0], b[0], with_geometry=False) for a, b in zip(p, t, strict=True)
    ]
    p, t = (
        torch.tensor(p).int(),
        torch.tensor(t).int(),
    )  # of bool, get_confusion_matrix counts wrongly
    no_p, no_t = p.flatten(1).sum(1) == 0, t.flatten(1).sum(1) == 0
    for kind in (no_p & no_t, no_p & ~no_t, no_t & ~no_p):
        assert kind.sum() > 50
    confusion = get_confusion_matrix(p, t)[:, 0]
    theirs = {
        "dice": compute_dice(p, t, ignore_empty=False),
        "iou": compute_iou(p, t, ignore_empty=False),
    }
    theirs |= {
        name: compute_confusion_matrix_metric(name, confusion) for name in ("precision", "recall")
    }
    undefined = {"dice": no_p & False, "iou": no_p & False, "precision": no_p, "recall": no_t}
    for name, values in theirs.items():
        assert torch.equal(values.flatten().isnan(), undefined[name]), name
        expected = torch.where(undefined[name], (no_p & no_t).float(), values.flatten())
        np.testing.assert_allclose(
            [getattr(score, name) for score in scores], expected, rtol=1e-6, err_msg=name
        )


CLASSES = ("background", "oedema", "core", "rim")


def test_several_classes_equal_monai_class_by_class():
    """Dice and IoU of each class against MONAI on the one-hot masks, HD95 too where it is one slice; the patient's are their means."""
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    random = np.random.default_rng(2)
    for _ in range(60):
        p, t = random.integers(
            0, random.integers(2, 5), (2, 1, 7, 8), dtype=np.uint8
        )  # classes are often absent
        score = score_patient("a", p, t, classes=CLASSES)
        hot = [
            torch.tensor(m[:, None] == np.arange(4)[None, :, None, None]).float() for m in (p, t)
        ]  # (1, 4, H, W)
        ours = {
            name: [getattr(score.classes[label], name) for label in CLASSES[1:]]
            for name in ("dice", "iou", "hd95")
        }
        for name, function in {"dice": compute_dice, "iou": compute_iou}.items():
            theirs = function(*hot, include_background=False, ignore_empty=False)[0].numpy()
            np.testing.assert_allclose(ours[name], theirs, rtol=1e-6)
            assert getattr(score, name) == pytest.approx(theirs.mean())
        theirs = compute_hausdorff_distance(*hot, include_background=False, percentile=95)[
            0
        ].numpy()
        defined = np.isfinite(ours["hd95"])
        np.testing.assert_allclose(np.array(ours["hd95"])[defined], theirs[defined], rtol=1e-5)
        assert not np.isfinite(theirs[~defined]).any()
        assert score.hd95 == pytest.approx(np.mean(ours["hd95"]), nan_ok=True)


def test_two_classes_score_as_before_whatever_they_are_called():
    p, t = np.random.default_rng(3).integers(0, 2, (2, 3, 6, 6))
    named, plain = (
        vars(score_patient("a", p, t, **classes))
        for classes in ({"classes": ("background", "lesion")}, {})
    )
    # NaN differs from itself, and some scores are undefined here.
    assert {name: str(value) for name, value in named.items()} == {
        name: str(value) for name, value in plain.items()
    }


def test_a_class_that_is_overlooked_counts_as_missed_and_is_summarised_by_name():
    truth = np.zeros((1, 8, 8), np.uint8)
    truth[0, :4], truth[0, 6, 6] = 1, 2
    scores = [
        score_patient("a", np.where(truth == 2, 1, truth), truth, classes=CLASSES)
    ]  # the core is called oedema
    summary = summarise(scores, "val")
    assert (
        summary["val/dice/oedema"] == pytest.approx(2 * 32 / 65)
        and summary["val/dice/core"] == 0
        and summary["val/dice/rim"] == 1
    )
    assert summary["val/dice"] == pytest.approx((2 * 32 / 65 + 0 + 1) / 3)
    assert [summary[f"val/patients_missed{of}"] for of in ("", "/oedema", "/core", "/rim")] == [
        1,
        0,
        1,
        0,
    ]
    assert summary["val/hd95_undefined"] == 1 and summary["val/hd95_undefined/oedema"] == 0


def test_spacing_scales_hd95_and_an_unknown_one_means_pixels():
    p, t = np.zeros((2, 1, 9, 9), bool)
    p[0, 4, 1] = t[0, 4, 7] = True
    assert score_patient("a", p, t).hd95 == 6
    assert score_patient("a", p, t, (5.0, 3.0, 0.5)).hd95 == 3
    assert score_patient("a", p, t, (math.nan,) * 3).hd95 == 6


def test_hd95_uses_only_slices_where_both_masks_are_non_empty():
    p, t = np.zeros((2, 3, 9, 9), bool)
    p[0, 4, 1] = t[0, 4, 3] = True
    p[1, 0, 0] = t[2, 8, 8] = True
    assert score_patient("a", p, t).hd95 == 2
    assert math.isnan(score_patient("a", p[1:], t[1:]).hd95)
    assert score_patient("a", p, t, with_geometry=False).hd95 is None


def test_counts_do_not_overflow_and_tensors_are_taken():
    mask = torch.ones(20, 128, 128, dtype=torch.uint8)
    score = score_patient("a", mask, mask, with_geometry=False)
    assert (score.dice, score.tumour_pixels) == (1.0, 20 * 128 * 128)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 4, 5), (4, 4)])
def test_unequal_shapes_are_refused_by_name(shape):
    with pytest.raises(DataError, match="TCGA_1"):
        score_patient("TCGA_1", np.zeros((3, 4, 4)), np.zeros(shape))


def patient(**values):
    counts = {"slices": 4, "tumour_slices": 1, "empty_slices": 3, "empty_slice_false_positives": 0}
    counts |= {"tumour_pixels": 9, "predicted_pixels": 9}
    ratios = {
        "dice": 1.0,
        "iou": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "hd95": 0.0,
        "dice_tumour_slices": 1.0,
        "loss": 0.0,
    }
    return PatientScore(**({"patient": "a"} | counts | ratios | values))


def test_summary_holds_every_name_of_the_contract():
    scores = [
        patient(dice=0.9, hd95=2.0, loss=0.2, empty_slices=10, empty_slice_false_positives=2),
        patient(
            dice=0.04,
            hd95=8.0,
            loss=0.4,
            dice_tumour_slices=0.0,
            empty_slices=2,
            empty_slice_false_positives=2,
        ),
        patient(
            dice=0.0,
            iou=0.0,
            hd95=math.nan,
            loss=0.6,
            tumour_pixels=0,
            tumour_slices=0,
            dice_tumour_slices=math.nan,
            empty_slices=8,
        ),
    ]
    assert summarise(scores, "val") == pytest.approx(
        {
            "val/dice": 0.94 / 3,
            "val/dice_median": 0.04,
            "val/patients_missed": 1,  # an empty truth can't be missed
            "val/iou": 2 / 3,
            "val/precision": 1,
            "val/recall": 1,
            "val/loss": 0.4,
            "val/dice_tumour_slices": 0.5,
            "val/empty_slice_false_positives": 4 / 20,  # pooled over slices, not a mean of shares
            "val/hd95": 5,
            "val/hd95_undefined": 1,
        }
    )


def test_a_dice_of_exactly_the_limit_is_not_missed():
    assert summarise([patient(dice=0.05)], "val")["val/patients_missed"] == 0
    assert summarise([patient(dice=0.0499)], "val")["val/patients_missed"] == 1


def test_what_is_undefined_is_left_out_of_the_summary():
    nothing = patient(
        hd95=math.nan, loss=math.nan, tumour_slices=0, dice_tumour_slices=math.nan, empty_slices=0
    )
    summary = summarise([nothing], "test")
    assert all(math.isfinite(value) for value in summary.values())
    assert {
        "test/hd95",
        "test/loss",
        "test/dice_tumour_slices",
        "test/empty_slice_false_positives",
    }.isdisjoint(summary)
    assert summary["test/hd95_undefined"] == 1
    assert "test/hd95_undefined" not in summarise([patient(hd95=None)], "test")


def test_one_undefined_loss_leaves_the_mean_out():
    assert "val/loss" not in summarise([patient(loss=0.1), patient(loss=math.nan)], "val")


def test_no_patient_is_an_error():
    with pytest.raises(DataError, match="val"):
        summarise([], "val")
