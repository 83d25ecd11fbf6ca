"""Header of one DICOM file, read without its pixels."""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import config, uid
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info

from brainseg.core.errors import DataError
from brainseg.data.imageio import dicom_pixels
from brainseg.data.imageio.base import LARGEST_VOLUME, check_volume
from brainseg.data.imageio.dicom_frames import ATTRIBUTES, Frame, read_frames, read_text

# Exceptions of pydicom for damaged or hostile files. OSError is handled separately.
PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    struct.error,
    zlib.error,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
SUFFIXES = (".dcm", ".dicom", ".ima")
TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImagesInAcquisition",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    *{keyword for _, _, keyword, *_ in ATTRIBUTES if keyword},
)
# Modalities whose objects may have pixels, but are no scans.
NON_SCAN_MODALITIES = {
    "SEG": "a segmentation",
    "RTDOSE": "a radiation dose",
    "RTIMAGE": "a radiotherapy image",
    "PR": "a presentation state",
    "SM": "a microscope image",
    "ES": "an endoscope image",
}
SERIES = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
MR_CLASSES = (
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
)


@dataclass(frozen=True)
class NonImageFile:
    """A DICOM file that holds no image of a scan."""

    path: Path
    # A noun phrase, such as "a colour image".
    reason: str


@dataclass(frozen=True)
class ImageFile:
    """A DICOM file that holds an image, or that is too damaged to say what it holds."""

    path: Path
    # The reason why the series of the file cannot be read, "" if it can.
    problem: str = ""
    # IDs of patient, study and series, "" where the header was not read.
    series: tuple[str, ...] = ("", "", "")
    # SOP Instance UID.
    instance: str = ""
    description: str = ""
    modality: str = ""
    is_mosaic: bool = False
    images_in_acquisition: str = ""
    frames: Sequence[Frame] = ()
    form: dicom_pixels.PixelFormat | None = None


def read_file(path: Path) -> ImageFile | NonImageFile | None:
    """Return the header of `path`, None if neither its content nor its name is DICOM.

    A fault of the file becomes the `problem` of an `ImageFile`, so that the other files of a folder
    can be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError as error:
        return ImageFile(path, f"{path} cannot be opened ({error.strerror})")
    has_preamble = start[128:] == b"DICM"
    if not has_preamble and not _begins_like_a_dataset(start):
        return ImageFile(path, _damage_message(path)) if _claims_to_be_dicom(path, start) else None
    try:
        with lenient_parsing(), path.open("rb") as stream:
            # A deflated file is inflated as a whole. Its length says nothing about its pixels.
            is_deflated = has_preamble and _is_deflated(path)
            dataset = pydicom.dcmread(
                stream, force=True, stop_before_pixels=not is_deflated, specific_tags=list(TAGS)
            )
            if not has_preamble and not dataset.get("SOPClassUID"):
                return None
            return _judge(path, dataset, stream)
    except DataError as error:
        return ImageFile(path, str(error))
    except (OSError, *PARSE_ERRORS) as error:
        # pydicom raises an OSError without the system's reason for a sequence that ends too early.
        reason = getattr(error, "strerror", None)
        return ImageFile(
            path, f"{path} cannot be read ({reason})" if reason else _damage_message(path)
        )


def read_pixels(path: Path) -> FileDataset:
    """Return the elements needed to decode the pixels of a file. Raises OSError, PARSE_ERRORS."""
    dataset = pydicom.dcmread(path, force=True, specific_tags=list(dicom_pixels.TAGS))
    dataset.file_meta.TransferSyntaxUID = dicom_pixels.syntax_of(dataset)
    return dataset


@contextmanager
def lenient_parsing() -> Iterator[None]:
    """Let pydicom accept values that break a rule of the standard, without warnings."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # pydicom logs a traceback for every failed decoder, besides raising an error.
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _judge(path: Path, dataset: FileDataset, stream: BinaryIO) -> ImageFile | NonImageFile:
    """Return a parsed file as an image, or with the reason why it is none. Raises DataError."""
    sop_class = uid.UID(read_text(dataset, "SOPClassUID"))
    media_class = dataset.file_meta.get("MediaStorageSOPClassUID")
    modality = read_text(dataset, "Modality")
    if uid.MediaStorageDirectoryStorage in (sop_class, media_class):
        return NonImageFile(path, "a DICOMDIR, the index of a medium")
    if modality in NON_SCAN_MODALITIES:
        return NonImageFile(path, NON_SCAN_MODALITIES[modality])
    image = ImageFile(
        path=path,
        series=tuple(read_text(dataset, keyword) for keyword in SERIES),
        instance=read_text(dataset, "SOPInstanceUID"),
        description=_printable(read_text(dataset, "SeriesDescription")),
        modality=modality or ("MR" if sop_class in MR_CLASSES else "unknown"),
        is_mosaic="MOSAIC" in read_text(dataset, "ImageType").split("/"),
        images_in_acquisition=read_text(dataset, "ImagesInAcquisition"),
    )
    colours = read_text(dataset, "PhotometricInterpretation")
    if not (dataset.get("Rows") and dataset.get("Columns") and colours):
        # A spectrum has rows and columns, too. An image that lacks them is truncated.
        if sop_class and not sop_class.name.endswith("Image Storage"):
            return NonImageFile(path, f"an object without an image ({_printable(sop_class.name)})")
        rule = "has no image: it is truncated, or its pixels were removed"
        return replace(image, problem=f"{path} {rule}. Copy it again from its source")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not colours.startswith("MONOCHROME"):
        return NonImageFile(path, "a colour image")
    if dataset.get("BitsAllocated") == 1:
        return NonImageFile(path, "a bitmap of one bit per pixel")
    has_place = dataset.get("ImagePositionPatient") or dataset.get(
        "PerFrameFunctionalGroupsSequence"
    )
    if "Secondary Capture" in sop_class.name and not has_place:
        return NonImageFile(path, "a screen capture without a place in the patient")
    try:
        return _with_frames(image, dataset, stream)
    except DataError as error:
        return replace(image, problem=str(error))


def _with_frames(image: ImageFile, dataset: FileDataset, stream: BinaryIO) -> ImageFile:
    """Return the image with its frames and the format of its pixels. Raises DataError."""
    path, count = image.path, int(dataset.get("NumberOfFrames") or 1)
    check_volume((int(dataset.Columns), int(dataset.Rows), count), path)
    if dataset.get("ModalityLUTSequence"):
        raise DataError(f"{path}: its values go through a lookup table. {dicom_pixels.CONVERT}")
    form = dicom_pixels.read_format(path, dataset, stream, count)
    return replace(image, form=form, frames=read_frames(path, dataset, count))


def _is_deflated(path: Path) -> bool:
    """Return True for a deflated file. Raises DataError if it inflates beyond any volume."""
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return False
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as stream:
        # The group's length counts from the end of its element, which lies behind the preamble
        # (128 bytes), the mark DICM (4 bytes) and the element itself (12 bytes).
        stream.seek(144 + int(meta.FileMetaInformationGroupLength))
        while piece := inflater.unconsumed_tail or stream.read(2**20):
            size += len(inflater.decompress(piece, 2**20))
            if size > 4 * LARGEST_VOLUME:
                raise DataError(f"{path}: it inflates to more than {4 * LARGEST_VOLUME:,} bytes")
    return True


def _begins_like_a_dataset(start: bytes) -> bool:
    """Return True if a file without a preamble begins with an element of the groups 2 or 8."""
    return start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08") and len(start) > 8


def _claims_to_be_dicom(path: Path, start: bytes) -> bool:
    """Return True if a file that does not begin as DICOM has a DICOM name or is empty."""
    if path.name.startswith("."):
        # macOS leaves hidden companions beside copied files.
        return False
    has_no_format = not path.suffix or path.suffix[1:].isdecimal()
    return path.suffix.lower() in SUFFIXES or (has_no_format and not start.strip(b"\0"))


def _damage_message(path: Path) -> str:
    """Return the message for a file that cannot be parsed."""
    return f"{path} is damaged or no DICOM file. Copy it again from its source, or remove it"


def _printable(value: str) -> str:
    """Return a printable text of at most 100 characters."""
    return (value if value.isprintable() else ascii(value))[:100]
