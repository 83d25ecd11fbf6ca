"""The HDF5 file: what goes in comes out, its bytes depend on that alone, and no damage passes silently."""

import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from brainseg.core.errors import DataError
from brainseg.data.store import Store, is_open_elsewhere, is_store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import Volume, compute_volume_stats

NAMES = ("TCGA_AA_0001_20010101", "TCGA_AA_0001_20020202", "TCGA_Bö_0002_20010101")
Pixels = list[tuple[np.ndarray, np.ndarray]]


def cohort() -> tuple[list[Volume], Pixels]:
    """Three volumes of 2, 3 and 4 slices of 3 x 8 x 8 pixels; the slices are numbered from 5."""
    rng = np.random.default_rng(0)
    volumes, pixels = [], []
    for slices, name in enumerate(NAMES, 2):
        images = rng.integers(0, 256, (slices, 3, 8, 8), np.uint8)
        masks = (rng.random((slices, 1, 8, 8)) < 0.3).astype(np.uint8)
        volumes.append(
            compute_volume_stats(name, zip(range(5, 5 + slices), images, masks[:, 0], strict=True))
        )
        pixels.append((images, masks))
    return volumes, pixels


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_store(tmp_path / "lgg.h5", *cohort())
    return tmp_path / "lgg.h5"


def content(store: Store) -> list:
    """Everything a store says, as bytes and lists."""
    arrays = [
        store.slice_number,
        store.first_slice,
        store.low,
        store.high,
        store.spacing,
        store.tumour_pixels,
        store.copies,
        store.head_median,
        store.head_box,
    ]
    rows = store.shape[0]
    return [
        store.shape,
        store.volumes,
        store.patients,
        store.channels,
        store.classes,
        store.fingerprint,
        *(array.tobytes() for array in [*arrays, store.images(0, rows), store.masks(0, rows)]),
    ]


def test_what_goes_in_comes_out(path: Path) -> None:
    volumes, pixels = cohort()
    with Store(path) as store:
        assert store.shape == (9, 3, 8, 8) and store.volumes == list(NAMES)
        assert store.patients == ["TCGA_AA_0001", "TCGA_AA_0001", "TCGA_Bö_0002"]
        assert store.channels == ["pre-contrast", "FLAIR", "post-contrast"] and store.classes == [
            "background",
            "tumour",
        ]
        assert (
            store.slice_number.tolist() == [5, 6, 5, 6, 7, 5, 6, 7, 8]
            and store.slice_number.dtype == np.int32
        )
        assert store.first_slice.tolist() == [0, 2, 5, 9] and store.first_slice.dtype == np.int64
        assert [store.volume_of(row) for row in range(9)] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
        for v, (volume, (images, masks)) in enumerate(zip(volumes, pixels, strict=True)):
            start, stop = store.first_slice[v], store.first_slice[v + 1]
            assert np.array_equal(store.images(start, stop), images) and np.array_equal(
                store.masks(start, stop), masks
            )
            assert np.array_equal(store.tumour_pixels[start:stop], masks.sum((1, 2, 3)))
            assert np.array_equal(store.low[v], volume.low) and np.array_equal(
                store.high[v], volume.high
            )
        assert (
            store.low.dtype == np.float32 and store.copies.dtype == bool and not store.copies.any()
        )
        assert store.spacing.shape == (3, 3) and np.isnan(store.spacing).all()
        store.verify()


def test_plain_h5py_reads_it_and_every_dataset_has_checksums(path: Path) -> None:
    with h5py.File(path) as file:
        assert sorted(file) == sorted(
            [
                "images",
                "masks",
                "slice_number",
                "volumes",
                "patients",
                "first_slice",
                "low",
                "high",
                "spacing",
                "tumour_pixels",
                "copies",
                "head_median",
                "head_box",
                "channels",
                "classes",
            ]
        )
        assert all(dataset.fletcher32 for dataset in file.values())
        assert np.array_equal(file["images"][2:5], cohort()[1][1][0])
        assert file["volumes"].asstr()[2] == NAMES[2] and file.attrs["schema"] == 1


def test_bytes_depend_on_the_content_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(1.1)  # a time stamp in seconds would show
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_store("other.h5", *cohort())
    assert Path("other.h5").read_bytes() == path.read_bytes()


def test_flipped_bits_never_pass_silently(path: Path, tmp_path: Path) -> None:
    with Store(path) as store:
        expected = content(store)
    original, damaged, rng = path.read_bytes(), tmp_path / "damaged.h5", random.Random(0)
    refused = 0
    for _ in range(200):
        flipped = bytearray(original)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            with Store(damaged) as store:
                assert content(store) == expected
        except DataError as error:
            assert str(damaged) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100  # the rest fell into gaps


def test_files_cut_short_are_refused(path: Path, tmp_path: Path) -> None:
    original = path.read_bytes()
    for size in range(0, len(original) - 1, 97):
        (tmp_path / "cut.h5").write_bytes(original[:size])
        with pytest.raises(DataError, match=r"cut\.h5"):
            Store(tmp_path / "cut.h5")


@pytest.mark.parametrize(("name", "row"), [("images", 3), ("masks", 8)])
def test_damage_names_volume_and_slice(path: Path, name: str, row: int) -> None:
    with h5py.File(path) as file:
        where = file[name].id.get_chunk_info(row).byte_offset
    damage(path, where + 20)
    with Store(path) as store:
        place = f"slice {store.slice_number[row]} of {store.volumes[store.volume_of(row)]}"
        with pytest.raises(DataError, match=f"damaged at {name} of {place}"):
            getattr(store, name)(0, 9)
        with pytest.raises(DataError, match=place):
            store.verify()
        assert len(getattr(store, name)(0, row)) == row  # the others can still be read


def damage(path: Path, at: int, value: int | None = None) -> None:
    changed = bytearray(path.read_bytes())
    changed[at] = changed[at] ^ 4 if value is None else value
    path.write_bytes(changed)


def test_verify_finds_what_the_checksum_cannot(tmp_path: Path) -> None:
    """Fletcher-32 takes 0xFFFF for 0x0000: a black block that comes back white has the right checksum."""
    volumes, pixels = cohort()
    pixels[0][0][0, 0] = 0
    volumes[0] = compute_volume_stats(
        NAMES[0], zip((5, 6), pixels[0][0], pixels[0][1][:, 0], strict=True)
    )
    path = tmp_path / "lgg.h5"
    write_store(path, volumes, pixels)
    with h5py.File(path) as file:
        where = file["images"].id.get_chunk_info(0).byte_offset
    damage(path, where, 255)
    damage(path, where + 1, 255)
    with Store(path) as store:
        assert store.images(0, 1)[0, 0, 0, 0] == 255
        with pytest.raises(DataError, match="does not have its fingerprint"):
            store.verify()


def test_other_files_are_refused_in_one_line(tmp_path: Path, path: Path) -> None:
    text, foreign = tmp_path / "text.h5", tmp_path / "foreign.h5"
    text.write_text("no HDF5")
    h5py.File(foreign, "w").close()
    for other, rule in [
        (text, "not a file that brainseg.prepare made"),
        (foreign, "not a file that brainseg.prepare made"),
        (tmp_path / "no.h5", "no such"),
    ]:
        with pytest.raises(DataError, match=rule) as caught:
            Store(other)
        assert str(other) in str(caught.value) and "\n" not in str(caught.value)
        assert not is_store(other)
    assert is_store(path)


def test_a_file_open_in_another_program_is_not_called_damaged(path: Path) -> None:
    """h5py marks a file of ours as open for as long as a program may write to it, and for ever if that is killed."""
    rule = r"lgg\.h5: is open for writing in another program, or was not closed; close that program, or make it again"
    with h5py.File(path, "r+", libver="latest", locking=False) as file:
        file.flush()
        assert is_open_elsewhere(path)
        content = path.read_bytes()
        with pytest.raises(DataError, match=rule):
            read_elsewhere(path)
    assert not is_open_elsewhere(path)
    Store(path).close()
    path.write_bytes(content)  # as a killed program leaves it
    with pytest.raises(DataError, match=rule):
        Store(path)


def read_elsewhere(path: Path) -> None:
    """Open a copy: HDF5 opens a file without looking at it if this very process has it open already."""
    copy = path.with_name("copy_of_lgg.h5")
    copy.write_bytes(path.read_bytes())
    Store(copy)


def test_other_hdf5_files_are_not_open_elsewhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "early.h5", "w", libver="earliest") as file:
        file.flush()
        assert not is_open_elsewhere(tmp_path / "early.h5"), (
            "this version of the format does not say"
        )
    (tmp_path / "short.h5").write_bytes(b"\x89HDF")
    assert not is_open_elsewhere(tmp_path / "short.h5") and not is_open_elsewhere(
        tmp_path / "no.h5"
    )


def test_slices_in_another_layout_of_hdf5_are_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "kspace.h5"
    with h5py.File(path, "w") as file:
        file["kspace"], file.attrs["format"] = np.zeros((2, 4, 4), np.complex64), np.zeros(3)
    with pytest.raises(DataError, match=r"kspace\.h5: not a file that brainseg\.prepare made"):
        Store(path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            lambda file: file.attrs.__setitem__("schema", 2),
            "schema version 2, but this version of brainseg reads 1",
        ),
        (lambda file: file.__delitem__("masks"), "masks"),
        (
            lambda file: replace(file, "low", np.zeros((2, 3), np.float32)),
            r"low has shape \(2, 3\), must have \(3, 3\)",
        ),
        (
            lambda file: replace(file, "first_slice", np.array([0, 5, 2, 9])),
            "first_slice must rise from 0 to 9",
        ),
        (
            lambda file: replace(file, "first_slice", np.array([0, 2, 5, 8])),
            "first_slice must rise from 0 to 9",
        ),
        (lambda file: replace(file, "masks", np.zeros((9, 1, 8, 8), np.float32)), "must be uint8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(path: Path, change, rule: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=rule):
        Store(path)


def replace(file: h5py.File, name: str, array: np.ndarray) -> None:
    del file[name]
    file[name] = array


def test_rows_out_of_range_are_refused(path: Path) -> None:
    store = Store(path)
    for start, stop in [(-1, 2), (5, 10), (4, 3)]:
        with pytest.raises(IndexError, match="rows"):
            store.images(start, stop)
    assert store.images(4, 4).shape == (0, 3, 8, 8)


def test_pickle_keeps_no_handle(path: Path) -> None:
    store = Store(path)
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes, as a loader's worker gets them
    assert content(copy) == content(store)


def test_forked_processes_read_right_at_the_same_time(path: Path) -> None:
    store, (_, pixels) = Store(path), cohort()
    images = np.concatenate([image for image, _ in pixels])
    store.images(0, 9)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_read_often, args=(store, images, seed)) for seed in range(3)
    ]
    for child in children:
        child.start()
    _read_often(store, images, 9)
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]


def _read_often(store: Store, images: np.ndarray, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        row = rng.randrange(9)
        assert np.array_equal(store.images(row, row + 1)[0], images[row])
    assert store._process == os.getpid()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    volumes, pixels = cohort()
    before = path.read_bytes()

    def full_disk():
        yield pixels[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*lgg\.h5"):
        write_store(path, volumes, full_disk())
    with pytest.raises(ValueError, match="zip"):
        write_store(path, volumes, pixels[:2])
    assert path.read_bytes() == before and os.listdir(path.parent) == ["lgg.h5"]


@pytest.mark.parametrize(
    ("volumes", "slices", "size"), [(1, 1, 1), (60, 1, 8), (3, 130, 16), (200, 3, 4), (5, 8, 256)]
)
def test_room_is_reserved_before_hdf5_takes_it(
    tmp_path: Path, monkeypatch, volumes: int, slices: int, size: int
) -> None:
    """HDF5 crashes where it finds the disk full. Noise, which cannot be compressed; the last case is more than HDF5 holds back."""
    reserved, rng = [0], np.random.default_rng(0)

    def reserve(descriptor: int, size: int, before: int = 0) -> int:
        assert os.fstat(descriptor).st_size <= reserved[-1]
        reserved.append(max(size, before))
        return reserved[-1]

    monkeypatch.setattr("brainseg.data.store_writer._reserve", reserve)
    image, mask = (
        rng.integers(0, 256, (slices, channels, size, size), np.uint8) for channels in (3, 1)
    )
    names = [f"TCGA_{'A' * 200}_{number:04}_20010101" for number in range(volumes)]
    write_store(
        tmp_path / "a.h5",
        [
            compute_volume_stats(name, zip(range(slices), image, mask[:, 0], strict=True))
            for name in names
        ],
        [(image, mask)] * volumes,
    )
    assert len(reserved) == volumes + 3
    assert (tmp_path / "a.h5").stat().st_size <= reserved[-1]
    monkeypatch.undo()
    write_store(
        tmp_path / "b.h5",
        [
            compute_volume_stats(name, zip(range(slices), image, mask[:, 0], strict=True))
            for name in names
        ],
        [(image, mask)] * volumes,
    )
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes(), (
        "nothing of it is left"
    )
