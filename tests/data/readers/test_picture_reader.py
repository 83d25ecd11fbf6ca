"""Slices as PNG, JPEG and TIFF of other programs: pixels, masks, names, and what is refused."""

import subprocess
from pathlib import Path

import cohorts
import numpy as np
import pytest
import tifffile
from image_programs import image_magick
from PIL import Image

from brainseg.core.errors import DataError, RequestError
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.base import Reading
from brainseg.data.readers.images import make_reader
from brainseg.data.readers.pictures import has_colour, read_indices, read_picture
from brainseg.data.readers.recognise import recognise_layout
from brainseg.data.store import Store

GREY = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
MASK = np.zeros((12, 16), np.uint8)
MASK[3:6, 4:9] = 1
BESIDE = Reading("images", images="{patient}/{slice}.png", mask="{patient}/{slice}_mask.png")


def write_patient(source: Path, name: str = "P1", slices: int = 3, mask: np.ndarray = MASK) -> Path:
    """Write slices and masks beside each other, with Pillow."""
    for number in range(1, slices + 1):
        cohorts.write_picture(source / name / f"{number}.png", GREY)
        cohorts.write_picture(source / name / f"{number}_mask.png", mask)
    return source


def faults_of(source: Path, reading: Reading = BESIDE) -> list[str]:
    """Return the faults of a cohort."""
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, source.parent / "own.h5", workers=1, reading=reading)
    return refused.value.faults


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 1},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_adobe_deflate"},
        {"quality": 95},
    ],
)
def test_grey_pictures_are_read_whatever_stores_them(
    tmp_path: Path, options: dict[str, object]
) -> None:
    suffix = "tif" if "compression" in options else "jpg" if "quality" in options else "png"
    pixels = GREY if "bits" not in options else 255 * (GREY > 100).astype(np.uint8)
    picture = (
        Image.fromarray(pixels) if "bits" not in options else Image.fromarray(pixels).convert("1")
    )
    picture.save(
        tmp_path / f"grey.{suffix}",
        **{key: value for key, value in options.items() if key != "bits"},
    )
    read = read_picture(tmp_path / f"grey.{suffix}", colour=False)
    if "bits" in options:
        assert np.array_equal(read[0], pixels > 0)
    elif suffix == "jpg":
        assert np.array_equal(read[0], np.asarray(Image.open(tmp_path / "grey.jpg")))
    else:
        assert np.array_equal(read[0], pixels)


def test_grey_stored_in_colour_is_grey_and_16_bits_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(GREY[..., None], 3, 2)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])).save(tmp_path / "rgba.png")
    deep = GREY.astype(np.uint16) * 200
    Image.fromarray(deep).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack")
    for name, pixels in {
        "rgb.png": GREY,
        "rgba.png": GREY,
        "deep.png": deep,
        "deep.tif": deep,
    }.items():
        assert not has_colour(tmp_path / name)
        assert np.array_equal(read_picture(tmp_path / name, colour=False)[0], pixels), name


def test_a_palette_of_colours_means_its_indices_and_one_of_greys_the_greys(tmp_path: Path) -> None:
    labels = Image.fromarray(MASK * 2)
    coded = labels.copy().convert("P")
    coded.putdata(list(labels.tobytes()))
    coded.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 0])
    coded.save(tmp_path / "coded.png")
    assert np.array_equal(read_indices(tmp_path / "coded.png"), MASK * 2)
    grey = Image.fromarray(MASK).convert("P")
    grey.putdata(list(MASK.tobytes()))
    grey.putpalette([0, 0, 0, 255, 255, 255])
    grey.save(tmp_path / "grey.png")
    assert Image.open(tmp_path / "grey.png").mode == "P"
    assert np.array_equal(read_indices(tmp_path / "grey.png"), 255 * MASK)


def test_a_palette_with_an_opaque_alpha_channel_means_its_greys(tmp_path: Path) -> None:
    """Pillow writes such pictures as TIFF, with the mode PA."""
    grey = Image.fromarray(MASK).convert("P")
    grey.putdata(list(MASK.tobytes()))
    grey.putpalette([0, 0, 0, 100, 100, 100])
    grey.convert("PA").save(tmp_path / "grey.tif")
    assert Image.open(tmp_path / "grey.tif").mode == "PA"
    assert np.array_equal(read_picture(tmp_path / "grey.tif", colour=False)[0], 100 * MASK)
    assert np.array_equal(read_indices(tmp_path / "grey.tif"), 100 * MASK)


def test_masks_that_imagemagick_packs_into_fewer_bits_keep_their_values(tmp_path: Path) -> None:
    if (program := image_magick()) is None:
        pytest.skip("ImageMagick is not installed")
    three = 200 * MASK
    three[0, 5] = 100
    modes = set()
    for mask in (255 * MASK, three):
        Image.fromarray(mask).save(tmp_path / "mask.pgm")
        for output in ("mask.png", "PNG8:mask.png", "PNG24:mask.png", "mask.tif"):
            subprocess.run([program, "mask.pgm", output], check=True, cwd=tmp_path)
            path = tmp_path / output.rpartition(":")[2]
            assert np.array_equal(read_indices(path), mask), output
            modes.add(Image.open(path).mode)
    assert {"P", "RGB"} <= modes


def test_masks_beside_the_slices_and_numbers_of_slices(tmp_path: Path) -> None:
    source = write_patient(tmp_path / "source", slices=12)
    summary = convert(source, tmp_path / "own.h5", workers=1, reading=BESIDE)
    assert "pictures are grey: channel image; channels=[FLAIR] names it" in summary.warnings
    with Store(tmp_path / "own.h5") as store:
        assert store.slice_number.tolist() == list(range(1, 13)) and store.channels == ["image"]
        assert np.array_equal(store.images(0, 12)[:, 0], np.broadcast_to(GREY, (12, 12, 16)))
        assert np.array_equal(store.masks(0, 12)[:, 0], np.broadcast_to(MASK, (12, 12, 16)))
        assert np.isnan(store.spacing).all()


def test_what_is_missing_or_double_is_named(tmp_path: Path) -> None:
    source = write_patient(tmp_path / "source", "P1")
    (source / "P1" / "2_mask.png").unlink()
    write_patient(source, "P2")
    (source / "P2" / "3.png").unlink()
    write_patient(source, "P3")
    (source / "P3" / "01.png").write_bytes((source / "P3" / "1.png").read_bytes())
    assert faults_of(source) == [
        "P1: no mask of slices 2",
        "P2: no image of slices 3",
        "P3: several files are one slice: P3/01.png, P3/1.png",
    ]


def test_other_sizes_values_and_damage_are_faults(tmp_path: Path) -> None:
    source = write_patient(tmp_path / "source", "P1")
    cohorts.write_picture(source / "P1" / "2_mask.png", MASK[:6])
    write_patient(source, "P2", mask=MASK * 7)
    write_patient(source, "P3")
    content = (source / "P3" / "2.png").read_bytes()
    (source / "P3" / "2.png").write_bytes(content[: len(content) // 2])
    write_patient(source, "P4")
    (source / "P4" / "1_mask.png").write_bytes(b"")
    write_patient(source, "P5")
    cohorts.write_picture(source / "P5" / "2.png", np.dstack([GREY, GREY // 2, GREY]))
    write_patient(source, "P6")
    cohorts.write_picture(source / "P6" / "2.png", np.zeros_like(GREY))
    for fault, text in zip(
        faults_of(source),
        [
            "P1/2.png: 12x16 pixels; its mask has 6x16",
            "P2: mask values 7 (45 pixels): without classes, a mask holds 0 and 1, or 0 and 255; "
            "say which are tumour, as classes.tumour=[7]",
            "P3/2.png: unreadable or truncated; copy or download it again",
            "P4/1_mask.png: is no PNG, JPEG, TIFF, BMP or PPM; convert it to PNG",
            "P5/2.png: is in colour, unlike the first pictures",
            "P6: slices 2 hold a mask and no image, every pixel is equal",
        ],
        strict=True,
    ):
        assert text in fault


def test_masks_as_jpeg_are_refused_with_the_reason(tmp_path: Path) -> None:
    for number in (1, 2):
        cohorts.write_picture(tmp_path / "source" / f"P_{number}.png", GREY)
        Image.fromarray(255 * MASK).save(tmp_path / "source" / f"P_{number}_seg.jpg", quality=80)
    reading = Reading("images", images="{patient}_{slice}.png", mask="{patient}_{slice}_seg.jpg")
    (fault,) = faults_of(tmp_path / "source", reading)
    assert "P: JPEG changes the values of masks; save them as PNG" in fault


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "frames", "bomb"])
def test_pictures_of_other_kinds_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "frames") else "picture.png")
    if mode == "RGBA":
        Image.fromarray(np.dstack([GREY] * 4)).save(path)
    elif mode == "CMYK":
        Image.fromarray(np.dstack([GREY] * 3)).convert("CMYK").save(path)
    elif mode == "frames":
        Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY)])
    else:
        Image.new("1", (20_000, 20_000)).save(path)
    reason = {
        "RGBA": "is transparent",
        "CMYK": "stored as CMYK",
        "frames": "holds 2 pictures",
        "bomb": "4096",
    }[mode]
    with pytest.raises(DataError, match=f"{path.name}: .*{reason}"):
        read_picture(path, colour=False)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (
            Reading(images="{patient}.png", mask="{patient}/{slice}_mask.png"),
            "images={patient}.png: must name {patient} and {slice}",
        ),
        (Reading(images="{patient}/{slice}.png"), "mask=null: needs a pattern, as"),
        (Reading(mask="{patient}/{slice}.png"), "images=null: needs a pattern"),
        (
            Reading(images="{patient}-{slice}.png", mask="{patient}/{slice}_mask.png"),
            "images={patient}-{slice}.png: matches no file",
        ),
        (
            Reading(
                images="{patient}/{slice}.png",
                mask="{patient}/{slice}_mask.png",
                channels=["a", "b"],
            ),
            "pictures are grey: one name",
        ),
        (
            Reading(images="{patient}/{slice}.png", mask="{patient}/{slice}_mask.png", onto="T1"),
            "onto=T1: pictures have no position",
        ),
    ],
)
def test_patterns_that_cannot_work_are_refused(
    tmp_path: Path, reading: Reading, message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        make_reader(write_patient(tmp_path), reading)
    assert message.replace(", as", ";") in str(refused.value).replace(", as", ";")


def test_a_volume_without_a_sequence_gets_flair_in_its_place(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for patient in ("A", "B"):
        for number in (1, 2):
            cohorts.write_picture(
                source / "FLAIR" / f"{patient}_{number}.png", np.roll(GREY, ord(patient))
            )
            cohorts.write_picture(source / "seg" / f"{patient}_{number}.png", 255 * MASK)
            if patient == "A":
                cohorts.write_picture(source / "T1" / f"{patient}_{number}.png", 255 - GREY)
    sequences = {name: f"{name}/{{patient}}_{{slice}}.png" for name in ("T1", "FLAIR")}
    reading = Reading(sequences=sequences, mask="seg/{patient}_{slice}.png")
    summary = convert(source, tmp_path / "own.h5", workers=1, reading=reading)
    assert summary.reader == "images"
    assert [volume.copies.tolist() for volume in summary.volumes] == [[False, False], [True, False]]


def test_sources_that_no_reader_knows_are_described(tmp_path: Path) -> None:
    for number, (files, message) in enumerate(
        {
            (): "no patient found: the folder holds no files",
            (
                "a/x.png",
                "a/y.png",
            ): "it holds 2 .png, such as a/x.png, a/y.png; give patterns, as reader=images images=",
            (
                "a/scan.nii.gz",
            ): "it holds 1 .nii.gz, such as a/scan.nii.gz; give patterns, as reader=nifti sequences.FLAIR=",
            ("a/1.dcm", "a/2.dcm"): "convert the DICOM series to NIfTI, as with dcm2niix",
            ("a.txt",): "docs/own_data.md lists the layouts that are read",
        }.items()
    ):
        source = tmp_path / str(number)
        source.mkdir()
        for path in files:
            (source / path).parent.mkdir(exist_ok=True)
            (source / path).touch()
        with pytest.raises(RequestError) as refused:
            recognise_layout(source)
        assert message in str(refused.value)
