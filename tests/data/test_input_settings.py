"""Window, intensity and distance of neighbours: the right pixels of the right volume."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from brainseg.core.errors import DataError, RequestError
from brainseg.data.dataset import MRIDataset
from brainseg.data.input_settings import (
    context_steps,
    intensity_limits,
    typed_window_size,
    window_size,
)
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import compute_volume_stats, find_head_box

SIZE, SLICES = (48, 40), 30


def head(top: int, left: int, brightness: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume whose head is a box of 20 x 12 pixels, with a tumour twice as bright, and noise around."""
    random = np.random.default_rng(top)
    images = random.integers(0, 4, (SLICES, 3, *SIZE), dtype=np.uint8)
    images[:, :, top : top + 20, left : left + 12] = brightness
    masks = np.zeros((SLICES, 1, *SIZE), np.uint8)
    masks[10:14, 0, top + 4 : top + 8, left + 4 : left + 8] = 1
    images[np.repeat(masks > 0, 3, axis=1)] = 2 * brightness
    # One bright pixel far away, on one slice, must not move the box.
    images[3, :, 0, 0] = 255
    return images, masks


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = [head(4, 3, 50), head(20, 26, 80)]
    volumes = [
        compute_volume_stats(name, zip(range(SLICES), images, masks[:, 0], strict=True))
        for name, (images, masks) in zip(("A_1", "B_2"), pixels, strict=True)
    ]
    write_store(tmp_path / "two.h5", volumes, pixels)
    return tmp_path / "two.h5"


def test_boxes_and_medians_are_those_of_the_heads(file: Path) -> None:
    with Store(file) as store:
        assert store.head_box.tolist() == [[4, 24, 3, 15], [20, 40, 26, 38]]
        assert store.head_median.tolist() == [[50] * 3, [80] * 3]
        low, high = intensity_limits(store, "median")
        assert np.array_equal(low, store.low) and np.array_equal(high, 3 * store.head_median)
        assert np.array_equal(intensity_limits(store, "percentile")[1], store.high)


def test_an_image_without_a_head_has_the_whole_image_as_its_box() -> None:
    assert find_head_box(np.zeros((5, 7)), 0.0).tolist() == [0, 5, 0, 7]


def test_the_automatic_window_is_the_median_head_in_steps_of_32(file: Path) -> None:
    with Store(file) as store:
        assert window_size(store, "auto", ("A_1",)) == (32, 32)
        assert window_size(store, "none", ("A_1",)) is None
        assert window_size(store, "16x24", ("A_1",)) == (16, 24)
        assert window_size(store, "48x40", ("A_1",)) is None
        with pytest.raises(RequestError, match=r"data\.window=64x32.*larger than.*48x40"):
            window_size(store, "64x32", ("A_1",))
    assert typed_window_size("auto", (9, 9)) is None and typed_window_size("4x5", (9, 9)) == (4, 5)


def test_a_window_is_the_part_of_the_slice_around_the_head(file: Path) -> None:
    """Also with neighbours, from memory and from the file; the second head lies at the border."""
    whole = MRIDataset(file, context=1)
    for held in (False, True):
        cut = MRIDataset(file, context=1, window=(24, 16))
        if held:
            cut.hold()
        positions = [0, 11, SLICES, SLICES + 12]
        image, mask = cut.gather(positions)
        full_image, full_mask = whole.gather(positions)
        assert image.shape == (4, 9, 24, 16) and cut.sample_size == (24, 16)
        for index, (top, left) in enumerate([(2, 1), (2, 1), (18, 24), (18, 24)]):
            part = (slice(None), slice(top, top + 24), slice(left, left + 16))
            assert torch.equal(image[index], full_image[index][part])
            assert torch.equal(mask[index], full_mask[index][part])
        assert mask.sum() == 32, "the tumour lies in the window"


def test_neighbours_by_distance(file: Path) -> None:
    with Store(file) as store:
        assert context_steps(store, "auto").tolist() == [1, 1]
        assert context_steps(store, "3").tolist() == [3, 3]
        store.first_slice = np.array([0, 60, 61])
        assert context_steps(store, "auto").tolist() == [2, 1]
    numbered = MRIDataset(file, channel="FLAIR", context=1, context_step="4")
    raw = MRIDataset(file, channel="FLAIR")
    image, _ = numbered.gather([10, 28])
    lower, upper = raw.gather([6, 24])[0], raw.gather([14, 29])[0]
    assert torch.equal(image[:, 0], lower[:, 0]) and torch.equal(image[:, 2], upper[:, 0])


def test_a_file_of_an_earlier_version_serves_all_else(file: Path) -> None:
    with h5py.File(file, "a") as stored:
        del stored["head_box"], stored["head_median"]
    assert len(MRIDataset(file, context=1)) == 2 * SLICES
    for settings in ({"intensity": "median"}, {"window": (16, 16)}):
        with pytest.raises(DataError, match=r"earlier version made this file.*brainseg\.prepare"):
            MRIDataset(file, **settings)
    with Store(file) as store, pytest.raises(DataError, match=r"data\.window=auto needs head_box"):
        window_size(store, "auto", ("A_1",))


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_box", [[0, 49, 0, 4]] * 2), ("head_box", [[5, 5, 0, 4]] * 2), ("head_median", np.nan)],
)
def test_impossible_values_are_refused(file: Path, name: str, value: object) -> None:
    with h5py.File(file, "a") as stored:
        stored[name][...] = value
    with pytest.raises(
        DataError, match="head_median is not finite, or head_box is not in the image"
    ):
        Store(file)
