"""The folder of slices: what is sound is described rightly, what is not is named, and no file can do harm."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tiffs import write_cohort, write_slice, write_volume

from brainseg.core.errors import DataError
from brainseg.data.imageio.tiff import read_slice
from brainseg.data.readers import kaggle_3m
from brainseg.data.readers.kaggle_3m import Cohort, load, scan_slices
from brainseg.data.volume import _histogram, patient_of, percentile

IMAGE = np.zeros((16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)


def test_sound_cohort_is_described(tmp_path: Path) -> None:
    cohort = scan_slices(write_cohort(tmp_path), workers=1)
    assert (cohort.faults, cohort.warnings, cohort.ignored_files) == ([], [], [])
    assert [volume.name for volume in cohort.volumes] == [
        f"TCGA_AA_{p:04d}_2001010{p + 1}" for p in range(3)
    ]
    assert [volume.patient for volume in cohort.volumes] == [f"TCGA_AA_{p:04d}" for p in range(3)]
    second = cohort.volumes[1]
    assert second.slice_number.tolist() == [1, 2, 3, 4] and second.tumour_pixels.tolist() == [
        0,
        24,
        24,
        0,
    ]
    images, masks = load(cohort.folders[1])
    stored = np.stack([tifffile.imread(path) for path in cohort.folders[1].slices.values()])
    assert np.array_equal(images, stored.transpose(0, 3, 1, 2)) and images.shape == second.shape
    assert masks.shape == (4, 1, 16, 16) and set(np.unique(masks)) == {0, 1}
    low, high = np.percentile(images, (10, 99), axis=(0, 2, 3)).astype(np.float32)
    assert np.array_equal(second.low, low) and np.array_equal(second.high, high)


def test_slices_are_sorted_by_number_not_by_name(tmp_path: Path) -> None:
    for number in (10, 9, 2, 1):
        write_slice(tmp_path, "a", number, IMAGE + np.uint8(number), MASK)
    (folder,) = scan_slices(tmp_path, workers=1).folders
    assert load(folder)[0][:, 0, 0, 0].tolist() == [1, 2, 9, 10]


def test_missing_sequences_and_constant_channels_are_found(tmp_path: Path) -> None:
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        image[..., 0] = image[..., 1]
        image[..., 2] = (
            image[..., 1] if number == 1 else 7
        )  # equal to FLAIR in one slice only: no copy
        write_slice(tmp_path, "copied", number, image, MASK)
        write_slice(
            tmp_path,
            "flat",
            number,
            np.dstack([image[..., 0], image[..., 1] // 2, np.full_like(MASK, 9)]),
            MASK,
        )
    copied, flat = scan_slices(tmp_path, workers=1).volumes
    assert copied.copies.tolist() == [True, False, False] and flat.copies.tolist() == [
        False,
        False,
        False,
    ]
    assert flat.constant.tolist() == [False, False, True]


@given(
    arrays.arrays(np.uint8, st.integers(1, 300), elements=st.integers(0, 255)),
    st.sampled_from([0.1, 0.5, 0.99]),
)
def test_percentile_equals_numpy(values: np.ndarray, share: float) -> None:
    expected = np.float32(np.percentile(values, 100 * share))
    assert np.float32(percentile(np.bincount(values, minlength=256), share)) == expected


@pytest.mark.parametrize(
    ("volume", "patient"),
    [
        ("TCGA_CS_4941_19960909", "TCGA_CS_4941"),
        ("TCGA_CS_4941", "TCGA_CS_4941"),
        ("scan_001", "scan_001"),
        ("x", "x"),
    ],
)
def test_patient_is_the_name_without_its_date(volume: str, patient: str) -> None:
    assert patient_of(volume) == patient


def test_fingerprint_depends_on_the_content_alone(tmp_path: Path) -> None:
    first = scan_slices(write_cohort(tmp_path / "a"), workers=1).fingerprint
    write_cohort(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("foreign")
    mask = tmp_path / "b" / "TCGA_AA_0000_20010101" / "TCGA_AA_0000_20010101_2_mask.tif"
    tifffile.imwrite(
        mask, tifffile.imread(mask) // 255, compression="zlib"
    )  # 0/1 instead of 0/255, and compressed
    os.utime(mask, (1, 1))
    assert scan_slices(tmp_path / "b", workers=2).fingerprint == first
    (tmp_path / "b" / "TCGA_AA_0000_20010101").rename(tmp_path / "b" / "renamed")
    assert scan_slices(tmp_path / "b", workers=1).fingerprint != first
    mask = tmp_path / "a" / "TCGA_AA_0001_20010102" / "TCGA_AA_0001_20010102_1_mask.tif"
    tifffile.imwrite(mask, np.eye(16, dtype=np.uint8))
    assert scan_slices(tmp_path / "a", workers=1).fingerprint != first


def test_every_fault_is_in_one_report(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    for fault in FAULTS:
        write_volume(tmp_path, fault)
        FAULTS[fault][0](tmp_path, fault)
    for workers in (1, 2):
        cohort = scan_slices(tmp_path, workers)
        assert len(cohort.faults) == len(FAULTS), "\n".join(cohort.faults)
        for fault, (_, expected) in FAULTS.items():
            (line,) = [line for line in cohort.faults if line.startswith(fault)]
            assert expected in line and "\n" not in line
        assert cohort.faulty_patients == sorted(FAULTS)
        assert [volume.name[:7] for volume in cohort.without(FAULTS).volumes] == ["TCGA_AA"] * 3
    assert "all slices have 8x8 pixels" in _one_size_off(tmp_path).faults[-1]


def _one_size_off(source: Path) -> Cohort:
    write_volume(source, "zzz", size=8)
    return scan_slices(source, workers=1)


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
    "orphan": (
        lambda s, n: (s / n / f"{n}_2.tif").unlink(),
        "orphan_2_mask.tif: a mask without a slice",
    ),
    "size": (
        lambda s, n: write_slice(s, n, 2, IMAGE[:8], MASK[:8]),
        "size_2.tif: 8x16 pixels; most of the cohort has 16x16",
    ),
    "mask_size": (
        lambda s, n: write_slice(s, n, 2, None, MASK[:8]),
        "mask_size_2_mask.tif: 8x16 pixels; its slice has 16x16",
    ),
    "dtype": (
        lambda s, n: write_slice(s, n, 2, IMAGE.astype(np.float32), None),
        "dtype_2.tif: pixels are float32 of 32 bits",
    ),
    "grey": (
        lambda s, n: write_slice(s, n, 2, MASK, None),
        "grey_2.tif: 1 channel(s); a slice must have 3",
    ),
    "rgb_mask": (
        lambda s, n: write_slice(s, n, 2, None, IMAGE + np.uint8([0, 9, 0])),
        "rgb_mask_2_mask.tif: 3 channels; a mask must have 1",
    ),
    "values": (
        lambda s, n: write_slice(s, n, 2, None, MASK + np.arange(16, dtype=np.uint8)),
        "5 (16 pixels), ...; must be",
    ),
    "mixed": (
        lambda s, n: write_slice(s, n, 2, None, np.diag([255] * 15 + [1]).astype(np.uint8)),
        "0 (240 pixels), 1 (1 pixels), 255 (15 pixels); must",
    ),
    "half": (
        lambda s, n: write_slice(s, n, 2, None, MASK + np.uint8(128)),
        "mask values 128 (256 pixels); must be",
    ),
    "truncated": (_truncate, "truncated_2.tif: truncated"),
    "empty": (
        lambda s, n: (s / n / f"{n}_2.tif").write_bytes(b""),
        "empty_2.tif: damaged, or not a TIFF file",
    ),
    "text": (
        lambda s, n: (s / n / f"{n}_2_mask.tif").write_text("not a TIFF"),
        "text_2_mask.tif: damaged, or not a TIFF file",
    ),
    "duplicate": (
        lambda s, n: write_slice(s, n, "02", IMAGE, None),
        "duplicate_2.tif: slice number 2 is taken by duplicate_02.tif",
    ),
    "insane": (_insane, "insane_2.tif: its header says 16x100000000 pixels"),
    "pages": (
        lambda s, n: tifffile.imwrite(s / n / f"{n}_2_mask.tif", np.stack([MASK, MASK])),
        "2 pages; a slice is one page",
    ),
    "codec": (
        lambda s, n: write_slice(s, n, 2, IMAGE, None, compression="jpeg2000"),
        "codec_2.tif: compression JPEG2000",
    ),
    "bits": (
        lambda s, n: write_slice(s, n, 2, IMAGE.astype(np.uint16), None),
        "bits: slices of types uint16 and uint8; all",
    ),
    "link": (_link_outside, "link_2.tif: a link that leads outside"),
    "pipe": (_pipe, "pipe_2.tif: not a regular file"),
    "number": (
        lambda s, n: write_slice(s, n, 123456, IMAGE, MASK),
        "number_123456.tif: slice number above 99999",
    ),
    "folder": (
        lambda s, n: [(s / n).rename(s.parent / "moved"), (s / n).symlink_to(s.parent / "moved")],
        "folder: a link that leads outside",
    ),
}


def test_two_slices_with_one_number_and_no_other_fault(tmp_path: Path) -> None:
    write_volume(tmp_path, "a")
    write_slice(tmp_path, "a", "002", IMAGE, MASK)
    assert len(scan_slices(tmp_path, workers=1).faults) == 2  # the slice and the mask


def test_gap_is_a_warning_and_files_that_are_no_images_are_ignored_by_name(tmp_path: Path) -> None:
    write_volume(tmp_path, "a", slices=5)
    for suffix in ("", "_mask"):
        (tmp_path / "a" / f"a_3{suffix}.tif").unlink()
    (tmp_path / "data.csv").write_bytes(b"\xff\x00 damaged")
    (tmp_path / "README").touch()
    (tmp_path / "overview.png").touch()
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    cohort = scan_slices(tmp_path, workers=1)
    assert cohort.faults == [] and cohort.warnings == ["a: slices are numbered up to 5, without 3"]
    assert cohort.ignored_files == [
        "README",
        "overview.png",
        "empty/ (holds no image)",
        "a/notes.txt",
    ]


def test_names_that_cannot_be_printed_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    (fault,) = scan_slices(tmp_path, workers=1).faults
    assert "'a\\nb'" in fault and "\n" not in fault


def test_a_source_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    (fault,) = scan_slices(tmp_path / "nowhere", workers=1).faults
    assert "cannot be listed" in fault


def test_change_between_verifying_and_reading_is_an_error(tmp_path: Path) -> None:
    (folder,) = scan_slices(write_volume(tmp_path, "a").parent, workers=1).folders
    write_slice(tmp_path, "a", 2, IMAGE, None)
    with pytest.raises(DataError, match="changed while it was being read"):
        load(folder)
    write_slice(tmp_path, "a", 2, IMAGE[:8], None)
    with pytest.raises(DataError, match="changed while it was being read"):
        load(folder)


def test_sixteen_bits_are_stretched_by_volume(tmp_path: Path) -> None:
    """The brightest slice keeps its place above the others: a slice alone would be stretched to the same white."""
    for number in (1, 2, 3):
        image = (
            np.random.default_rng(number).integers(0, 1000 * number, (16, 16, 3)).astype(np.uint16)
        )
        write_slice(tmp_path, "a", number, image, MASK)
    (folder,) = scan_slices(tmp_path, workers=1).folders
    images, _ = load(folder)
    stored = np.stack([tifffile.imread(path) for path in folder.slices.values()]).astype(float)
    low, high = np.percentile(stored, (0.5, 99.5), axis=(0, 1, 2))
    expected = np.rint(255 * ((stored - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    assert np.array_equal(images, expected.transpose(0, 3, 1, 2))
    assert images[0].mean() < 0.5 * images[2].mean()


@pytest.mark.parametrize("writer", ["tifffile", "tifffile zlib", "Pillow", "Pillow lzw"])
def test_pixels_are_read_again_as_they_were_verified(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompressed files are not decoded a second time, whatever wrote them; others are."""
    folder = write_volume(tmp_path, "a")
    expected = np.stack(
        [tifffile.imread(folder / f"a_{number}.tif") for number in (1, 2, 3)]
    ).transpose(0, 3, 1, 2)
    for path in folder.iterdir():
        pixels = tifffile.imread(path)
        if writer.startswith("Pillow"):
            Image.fromarray(pixels).save(
                path, compression="tiff_lzw" if writer.endswith("lzw") else None
            )
        else:
            colours = "rgb" if pixels.ndim == 3 else "minisblack"
            tifffile.imwrite(
                path,
                pixels,
                photometric=colours,
                compression="zlib" if writer.endswith("zlib") else None,
            )
    (verified,) = scan_slices(tmp_path, workers=1).folders
    decoded = []
    monkeypatch.setattr(
        kaggle_3m,
        "read_slice",
        lambda path, **options: (decoded.append(path), read_slice(path, **options))[1],
    )
    images, masks = load(verified)
    assert np.array_equal(images, expected) and masks.sum() == 24
    assert bool(decoded) == (" " in writer)


def test_pixels_at_a_wrong_place_are_decoded(tmp_path: Path) -> None:
    """A file that changed between both readings is found by the digest of its volume."""
    (verified,) = scan_slices(write_volume(tmp_path, "a").parent, workers=1).folders
    images, masks = load(verified)
    verified.offsets = dict.fromkeys(verified.offsets, 0)
    again, masks_again = load(verified)
    assert np.array_equal(again, images) and np.array_equal(masks_again, masks)


@given(
    arrays.arrays(
        np.uint8,
        st.sampled_from([(3, 5), (16, 16), (128, 256), (181, 182), (181, 181)]),
        elements=st.integers(0, 255),
    )
)
def test_the_quick_count_of_values_is_that_of_numpy(pixels: np.ndarray) -> None:
    for array in (pixels, pixels[:, ::-1]):
        assert np.array_equal(_histogram(array), np.bincount(array.ravel(), minlength=256))
