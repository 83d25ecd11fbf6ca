"""NRRD, MetaImage and MGZ against their own libraries, and a line with a remedy for each other format."""

import gzip
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scans import (
    SHAPE,
    THRESHOLD,
    affine,
    mask_in_place,
    scan,
    threshold_weights,
    truth,
    write_nifti,
)
from test_predict import call

from brainseg.core.errors import DataError, RequestError
from brainseg.data.cases.find import check_input, find_cases
from brainseg.data.imageio.open import open_image
from brainseg.data.volume import CHANNELS


def itk_image() -> sitk.Image:
    """The scan of `scans.py` as SimpleITK holds it: its axes are left, posterior, superior."""
    image = sitk.GetImageFromArray(scan().T)
    image.SetSpacing((1.0, 1.5, 4.0))
    image.SetOrigin((-30.0, -40.0, -20.0))
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "A.MHA", "a.mgz", "a.mgh"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_mask_lies_where_the_block_was(name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    if "mg" in name:
        nibabel.save(nibabel.MGHImage(scan().astype(np.int16), affine()), path)
    else:
        sitk.WriteImage(itk_image(), str(tmp_path / name.lower()), packed)
        (tmp_path / name.lower()).rename(path)
    threshold_weights(tmp_path / "w.pt")
    call(
        f"checkpoint={tmp_path / 'w.pt'}",
        *THRESHOLD,
        f"input={path}",
        f"output={tmp_path / 'o'}",
        "overlays=false",
        "viewer=0",
    )
    (mask,) = (tmp_path / "o").glob("*/*_mask.nii.gz")
    assert np.array_equal(mask_in_place(mask), truth())
    assert np.allclose(nibabel.load(mask).affine, affine())


def test_a_turned_grid_and_another_space_of_nrrd_are_kept(tmp_path: Path) -> None:
    image = itk_image()
    angle = 0.3
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    image.SetDirection([float(value) for value in turn])
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        grid = open_image(tmp_path / name).grid
        for voxel in ((0, 0, 0), (19, 0, 3), (4, 15, 8)):
            left, posterior, superior = image.TransformIndexToPhysicalPoint(voxel)
            assert np.allclose(
                grid.affine @ [*voxel, 1], [-left, -posterior, superior, 1], atol=1e-4
            )
    voxels = np.arange(60, dtype="<i2")
    fields = "type: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 5 4 3\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n"
    fields += "space origin: (7,8,9)\nencoding: raw\nendian: little\n"
    (tmp_path / "ras.nrrd").write_bytes(f"NRRD0004\n{fields}\n".encode() + voxels.tobytes())
    volume = open_image(tmp_path / "ras.nrrd")
    assert np.allclose(volume.grid.affine, [[1, 0, 0, 7], [0, 2, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    assert np.array_equal(volume.read(), voxels.reshape(5, 4, 3, order="F"))


@pytest.mark.parametrize(
    "header",
    [
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n\n",
        "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
    ],
)
def test_a_header_without_spacing_and_axes_is_said_to_be_so(header: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.nrrd" if header.startswith("NRRD") else "a.mha")
    path.write_bytes(header.encode() + np.arange(60, dtype="<i2").tobytes())
    volume = open_image(path)
    assert (
        not volume.grid.spacing_known
        and not volume.grid.orientation_known
        and len(volume.notes) == 2
    )
    (study,) = find_cases(str(path), {}, CHANNELS)
    assert study.voxel_millilitres is None and study.read().spacing is None


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgh", "a.mgz", "a.mhd"])
def test_a_file_that_ends_early_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if "mg" in name:
        nibabel.save(nibabel.MGHImage(scan().astype(np.int16), affine()), path)
    else:
        sitk.WriteImage(itk_image(), str(path), name == "a.nrrd")
    held = tmp_path / "a.raw" if name == "a.mhd" else path
    whole = held.read_bytes()
    for end in (len(whole) // 2, 30):
        held.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"truncated|damaged") as raised:
            volume = open_image(path)
            volume.grid  # noqa: B018
            volume.read()
        assert str(raised.value).count(str(path)) == 1 and "ITK" not in str(raised.value)


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ("sizes: 50000 40000 30000\nencoding: raw", "at most 268,435,456 are read"),
        ("sizes: 500 400 300\nencoding: raw", "truncated: its header asks for 120,000,000 bytes"),
        ("sizes: 500 400 300\nencoding: gzip", "truncated: its header asks for 120,000,000 bytes"),
        (
            "sizes: 5 4 3\nencoding: raw\ndata file: ../secret.raw",
            "its voxels lie in another folder",
        ),
        ("sizes: 5 4 3\nencoding: raw\ndata file: LIST", "its voxels lie in several files"),
        (
            "sizes: 5 4 3\nencoding: raw\ndata file: gone.raw",
            "its file of voxels, gone.raw, is missing",
        ),
    ],
)
def test_nrrd_headers_that_do_not_hold_are_refused(header: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nhdr"
    path.write_bytes(
        f"NRRD0004\ntype: short\ndimension: 3\nendian: little\n{header}\n\n".encode() + bytes(120)
    )
    with pytest.raises(DataError, match=rule):
        volume = open_image(path)
        volume.files  # noqa: B018
        volume.grid  # noqa: B018


def test_colours_and_several_volumes(tmp_path: Path) -> None:
    colours = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "rgb.nrrd"))
    with pytest.raises(DataError, match="holds 3 values in each voxel"):
        open_image(tmp_path / "rgb.nrrd").grid  # noqa: B018
    series = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(series, isVector=False), str(tmp_path / "four.mha"))
    nibabel.save(nibabel.MGHImage(series.T.copy(), np.eye(4)), tmp_path / "four.mgz")
    for name in ("four.mha", "four.mgz"):
        with pytest.raises(DataError, match="holds 2 volumes"):
            open_image(tmp_path / name).grid  # noqa: B018
        assert np.array_equal(open_image(tmp_path / name, 2).read(), series[1].T)


def written(path: Path) -> Path:
    """A file of a format that is not read, by the program or library it is of where there is one here."""
    image = np.zeros((4, 5), np.uint8)
    suffix = path.name.partition(".")[2]
    if suffix in ("png", "jpg", "gif", "bmp"):
        Image.fromarray(image).save(path)
    elif suffix in ("npy", "npz"):
        {"npy": np.save, "npz": np.savez}[suffix](path, image)
    elif suffix == "mat":
        path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(600))
    elif suffix in ("hdf", "mnc"):
        with h5py.File(path, "w") as file:
            file["kspace"] = image
    elif suffix == "img":
        nibabel.save(nibabel.AnalyzeImage(np.zeros((4, 5, 6), np.int16), np.eye(4)), path)
    elif suffix == "zip":
        shutil.make_archive(str(path.with_suffix("")), "zip", path.parent / "empty")
    else:
        path.write_bytes(
            {"tar": bytes(257) + b"ustar" + bytes(300), "pdf": b"%PDF-1.4" + bytes(600)}.get(
                suffix, bytes(600)
            )
        )
    return path


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a.mnc", r"MINC\); convert it to NIfTI with mnc2nii or nibabel"),
        ("a.hdf", r"HDF5\); save one sequence as NIfTI"),
        ("a.png", "PNG, a single picture"),
        ("a.jpg", "JPEG"),
        ("a.gif", "GIF"),
        ("a.bmp", "BMP"),
        ("a.npy", "NumPy array"),
        ("a.npz", "NumPy arrays"),
        ("a.mat", "MATLAB"),
        ("a.zip", "a zip archive.*unpack it"),
        ("a.tar", "a tar archive"),
        ("a.pdf", "PDF"),
        ("a.par", "Philips"),
        ("a.HEAD", "AFNI.*3dAFNItoNIFTI"),
        ("a.mif", "MRtrix.*mrconvert"),
    ],
)
def test_a_format_that_is_not_read_has_a_line_with_a_remedy(
    name: str, rule: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    path = written(tmp_path / name)
    with pytest.raises(RequestError, match=rule) as raised:
        find_cases(str(path), {}, CHANNELS)
    assert str(raised.value).startswith(f"input={path}: this format is not read (")
    assert str(raised.value).count(str(path)) == 1


def test_analyze_is_refused_because_it_does_not_say_left_from_right(tmp_path: Path) -> None:
    written(tmp_path / "a.img")
    with pytest.raises(
        RequestError, match=r"Analyze 7\.5, which does not distinguish left from right"
    ):
        find_cases(str(tmp_path / "a.hdr"), {}, CHANNELS)


def test_an_hdf5_file_of_another_program_is_not_called_prepared(
    tmp_path: Path, phantom_file: Path
) -> None:
    with h5py.File(tmp_path / "knee.h5", "w") as file:
        file["kspace"] = np.zeros((2, 3, 4))
    with pytest.raises(RequestError, match="not a scan, and not a file that prepare made"):
        check_input(str(tmp_path / "knee.h5"))
    with pytest.raises(
        RequestError, match=r"a file of prepared slices, not a scan; brainseg\.evaluate"
    ):
        check_input(str(phantom_file))


def test_what_is_no_file_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "gz.nii.gz").write_bytes(gzip.compress(b""))
    for name in ("empty.nii.gz", "gz.nii.gz"):
        with pytest.raises(RequestError, match="is empty"):
            find_cases(str(tmp_path / name), {}, CHANNELS)
    import os

    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(RequestError, match="is no regular file"):
        find_cases(str(tmp_path / "pipe.nii"), {}, CHANNELS)
    (tmp_path / "link.nii").symlink_to(tmp_path / "gone.nii")
    with pytest.raises(RequestError, match="is a link to a file that does not exist"):
        check_input(str(tmp_path / "link.nii"))
    folder = tmp_path / "patient.nii.gz"
    write_nifti(folder / "scan.nii.gz", scan())
    (study,) = find_cases(str(folder), {}, CHANNELS)
    assert study.name == "patient.nii.gz" and study.read().images.shape == (
        SHAPE[2],
        3,
        SHAPE[1],
        SHAPE[0],
    )
