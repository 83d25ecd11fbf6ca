"""Size and spacing: crops, pads and resampling against independent values, as properties where these hold for any input."""

from pathlib import Path

import cohorts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from brainseg.config import PrepareConfig
from brainseg.core.errors import RequestError
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Reading
from brainseg.data.readers.fit import crop_or_pad, resample_in_plane
from brainseg.data.store import Store
from brainseg.prepare import check_request

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(SIDES, SIDES)
def test_padding_then_cropping_back_changes_nothing(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    slices = np.arange(1, 2 * before[0] * before[1] + 1, dtype=np.uint16).reshape(2, *before)
    fitted = crop_or_pad(slices, after)
    assert fitted.shape == (2, *after)
    larger = crop_or_pad(slices, [max(pair) for pair in zip(before, after, strict=True)])
    assert np.array_equal(crop_or_pad(larger, before), slices) and larger.sum() == slices.sum()
    # What remains is central: no side loses, or gains, two rows or columns more than the opposite one.
    for axis in (1, 2):
        excess = before[axis - 1] - after[axis - 1]
        lost = np.flatnonzero(np.isin(slices, fitted).any(axis=(0, 3 - axis)))
        assert excess <= 0 or (lost[0], before[axis - 1] - 1 - lost[-1]) == (
            excess // 2,
            excess - excess // 2,
        )


def test_resampling_in_plane_agrees_with_pillow() -> None:
    """Pillow's bilinear filter, when it enlarges, is linear interpolation over the same field of view."""
    random = np.random.default_rng(0)
    slices = random.integers(0, 256, (3, 20, 24), np.uint8)
    fine = resample_in_plane(slices, (5.0, 1.0, 0.8), 0.4)
    assert fine.shape == (3, 50, 48)
    for slice_, resampled in zip(slices, fine, strict=True):
        pillow = np.asarray(Image.fromarray(slice_).resize((48, 50), Image.Resampling.BILINEAR))
        assert abs(pillow.astype(int) - resampled.astype(int)).max() <= 1


@pytest.mark.parametrize("to_spacing", [0.5, 0.7, 1.0, 1.9])
def test_a_mask_keeps_its_values_its_area_and_its_centre(to_spacing: float) -> None:
    mask = np.zeros((2, 40, 50), np.uint8)
    mask[1, 12:24, 16:40] = 2
    resampled = resample_in_plane(mask, (3.0, 1.0, 0.5), to_spacing, nearest=True)
    assert set(np.unique(resampled).tolist()) == {0, 2} and not resampled[0].any()
    assert np.count_nonzero(resampled) * to_spacing**2 == pytest.approx(12 * 24 * 0.5, rel=0.2)
    centre = (
        np.argwhere(resampled[1]).mean(axis=0) + 0.5 - np.array(resampled.shape[1:]) / 2
    ) * to_spacing
    assert centre == pytest.approx([(18 - 20) * 1.0, (28 - 25) * 0.5], abs=0.6 * to_spacing)


def test_spacing_and_size_unify_a_cohort_and_are_stored(tmp_path: Path) -> None:
    source = cohorts.write_nnunet(tmp_path / "source")
    convert(source, tmp_path / "own.h5", workers=1, reading=Reading(spacing=1.0, size=(40, 20)))
    with Store(tmp_path / "own.h5") as store:
        assert store.shape[2:] == (40, 20)
        assert store.spacing == pytest.approx(np.broadcast_to([5.0, 1.0, 1.0], (6, 3)))
        assert '"spacing": 1.0, "size": [40, 20]' in store.preparation
        # Columns were 0.5 mm wide, so the mask has half as many pixels.
        before = np.count_nonzero(cohorts.make_patient(0)[1])
        assert np.count_nonzero(store.masks(0, 4)) == pytest.approx(before / 2, rel=0.15)


def test_a_size_that_cuts_the_tumour_off_says_how_much(tmp_path: Path) -> None:
    source = cohorts.write_nnunet(tmp_path / "source")
    summary = convert(source, tmp_path / "own.h5", workers=1, reading=Reading(size=(8, 8)))
    _, masks = cohorts.make_patient(4)
    lost = np.count_nonzero(masks) - np.count_nonzero(masks[:, 12:20, 12:20])
    text = f"P4: size=8x8 cuts off {lost:,} of {np.count_nonzero(masks):,} mask pixels; give a larger size"
    assert lost and text in summary.warnings


def test_spacing_needs_a_voxel_size(tmp_path: Path) -> None:
    source = cohorts.write_pictures(tmp_path / "source")
    reading = Reading(
        "images",
        {"FLAIR": "FLAIR/{patient}_{slice}.png"},
        mask="masks/{patient}_{slice}.png",
        classes={"tumour": [1, 2]},
        spacing=1.0,
    )
    with pytest.raises(
        FaultyCohortError, match="P0: the file gives no voxel size, so spacing=1 cannot be reached"
    ):
        convert(source, tmp_path / "own.h5", workers=1, reading=reading)
    kaggle = PrepareConfig(
        source=str(cohorts.write_kaggle(tmp_path / "tiff")),
        output=str(tmp_path / "x.h5"),
        spacing=1.0,
    )
    with pytest.raises(
        RequestError, match=r"spacing=1\.0: TIFF slices of kaggle_3m give no voxel size"
    ):
        check_request(kaggle)


@pytest.mark.parametrize("size", [7, 5000, [32], [32, 32, 32], "3x", True, [32, 8.0]])
def test_an_impossible_size_is_refused(size: object) -> None:
    with pytest.raises(RequestError, match=r"size=.*: must be a side from 8 to 4096, or two"):
        PrepareConfig(source="a", output="b", size=size)


@given(arrays(np.int16, (2, 2, 3, 4), elements=st.integers(-2000, 4000)))
def test_whole_numbers_are_stretched_as_floats_are(images: np.ndarray) -> None:
    """A table of levels replaces the arithmetic per pixel; channels from 0 to 255 stay as they are."""
    stretched = to_uint8(images)
    for channel in range(2):
        values = images[:, channel]
        if values.min() >= 0 and values.max() <= 255:
            assert np.array_equal(stretched[:, channel], values)
            continue
        low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
        exact = (
            255 * ((values - low) / (high - low)).clip(0, 1)
            if low < high
            else np.zeros(values.shape)
        )
        assert abs(stretched[:, channel] - exact).max() <= 0.5 + 1e-9
