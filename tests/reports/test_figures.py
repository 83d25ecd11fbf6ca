"""Training curves and overlays: what is drawn, from the pixels back."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import score_patient
from brainseg.reports.figures import class_colour, draw_curves
from brainseg.reports.overlays import (
    OVERLAP,
    PREDICTION,
    TRUTH,
    Case,
    choose_slices,
    draw_overlays,
    paint,
    pick_cases,
)


def score(name="a", dice_pixels=5, truth_pixels=10, **options):
    """A patient of two slices whose truth has `truth_pixels` and whose prediction finds `dice_pixels` of them."""
    truth, prediction = np.zeros((2, 2, 5, 5), np.uint8)
    truth[0].flat[:truth_pixels] = 1
    prediction[0].flat[:dice_pixels] = 1
    return score_patient(name, prediction, truth, **options)


def row(epoch, **metrics):
    return {
        "epoch": epoch,
        "step": epoch * 10,
        "time": 0,
        "metrics": {name.replace("_", "/", 1): value for name, value in metrics.items()},
    }


ROWS = [
    row(1, train_loss=0.9, val_loss=0.95, val_dice=0.2, val_dice_median=0.25),
    row(2, train_loss=0.5, val_loss=0.6, val_dice=0.7, val_dice_median=0.75),
    row(3, train_loss=0.4, val_loss=0.6, val_dice=0.7, val_dice_median=0.7),
]


def texts(axes):
    return [text.get_text().strip() for text in axes.texts]


def test_curves_draw_each_metric_and_mark_the_earliest_best(tmp_path, drawn):
    draw_curves(ROWS, tmp_path / "curves.png")
    losses, dice = drawn[0].axes
    assert sorted(texts(losses)) == ["training 0.400", "validation 0.600"]
    assert sorted(texts(dice)) == ["mean 0.700", "median 0.700"]
    assert dice.get_title("right") == "best mean 0.700, epoch 2"
    drawn = {tuple(line.get_ydata()) for line in losses.lines}
    assert {(0.9, 0.5, 0.4), (0.95, 0.6, 0.6)} <= drawn
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_lines_that_end_together_do_not_overlap(tmp_path, drawn):
    draw_curves(ROWS, tmp_path / "curves.png")
    heights = sorted(text.get_position()[1] for text in drawn[0].axes[1].texts)
    assert heights[1] - heights[0] >= 0.059


HUGE = [row(0, train_loss=-1.0), row(1, train_loss=9e9)]


@pytest.mark.parametrize(
    "rows", [ROWS[:1], [row(1, train_loss=0.0)], [row(1, val_dice=0.0)], [row(1)], HUGE]
)
def test_curves_of_little_or_odd_data_are_drawn(tmp_path, rows):
    draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_nothing_to_draw_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError):
        draw_curves([], tmp_path / "a.png")
    with pytest.raises(DataError):
        draw_overlays([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def case(slices=6, name="TCGA_$a$_b", images=None, **options):
    truth, prediction = np.zeros((2, slices, 32, 32), np.uint8)
    truth[2, 8:16, 8:16] = 1
    prediction[2, 8:16, 12:20] = 2
    images = np.full((slices, 3, 32, 32), 90, np.uint8) if images is None else images
    return Case(name, 0.5, images, truth, prediction, 1, **options)


def test_overlay_colours_say_truth_prediction_and_both():
    picture = paint(case(), 2, 180.0)
    assert tuple(picture[0, 0]) == (0.5, 0.5, 0.5)
    assert (
        tuple(picture[8, 8]) == TRUTH
        and tuple(picture[8, 19]) == PREDICTION
        and tuple(picture[8, 12]) == OVERLAP
    )
    np.testing.assert_allclose(
        picture[12, 9],
        0.65 * 0.5 + 0.35 * np.array(TRUTH),
        err_msg="tinted, the image shows through",
    )


def test_of_several_classes_the_prediction_is_tinted_and_the_truth_outlined_in_the_colour_of_each():
    one = case(classes=("background", "oedema", "core"))  # truth is oedema, prediction core
    picture = paint(one, 2, 180.0)
    assert tuple(picture[8, 8]) == class_colour(1) and tuple(picture[0, 0]) == (0.5, 0.5, 0.5)
    assert tuple(picture[12, 10]) == (0.5, 0.5, 0.5), "inside the truth's outline, not predicted"
    np.testing.assert_allclose(picture[8, 19], 0.65 * 0.5 + 0.35 * np.array(class_colour(2)))


def test_overlays_have_a_row_for_each_case_with_name_and_dice(tmp_path, drawn):
    draw_overlays([case(label="best"), case(name="b")], tmp_path / "overlays.png")
    figure = drawn[0]
    assert len(figure.axes) == 8
    assert [figure.axes[index].get_title("left") for index in (0, 4)] == [
        "best: TCGA_$a$_b   Dice 0.500",
        "b   Dice 0.500",
    ]
    assert [texts(axes) for axes in figure.axes[:4]] == [
        [f"slice {number} of 6"] for number in (1, 2, 3, 4)
    ]  # around the third
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "both",
        "truth only (false negative)",
        "prediction only (false positive)",
    ]


def test_overlays_crop_to_the_head(tmp_path, drawn):
    images = np.zeros((6, 3, 32, 32), np.uint8)
    images[:, :, 6:22, 8:20] = 200
    draw_overlays([case(images=images)], tmp_path / "overlays.png")
    height, width, _ = drawn[0].axes[0].images[0].get_array().shape
    assert 16 <= height <= 18 and 16 <= width <= 18


def test_a_false_positive_outside_the_head_is_not_cropped_away(tmp_path, drawn):
    images = np.zeros((6, 3, 32, 32), np.uint8)
    images[:, :, 6:22, 8:20] = 200
    odd = case(images=images)
    odd.prediction[2, 31, 31] = 1
    draw_overlays([odd], tmp_path / "overlays.png")
    picture = drawn[0].axes[2].images[0].get_array()
    assert tuple(picture[-1, -1]) == pytest.approx(PREDICTION)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, np.random.default_rng(0).normal(size=(6, 3, 32, 32))],
    ids=["zeros", "negative", "noise"],
)
def test_overlays_of_odd_images_are_drawn(tmp_path, value):
    draw_overlays([case(images=np.zeros((6, 3, 32, 32)) + value)], tmp_path / "overlays.png")
    assert (tmp_path / "overlays.png").stat().st_size > 1000


def test_overlays_of_fewer_slices_than_columns_are_drawn(tmp_path, drawn):
    draw_overlays([case(slices=3)], tmp_path / "overlays.png")
    assert [len(axes.images) for axes in drawn[0].axes] == [1, 1, 1, 0]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            *[arrays(np.bool_, (n, 2, 2), elements=st.sampled_from([False] * 4 + [True]))] * 2
        )
    )
)
def test_slices_shown_are_distinct_in_order_and_hold_the_largest(masks):
    truth, prediction = masks
    shown = choose_slices(truth, prediction)
    assert shown == sorted(set(shown)) and shown[0] >= 0 and shown[-1] < len(truth)
    assert len(shown) == min(4, len(truth))
    area = (truth if truth.any() else prediction).sum(axis=(1, 2))
    assert area[shown].max() == area.max()
    assert np.count_nonzero(area[shown]) == min(4, np.count_nonzero(area)), (
        "as many slices with tumour as fit"
    )


@pytest.mark.parametrize("largest", range(2, 25))
def test_the_largest_slice_of_a_large_tumour_is_shown(largest):
    truth = np.zeros((30, 2, 2), bool)
    truth[2:25, 0, 0] = truth[largest, 1, 1] = True
    shown = choose_slices(truth, truth)
    assert largest in shown and len(set(shown)) == 4 and shown[-1] - shown[0] > 10


def test_pictures_leave_pyplot_alone_and_are_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        draw_overlays([case()], tmp_path / f"{name}_overlays.png")
        draw_curves(ROWS, tmp_path / f"{name}_curves.png")
    for kind in ("overlays", "curves"):
        assert (tmp_path / f"a_{kind}.png").read_bytes() == (
            tmp_path / f"b_{kind}.png"
        ).read_bytes()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_best_median_and_worst_have_a_tumour():
    scores = [score("a", 5), score("b", 9), score("empty", 0, 0), score("c", 1), score("d", 7)]
    assert scores[2].dice == 1.0
    assert pick_cases(scores) == [("best", 1), ("median", 0), ("worst", 3)]


def test_few_patients_are_not_shown_twice():
    assert pick_cases([]) == []
    assert pick_cases([score("a")]) == [("best", 0)]
    assert pick_cases([score("a", 3), score("b", 9)]) == [("best", 1), ("worst", 0)]
    assert pick_cases([score("b", 0, 0), score("a", 0, 0)]) == [("best", 1), ("worst", 0)]
