"""Masks with which a score would mean nothing: prepare warns of them, and train refuses them unless it is told not to."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_configs import compose
from tiffs import write_cohort

from brainseg import train
from brainseg.core.errors import RequestError
from brainseg.data.conversion import convert

NAMES = [f"TCGA_AA_{patient:04d}" for patient in range(6)]


def change_masks(source: Path, change, patients: slice = slice(None)) -> None:
    """Replace the masks (H, W) of 0 and 255 of some patients by what `change` makes of them."""
    for folder in sorted(source.iterdir())[patients]:
        for path in folder.glob("*_mask.tif"):
            tifffile.imwrite(path, np.ascontiguousarray(change(tifffile.imread(path)), np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "kaggle_3m", patients=6)


def warnings(source: Path) -> list[str]:
    return convert(source, source.parent / "lgg.h5", workers=1).warnings


def check(source: Path, *overrides: str) -> None:
    """Check a request to train on four patients, to validate on one and to test on one."""
    split = source.parent / "split.json"
    split.write_text(json.dumps({"train": NAMES[:4], "validation": NAMES[4:5], "test": NAMES[5:]}))
    fixed = [
        f"data.path={source.parent / 'lgg.h5'}",
        "split=file",
        f"split.path={split}",
        "device=cpu",
        "tracking=none",
    ]
    train.check_request(compose(*fixed, *overrides))


def test_a_sound_cohort_is_neither_doubted_nor_refused(source: Path) -> None:
    assert warnings(source) == []
    check(source)


def test_a_cohort_without_tumour_is_a_warning_and_no_training(source: Path) -> None:
    change_masks(source, np.zeros_like)
    assert warnings(source) == [
        "no mask of any volume has a pixel of tumour: a network that predicts nothing would score a Dice of 1.000"
    ]
    with pytest.raises(
        RequestError,
        match="none of the 4 train patients has a pixel of tumour, so its Dice would mean nothing",
    ) as refused:
        check(source)
    assert "set allow_empty=true" in str(refused.value)
    check(source, "allow_empty=true")


@pytest.mark.parametrize(
    ("patients", "part"),
    [(slice(4, 5), "1 validation"), (slice(5, 6), "1 test"), (slice(4), "4 train")],
)
def test_a_part_without_tumour_is_no_training(source: Path, patients: slice, part: str) -> None:
    change_masks(source, np.zeros_like, patients)
    (warning,) = warnings(source)
    assert warning.startswith(f"no tumour in {part[0]} of 6 volumes: TCGA_AA_000")
    with pytest.raises(
        RequestError,
        match=rf"data\.path=.*lgg\.h5: none of the {part} patients has a pixel of tumour",
    ):
        check(source)
    check(source, "allow_empty=true")


def test_inverted_masks_are_a_warning_and_no_training(source: Path) -> None:
    change_masks(source, np.invert)
    inverted, everywhere = warnings(source)
    assert inverted.startswith(
        "tumour covers more than half of the head in most slices, so the masks look inverted or mark the head, in 6"
    )
    assert everywhere.startswith("every slice of every volume has tumour")
    with pytest.raises(
        RequestError,
        match="covers more than half of most slices of the train patients, so the masks look inverted",
    ):
        check(source)
    check(source, "allow_empty=true")


def test_one_inverted_volume_is_named(source: Path) -> None:
    change_masks(source, np.invert, slice(2, 3))
    (warning,) = warnings(source)
    assert warning.endswith("in 1 of 6 volumes: TCGA_AA_0002_20010103")


def test_masks_of_the_head_are_a_warning(source: Path) -> None:
    """The head fills a quarter of each image: its mask covers less than half of the pixels, and all of the head."""
    for path in source.glob("*/*.tif"):
        pixels = tifffile.imread(path)
        pixels[8:], pixels[:, 8:] = 0, 0
        if path.stem.endswith("_mask"):
            pixels[:8, :8] = 255
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    assert warnings(source)[0].startswith("tumour covers more than half of the head in most slices")


def test_tumour_in_every_slice_is_a_warning_alone(source: Path) -> None:
    change_masks(
        source, lambda mask: np.maximum(mask, np.pad(np.full((1, 1), 255), ((8, 7), (8, 7))))
    )
    (warning,) = warnings(source)
    assert warning.startswith(
        "every slice of every volume has tumour: false positives on slices without it cannot be counted"
    )
    check(source)


def test_a_few_slices_without_a_head_are_no_doubt(source: Path) -> None:
    """A slice above the skull has neither a head nor a tumour."""
    for path in source.glob("*/*_1.tif"):
        tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    assert warnings(source) == []
