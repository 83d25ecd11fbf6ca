"""Scans with a bright block at a known place, written by nibabel and pydicom, and a network that does nothing but find it."""

from pathlib import Path

import nibabel
import numpy as np
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from brainseg.models.unet import UNet

SHAPE = (20, 16, 9)  # voxels to the left, the back, the head
BLOCK = (slice(3, 8), slice(2, 5), slice(5, 8))  # in a corner that no turning leaves in its place
SPACING = (1.0, 1.5, 4.0)  # mm
THRESHOLD = ["model.depth=1", "model.width=1", "model.norm=none", "device=cpu"]


def scan(dtype: type = np.int16) -> np.ndarray:
    """(left, back, head): noise, and a block of 300 in it."""
    volume = np.random.default_rng(0).integers(0, 30, SHAPE).astype(dtype)
    volume[BLOCK] = 300 if np.iinfo(dtype).max > 300 else 200
    return volume


def truth() -> np.ndarray:
    """bool (left, back, head)."""
    mask = np.zeros(SHAPE, bool)
    mask[BLOCK] = True
    return mask


def threshold_weights(path: Path, channel: int = 1, bias: float = -10.0) -> Path:
    """Weights of a U-Net of one level: tumour is where this one of three channels is above half of its range."""
    model = UNet(3, 1, depth=1, width=1, norm="none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block, last = model.layers
        block.conv1.weight[0, channel, 1, 1] = block.conv2.weight[0, 0, 1, 1] = 1
        last.weight[:], last.bias[:] = 20, bias
    torch.save(model.state_dict(), path)
    return path


def affine(shift: float = 0.0) -> np.ndarray:
    """Of nibabel (right, front, head) for an array (left, back, head)."""
    matrix = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    matrix[:3, 3] = [30 + shift, 40, -20]
    return matrix


def write_nifti(path: Path, volume: np.ndarray, axes: str = "LPS", shift: float = 0.0) -> Path:
    """An array (left, back, head) stored along other axes, as RAS or PIR."""
    image = nibabel.Nifti1Image(volume, affine(shift))
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


def mask_in_place(path: Path) -> np.ndarray:
    """A mask as bool (left, back, head), whatever axes it is stored along."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj)[::-1, ::-1] > 0


def write_dicom(folder: Path, volume: np.ndarray, description: str = "", **tags: object) -> Path:
    """A series of axial slices, in files whose names and numbers say nothing of their place."""
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    pixels = volume.astype(np.uint16)
    for index in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            MRImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID, one.Modality = (
            MRImageStorage,
            meta.MediaStorageSOPInstanceUID,
            "MR",
        )
        one.StudyInstanceUID, one.SeriesInstanceUID, one.SeriesDescription = (
            "1.2.3",
            series,
            description,
        )
        one.InstanceNumber = 1 + (7 * index) % volume.shape[2]
        one.Columns, one.Rows, one.SamplesPerPixel, one.PhotometricInterpretation = (
            *volume.shape[:2],
            1,
            "MONOCHROME2",
        )
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 0
        one.PixelSpacing, one.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-30, -40, -20 + SPACING[2] * index]
        one.PixelData = pixels[:, :, index].T.tobytes()
        for tag, value in tags.items():
            setattr(one, tag, value)
        one.save_as(folder / f"{(5 * index) % volume.shape[2]:03d}.dcm", enforce_file_format=True)
    return folder
