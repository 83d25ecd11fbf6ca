"""TIFF slices and masks: whatever other programs write is read as they meant it, and damage is named."""

import io
import random
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_programs import image_magick
from PIL import Image
from tiff_files import archive_bytes, mutate

from brainseg.core.errors import DataError
from brainseg.data.imageio.tiff import MASK_TYPES, read_mask, read_slice, read_tiff

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 30, 3), np.uint8)
GREY = RNG.integers(0, 256, (40, 30), np.uint8)
MASK = np.where(np.hypot(*np.mgrid[-20:20, -15:15]) < 9, 255, 0).astype(np.uint8)
# More than one strip, with a last strip that is shorter than the others.
SMOOTH = (np.add.outer(np.arange(64), np.arange(48)) * 2).astype(np.uint8)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [(256, 256), (40, 30), (11, 5), (1, 1), (12, 7)])
def test_the_form_of_the_archive(tmp_path: Path, size: tuple[int, int], pad: bool) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    path = write(tmp_path / "a.tif", archive_bytes(image, pad=pad))
    assert np.array_equal(read_tiff(path), image)
    assert np.array_equal(
        np.asarray(Image.open(path)), image
    )  # the builder itself, by another library
    mask = image[..., 0] // 128 * 255
    assert np.array_equal(read_mask(write(path, archive_bytes(mask, 32, pad))), mask // 255)


def test_a_slice_of_256_rows_is_as_large_as_the_archive_s(tmp_path: Path) -> None:
    assert len(archive_bytes(np.zeros((256, 256, 3), np.uint8))) == 203_102
    assert len(archive_bytes(np.zeros((256, 256), np.uint8), 32)) == 65_746


@pytest.mark.parametrize("missing", [1, 100, 8448])
def test_a_strip_with_fewer_bytes_than_its_rows_need_is_refused(
    tmp_path: Path, missing: int
) -> None:
    content = bytearray(archive_bytes(np.full((256, 256, 3), 7, np.uint8)))
    lengths_at = content.rindex(struct.pack("<24I", *[8448] * 24))
    struct.pack_into("<I", content, lengths_at + 4 * 5, 8448 - missing)  # of the sixth strip
    with pytest.raises(DataError, match=r"a\.tif: truncated: .* 256x256 pixels"):
        read_tiff(write(tmp_path / "a.tif", bytes(content)))
    struct.pack_into("<I", content, lengths_at + 4 * 5, 8448)
    struct.pack_into("<I", content, lengths_at + 4 * 23, 3 * 768 - 1)  # the last needs three rows
    with pytest.raises(DataError, match="truncated"):
        read_tiff(write(tmp_path / "a.tif", bytes(content)))
    struct.pack_into("<I", content, lengths_at + 4 * 23, 3 * 768)
    assert (read_tiff(write(tmp_path / "a.tif", bytes(content))) == 7).all()


OPTIONS = [
    {},
    {"compression": "lzw"},
    {"compression": "zlib", "predictor": True},
    {"compression": "packbits"},
    {"compression": "zstd"},
    {"compression": "lzma"},
    {"rowsperstrip": 7},
    {"rowsperstrip": 1},
    {"rowsperstrip": 1000},
    {"byteorder": ">"},
    {"byteorder": ">", "compression": "lzw", "predictor": True},
    {"bigtiff": True},
    {"tile": (16, 16)},
    {"tile": (32, 16), "compression": "zlib"},
    {"metadata": {"a": 1}},
    {"planarconfig": "separate"},
    {"planarconfig": "separate", "rowsperstrip": 7, "compression": "lzw"},
    {"planarconfig": "separate", "tile": (16, 16)},
    {"description": "of another program"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whatever_tifffile_writes_is_read(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.tif"
    is_planar = options.get("planarconfig") == "separate"
    pixels = np.moveaxis(IMAGE, -1, 0) if is_planar else IMAGE
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    assert np.array_equal(read_tiff(path), IMAGE)
    assert np.array_equal(read_slice(path, 3), np.moveaxis(IMAGE, -1, 0))
    if not is_planar:
        tifffile.imwrite(path, GREY, photometric="minisblack", **options)
        assert np.array_equal(read_tiff(path), GREY[:, :, None])
        tifffile.imwrite(path, MASK, photometric="minisblack", **options)
        assert np.array_equal(read_mask(path), MASK // 255)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"rowsperstrip": 7}], ids=str
)
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_sixteen_bits_are_returned_as_stored(tmp_path: Path, dtype: str, options: dict) -> None:
    deep = (IMAGE.astype(np.int64) * 17 - (1000 if dtype == "int16" else 0)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", **options)
    assert np.array_equal(read_tiff(tmp_path / "a.tif"), deep)
    tifffile.imwrite(tmp_path / "a.tif", MASK.astype(dtype), photometric="minisblack", **options)
    assert np.array_equal(read_mask(tmp_path / "a.tif"), MASK // 255)


def test_twelve_bits_packed(tmp_path: Path) -> None:
    """Three bytes contain two pixels of 12 bits. ImageMagick writes and tifffile unpacks them."""
    deep = (GREY.astype(np.uint16) << 4) | 5
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in deep.reshape(-1, 2).tolist()
    )
    content = bytearray(archive_bytes(np.zeros((40, 45), np.uint8), rows=40))
    content[8 : 8 + len(packed)] = packed
    for tag, value in ((256, 30), (258, 12)):
        at = content.index(struct.pack("<HHI", tag, 3, 1)) + 8
        struct.pack_into("<H", content, at, value)
    path = write(tmp_path / "a.tif", bytes(content))
    assert np.array_equal(tifffile.imread(path), deep)
    assert np.array_equal(read_tiff(path)[:, :, 0], deep)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_what_pillow_writes(tmp_path: Path, mode: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    if mode == "RGBA":
        Image.fromarray(IMAGE).convert("RGBA").save(path, compression=compression)
        assert np.array_equal(read_tiff(path), IMAGE)  # the opaque alpha channel is dropped
    elif mode == "RGB":
        Image.fromarray(IMAGE).save(path, compression=compression)
        assert np.array_equal(read_tiff(path), IMAGE)
    elif mode == "I;16":
        Image.fromarray(GREY.astype(np.uint16) * 200).save(path, compression=compression)
        assert np.array_equal(read_tiff(path)[:, :, 0], GREY.astype(np.uint16) * 200)
    else:
        Image.fromarray(MASK).convert(mode).save(path, compression=compression)
        assert np.array_equal(read_mask(path), MASK // 255)


@pytest.mark.parametrize("colours", ["L", "RGB"])
def test_jpeg_within_its_loss(tmp_path: Path, colours: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(SMOOTH).convert(colours).save(path, compression="jpeg", quality=95)
    assert np.abs(read_tiff(path)[:, :, 0].astype(int) - SMOOTH).max() <= 8
    assert np.array_equal(read_tiff(path).squeeze(), tifffile.imread(path))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_masks_packed_as_a_fax(tmp_path: Path, compression: str) -> None:
    Image.fromarray(MASK).convert("1").save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_mask(tmp_path / "a.tif"), MASK // 255)


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY, photometric="miniswhite")
    assert np.array_equal(read_tiff(tmp_path / "a.tif")[:, :, 0], GREY)
    tifffile.imwrite(tmp_path / "a.tif", 65535 - GREY.astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(read_tiff(tmp_path / "a.tif")[:, :, 0], GREY)


def test_a_grey_palette_is_applied(tmp_path: Path) -> None:
    levels = RNG.permutation(256).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", GREY, photometric="palette", colormap=np.stack([levels * 257] * 3)
    )
    assert np.array_equal(
        read_tiff(tmp_path / "a.tif"), np.repeat(levels[GREY][:, :, None], 3, axis=2)
    )


TIFFCP = [
    ["-c", "lzw"],
    ["-c", "lzw:2"],
    ["-c", "zip"],
    ["-c", "packbits"],
    ["-r", "7"],
    ["-B"],
    ["-8"],
    ["-t", "-w", "16", "-l", "32"],
    ["-p", "separate"],
    ["-c", "none", "-r", "1"],
    ["-f", "lsb2msb"],
    ["-c", "lzma"],
    ["-c", "zstd"],
]


@pytest.mark.skipif(
    shutil.which("tiffcp") is None, reason="needs libtiff's tools (Debian: libtiff-tools)"
)
@pytest.mark.parametrize("options", TIFFCP, ids=" ".join)
def test_what_libtiff_writes(tmp_path: Path, options: list[str]) -> None:
    source = write(tmp_path / "source.tif", archive_bytes(IMAGE))
    subprocess.run(
        ["tiffcp", *options, source, tmp_path / "a.tif"], check=True, capture_output=True
    )
    assert np.array_equal(read_tiff(tmp_path / "a.tif"), IMAGE)


MAGICK = [
    [],
    ["-compress", "lzw"],
    ["-compress", "zip"],
    ["-compress", "rle"],
    ["-endian", "MSB"],
    ["-interlace", "plane"],
    ["-define", "tiff:rows-per-strip=7"],
    ["-define", "tiff:tile-geometry=16x16"],
    ["-depth", "16"],
]


@pytest.mark.skipif(image_magick() is None, reason="needs ImageMagick")
@pytest.mark.parametrize("options", MAGICK, ids=" ".join)
def test_what_imagemagick_writes(tmp_path: Path, options: list[str]) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "source.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    program = image_magick()
    convert = [program, tmp_path / "source.png", *options]
    subprocess.run([*convert, tmp_path / "a.tif"], check=True, capture_output=True)
    scale = 257 if options == ["-depth", "16"] else 1
    assert np.array_equal(read_tiff(tmp_path / "a.tif"), IMAGE.astype(int) * scale)
    convert = [program, tmp_path / "mask.png", *options]
    subprocess.run(
        [*convert, tmp_path / "a.tif"], check=True, capture_output=True
    )  # one bit, or eight
    assert np.array_equal(read_mask(tmp_path / "a.tif"), MASK // 255)


def test_a_thumbnail_is_no_second_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(IMAGE, photometric="rgb", metadata=None)
        file.write(IMAGE[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
    assert np.array_equal(read_tiff(tmp_path / "a.tif"), IMAGE)


REFUSED = {
    "two pages": (
        lambda path: tifffile.imwrite(path, np.stack([GREY, GREY])),
        "2 pages; a slice is one page",
    ),
    "an ImageJ stack": (
        lambda path: tifffile.imwrite(
            path, np.stack([GREY] * 3), imagej=True, metadata={"axes": "ZYX"}
        ),
        "3 pages",
    ),
    "float": (lambda path: tifffile.imwrite(path, GREY.astype(np.float32)), "pixels are float32"),
    "CMYK": (
        lambda path: Image.fromarray(IMAGE).convert("CMYK").save(path),
        "stored as SEPARATED with 4 samples; must be",
    ),
    "another codec": (
        lambda path: tifffile.imwrite(path, IMAGE, photometric="rgb", compression="jpeg2000"),
        "compression JPEG2000; save it uncompressed",
    ),
    "turned": (
        lambda path: tifffile.imwrite(path, GREY, extratags=[(274, 3, 1, 6, False)]),
        "its orientation tag is 6; save it upright",
    ),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or not a TIFF file"),
    "text": (lambda path: path.write_text("not a TIFF"), "damaged, or not a TIFF file"),
    "PNG": (
        lambda path: Image.fromarray(GREY).save(path, format="PNG"),
        "damaged, or not a TIFF file",
    ),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "nothing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_slice_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, reason = REFUSED[case]
    make(tmp_path / "a.tif")
    with pytest.raises(DataError) as refused:
        read_tiff(tmp_path / "a.tif")
    assert str(refused.value).startswith(f"{tmp_path / 'a.tif'}: {reason}")
    assert str(refused.value).count("a.tif") == 1 and "\n" not in str(refused.value)


def test_the_values_of_a_mask_are_listed_with_counts(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0, 3], [7, 7, 7]], np.uint8))
    with pytest.raises(
        DataError,
        match=r"mask values 0 \(2 pixels\), 3 \(1 pixels\), 7 \(3 pixels\); must be 0 and 255",
    ):
        read_mask(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (4097, "a JPEG stream of 4097x4097 pixels in a smaller strip"),
        (65_000, "a JPEG stream of far more"),
    ],
)
def test_a_jpeg_stream_larger_than_its_strip_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int, reason: str
) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.tif", compression="jpeg")
    content = (tmp_path / "a.tif").read_bytes()
    at = content.index(b"\xff\xc0") + 5  # the frame header, after its length and precision
    assert struct.unpack_from(">HH", content, at) == SMOOTH.shape
    changed = content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=reason):
        read_tiff(write(tmp_path / "a.tif", changed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def _originals() -> list[tuple[bytes, range]]:
    """Files and where their headers lie: the archive's form, and one of every codec."""
    archive, mask = archive_bytes(IMAGE), archive_bytes(MASK, 32)
    files = [(archive, range(len(archive) - 350, len(archive)))] * 4 + [
        (mask, range(len(mask) - 170, len(mask)))
    ] * 2
    for options in OPTIONS:
        if options.get("planarconfig") != "separate":
            buffer = io.BytesIO()
            tifffile.imwrite(
                buffer, IMAGE // 8, photometric="rgb", **({"metadata": None} | options)
            )
            files.append((buffer.getvalue(), range(230)))
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, format="TIFF", compression="jpeg")
    return [
        *files,
        (buffer.getvalue(), range(8)),
        (buffer.getvalue(), range(len(buffer.getvalue()))),
    ]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_mutated_files_give_the_pixels_of_tifffile_or_an_error_that_names_them(
    tmp_path: Path, seed: int
) -> None:
    rng, originals = random.Random(seed), _originals()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, slowest = _outcomes_of(
        tmp_path / "mutated.tif", (mutate(*_shuffled(rng, originals)) for _ in range(1000))
    )
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"figure: {outcomes}, the slowest took {slowest:.3f} s, memory grew by {memory} MB")
    assert slowest < 2 and memory < 512


def _outcomes_of(path: Path, contents: Iterable[bytes]) -> tuple[dict[str, int], float]:
    """Read each content from `path`. Returns how many gave pixels or an error, both many, and the longest time in seconds."""
    outcomes, slowest = {"pixels": 0, "error": 0}, 0.0
    for content in contents:
        path.write_bytes(content)
        start = time.process_time()
        try:
            pixels = read_tiff(path, MASK_TYPES)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes["error"] += 1
        else:
            outcomes["pixels"] += 1
            _assert_as_tifffile(path, pixels)
        slowest = max(slowest, time.process_time() - start)
    assert min(outcomes.values()) > 100, outcomes
    return outcomes, slowest


def _shuffled(
    rng: random.Random, originals: list[tuple[bytes, range]]
) -> tuple[bytes, random.Random, range]:
    content, header = rng.choice(originals)
    return content, rng, header


def _assert_as_tifffile(path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        expected = np.atleast_3d(page.asarray())
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            expected = np.moveaxis(page.asarray(), 0, -1)
        if page.photometric == 0:
            expected = (
                ~expected if expected.dtype == bool else (2**page.bitspersample - 1) - expected
            )
        if page.photometric == 3:
            return  # the palette was applied
        assert np.array_equal(pixels, expected[:, :, : pixels.shape[2]])


def test_a_thousand_mutations_of_the_archive_s_own_bytes(real_source: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    files = [
        path.read_bytes() for path in sorted((real_source / "TCGA_CS_4943_20000902").glob("*.tif"))
    ]
    chosen = [rng.choice(files) for _ in range(1000)]
    _outcomes_of(
        tmp_path / "mutated.tif",
        (mutate(content, rng, range(len(content) - 340, len(content))) for content in chosen),
    )
