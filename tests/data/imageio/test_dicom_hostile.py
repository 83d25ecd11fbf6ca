"""Damaged and hostile DICOM files: a DataError of one line, in little time and memory."""

import os
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import MATRIX, SHAPE, dataset, place, ramp, write_enhanced, write_series
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom import find_series, open_file

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(folder: Path) -> list[object]:
    """Return the values of each volume of a folder, or the one line that refuses it."""
    results: list[object] = []
    volumes, lines = find_series(folder)
    assert all(line.count("\n") == 0 for line in lines)
    for volume in volumes:
        try:
            results.append((volume.grid.affine.copy(), volume.read(), list(volume.notes)))
        except DataError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            results.append(str(error))
    return results + lines


@QUICK
@given(data=st.data(), is_enhanced=st.booleans())
def test_any_damaged_byte_gives_values_or_a_refusal(
    data: st.DataObject, is_enhanced: bool, tmp_path: Path
) -> None:
    path = tmp_path / "IM0000.dcm"
    write = (
        write_enhanced if is_enhanced else lambda path, volume: write_series(path.parent, volume)
    )
    write(path, ramp(SHAPE if is_enhanced else (7, 6, 1)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert outcome(tmp_path), "a damaged file is never passed over without a word"
    path.unlink()


@QUICK
@given(share=st.floats(0, 0.9999), syntax=st.sampled_from(["native", "rle", "deflated"]))
@example(share=0.99, syntax="rle")
def test_a_file_cut_anywhere_never_gives_a_volume(
    share: float, syntax: str, tmp_path: Path
) -> None:
    def encode(file: pydicom.Dataset, k: int) -> None:
        if syntax == "rle":
            file.compress(uid.RLELossless, generate_instance_uid=False)
        elif syntax == "deflated":
            file["PixelData"].VR = "OW"
            file.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian

    paths = write_series(tmp_path, ramp(), change=encode)
    content = paths[2].read_bytes()
    # No value depends on the delimiter behind compressed pixels, or on the last byte of padding.
    optional = {"rle": 8, "deflated": 1, "native": 0}[syntax]
    length = int(share * (len(content) - optional))
    paths[2].write_bytes(content[:length])
    results = outcome(tmp_path)
    assert results and all(isinstance(result, str) for result in results)
    assert any(paths[2].name in str(result) for result in results)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGBaseline8Bit, uid.JPEGLSLossless])
def test_a_codestream_larger_than_its_header_is_refused_before_it_is_decoded(
    syntax: uid.UID, tmp_path: Path
) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    encoders = {
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode,
        uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode,
        uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    }
    encoded = bytes(encoders[syntax](np.zeros((3000, 3000), np.uint8)))
    file = dataset(np.zeros((6, 7), np.uint8), PixelData=encapsulate([encoded]))
    place(file, MATRIX, 0)
    file["PixelData"].VR, file.file_meta.TransferSyntaxUID = "OB", syntax
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    try:
        volume = open_file(tmp_path / "a.dcm")
    except DataError as error:
        pytest.skip(str(error))
    with pytest.raises(DataError, match="its compressed pixels are of other sizes than the header"):
        volume.read()


def test_run_lengths_larger_than_their_frame_are_refused(tmp_path: Path) -> None:
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 10**6
    file = dataset(np.zeros((6, 7), np.uint8), PixelData=encapsulate([bomb]))
    place(file, MATRIX, 0)
    file["PixelData"].VR, file.file_meta.TransferSyntaxUID = "OB", uid.RLELossless
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="its compressed pixels are of other sizes than the header"):
        open_file(tmp_path / "a.dcm").read()


def test_a_deflated_bomb_is_refused_without_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainseg.data.imageio import dicom_header

    monkeypatch.setattr(dicom_header, "LARGEST_VOLUME", 2**22)
    path = tmp_path / "a.dcm"
    file = dataset(np.zeros((6, 7), np.uint16))
    file["PixelData"].VR = "OW"
    file.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(plain + bytes(2**26)) + packer.flush()
    path.write_bytes(content[:start] + packed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a\.dcm: it inflates to more than 16,777,216 bytes"):
        open_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 40_000


def test_deeply_nested_sequences_are_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "a.dcm", ramp())
    content = path.read_bytes()
    place_of_groups = content.index(struct.pack("<HH", 0x5200, 0x9230))
    start = struct.pack("<HH2s2xL", 0x5200, 0x9230, b"SQ", 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(content[:place_of_groups] + (start + item) * 20000)
    with pytest.raises(DataError, match=r"a\.dcm is damaged or no DICOM file"):
        open_file(path)


def test_an_element_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path, ramp((7, 6, 1)))[0]
    content = path.read_bytes()
    element = content.index(struct.pack("<HH", 0x0008, 0x103E))
    long = struct.pack("<HH2s2xL", 0x0008, 0x103E, b"UT", 0xFFFFFFF0)
    path.write_bytes(content[:element] + long + content[element + 8 :])
    with pytest.raises(DataError, match=r"IM0000\.dcm has no image: it is truncated"):
        open_file(path)


def test_a_description_cannot_break_a_line(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), SeriesDescription="t2\r\n\x1b[31mflair" + "x" * 500)
    (volume,), _ = find_series(tmp_path)
    assert all(name.isprintable() and len(name) <= 120 for name in volume.names)


def test_values_that_break_a_rule_and_do_no_harm_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path, ramp(), StudyInstanceUID="1.02.x", PatientID="P" * 200)
    path = write_series(tmp_path / "cut", ramp(), SeriesInstanceUID="1.5")[0]
    path.write_bytes(path.read_bytes()[:-100])
    # What pydicom says of writing such values is not what is tested.
    caplog.clear()
    capfd.readouterr()
    assert len(outcome(tmp_path)) == 3
    assert capfd.readouterr() == ("", "") and caplog.records == []


def test_pipes_are_not_opened_and_an_unreadable_file_is_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ramp())
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "broken.dcm").symlink_to(tmp_path / "nowhere")
    assert len(find_series(tmp_path)[0]) == 1
    assert find_series(tmp_path)[0][0].files == sorted(paths)


def test_the_headers_of_a_long_series_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, ramp((4, 4, 155)))
    reads = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: reads.append(k) or read(*a, **k))
    start = time.process_time()
    (volume,), _ = find_series(tmp_path)
    assert volume.grid.shape == (4, 4, 155) and len(volume.notes) == 0 and volume.grid
    assert len(reads) == 155 and all(kind["stop_before_pixels"] for kind in reads)
    assert np.array_equal(volume.read(), ramp((4, 4, 155))) and len(reads) == 310
    assert time.process_time() - start < 10


def test_many_files_and_frames_take_linear_time(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "a.dcm", ramp((4, 4, 1200)))
    start = time.process_time()
    volume = open_file(path)
    assert volume.grid.shape == (4, 4, 1200)
    assert np.array_equal(volume.read(), ramp((4, 4, 1200)))
    assert time.process_time() - start < 10


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"locked cannot be listed \(Permission denied\)"):
        find_series(tmp_path)
