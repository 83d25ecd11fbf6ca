"""NIfTI volumes as nibabel reads them: grids, values, and headers that do not hold."""

import bz2
import gzip
import itertools
import struct
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainseg.core.errors import DataError
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.nifti_writer import write_nifti
from brainseg.data.imageio.open import open_image

SHAPE = (5, 4, 3)
STRAIGHT = np.array([[-2.0, 0, 0, 30], [0, -2.5, 0, 40], [0, 0, 5, -20], [0, 0, 0, 1]])
TURNED = np.array([[-1.9, 0.8, 0, 33], [-0.6, -2.4, 0, 94], [0, 0, 5, -10], [0, 0, 0, 1]])
SHEARED = np.array([[-2.0, 0, 0.5, 30], [0, -2.5, 1.0, 40], [0, 0, 5, -20], [0, 0, 0, 1]])


def voxels(dtype: type = np.int16) -> np.ndarray:
    return np.arange(60).reshape(SHAPE).astype(dtype)


def saved(path: Path, image: nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    "sform", [STRAIGHT, TURNED, SHEARED], ids=["straight", "turned", "sheared"]
)
@pytest.mark.parametrize("codes", itertools.product((0, 1, 2), (0, 1, 2)))
def test_the_grid_is_nibabels_and_the_mask_carries_both_forms(
    codes: tuple[int, int], sform: np.ndarray, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(STRAIGHT, codes[1])
    source = nibabel.load(saved(tmp_path / "a.nii", image))
    volume = open_image(tmp_path / "a.nii")
    assert np.allclose(volume.grid.affine, source.affine)
    write_nifti(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8), volume.grid, volume.stored_header)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(mask.affine, source.affine)
    for form in ("get_sform", "get_qform"):
        expected, code = getattr(source.header, form)(coded=True)
        found, found_code = getattr(mask.header, form)(coded=True)
        assert code == found_code and (expected is None) == (found is None)
        assert expected is None or np.array_equal(expected, found)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_type_is_read(dtype: str, order: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    image = nibabel.Nifti1Image(voxels(), STRAIGHT, header)
    path = saved(tmp_path / "a.nii", image)
    assert np.array_equal(open_image(path).read(), voxels())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2", "A.NII.GZ", "a.hdr", "a.img"])
def test_files_are_read_by_their_content(name: str, tmp_path: Path) -> None:
    kind = nibabel.Nifti1Pair if name[2:] in ("hdr", "img") else nibabel.Nifti1Image
    plain = saved(tmp_path / name.lower(), kind(voxels(), STRAIGHT))
    if name != name.lower():
        plain.rename(tmp_path / name)
    volume = open_image(tmp_path / name)
    assert np.array_equal(volume.read(), voxels()) and np.allclose(volume.grid.affine, STRAIGHT)


CODES = [
    "".join(c) for a in itertools.permutations(("LR", "PA", "SI")) for c in itertools.product(*a)
]


@pytest.mark.parametrize("axes", CODES)
def test_axial_slices_and_their_way_back_agree_with_nibabel(axes: str, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), TURNED)
    target = nibabel.orientations.axcodes2ornt(tuple(axes))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), target)
    path = saved(tmp_path / "a.nii", image.as_reoriented(turn))
    stored = nibabel.load(path)
    volume = open_image(path)
    slices = volume.grid.to_axial(volume.read())
    canonical = np.asarray(nibabel.as_closest_canonical(stored).dataobj)
    assert np.array_equal(slices, canonical[::-1, ::-1].transpose(2, 1, 0))
    assert volume.grid.axcodes == axes and np.allclose(volume.grid.affine, stored.affine)
    lesion = (slices == 17).astype(np.uint8)
    write_nifti(
        tmp_path / "m.nii.gz", volume.grid.from_axial(lesion), volume.grid, volume.stored_header
    )
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj) == 1, np.asarray(stored.dataobj) == 17)
    assert np.array_equal(mask.affine, stored.affine) and mask.get_data_dtype() == np.uint8


def changed(path: Path, **fields: object) -> Path:
    """Set fields of the header of a .nii file in place, as no library would write them."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        name, _, index = field.partition("__")
        if index:
            header[name][int(index)] = value
        else:
            header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def plain(tmp_path: Path, dtype: type = np.int16, sform: int = 0, qform: int = 1) -> Path:
    image = nibabel.Nifti1Image(voxels(dtype), None)
    image.header.set_sform(STRAIGHT, sform)
    image.header.set_qform(STRAIGHT, qform)
    return saved(tmp_path / "a.nii", image)


@pytest.mark.parametrize(
    ("unit", "scale"), [("meter", 0.001), ("micron", 1000.0), ("mm", 1.0), ("unknown", 1.0)]
)
@pytest.mark.parametrize("forms", [(1, 0), (0, 1)])
def test_units_are_converted_to_millimetres(
    unit: str, scale: float, forms: tuple[int, int], tmp_path: Path
) -> None:
    affine = STRAIGHT.copy()
    affine[:3] *= scale
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(affine, forms[0])
    image.header.set_qform(affine, forms[1])
    image.header.set_xyzt_units(unit)
    grid = open_image(saved(tmp_path / "a.nii", image)).grid
    assert np.allclose(grid.affine, STRAIGHT, atol=1e-4) and grid.spacing_known
    assert grid.voxel_millilitres == pytest.approx(0.025, rel=1e-5)


@pytest.mark.parametrize("side", [0.0, np.nan, np.inf])
def test_without_a_usable_voxel_size_there_are_no_millilitres(side: float, tmp_path: Path) -> None:
    volume = open_image(changed(plain(tmp_path), pixdim__3=side))
    assert not volume.grid.spacing_known and volume.grid.axial_spacing is None
    assert np.isfinite(volume.grid.affine).all()
    assert any("no volume in millilitres" in note for note in volume.notes)
    # The sform holds the size of a voxel, whatever pixdim holds.
    volume = open_image(changed(plain(tmp_path, sform=2), pixdim__3=side))
    assert volume.grid.spacing == pytest.approx((2, 2.5, 5)) and volume.grid.spacing_known


def test_an_implausible_unit_is_named(tmp_path: Path) -> None:
    volume = open_image(changed(plain(tmp_path), xyzt_units=1))
    assert not volume.grid.spacing_known and "2 x 2.5 x 5 metres" in volume.notes[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim__0": -1},
        {"pixdim__0": 0},
        {"pixdim__1": -2.0},
        {"qform_code": 99, "sform_code": 99},
        {"sform_code": 99},
        {"vox_offset": 0},
        {"bitpix": 8},
        {"dim__0": 4, "dim__4": 1},
        {"dim__0": 5, "dim__4": 1, "dim__5": 1},
        {"intent_code": 1012},
        {"scl_slope": 0, "scl_inter": np.nan},
        {"scl_slope": np.nan},
        {"scl_slope": np.inf},
        {"scl_slope": -2, "scl_inter": 7},
        {"scl_slope": 0.5, "scl_inter": 0},
    ],
    ids=str,
)
def test_odd_headers_are_read_as_nibabel_reads_them(fields: dict, tmp_path: Path) -> None:
    path = changed(plain(tmp_path), **fields)
    expected, volume = nibabel.load(path), open_image(path)
    assert np.allclose(volume.grid.affine, expected.affine)
    assert np.allclose(volume.read(), np.asarray(expected.dataobj).reshape(SHAPE))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"quatern_b": 3.0}, "its qform holds no rotation"),
        ({"qoffset_x": np.nan}, "its qform maps voxels to no volume"),
        ({"sform_code": 1, "srow_x": 0}, "its sform maps voxels to no volume"),
        ({"sform_code": 1, "srow_x__0": np.nan}, "its sform maps voxels to no volume"),
        ({"sform_code": 1, "srow_x__1": 4.0}, "degrees from perpendicular; at most 45 are read"),
        ({"datatype": 7}, "datatype 7 is none of NIfTI's"),
        ({"datatype": 1}, "voxels are of type binary; save them as int16 or float32"),
        ({"datatype": 128, "bitpix": 24}, r"colours \(RGB\)"),
        ({"datatype": 2304, "bitpix": 32}, r"colours \(RGB\)"),
        ({"datatype": 32, "bitpix": 64}, "complex numbers; save their magnitude"),
        (
            {"datatype": 1536, "bitpix": 128},
            "voxels are of type float128; save them as int16 or float32",
        ),
        ({"scl_slope": 1.0, "scl_inter": np.nan}, "its scl_inter is not a finite number"),
        ({"vox_offset": 100}, "within the header"),
        ({"vox_offset": 1e9}, "truncated: it holds"),
        ({"vox_offset": np.nan}, "does not say where the voxels begin"),
        ({"dim__1": -3}, "its header asks for"),
        ({"dim__1": 30000, "dim__2": 30000}, "at most 268,435,456 are read"),
        ({"dim__0": 5, "dim__4": 1, "dim__5": 3}, "vectors or more than four dimensions"),
        ({"dim__0": 4, "dim__4": 0}, "gives dimensions"),
    ],
    ids=str,
)
def test_headers_that_do_not_hold_are_refused(fields: dict, rule: str, tmp_path: Path) -> None:
    path = changed(plain(tmp_path), **fields)
    with pytest.raises(DataError, match=rule) as raised:
        volume = open_image(path)
        volume.grid  # noqa: B018
        volume.read()
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    assert str(raised.value).count(str(path)) == 1


@pytest.mark.parametrize("values", [[np.nan], [np.inf, -np.inf], [np.nan] * 5])
def test_values_that_are_not_finite_are_counted(values: list[float], tmp_path: Path) -> None:
    volume = voxels(np.float32)
    volume.ravel()[: len(values)] = values
    path = saved(tmp_path / "a.nii.gz", nibabel.Nifti1Image(volume, STRAIGHT))
    with pytest.raises(DataError, match=f"{len(values)} of 60 values are NaN or infinite"):
        open_image(path).read()


def test_scaling_that_leaves_the_range_of_numbers_is_refused(tmp_path: Path) -> None:
    path = changed(plain(tmp_path, np.float32), scl_slope=3e38, scl_inter=0)
    found = open_image(path)
    expected = np.asarray(nibabel.load(path).dataobj)
    assert np.isfinite(expected).all() and np.allclose(found.read(), expected)


def test_one_volume_of_several_is_read_by_its_number(tmp_path: Path) -> None:
    series = np.stack([voxels(), voxels() + 100, voxels() + 200], axis=3)
    for name in ("a.nii", "a.nii.gz"):
        path = saved(tmp_path / name, nibabel.Nifti1Image(series, STRAIGHT))
        assert np.array_equal(open_image(path, 2).read(), series[..., 1])
        assert open_image(path, 3).notes == ("volume 3 of the file",)
        for volume, rule in (
            (None, "holds 3 volumes .* volume=N, from 1 to 3"),
            (4, "no volume 4"),
        ):
            with pytest.raises(DataError, match=rule):
                open_image(path, volume).grid  # noqa: B018
    with pytest.raises(DataError, match="holds one volume, and no volume 2; leave volume out"):
        open_image(plain(tmp_path), 2).grid  # noqa: B018


def test_a_single_slice_of_two_dimensions_is_a_volume(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", nibabel.Nifti1Image(voxels()[..., 0], STRAIGHT))
    volume = open_image(path)
    assert volume.grid.shape == (5, 4, 1) and np.array_equal(
        volume.read()[..., 0], voxels()[..., 0]
    )


@pytest.mark.parametrize(
    "packer", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"]
)
@pytest.mark.parametrize("cut", [-1, -30, 60, 349])
def test_a_file_that_ends_early_is_refused_in_one_line(
    packer: object, cut: int, tmp_path: Path
) -> None:
    whole = plain(tmp_path).read_bytes()
    contents = [packer(whole[:cut]), packer(whole)[: min(cut, 100)]]
    for name, content in zip(("b.nii", "c.nii"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"(truncated|damaged).*; copy or download it again"):
            open_image(tmp_path / name).grid  # noqa: B018


def test_damage_within_packed_data_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(0, 999, (20, 20, 9)).astype(np.int16), STRAIGHT)
    whole = saved(tmp_path / "a.nii", image).read_bytes()
    for packer in (gzip.compress, bz2.compress):
        content = bytearray(packer(whole))
        content[len(content) // 2] ^= 255
        (tmp_path / "b.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match="truncated or damaged"):
            open_image(tmp_path / "b.nii.gz").grid  # noqa: B018


def test_a_packed_file_is_unpacked_no_further_than_its_header_asks(tmp_path: Path) -> None:
    whole = plain(tmp_path).read_bytes()
    (tmp_path / "bomb.nii.gz").write_bytes(
        gzip.compress(whole) + gzip.compress(bytes(2**20)) * 2000
    )
    start = time.perf_counter()
    assert np.array_equal(open_image(tmp_path / "bomb.nii.gz").read(), voxels())
    assert time.perf_counter() - start < 2, "two gigabytes take longer"
    # An extension of 2 GB that the header claims is not read either.
    claim = struct.pack("<4Bii", 1, 0, 0, 0, 2**31 - 16, 4) + bytes(8)
    (tmp_path / "b.nii").write_bytes(whole[:348] + claim + whole[352:])
    path = changed(tmp_path / "b.nii", vox_offset=368)
    assert np.array_equal(open_image(path).read(), voxels())


def test_both_halves_of_a_pair_are_needed(tmp_path: Path) -> None:
    saved(tmp_path / "a.hdr", nibabel.Nifti1Pair(voxels(), STRAIGHT))
    assert {path.name for path in open_image(tmp_path / "a.img").files} == {"a.hdr", "a.img"}
    (tmp_path / "a.img").rename(tmp_path / "b.img")
    with pytest.raises(DataError, match=r"the other half of the pair, a\.img, is not beside it"):
        open_image(tmp_path / "a.hdr").grid  # noqa: B018


def test_a_pair_and_a_whole_file_are_told_apart_by_their_content(tmp_path: Path) -> None:
    plain(tmp_path).rename(tmp_path / "whole.img")
    assert np.array_equal(open_image(tmp_path / "whole.img").read(), voxels())
    big = nibabel.Nifti1Pair(np.zeros((4, 4, 4), np.uint8), STRAIGHT)
    saved(tmp_path / "a.hdr", big).rename(tmp_path / "b.nii")
    with pytest.raises(DataError, match="its voxels lie in another file"):
        open_image(tmp_path / "b.nii").grid  # noqa: B018


def test_nifti_2_is_read_and_its_mask_is_nifti_2(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", nibabel.Nifti2Image(voxels(), TURNED))
    volume = open_image(path)
    write_nifti(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8), volume.grid, volume.stored_header)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert isinstance(mask, nibabel.Nifti2Image) and np.array_equal(mask.affine, TURNED)


def test_a_mask_on_another_formats_grid_holds_its_affine(tmp_path: Path) -> None:
    for affine, codes in ((TURNED, (1, 0)), (SHEARED, (1, 0)), (STRAIGHT, (1, 1))):
        values = np.linspace(0, 1, 60, dtype=np.float32).reshape(SHAPE)
        write_nifti(tmp_path / "m.nii.gz", values, Grid(SHAPE, affine))
        mask = nibabel.load(tmp_path / "m.nii.gz")
        assert np.allclose(mask.affine, affine) and np.array_equal(mask.get_fdata(), values)
        assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == codes


def test_a_big_endian_file_has_a_mask_that_nibabel_reads(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    path = saved(tmp_path / "a.nii", nibabel.Nifti1Image(voxels(), TURNED, header))
    volume = open_image(path)
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(SHAPE)
    write_nifti(tmp_path / "m.nii.gz", values, volume.grid, volume.stored_header)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(mask.get_fdata(), values) and np.allclose(mask.affine, TURNED)


def test_names_hold_the_description_and_say_what_holds_labels(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), STRAIGHT)
    image.header["descrip"] = b"T1 mprage"
    image.header.set_intent("label")
    assert open_image(saved(tmp_path / "a.nii", image)).names == ("a.nii", "T1 mprage", "label")
