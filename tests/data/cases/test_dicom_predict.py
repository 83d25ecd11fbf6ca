"""predict on DICOM: the mask marks the voxels that pydicom gives bright values, at their places."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from dicom_files import items, write_enhanced, write_series
from pydicom.pixels import apply_modality_lut
from scans import SHAPE, SPACING, THRESHOLD, mask_in_place, scan, threshold_weights, truth
from test_predict import call

MATRIX = np.array([[SPACING[0], 0, 0, -30], [0, SPACING[1], 0, -40], [0, 0, SPACING[2], -20]])
SLOPES = tuple(0.001 * (1 + k % 3) for k in range(SHAPE[2]))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return threshold_weights(tmp_path / "weights.pt")


def mask_of(weights: Path, source: Path, *overrides: str) -> Path:
    """Return the mask that predict makes of a file or folder."""
    output = weights.parent / "out"
    call(f"checkpoint={weights}", f"input={source}", f"output={output}", *overrides, *THRESHOLD)
    (mask,) = output.glob("*/*_mask.nii.gz")
    return mask


def test_a_series_beside_a_colour_capture(weights: Path, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", scan(), MATRIX)
    colour = pydicom.dcmread(paths[0])
    colour.SeriesInstanceUID, colour.Modality = "1.9", "OT"
    colour.SamplesPerPixel, colour.PhotometricInterpretation = 3, "RGB"
    colour.PlanarConfiguration, colour.PixelData = 0, colour.PixelData * 3
    colour.save_as(tmp_path / "in" / "capture.dcm")
    mask = mask_of(weights, tmp_path / "in")
    assert np.array_equal(mask_in_place(mask), truth())
    summary = (weights.parent / "out" / "summary.json").read_text()
    assert "ignored: capture.dcm: a colour image" in summary


def test_slopes_that_differ_by_slice_do_not_empty_the_mask(weights: Path, tmp_path: Path) -> None:
    bright = np.rint(scan() / np.array(SLOPES) / 10).astype(np.uint16)

    def rescale(file: pydicom.Dataset, k: int) -> None:
        file.RescaleSlope, file.RescaleIntercept = f"{SLOPES[k]:.3f}", 0

    paths = write_series(tmp_path / "in", bright, MATRIX, rescale)
    mask = mask_in_place(mask_of(weights, tmp_path / "in"))
    files = sorted(map(pydicom.dcmread, paths), key=lambda file: file.ImagePositionPatient[2])
    values = np.stack([apply_modality_lut(file.pixel_array, file).T for file in files], -1)
    assert np.array_equal(mask, values > 15) and np.array_equal(mask, truth())


def test_an_enhanced_object_with_slopes_and_frames_out_of_order(
    weights: Path, tmp_path: Path
) -> None:
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    stored = np.rint(scan() / np.array(SLOPES) / 10).astype(np.uint16)[:, :, order]

    def rescale(frame: int) -> dict:
        slope = f"{SLOPES[order[frame]]:.3f}"
        values = items(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")
        return {"PixelValueTransformationSequence": values}

    path = write_enhanced(tmp_path / "in" / "a.dcm", stored, MATRIX, rescale, order)
    mask = mask_of(weights, path)
    assert np.array_equal(mask_in_place(mask), truth())
    expected = np.diag([-1, -1, 1]) @ MATRIX
    assert np.allclose(nibabel.load(mask).affine[:3], expected)


def test_no_pixel_spacing_gives_no_millilitres(weights: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "in", scan(), MATRIX, PixelSpacing=None)
    mask_of(weights, tmp_path / "in")
    (row,) = pd.read_csv(tmp_path / "out" / "volumes.csv").itertuples()
    assert row.tumour_voxels == truth().sum() and pd.isna(row.tumour_ml)
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "DICOM without a pixel spacing: no volume in millilitres" in notes


@pytest.mark.parametrize("kind", ["gap", "truncated", "duplicate", "two volumes"])
def test_what_is_no_volume_is_refused_before_anything_is_created(
    kind: str, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    if kind == "gap":
        source = write_enhanced(
            source / "a.dcm", scan(), MATRIX, places=[0, 1, 2, 4, 5, 6, 7, 8, 9]
        )
        rule = "a.dcm: slices are 8.00 mm apart between frame 3 and frame 4, and 4.00 mm elsewhere"
    elif kind == "two volumes":
        twice = np.concatenate([scan()[:, :, 3:7], scan()[:, :, 3:7]], -1)
        source = write_enhanced(source / "a.dcm", twice, MATRIX, places=[0, 1, 2, 3] * 2)
        rule = "a.dcm holds 2 volumes (1: repetition 1; 2: repetition 2); choose one with volume=N, from 1 to 2"
    else:
        path = write_series(source, scan(), MATRIX)[-1]
        content = path.read_bytes()
        twin = path if kind == "truncated" else source / "copy (1).dcm"
        twin.write_bytes(content[:-100] if kind == "truncated" else content)
        rule = f"{path.name}: truncated: it holds 540 of the 640 bytes that its pixels take"
        rule = (
            rule if kind == "truncated" else f"{path.name} and {twin} are two copies of one slice"
        )
    overrides = [f"checkpoint={weights}", f"input={source}", f"output={tmp_path / 'out'}"]
    call(*overrides, *THRESHOLD, code=2)
    printed = capfd.readouterr().err
    assert rule in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_volume_chooses_among_the_volumes_of_a_file(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dark = scan()
    dark[dark < 300] = 0
    flipped = scan()[::-1]
    twice = np.concatenate([flipped, dark], -1)
    places = [*range(SHAPE[2])] * 2
    path = write_enhanced(tmp_path / "in" / "a.dcm", twice, MATRIX, places=places)
    path = path / "a.dcm" if path.is_dir() else path
    assert np.array_equal(mask_in_place(mask_of(weights, path, "volume=2")), truth())
    request = [f"checkpoint={weights}", f"input={path}", f"output={tmp_path / 'three'}"]
    call(*request, *THRESHOLD, "volume=3", code=2)
    assert "a.dcm: holds no volume 3; choose one from 1 to 2" in capfd.readouterr().err


def test_volume_is_refused_for_a_folder_of_series(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "in", scan(), MATRIX)
    request = [f"checkpoint={weights}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    call(*request, *THRESHOLD, "volume=2", code=2)
    assert "choose with sequences.FLAIR='volume 2', or give one file" in capfd.readouterr().err
