"""TIFF stacks by the axes that their writers name: OME, ImageJ, tifffile, and plain pages."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_programs import image_magick
from PIL import Image, ImageSequence

from brainseg.core.errors import RequestError
from brainseg.data.cases.find import find_cases
from brainseg.data.cases.tiff_stack import read_stack, stack_shape
from brainseg.data.volume import CHANNELS

# Slices, channels, height, width.
STACK = np.random.default_rng(0).integers(0, 255, (4, 3, 7, 9)).astype(np.uint8)


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TZCYX", "CTZYX", "ZYXC", "TCZYX"])
@pytest.mark.parametrize("writer", ["ome", "shaped"])
def test_channels_are_sequences_and_not_slices(axes: str, writer: str, tmp_path: Path) -> None:
    order = {"Z": 0, "C": 1, "Y": 2, "X": 3}
    stack = STACK.transpose([order[axis] for axis in axes.replace("T", "")])
    stack = np.expand_dims(stack, axes.index("T")) if "T" in axes else stack
    path = tmp_path / ("a.ome.tif" if writer == "ome" else "a.tif")
    axes = axes.replace("ZYXC", "ZYXS")
    options = {"photometric": "rgb"} if axes.endswith("S") else {"photometric": "minisblack"}
    tifffile.imwrite(path, stack, metadata={"axes": axes}, **options)
    (case,) = find_cases(str(path), {}, CHANNELS)
    assert np.array_equal(case.read().images, STACK) and case.name == "a"
    assert case.assignment == {name: f"{path}, channel {n}" for n, name in enumerate(CHANNELS, 1)}


def test_an_imagej_hyperstack_is_read_by_its_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read_stack(path), STACK.transpose(0, 2, 3, 1))
    tifffile.imwrite(path, STACK[:, 0], imagej=True, metadata={"axes": "ZYX"})
    assert np.array_equal(read_stack(path)[..., 0], STACK[:, 0])
    tifffile.imwrite(path, STACK[:, :2], imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(RequestError, match="2 channels; the checkpoint needs 3"):
        find_cases(str(path), {}, CHANNELS)


@pytest.mark.parametrize("writer", ["ome", "imagej", "shaped"])
def test_time_points_are_refused_by_name(writer: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.ome.tif" if writer == "ome" else "a.tif")
    for axes, stack in (("TYX", STACK[:, 0]), ("TZYX", STACK.transpose(1, 0, 2, 3))):
        tifffile.imwrite(
            path,
            stack,
            imagej=writer == "imagej",
            metadata={"axes": axes},
            photometric="minisblack",
        )
        with pytest.raises(RequestError, match=f"holds {len(stack)} time points; save one of them"):
            find_cases(str(path), {}, CHANNELS)


def test_dimensions_without_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack")
    with pytest.raises(RequestError, match=r"holds 4 x 3 slices, and does not say which dimension"):
        find_cases(str(path), {}, CHANNELS)
    tifffile.imwrite(path, STACK[:, 0], photometric="minisblack")
    assert stack_shape(path) == (4, 7, 9, 1)


def test_several_images_and_slices_in_several_files_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for _ in range(2):
            file.write(STACK[:, 0], metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(RequestError, match="holds 2 images; save the one to segment by itself"):
        find_cases(str(tmp_path / "a.ome.tif"), {}, CHANNELS)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for page in STACK[:, 0]:
            file.write(page, photometric="minisblack")
    assert np.array_equal(read_stack(tmp_path / "b.tif")[..., 0], STACK[:, 0]), "a slice at a time"


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "ZCYX"}, photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'SizeC="3"', b'SizeC="5"'))
    with pytest.raises(RequestError, match="description"):
        find_cases(str(path), {}, CHANNELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_white_is_zero_is_inverted(dtype: type, tmp_path: Path) -> None:
    grey = STACK[:, 0].astype(dtype)
    inverted = -grey if dtype == np.float32 else np.invert(grey)
    tifffile.imwrite(tmp_path / "a.tif", inverted, photometric="miniswhite")
    assert np.array_equal(read_stack(tmp_path / "a.tif")[..., 0], grey)
    tifffile.imwrite(tmp_path / "b.tif", grey, photometric="minisblack")
    images = [
        find_cases(str(tmp_path / name), {}, CHANNELS)[0].read().images
        for name in ("a.tif", "b.tif")
    ]
    assert np.array_equal(*images)


def test_pages_of_pillow_and_imagemagick_are_slices(tmp_path: Path) -> None:
    pages = [Image.fromarray(page) for page in STACK[:, 0]]
    pages[0].save(
        tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw"
    )
    assert np.array_equal(read_stack(tmp_path / "a.tif")[..., 0], STACK[:, 0])
    if convert := image_magick():
        define = ["-define", "quantum:polarity=min-is-white"]
        subprocess.run(
            [convert, "a.tif", *define, "-compress", "none", "b.tif"], cwd=tmp_path, check=True
        )
        with tifffile.TiffFile(tmp_path / "b.tif") as file:
            assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        with Image.open(tmp_path / "b.tif") as image:
            shown = [np.array(page) for page in ImageSequence.Iterator(image)]
        assert np.array_equal(read_stack(tmp_path / "b.tif")[..., 0], shown), "as Pillow shows it"


def test_a_page_that_is_cut_off_is_missed(tmp_path: Path) -> None:
    pages = [Image.fromarray(page) for page in STACK[:, 0]]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    content = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last = file.pages[3].offset
    for end in (last + 8, last, last - 40):
        (tmp_path / "a.tif").write_bytes(content[:end])
        with pytest.raises(RequestError, match="truncated"):
            find_cases(str(tmp_path / "a.tif"), {}, CHANNELS)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("rows", [None, 3])
def test_strips_that_are_padded_and_tiles_are_read(
    tile: tuple | None, rows: int | None, tmp_path: Path
) -> None:
    if tile and rows:
        return
    stack = np.random.default_rng(1).integers(0, 255, (3, 20, 24)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", stack, tile=tile, rowsperstrip=rows, photometric="minisblack"
    )
    assert np.array_equal(read_stack(tmp_path / "a.tif")[..., 0], stack)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) - 400])
    with pytest.raises(RequestError, match="truncated"):
        find_cases(str(tmp_path / "a.tif"), {}, CHANNELS)


def test_palettes_and_other_depths_are_refused_in_words(tmp_path: Path) -> None:
    Image.fromarray(STACK[0, 0]).convert("P").save(tmp_path / "p.tif")
    Image.fromarray(STACK[0, 0] > 99).save(tmp_path / "one.tif")
    for name, rule in (
        ("p.tif", "colours of a palette; save it in grey"),
        ("one.tif", "pixels are bool|1 bits"),
    ):
        with pytest.raises(RequestError, match=rule):
            find_cases(str(tmp_path / name), {}, CHANNELS)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    stack = STACK[:, 0].astype(np.float32)
    stack[1, 2, 3:5] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    (case,) = find_cases(str(tmp_path / "a.tif"), {}, CHANNELS)
    with pytest.raises(ValueError, match="2 of 252 values are NaN or infinite"):
        case.read()


def test_a_stack_alone_that_is_named_after_another_sequence_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "T1w.tif", STACK[:, 0], photometric="minisblack")
    with pytest.raises(RequestError, match="would be taken for FLAIR, and is named after T1w"):
        find_cases(str(tmp_path / "T1w.tif"), {}, CHANNELS)
    (case,) = find_cases(str(tmp_path / "T1w.tif"), {"FLAIR": "T1w.tif"}, CHANNELS)
    assert case.assignment == {"FLAIR": str(tmp_path / "T1w.tif")}
