"""Values of DICOM voxels: every slice by its own header, whatever the pixels are stored as."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import MATRIX, SHAPE, dataset, items, place, ramp, write_enhanced, write_series
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom import DicomVolume, find_series, open_file
from brainseg.data.imageio.dicom_pixels import check_decoder, codestream_size

DECODERS = all(importlib.util.find_spec(name) for name in ("libjpeg", "openjpeg"))


def only(folder: Path) -> DicomVolume:
    volumes, lines = find_series(folder)
    assert len(volumes) == 1 and lines == []
    return volumes[0]


def pydicom_values(paths: list[Path]) -> np.ndarray:
    """Return what pydicom makes of each file, by the height of its slice."""
    files = sorted(map(pydicom.dcmread, paths), key=lambda file: file.ImagePositionPatient[2])
    return np.stack([apply_modality_lut(file.pixel_array, file).T for file in files], -1)


def test_slopes_that_differ_by_slice(tmp_path: Path) -> None:
    def rescale(file: pydicom.Dataset, k: int) -> None:
        file.RescaleSlope, file.RescaleIntercept = (1, 0.001, 0.5, 2, 3)[k], -k

    paths = write_series(tmp_path, ramp(), change=rescale)
    values = only(tmp_path).read()
    assert values.dtype == np.float32
    assert np.allclose(values, pydicom_values(paths), rtol=1e-6)
    assert np.allclose(values, ramp() * (1, 0.001, 0.5, 2, 3) - np.arange(5))


def test_slopes_that_differ_by_frame(tmp_path: Path) -> None:
    slopes = (1, 0.001, 0.5, 2, 3)

    def rescale(frame: int) -> dict:
        values = items(RescaleSlope=slopes[frame], RescaleIntercept=frame, RescaleType="US")
        return {"PixelValueTransformationSequence": values}

    path = write_enhanced(tmp_path / "a.dcm", ramp(), groups=rescale)
    assert np.allclose(open_file(path).read(), ramp() * slopes + np.arange(5))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_integers_in_every_native_encoding(dtype: str, syntax: str, tmp_path: Path) -> None:
    volume = ramp(dtype=dtype) - np.array(100).astype(dtype) * (dtype[0] == "i")
    for path in write_series(tmp_path, volume):
        save(pydicom.dcmread(path), path, syntax)
    values = only(tmp_path).read()
    assert values.dtype == np.dtype(dtype) and np.array_equal(values, volume)


def save(file: pydicom.FileDataset, path: Path, syntax: str) -> None:
    """Write a little-endian dataset in another encoding, pixels included."""
    is_little = syntax != uid.ExplicitVRBigEndian
    if not is_little:
        words = np.frombuffer(file.PixelData, f"<u{file.BitsAllocated // 8}")
        file.PixelData = words.byteswap().tobytes()
    file["PixelData"].VR = "OB" if file.BitsAllocated == 8 else "OW"
    file.file_meta.TransferSyntaxUID = syntax
    is_implicit = syntax == uid.ImplicitVRLittleEndian
    plain = pydicom.Dataset({element.tag: element for element in file})
    plain.file_meta, plain.preamble = file.file_meta, file.preamble
    pydicom.dcmwrite(path, plain, implicit_vr=is_implicit, little_endian=is_little)


@pytest.mark.parametrize(
    ("is_implicit", "is_little"), [(True, True), (False, True), (False, False)]
)
def test_no_preamble_no_meta_and_no_suffix(
    is_implicit: bool, is_little: bool, tmp_path: Path
) -> None:
    for number, path in enumerate(write_series(tmp_path, ramp(dtype="u1"))):
        file = pydicom.dcmread(path)
        plain = pydicom.Dataset({element.tag: element for element in file})
        plain["PixelData"].VR = "OB"
        pydicom.dcmwrite(
            tmp_path / f"IM{number}",
            plain,
            implicit_vr=is_implicit,
            little_endian=is_little,
            enforce_file_format=False,
        )
        path.unlink()
    assert (tmp_path / "IM0").read_bytes()[128:132] != b"DICM"
    assert np.array_equal(only(tmp_path).read(), ramp(dtype="u1"))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_twelve_bits_in_sixteen(dtype: str, tmp_path: Path) -> None:
    volume = (ramp() * 19 - (2000 if dtype == "i2" else 0)).astype(dtype)
    # The bits above the twelfth may hold an old overlay.
    write_series(tmp_path, (volume & 0xFFF | 0x5000).astype(dtype), BitsStored=12, HighBit=11)
    assert np.array_equal(only(tmp_path).read(), volume)


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_inverted_grey_values(dtype: str, tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    write_series(tmp_path, ramp(dtype=dtype), **tags)
    volume = only(tmp_path)
    assert np.array_equal(volume.read(), (4095 if dtype == "u2" else -1) - ramp().astype(int))
    assert volume.notes == ["DICOM with inverted grey values (MONOCHROME1): read with dark as low"]


def test_padding_is_background(tmp_path: Path) -> None:
    volume = ramp(dtype="i2")
    volume[0], volume[1] = -2000, -1999
    write_series(tmp_path / "range", volume, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1999)
    series = only(tmp_path / "range")
    assert np.array_equal(series.read(), np.where(volume < 0, 0, volume))
    assert series.notes == ["DICOM with padding outside the image: read as background"]
    write_series(tmp_path / "value", volume, PixelPaddingValue=-2000)
    assert np.array_equal(only(tmp_path / "value").read(), np.where(volume == -2000, -1999, volume))
    write_series(tmp_path / "zero", ramp() + 300, PixelPaddingValue=0)
    assert only(tmp_path / "zero").notes == []
    assert np.array_equal(only(tmp_path / "zero").read(), ramp() + 300)


@pytest.mark.parametrize(
    ("dtype", "name"), [("f4", "FloatPixelData"), ("f8", "DoubleFloatPixelData")]
)
def test_floating_point_pixels(dtype: str, name: str, tmp_path: Path) -> None:
    volume = ramp(dtype=dtype) / 7
    tags = {name: None}
    for path in write_series(tmp_path, volume):
        file = pydicom.dcmread(path)
        setattr(file, name, file.PixelData)
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(file, keyword)
        file.save_as(path)
    assert np.array_equal(only(tmp_path).read(), volume) and tags
    file = pydicom.dcmread(path)
    setattr(file, name, np.full(SHAPE[1::-1], np.nan, dtype).tobytes())
    file.save_as(path)
    with pytest.raises(DataError, match="42 voxels are NaN or infinite"):
        only(tmp_path).read()


@pytest.mark.skipif(not DECODERS, reason="needs pylibjpeg")
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_lossless_compression(syntax: uid.UID, is_signed: bool, tmp_path: Path) -> None:
    volume = ramp((32, 32, 4), np.int16 if is_signed else np.uint16) - (2048 if is_signed else 0)

    def compress(file: pydicom.Dataset, k: int) -> None:
        file.BitsStored, file.HighBit = 12, 11
        file.compress(syntax, generate_instance_uid=False)

    paths = write_series(tmp_path / "series", volume, change=compress)
    assert np.array_equal(only(tmp_path / "series").read(), volume)
    assert np.array_equal(pydicom_values(paths), volume)
    path = write_enhanced(tmp_path / "a.dcm", volume)
    file = pydicom.dcmread(path)
    file.compress(syntax)
    file.save_as(path)
    assert np.array_equal(open_file(path).read(), volume)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "_implicit",
        "_bigendian",
        "_expb",
        "_padded",
        "_RLE",
        "_jp2klossless",
        "_jpeg_ls_lossless",
    ],
)
def test_one_scan_in_the_encodings_of_other_programs(name: str) -> None:
    if "jp" in name and not DECODERS:
        pytest.skip("needs pylibjpeg")
    original = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    volume = open_file(Path(str(get_testdata_file(f"MR_small{name}.dcm", download=False))))
    assert np.array_equal(volume.read()[:, :, 0], original.pixel_array.T)
    origin = np.array(original.ImagePositionPatient) * (-1, -1, 1)
    assert np.allclose(volume.grid.affine[:3, 3], origin) and volume.modality == "MR"


def test_a_truncated_file_of_another_program_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"MR_truncated\.dcm: truncated: it holds 8,130 of the 8,192"
    ):
        open_file(Path(str(get_testdata_file("MR_truncated.dcm", download=False))))


@pytest.mark.skipif(not DECODERS, reason="needs pylibjpeg")
@pytest.mark.parametrize("precision", [8, 12, 16])
def test_lossless_jpeg_as_scanners_write_it(precision: int, tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    dtype = np.uint8 if precision == 8 else np.uint16
    volume = (ramp((20, 16, 5)) * 2 ** (precision - 8) // 7).astype(dtype)

    def compress(file: pydicom.Dataset, k: int) -> None:
        encoded = imagecodecs.ljpeg_encode(
            np.ascontiguousarray(volume[:, :, k].T), bitspersample=precision
        )
        file.BitsStored, file.HighBit = precision, precision - 1
        file.PixelData = pydicom.encaps.encapsulate([bytes(encoded)])
        file["PixelData"].VR = "OB"
        file.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1

    write_series(tmp_path, volume, change=compress)
    assert np.array_equal(only(tmp_path).read(), volume)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless])
def test_without_a_decoder_the_remedy_can_be_installed(
    syntax: uid.UID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = pydicom.pixels.get_decoder(syntax)
    for label in (*decoder.available_plugins,):
        monkeypatch.delitem(decoder._available, label)
    with pytest.raises(
        DataError, match=r"no decoder is installed\. Install one: pip install -e '\.\[dicom\]'"
    ):
        check_decoder(Path("a.dcm"), syntax)


def test_a_video_or_unknown_syntax_names_a_converter() -> None:
    with pytest.raises(DataError, match=r"cannot be read\. Convert the series to NIfTI"):
        check_decoder(Path("a.dcm"), uid.MPEG2MPML)


@pytest.mark.parametrize(
    ("encode", "shape"),
    [("jpeg8_encode", (16, 20)), ("jpeg2k_encode", (17, 5)), ("jpegls_encode", (9, 4))],
)
def test_the_size_of_a_codestream(encode: str, shape: tuple[int, int]) -> None:
    encoder: Callable = getattr(pytest.importorskip("imagecodecs"), encode)
    assert codestream_size(bytes(encoder(np.zeros(shape, np.uint8)))) == (*shape[::-1], 1)
    assert codestream_size(bytes(encoder(np.zeros((*shape, 3), np.uint8))))[2] == 3
    assert codestream_size(b"\xff\xd8\xff\xd9") is None


def test_a_slope_of_zero_is_refused_and_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ramp(), RescaleSlope=0, RescaleIntercept=0)
    with pytest.raises(DataError, match=f"{paths[0].name}: RescaleSlope is 0, which makes all"):
        _ = find_series(tmp_path)[0][0].grid


def test_a_lookup_table_is_refused(tmp_path: Path) -> None:
    table = items(LUTDescriptor=[4, 0, 16], ModalityLUTType="US", LUTData=b"\0" * 8)
    write_series(tmp_path, ramp(), ModalityLUTSequence=table)
    with pytest.raises(DataError, match="values go through a lookup table"):
        _ = find_series(tmp_path)[0][0].grid


def test_small_integers_stay_integers(tmp_path: Path) -> None:
    file = dataset(ramp((7, 6, 1), np.uint8)[:, :, 0].T, RescaleSlope=1, RescaleIntercept=0)
    place(file, MATRIX, 0)
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert open_file(tmp_path / "a.dcm").read().dtype == np.uint8
