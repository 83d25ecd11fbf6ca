"""Folders as people have them: nested, copied, renamed by hand, with what Finder and Explorer leave
behind. No image is lost.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiffs import write_cohort, write_slice, write_volume

from brainseg.data.readers.kaggle_3m import Cohort, scan_slices

IMAGE = np.zeros((16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)


def names_of(cohort: Cohort) -> list[str]:
    return [volume.name for volume in cohort.volumes]


def test_system_files_are_neither_read_nor_named(tmp_path: Path) -> None:
    source = write_cohort(tmp_path)
    expected = scan_slices(source, workers=1)
    for folder in (source, source / "TCGA_AA_0000_20010101"):
        for name in (
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            f"._{folder.name}_1.tif",
            ".hidden.tif",
        ):
            (folder / name).write_bytes(b"\0\5\x16\7")
    (source / "._TCGA_AA_0000_20010101").write_bytes(b"\0\5\x16\7")
    shutil.copytree(source / "TCGA_AA_0000_20010101", source / "__MACOSX" / "TCGA_AA_0000_20010101")
    cohort = scan_slices(source, workers=1)
    assert (cohort.faults, cohort.warnings, cohort.ignored_files) == ([], [], [])
    assert cohort.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "nested", ["kaggle_3m", "kaggle_3m/kaggle_3m", "lgg-mri-segmentation/kaggle_3m", "a/b/c/d"]
)
def test_patients_are_found_below_the_source(tmp_path: Path, nested: str) -> None:
    expected = scan_slices(write_cohort(tmp_path / nested), workers=1)
    (tmp_path / nested / "data.csv").touch()
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [] and cohort.ignored_files == [] and len(cohort.volumes) == 3
    assert cohort.fingerprint == expected.fingerprint


def test_patients_in_two_places_are_refused_as_the_archive_has_them(tmp_path: Path) -> None:
    write_cohort(tmp_path / "kaggle_3m")
    shutil.copytree(tmp_path / "kaggle_3m", tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    cohort = scan_slices(tmp_path, workers=1)
    (fault,) = cohort.faults
    assert cohort.folders == []
    assert (
        f"different places: {tmp_path}/kaggle_3m (3), "
        f"{tmp_path}/lgg-mri-segmentation/kaggle_3m (3); give one of them" in fault
    )


def test_a_folder_of_slices_within_a_patient_is_another_place(tmp_path: Path) -> None:
    write_volume(tmp_path, "a")
    write_volume(tmp_path / "a", "a")
    (fault,) = scan_slices(tmp_path, workers=1).faults
    assert (
        f"different places: {tmp_path} (1), {tmp_path}/a (1); give one of them as source" in fault
    )


def test_a_patient_given_as_the_source_names_the_folder_above(tmp_path: Path) -> None:
    (fault,) = scan_slices(write_volume(tmp_path, "a"), workers=1).faults
    assert fault.startswith(
        "no patient's folder: the slices, such as a_1.tif, lie in the source itself; "
        "give the folder above it"
    )


@pytest.mark.parametrize(
    "renamed",
    [
        "a_s002.tif",
        "a-2.tif",
        "a_2 (2).tif",
        "a_2 copy.tif",
        "a_.tif",
        "b_2.tif",
        "a_2.png",
        "a_2.jpg",
        "slice.dcm",
        "A2.TIFF",
    ],
)
def test_an_image_under_another_name_is_a_fault_with_the_name_expected(
    tmp_path: Path, renamed: str
) -> None:
    write_volume(tmp_path, "a")
    for number in range(30):
        (tmp_path / "a" / f"._{number}.tif").touch()
    Image.fromarray(IMAGE).save(tmp_path / "a" / renamed, format="TIFF")
    expected = (
        "an image that is named neither a_<number>.tif nor a_<number>_mask.tif; rename "
        "it, or move it out of the source"
    )
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [f"a/{renamed}: {expected}"] and cohort.faulty_patients == ["a"]


@pytest.mark.parametrize("suffix", [".TIF", ".tiff", ".TIFF", ".Tif"])
def test_a_suffix_of_tiff_is_read_however_it_is_written(tmp_path: Path, suffix: str) -> None:
    folder = write_volume(tmp_path, "a")
    expected = scan_slices(tmp_path, workers=1).fingerprint
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(suffix))
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [] and cohort.fingerprint == expected


def test_a_folder_without_its_date_names_what_its_files_say(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    (tmp_path / "TCGA_AA_0001_20010102").rename(tmp_path / "TCGA_AA_0001")
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [
        "TCGA_AA_0001: its images are named TCGA_AA_0001_20010102_<number>.tif, not "
        "after the folder; "
        "rename the folder to TCGA_AA_0001_20010102, or the files after the folder"
    ]
    assert (
        names_of(cohort) == ["TCGA_AA_0000_20010101", "TCGA_AA_0002_20010103"]
        and cohort.ignored_files == []
    )


def test_a_copy_of_a_folder_is_named_a_copy(tmp_path: Path) -> None:
    write_volume(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / "a (2)")
    (fault,) = scan_slices(tmp_path, workers=1).faults
    assert fault.startswith(
        "a (2): its images are named a_<number>.tif, not after the folder; the folder "
        "a is there too: remove the copy"
    )


def test_slices_beside_the_folders_are_a_fault_and_pictures_a_line(tmp_path: Path) -> None:
    cohort_folder = write_cohort(tmp_path / "kaggle_3m")
    shutil.copy(
        cohort_folder / "TCGA_AA_0000_20010101" / "TCGA_AA_0000_20010101_1.tif",
        cohort_folder / "loose_1.tif",
    )
    (tmp_path / "docs").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "docs" / "figure.png")
    for source in (tmp_path, cohort_folder):
        cohort = scan_slices(source, workers=1)
        assert cohort.faults == [
            "loose_1.tif: a slice that lies beside the patients' folders; put it into the "
            "folder of its patient"
        ]
        assert len(cohort.volumes) == 3
    (cohort_folder / "loose_1.tif").unlink()
    assert scan_slices(tmp_path, workers=1).warnings == [
        "docs/: its images are not read, as it does not lie beside the patients' folders"
    ]


def test_images_of_another_layout_are_named_where_no_patient_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "FLAIR.nii.gz").touch()
    (fault,) = scan_slices(tmp_path, workers=1).faults
    assert fault.startswith("no patient found: expected <folder>/<folder>_<number>.tif")
    assert fault.endswith(
        "its images have other names, such as FLAIR.nii.gz: rename them, or choose another reader"
    )


def test_links_within_the_source_end(tmp_path: Path) -> None:
    write_volume(tmp_path, "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "here").symlink_to(tmp_path)
    Image.fromarray(IMAGE).save(tmp_path / "overview.png")
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [] and names_of(cohort) == ["a"]


@pytest.mark.parametrize("name", [b"M\xfcller", b"empty\xfc"])
def test_a_name_in_latin_1_is_a_fault_that_names_it(tmp_path: Path, name: bytes) -> None:
    write_volume(tmp_path, "a")
    folder = os.path.join(os.fsencode(tmp_path), name)
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    if not name.startswith(b"empty"):
        shutil.copy(tmp_path / "a" / "a_1.tif", os.path.join(folder, name + b"_1.tif"))
    cohort = scan_slices(tmp_path, workers=2)
    (fault,) = cohort.faults
    assert (
        fault.endswith("or bytes that are not UTF-8; rename the folder")
        and "\\udcfc" in fault
        and fault.isascii()
    )
    assert names_of(cohort) == ["a"]


def test_a_file_in_latin_1_is_a_fault_that_names_it(tmp_path: Path) -> None:
    folder = os.fsencode(write_volume(tmp_path, "a"))
    try:
        shutil.copy(os.path.join(folder, b"a_1.tif"), os.path.join(folder, b"a_\xfc1.tif"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (fault,) = scan_slices(tmp_path, workers=1).faults
    assert "\\udcfc" in fault and "an image that is named neither" in fault and fault.isascii()


def test_a_png_in_the_place_of_a_slice_leaves_its_mask_without_one(tmp_path: Path) -> None:
    folder = write_volume(tmp_path, "a")
    Image.open(folder / "a_2.tif").save(folder / "a_2.png")
    (folder / "a_2.tif").unlink()
    png, mask = scan_slices(tmp_path, workers=1).faults
    assert (
        png.startswith("a/a_2.png: an image that is named neither")
        and mask == "a/a_2_mask.tif: a mask without a slice"
    )


def test_a_slice_number_may_have_zeros_in_front(tmp_path: Path) -> None:
    for number in ("001", "002"):
        write_slice(tmp_path, "a", number, IMAGE + np.uint8(int(number)), MASK)
    assert scan_slices(tmp_path, workers=1).volumes[0].slice_number.tolist() == [1, 2]
