"""One cohort in every layout, written by nibabel, SimpleITK, Pillow, tifffile and ImageMagick.

Six patients with 4 channels and 3 classes; the odd ones have smaller slices, the third lies obliquely in the scanner.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from image_programs import image_magick
from nibabel import orientations
from own_cohort import CHANNELS, CLASSES, SPACING, volume
from PIL import Image

PATIENTS = 6
SIZES = (32, 24)
SIZE = 32
STORED_AS = ("LPS", "RAS", "PIR", "SAL", "LPI", "RSP")  # directions of the axes, by patient


def make_patient(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (S, C, H, W) with values from 0 to 255, and masks uint8 (S, H, W), axial, face up."""
    images, masks = volume(index, slices=4, size=SIZES[index % 2])
    images = (images.astype(np.float64) + 300) / 20
    return np.clip(images, 0, 255).round().astype(np.uint8), masks.astype(np.uint8)


def expected(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `prepare size=32` must store of a patient: smaller slices are padded by 4 pixels on each side."""
    images, masks = make_patient(index)
    border = (SIZE - images.shape[-1]) // 2
    edges = [(border, border)] * 2
    return np.pad(images, [(0, 0), (0, 0), *edges]), np.pad(masks, [(0, 0), *edges])


def affine_of(index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the affine of an array (W, H, S) with the axes L, P, S; that of patient 2 is turned by 12 degrees."""
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = [shape[0] * SPACING[2] / 2, shape[1] * SPACING[1] / 2, -20.0]
    if index == 2:
        angle = np.deg2rad(12)
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = turn @ affine
    return affine


def as_nifti(slices: np.ndarray, index: int, axes: str | None = None) -> nibabel.Nifti1Image:
    """Return axial slices (S, H, W) as an image, stored in the patient's own order of axes."""
    array = slices.transpose(2, 1, 0)
    image = nibabel.Nifti1Image(array, affine_of(index, array.shape))
    stored = orientations.axcodes2ornt(axes or STORED_AS[index])
    return image.as_reoriented(
        orientations.ornt_transform(orientations.io_orientation(image.affine), stored)
    )


def write_image(path: Path, slices: np.ndarray, index: int, by: str = "nibabel") -> None:
    """Write axial slices as NIfTI, or as the format of the path's suffix with SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if by == "nibabel":
        nibabel.save(as_nifti(slices, index), path)
        return
    image = sitk.GetImageFromArray(slices)
    affine = affine_of(index, slices.shape[::-1])
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(SPACING[::-1])
    image.SetDirection((flip @ affine[:3, :3] / SPACING[::-1]).ravel().tolist())
    image.SetOrigin((flip @ affine[:3, 3]).tolist())
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS") if index == 1 else image, str(path))


def patients() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the number, images and masks of every patient."""
    for index in range(PATIENTS):
        yield index, *make_patient(index)


def write_folders(source: Path) -> Path:
    """Write `P0/scan_flair.nii.gz` and so on with nibabel."""
    for index, images, masks in patients():
        for channel, name in enumerate(CHANNELS):
            write_image(
                source / f"P{index}" / f"scan_{name.lower()}.nii.gz", images[:, channel], index
            )
        write_image(source / f"P{index}" / "scan_seg.nii.gz", masks, index)
    return source


def write_flat(source: Path) -> Path:
    """Write `P0_flair.nrrd` and so on with SimpleITK, masks as MetaImage."""
    for index, images, masks in patients():
        for channel, name in enumerate(CHANNELS):
            write_image(source / f"P{index}_{name.lower()}.nrrd", images[:, channel], index, "sitk")
        write_image(source / f"P{index}_seg.mha", masks, index, "sitk")
    return source


def write_nnunet(source: Path) -> Path:
    """Write a dataset of nnU-Net, version 2, with SimpleITK."""
    for index, images, masks in patients():
        for channel in range(len(CHANNELS)):
            path = source / "imagesTr" / f"P{index}_{channel:04d}.nii.gz"
            write_image(path, images[:, channel], index, "sitk")
        write_image(source / "labelsTr" / f"P{index}.nii.gz", masks, index, "sitk")
    describe(
        source,
        channel_names=dict(enumerate(CHANNELS)),
        file_ending=".nii.gz",
        numTraining=PATIENTS,
        labels={name: value for value, name in enumerate(CLASSES)},
    )
    return source


def write_decathlon(source: Path) -> Path:
    """Write a task of the Medical Segmentation Decathlon: one file of four volumes per patient, with nibabel."""
    (source / "imagesTr").mkdir(parents=True)
    for index, images, masks in patients():
        parts = [as_nifti(images[:, channel], index) for channel in range(len(CHANNELS))]
        array = np.stack([np.asarray(part.dataobj) for part in parts], axis=-1)
        nibabel.save(
            nibabel.Nifti1Image(array, parts[0].affine), source / "imagesTr" / f"P{index}.nii.gz"
        )
        write_image(source / "labelsTr" / f"P{index}.nii.gz", masks, index)
        # The archives of the Decathlon hold a file of macOS beside each.
        (source / "imagesTr" / f"._P{index}.nii.gz").write_bytes(b"\0" * 100)
    describe(
        source,
        modality=dict(enumerate(CHANNELS)),
        labels=dict(enumerate(CLASSES)),
        tensorImageSize="4D",
    )
    return source


def describe(source: Path, **content: object) -> None:
    """Write dataset.json."""
    (source / "dataset.json").write_text(json.dumps({"name": "phantom", **content}))


SUFFIXES = {"T1": "T1w", "T1c": "ce-gd_T1w", "T2": "T2w", "FLAIR": "FLAIR"}  # of BIDS


def write_bids(source: Path) -> Path:
    """Write a dataset in BIDS: patients 0 and 1 are two sessions of one subject; masks are a derivative, with a table."""
    for index, images, masks in patients():
        subject, session = (0, index + 1) if index < 2 else (index, 1)
        name, folder = f"sub-P{subject}_ses-{session:02d}", f"sub-P{subject}/ses-{session:02d}/anat"
        for channel, suffix in enumerate(SUFFIXES[channel] for channel in CHANNELS):
            write_image(source / folder / f"{name}_{suffix}.nii.gz", images[:, channel], index)
        masks_folder = source / "derivatives" / "lesions" / folder
        write_image(masks_folder / f"{name}_desc-lesion_dseg.nii.gz", masks, index)
        write_image(masks_folder / f"{name}_desc-brain_mask.nii.gz", np.ones_like(masks), index)
    rows = "".join(f"{value}\t{name}\n" for value, name in enumerate(CLASSES))
    (source / "derivatives" / "lesions" / "desc-lesion_dseg.tsv").write_text("index\tname\n" + rows)
    (source / "dataset_description.json").write_text(
        json.dumps({"Name": "phantom", "BIDSVersion": "1.9.0"})
    )
    return source


PARTS = {"T1": "t1n", "T1c": "t1c", "T2": "t2w", "FLAIR": "t2f"}  # of BraTS from 2023


def write_brats(source: Path) -> Path:
    """Write BraTS 2023: patients 0 and 1 are two time points of one patient."""
    for index, images, masks in patients():
        name = f"BraTS-GLI-{max(index, 1):05d}-{int(index == 1):03d}"
        for channel, part in enumerate(PARTS[channel] for channel in CHANNELS):
            write_image(source / name / f"{name}-{part}.nii.gz", images[:, channel], index, "sitk")
        write_image(source / name / f"{name}-seg.nii.gz", masks, index, "sitk")
    return source


def write_pictures(source: Path) -> Path:
    """Write a PNG per slice and sequence with Pillow, `T1/P0_1.png`, and masks in a parallel folder."""
    for index, images, masks in patients():
        for number in range(len(images)):
            for channel, name in enumerate(CHANNELS):
                write_picture(source / name / f"P{index}_{number + 1}.png", images[number, channel])
            write_picture(source / "masks" / f"P{index}_{number + 1}.png", masks[number])
    return source


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a picture (H, W) or (H, W, 3) with Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_colour(source: Path, by: str = "pillow") -> Path:
    """Write T1, FLAIR and T1c as the colours of a PNG, and 0 and 255 as masks, by Pillow or ImageMagick."""
    for index, images, masks in patients():
        for number in range(len(images)):
            pixels = images[number][[0, 3, 1]].transpose(1, 2, 0)
            for folder, content in {
                "images": pixels,
                "masks": 255 * (masks[number] > 0).astype(np.uint8),
            }.items():
                path = source / folder / f"P{index}_{number + 1}.png"
                write_picture(path if by == "pillow" else path.with_suffix(".ppm"), content)
    if by == "ImageMagick":
        for path in sorted(source.glob("*/*.ppm")):
            subprocess.run([image_magick(), path, path.with_suffix(".png")], check=True)
            path.unlink()
    return source


def write_kaggle(source: Path) -> Path:
    """Write T1, FLAIR and T1c as the public set does, with tifffile."""
    for index, images, masks in patients():
        folder = source / f"P{index}"
        folder.mkdir(parents=True)
        for number in range(len(images)):
            pixels = images[number][[0, 3, 1]].transpose(1, 2, 0)
            tifffile.imwrite(
                folder / f"P{index}_{number + 1}.tif", pixels, photometric="rgb", metadata=None
            )
            mask = 255 * (masks[number] > 0).astype(np.uint8)
            tifffile.imwrite(folder / f"P{index}_{number + 1}_mask.tif", mask, metadata=None)
    return source
