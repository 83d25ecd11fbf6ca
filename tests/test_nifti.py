"""NIfTI volumes as nibabel reads them: grids, values, and headers that do not hold."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainseg.data.imageio.nifti_writer import write_nifti
from brainseg.data.imageio.open import open_image

SHAPE = (5, 4, 3)
STRAIGHT = np.array([[-2.0, 0, 0, 30], [0, -2.5, 0, 40], [0, 0, 5, -20], [0, 0, 0, 1]])
TURNED = np.array([[-1.9, 0.8, 0, 33], [-0.6, -2.4, 0, 94], [0, 0, 5, -10], [0, 0, 0, 1]])
SHEARED = np.array([[-2.0, 0, 0.5, 30], [0, -2.5, 1.0, 40], [0, 0, 5, -20], [0, 0, 0, 1]])


def voxels(dtype: type = np.int16) -> np.ndarray:
    return np.arange(60).reshape(SHAPE).astype(dtype)


def saved(path: Path, image: nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    "sform", [STRAIGHT, TURNED, SHEARED], ids=["straight", "turned", "sheared"]
)
@pytest.mark.parametrize("codes", itertools.product((0, 1, 2), (0, 1, 2)))
def test_the_grid_is_nibabels_and_the_mask_carries_both_forms(
    codes: tuple[int, int], sform: np.ndarray, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(STRAIGHT, codes[1])
    source = nibabel.load(saved(tmp_path / "a.nii", image))
    volume = open_image(tmp_path / "a.nii")
    assert np.allclose(volume.grid.affine, source.affine)
    write_nifti(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8), volume.grid, volume.stored)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(mask.affine, source.affine)
    for form in ("get_sform", "get_qform"):
        expected, code = getattr(source.header, form)(coded=True)
        found, found_code = getattr(mask.header, form)(coded=True)
        assert code == found_code and (expected is None) == (found is None)
        assert expected is None or np.array_equal(expected, found)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_type_is_read(dtype: str, order: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    image = nibabel.Nifti1Image(voxels(), STRAIGHT, header)
    path = saved(tmp_path / "a.nii", image)
    assert np.array_equal(open_image(path).read(), voxels())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2", "A.NII.GZ", "a.hdr", "a.img"])
def test_files_are_read_by_their_content(name: str, tmp_path: Path) -> None:
    kind = nibabel.Nifti1Pair if name[2:] in ("hdr", "img") else nibabel.Nifti1Image
    plain = saved(tmp_path / name.lower(), kind(voxels(), STRAIGHT))
    if name != name.lower():
        plain.rename(tmp_path / name)
    volume = open_image(tmp_path / name)
    assert np.array_equal(volume.read(), voxels()) and np.allclose(volume.grid.affine, STRAIGHT)
