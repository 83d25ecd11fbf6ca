"""Readers of one's own: what they give is checked, their faults are gathered by volume, equal data give equal bytes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_cohort import CHANNELS, CLASSES, SPACING, volume

from brainseg.core.errors import RequestError
from brainseg.data import conversion
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Reading, Scan
from brainseg.data.readers.registry import choose_scanner
from brainseg.data.readers.verify import scan_volumes
from brainseg.data.store import Store


class Arrays:
    """Three volumes from memory; the second may be spoilt."""

    channels: Any = CHANNELS
    classes: Any = CLASSES

    def __init__(self, **spoilt: Any) -> None:
        self.spoilt = spoilt

    def volumes(self, source: Path) -> list[str]:
        return ["c", "a", "b"]

    def read(self, source: Path, volume_: str) -> Scan:
        images, masks = volume("abc".index(volume_), slices=3, size=16)
        one = Scan(images, masks, SPACING)
        return one._replace(**self.spoilt) if volume_ == "b" else one


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `convert` use a reader without installing it."""

    def use(reader: Any) -> None:
        def scanner(source: Path, reading: Reading) -> Any:
            return "mine", partial(scan_volumes, reader, reading=reading)

        monkeypatch.setattr(conversion, "choose_scanner", scanner)

    return use


def test_a_cohort_is_written_sorted_with_its_names_spacing_and_classes(
    own: Any, tmp_path: Path
) -> None:
    own(Arrays())
    summary = convert(tmp_path, tmp_path / "own.h5", workers=1)
    convert(tmp_path, tmp_path / "again.h5", workers=1)
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    with Store(tmp_path / "own.h5") as store:
        assert (store.volumes, tuple(store.channels), tuple(store.classes)) == (
            ["a", "b", "c"],
            CHANNELS,
            CLASSES,
        )
        assert (
            store.spacing.tolist() == [list(SPACING)] * 3
            and store.fingerprint == summary.fingerprint
        )
        images, masks = volume(1, slices=3, size=16)
        assert np.array_equal(store.masks(3, 6)[:, 0], masks) and np.array_equal(
            store.images(3, 6), to_uint8(images)
        )
        store.verify()
    assert not convert(tmp_path, tmp_path / "own.h5", workers=1).written


NAN = np.where(
    np.arange(3 * 4 * 16 * 16).reshape(3, 4, 16, 16) == 300, np.nan, 1.0
)  # slice 1, the second channel


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (
            {"images": np.zeros((3, 3, 16, 16))},
            "b: images of shape (3, 3, 16, 16): must be (slices, 4 channels, height, width)",
        ),
        ({"images": NAN}, "b: T1c holds values that are not finite, first in its slice 1"),
        (
            {"images": np.zeros((3, 4, 16, 16), complex)},
            "b: images are complex128: must be real numbers",
        ),
        (
            {"images": np.zeros((3, 4, 16, 8)), "masks": np.zeros((3, 16, 8), int)},
            "b: 16x8 pixels; most of the cohort has 16x16",
        ),
        (
            {"masks": np.zeros((3, 16, 15), int)},
            "b: masks of shape (3, 16, 15): must be (3, 16, 16)",
        ),
        (
            {"masks": np.full((3, 16, 16), 255)},
            "b: mask values 255: must be class indices, 0 to 2 (background, oedema, core)",
        ),
        ({"masks": np.full((3, 16, 16), 0.5)}, "b: mask values 0.5: must be class indices"),
        ({"slice_number": [3, 2, 1]}, "b: slice numbers [3, 2, 1]...: must rise"),
        ({"spacing": (0, 1, 1)}, "b: spacing (0.0, 1.0, 1.0): must be three lengths in mm"),
        ({"slice_number": 7}, "b: cannot be read: TypeError"),
    ],
)
def test_what_is_wrong_is_a_fault_of_its_volume_and_nothing_is_written(
    own: Any, tmp_path: Path, spoilt: dict[str, Any], said: str
) -> None:
    own(Arrays(**spoilt))
    with pytest.raises(FaultyCohortError) as refused:
        convert(tmp_path, tmp_path / "own.h5", workers=1)
    assert said in str(refused.value) and not (tmp_path / "own.h5").exists()
    summary = convert(tmp_path, tmp_path / "own.h5", on_fault="skip_patient", workers=1)
    assert [one.name for one in summary.volumes] == ["a", "c"] and summary.left_out == ["b"]


def test_other_names_are_other_data(own: Any, tmp_path: Path) -> None:
    prints = set()
    for classes in (CLASSES, ("background", "core", "oedema")):
        reader = Arrays()
        reader.classes = classes
        own(reader)
        prints.add(convert(tmp_path, tmp_path / "own.h5", workers=1).fingerprint)
    assert len(prints) == 2


def test_an_unknown_reader_is_refused_with_those_known() -> None:
    with pytest.raises(
        RequestError, match=r"no such reader; known: kaggle_3m, nifti, nnunet, bids, brats, images"
    ):
        choose_scanner("source", Reading("nothing"))
