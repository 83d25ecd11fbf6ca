"""The folder of slices: what is sound is described rightly, what is not is named, and no file can do harm."""

import io
import os
import random
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiffs import write_cohort, write_slice, write_volume

from brainseg.data.source import Cohort, load, scan
from brainseg.data.tiff import read_tiff
from brainseg.data.volume import patient_of, percentile
from brainseg.errors import DataError

IMAGE = np.zeros((16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)


def test_sound_cohort_is_described(tmp_path: Path) -> None:
    cohort = scan(write_cohort(tmp_path), workers=1)
    assert (cohort.faults, cohort.warnings, cohort.ignored) == ([], [], [])
    assert [volume.name for volume in cohort.volumes] == [f"TCGA_AA_{p:04d}_2001010{p + 1}" for p in range(3)]
    assert [volume.patient for volume in cohort.volumes] == [f"TCGA_AA_{p:04d}" for p in range(3)]
    second = cohort.volumes[1]
    assert second.slice_number.tolist() == [1, 2, 3, 4] and second.tumour_pixels.tolist() == [0, 24, 24, 0]
    images, masks = load(cohort.folders[1])
    stored = np.stack([tifffile.imread(path) for path in cohort.folders[1].slices.values()])
    assert np.array_equal(images, stored.transpose(0, 3, 1, 2)) and images.shape == second.shape
    assert masks.shape == (4, 1, 16, 16) and set(np.unique(masks)) == {0, 1}
    low, high = np.percentile(images, (10, 99), axis=(0, 2, 3)).astype(np.float32)
    assert np.array_equal(second.low, low) and np.array_equal(second.high, high)


def test_slices_are_sorted_by_number_not_by_name(tmp_path: Path) -> None:
    for number in (10, 9, 2, 1):
        write_slice(tmp_path, "a", number, IMAGE + np.uint8(number), MASK)
    (folder,) = scan(tmp_path, workers=1).folders
    assert load(folder)[0][:, 0, 0, 0].tolist() == [1, 2, 9, 10]


def test_missing_sequences_and_constant_channels_are_found(tmp_path: Path) -> None:
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        image[..., 0] = image[..., 1]
        image[..., 2] = image[..., 1] if number == 1 else 7  # equal to FLAIR in one slice only: no copy
        write_slice(tmp_path, "copied", number, image, MASK)
        write_slice(tmp_path, "flat", number, np.dstack([image[..., 0], image[..., 1] // 2, np.full_like(MASK, 9)]), MASK)
    copied, flat = scan(tmp_path, workers=1).volumes
    assert copied.copies.tolist() == [True, False, False] and flat.copies.tolist() == [False, False, False]
    assert flat.constant.tolist() == [False, False, True]


@given(arrays.arrays(np.uint8, st.integers(1, 300), elements=st.integers(0, 255)), st.sampled_from([0.1, 0.5, 0.99]))
def test_percentile_equals_numpy(values: np.ndarray, share: float) -> None:
    expected = np.float32(np.percentile(values, 100 * share))
    assert np.float32(percentile(np.bincount(values, minlength=256), share)) == expected


@pytest.mark.parametrize(
    ("volume", "patient"),
    [("TCGA_CS_4941_19960909", "TCGA_CS_4941"), ("TCGA_CS_4941", "TCGA_CS_4941"), ("scan_001", "scan_001"), ("x", "x")],
)
def test_patient_is_the_name_without_its_date(volume: str, patient: str) -> None:
    assert patient_of(volume) == patient


def test_fingerprint_depends_on_the_content_alone(tmp_path: Path) -> None:
    first = scan(write_cohort(tmp_path / "a"), workers=1).fingerprint
    write_cohort(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("foreign")
    mask = tmp_path / "b" / "TCGA_AA_0000_20010101" / "TCGA_AA_0000_20010101_2_mask.tif"
    tifffile.imwrite(mask, tifffile.imread(mask) // 255, compression="zlib")  # 0/1 instead of 0/255, and compressed
    os.utime(mask, (1, 1))
    assert scan(tmp_path / "b", workers=2).fingerprint == first
    (tmp_path / "b" / "TCGA_AA_0000_20010101").rename(tmp_path / "b" / "renamed")
    assert scan(tmp_path / "b", workers=1).fingerprint != first
    mask = tmp_path / "a" / "TCGA_AA_0001_20010102" / "TCGA_AA_0001_20010102_1_mask.tif"
    tifffile.imwrite(mask, np.eye(16, dtype=np.uint8))
    assert scan(tmp_path / "a", workers=1).fingerprint != first


def test_every_fault_is_in_one_report(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    for fault in FAULTS:
        write_volume(tmp_path, fault)
        FAULTS[fault][0](tmp_path, fault)
    for workers in (1, 2):
        cohort = scan(tmp_path, workers)
        assert len(cohort.faults) == len(FAULTS), "\n".join(cohort.faults)
        for fault, (_, expected) in FAULTS.items():
            (line,) = [line for line in cohort.faults if line.startswith(fault)]
            assert expected in line and "\n" not in line
        assert cohort.faulty_patients == sorted(FAULTS)
        assert [volume.name[:7] for volume in cohort.without(FAULTS).volumes] == ["TCGA_AA"] * 3
    assert "all slices have 8x8 pixels" in _one_size_off(tmp_path).faults[-1]


def _one_size_off(source: Path) -> Cohort:
    write_volume(source, "zzz", size=8)
    return scan(source, workers=1)


def _truncate(source: Path, name: str) -> None:
    path = source / name / f"{name}_2.tif"
    path.write_bytes(path.read_bytes()[:-100])


def _insane(source: Path, name: str) -> None:
    """A header that asks for 4 GB: ImageWidth is the first tag, its value 8 bytes behind the tag's start."""
    path = source / name / f"{name}_2.tif"
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    assert struct.unpack_from("<H", content, start + 2) == (256,)
    struct.pack_into("<HII", content, start + 4, 4, 1, 100_000_000)
    path.write_bytes(content)


def _link_outside(source: Path, name: str) -> None:
    path = source / name / f"{name}_2.tif"
    path.rename(source.parent / "elsewhere.tif")
    path.symlink_to(source.parent / "elsewhere.tif")


def _pipe(source: Path, name: str) -> None:
    path = source / name / f"{name}_2.tif"
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever


FAULTS = {
    "no_mask": (lambda s, n: (s / n / f"{n}_2_mask.tif").unlink(), "no_mask_2.tif: no mask"),
    "orphan": (lambda s, n: (s / n / f"{n}_2.tif").unlink(), "orphan_2_mask.tif: a mask without a slice"),
    "size": (lambda s, n: write_slice(s, n, 2, IMAGE[:8], MASK[:8]), "size_2.tif: 8x16 pixels; most of the cohort has 16x16"),
    "mask_size": (lambda s, n: write_slice(s, n, 2, None, MASK[:8]), "mask_size_2_mask.tif: 8x16 pixels; its slice has 16x16"),
    "dtype": (lambda s, n: write_slice(s, n, 2, IMAGE.astype(np.uint16), None), "dtype_2.tif: pixels are uint16; must be uint8"),
    "grey": (lambda s, n: write_slice(s, n, 2, MASK, None), "grey_2.tif: 1 channel(s); a slice must have 3"),
    "rgb_mask": (lambda s, n: write_slice(s, n, 2, None, IMAGE), "rgb_mask_2_mask.tif: 3 channels; a mask must have 1"),
    "values": (lambda s, n: write_slice(s, n, 2, None, MASK + np.arange(16, dtype=np.uint8)), "mask values 0, 1, 2, 3, 4, 5, ...; must be"),
    "mixed": (lambda s, n: write_slice(s, n, 2, None, np.diag([255] * 15 + [1]).astype(np.uint8)), "mask values 0, 1, 255; must be"),
    "half": (lambda s, n: write_slice(s, n, 2, None, MASK + np.uint8(128)), "mask values 128; must be"),
    "truncated": (_truncate, "truncated_2.tif: truncated"),
    "empty": (lambda s, n: (s / n / f"{n}_2.tif").write_bytes(b""), "empty_2.tif: unreadable or truncated"),
    "text": (lambda s, n: (s / n / f"{n}_2_mask.tif").write_text("not a TIFF"), "text_2_mask.tif: unreadable or truncated"),
    "duplicate": (lambda s, n: write_slice(s, n, "02", IMAGE, None), "duplicate_2.tif: slice number 2 is taken by duplicate_02.tif"),
    "insane": (_insane, "insane_2.tif: its header says 16x100000000 pixels"),
    "pages": (lambda s, n: tifffile.imwrite(s / n / f"{n}_2_mask.tif", np.stack([MASK, MASK])), "more than one page"),
    "jpeg": (lambda s, n: write_slice(s, n, 2, IMAGE, None, compression="jpeg"), "jpeg_2.tif: "),
    "link": (_link_outside, "link_2.tif: a link that leads outside"),
    "pipe": (_pipe, "pipe_2.tif: not a regular file"),
    "number": (lambda s, n: write_slice(s, n, 123456, IMAGE, MASK), "number_123456.tif: slice number above 99999"),
    "folder": (
        lambda s, n: [(s / n).rename(s.parent / "moved"), (s / n).symlink_to(s.parent / "moved")],
        "folder: a link that leads outside",
    ),
}


def test_two_slices_with_one_number_and_no_other_fault(tmp_path: Path) -> None:
    write_volume(tmp_path, "a")
    write_slice(tmp_path, "a", "002", IMAGE, MASK)
    assert len(scan(tmp_path, workers=1).faults) == 2  # the slice and the mask


def test_gap_is_a_warning_and_files_that_are_no_images_are_ignored_by_name(tmp_path: Path) -> None:
    write_volume(tmp_path, "a", slices=5)
    for suffix in ("", "_mask"):
        (tmp_path / "a" / f"a_3{suffix}.tif").unlink()
    (tmp_path / "data.csv").write_bytes(b"\xff\x00 damaged")
    (tmp_path / "README").touch()
    (tmp_path / "overview.png").touch()
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    cohort = scan(tmp_path, workers=1)
    assert cohort.faults == [] and cohort.warnings == ["a: slices are numbered up to 5, without 3"]
    assert cohort.ignored == ["README", "overview.png", "empty/ (holds no image)", "a/notes.txt"]


def test_names_that_cannot_be_printed_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    (fault,) = scan(tmp_path, workers=1).faults
    assert "'a\\nb'" in fault and "\n" not in fault


def test_a_source_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    (fault,) = scan(tmp_path / "nowhere", workers=1).faults
    assert "cannot be listed" in fault


def test_change_between_verifying_and_reading_is_an_error(tmp_path: Path) -> None:
    (folder,) = scan(write_volume(tmp_path, "a").parent, workers=1).folders
    write_slice(tmp_path, "a", 2, IMAGE, None)
    with pytest.raises(DataError, match="changed while it was being read"):
        load(folder)
    write_slice(tmp_path, "a", 2, IMAGE[:8], None)
    with pytest.raises(DataError, match="changed while it was being read"):
        load(folder)


def test_tiff_of_any_plain_kind_is_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    kinds = [{}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}, {"compression": "packbits"}, {"rowsperstrip": 5},
             {"byteorder": ">"}, {"bigtiff": True}, {"metadata": {"a": 1}}]  # fmt: skip
    for number, options in enumerate(kinds * 2):  # the second time with every header known
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, image + np.uint8(number), photometric="rgb", **options)
        assert np.array_equal(read_tiff(path), image + np.uint8(number)), options


def test_a_known_header_does_not_vouch_for_another(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, MASK, metadata=None)
    assert read_tiff(path).shape == (16, 16, 1)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<HHI", 262, 3, 1)) + 8] = 0  # PhotometricInterpretation: white is zero, same size of file
    path.write_bytes(content)
    with pytest.raises(DataError, match="must be grey or interleaved RGB"):
        read_tiff(path)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_mutated_files_give_pixels_or_an_error_that_names_them(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "mutated.tif"
    originals = [_encode(), _encode(compression="lzw"), _encode(compression="zlib", predictor=True), _encode(compression="packbits"),
                 _encode(rowsperstrip=5), _encode(byteorder=">"), _encode(bigtiff=True), _encode(metadata={"a": 1})]  # fmt: skip
    outcomes, slowest = {"pixels": 0, "error": 0}, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        path.write_bytes(_mutated(rng.choice(originals), rng))
        start = time.process_time()
        try:
            pixels = read_tiff(path)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
            outcomes["pixels"] += 1
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes["error"] += 1
        slowest = max(slowest, time.process_time() - start)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"figure: {outcomes}, the slowest took {slowest:.3f} s, memory grew by {memory} MB")
    assert slowest < 2 and memory < 512
    assert min(outcomes.values()) > 100


def _encode(**options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 40, (32, 32, 3), np.uint8)
    tifffile.imwrite(buffer, pixels, photometric="rgb", **({"metadata": None} | options))
    return buffer.getvalue()


def _mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with some bytes changed, mostly in the header and its tags."""
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 30])):
        at = rng.randrange(230 if rng.random() < 0.8 else len(content))
        size = rng.choice([1, 1, 2, 4])
        value = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size, b"\xff\xff\xff\x7f"[-size:]])
        changed[at : at + size] = value[: len(content) - at]
    return bytes(changed)
