"""Damaged files: a checkpoint, an HDF5 file, a folder of slices. None passes silently.

TIFF files cut short or mutated, 1,000 of them, are in tests/test_source.py: it takes seconds, so it is always run.
"""

import logging
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from test_kaggle_3m import FAULTS, IMAGE, MASK
from test_loop import make_task
from test_store import cohort, content
from tiffs import write_cohort, write_slice, write_volume

from brainseg.config import SchedulerConfig
from brainseg.core.errors import DataError
from brainseg.data.readers.kaggle_3m import scan_slices
from brainseg.data.split import Split
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.runs import checkpoint
from brainseg.runs.resume import restore_run, save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit

SPLIT = Split("holdout", ("A",), ("B",), ("C",))


def damaged(sound: bytes, dice: random.Random) -> bytes:
    """As a power cut, a bad disk or a bad cable leaves a file: cut short, bits flipped, a sector zeroed, moved or overwritten."""
    changed, kind, at = bytearray(sound), dice.random(), dice.randrange(len(sound))
    if kind < 0.2:
        return sound[:at]
    if kind < 0.7:
        for _ in range(dice.choice([1, 1, 1, 2, 8])):
            changed[dice.randrange(len(sound))] ^= 1 << dice.randrange(8)
        return bytes(changed)
    size = dice.choice([1, 4, 512, 4096])
    other = dice.randrange(len(sound))
    filling = dice.choice(
        [bytes(size), b"\xff" * size, dice.randbytes(size), sound[other : other + size]]
    )
    changed[at : at + size] = filling[: len(sound) - at]
    return bytes(changed) + dice.choice([b"", b"", dice.randbytes(size)])


def same(one: Any, other: Any) -> bool:
    """Equal through containers and tensors; types count."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return (
        torch.equal(one, other) and one.dtype == other.dtype
        if isinstance(one, torch.Tensor)
        else one == other
    )


@pytest.fixture
def saved(phantom_file: Path, tmp_path: Path) -> Iterator[tuple[RunFolder, TrainingContext]]:
    """A run of two epochs, saved after each."""
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"))
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        fit(
            build_state(task),
            task,
            Callbacks(
                after_epoch=lambda state, improved: save_checkpoints(
                    folder, state, task, SPLIT, improved
                )
            ),
        )
    yield folder, task


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.faults)])
def test_a_damaged_checkpoint_is_never_taken_for_a_sound_one(
    saved: tuple[RunFolder, TrainingContext], count: int, caplog
) -> None:
    folder, task = saved
    sound, expected = folder.last.read_bytes(), checkpoint.load(folder.last)
    dice, state, detected = random.Random(count), build_state(task), 0
    for _ in range(count):
        caplog.clear()
        folder.last.write_bytes(damaged(sound, dice))
        with caplog.at_level(logging.WARNING, "brainseg"):
            assert restore_run(state, folder, task)
        try:
            found = checkpoint.load(folder.last)
        except DataError as error:
            assert str(folder.last) in str(error) and "\n" not in str(error)
            assert state.epoch == 1 and str(folder.last) in caplog.text, (
                "previous.pt, with a warning"
            )
            detected += 1
        else:
            assert same(found, expected) and state.epoch == 2 and not caplog.text
    print(f"figure: {count} damaged, {detected} detected, the others loaded to the same bits")
    assert detected > 0.8 * count


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.faults)])
def test_flipped_bits_outside_the_pixels_never_pass_silently(tmp_path: Path, count: int) -> None:
    """Half of the flips fall outside the chunks of `images`, where a file of real size has one byte in a thousand."""
    path = tmp_path / "lgg.h5"
    write_store(path, *cohort())
    with Store(path) as store:
        expected = content(store)
    pixels = chunks(path, "images")
    sound, dice, refused = path.read_bytes(), random.Random(count), [0, 0]
    outside = sorted(set(range(len(sound))) - set(pixels))
    for number in range(count):
        flipped, places = bytearray(sound), (outside, pixels)[number % 2]
        flipped[dice.choice(places)] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            with Store(path) as store:
                assert content(store) == expected
                store.verify()
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused[number % 2] += 1
    print(
        f"figure: of {count} flips refused {refused[0]} outside and {refused[1]} inside the pixels, the others changed nothing"
    )
    assert refused[1] == count // 2, "every flip of a pixel is found"
    assert refused[0] > 0.6 * count // 2, "the others fell into gaps"


def chunks(path: Path, name: str) -> list[int]:
    """The bytes of a file that hold the chunks of a dataset."""
    with h5py.File(path) as file:
        dataset = file[name].id
        found = [dataset.get_chunk_info(index) for index in range(dataset.get_num_chunks())]
        return [
            at for chunk in found for at in range(chunk.byte_offset, chunk.byte_offset + chunk.size)
        ]


def _bomb(source: Path, name: str) -> None:
    """A few bytes of zlib that stand for a strip of a gigabyte."""
    tifffile.imwrite(
        source / name / f"{name}_2.tif", IMAGE, photometric="rgb", metadata=None, compression="zlib"
    )
    path = source / name / f"{name}_2.tif"
    changed = bytearray(path.read_bytes())
    for tag in (256, 257, 278):  # width, length, rows of a strip
        at = changed.index(struct.pack("<H", tag)) + 8
        changed[at : at + 4] = struct.pack("<I", 20_000)
    path.write_bytes(changed)


def _loop(source: Path, name: str) -> None:
    path = source / name / f"{name}_2.tif"
    path.unlink()
    path.symlink_to(path.name)


def _dangling(source: Path, name: str) -> None:
    path = source / name / f"{name}_2.tif"
    path.unlink()
    path.symlink_to("nothing.tif")


def _folder(source: Path, name: str) -> None:
    (source / name / f"{name}_2.tif").unlink()
    (source / name / f"{name}_2.tif").mkdir()


def _garbled(source: Path, name: str) -> None:
    """LZW that cannot be decoded, behind a sound header."""
    write_slice(
        source, name, 2, IMAGE + np.arange(16, dtype=np.uint8)[:, None], None, compression="lzw"
    )
    path = source / name / f"{name}_2.tif"
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    changed = bytearray(path.read_bytes())
    changed[start : start + size] = b"\xff" * size
    path.write_bytes(changed)


def _rename_files(folder: Path, name: str) -> None:
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(folder.name, name))


def slice_of(pixels: np.ndarray, **options: Any) -> Callable[[Path, str], None]:
    return lambda source, name: tifffile.imwrite(
        source / name / f"{name}_2.tif", pixels, metadata=None, **options
    )


FURTHER = {  # besides those of tests/test_source.py: what it does to a volume, what its line says
    "whole_volume": (
        lambda s, n: write_volume(s, n, size=8),
        "whole_volume: all slices have 8x8 pixels",
    ),
    "bomb": (_bomb, "bomb_2.tif: its header says 20000x20000 pixels"),
    "loop": (_loop, "loop_2.tif: "),
    "dangling": (_dangling, "dangling_2.tif: not a regular file"),
    "directory": (_folder, "directory_2.tif: not a regular file"),
    "garbled": (_garbled, "garbled_2.tif: "),
    "negative": (slice_of(IMAGE[..., 0], photometric="miniswhite"), "negative_2.tif: 1 channel(s)"),
    "float": (
        slice_of(IMAGE.astype(np.float32), photometric="rgb"),
        "float_2.tif: pixels are float32",
    ),
    "alpha": (
        slice_of(np.dstack([IMAGE, MASK]), photometric="rgb", extrasamples=["unassalpha"]),
        "alpha_2.tif: 4 channel(s)",
    ),
    "misnamed": (
        lambda s, n: write_slice(s, n, "s002", IMAGE, None),
        "misnamed_s002.tif: an image that is named neither",
    ),
    "undated": (
        lambda s, n: _rename_files(s / n, f"{n}_20010101"),
        "undated: its images are named undated_20010101_<number>.tif",
    ),
}


def test_thirty_kinds_of_faults_are_all_in_one_report(tmp_path: Path) -> None:
    kinds = FAULTS | FURTHER
    assert len(kinds) >= 30
    source = write_cohort(tmp_path / "source")  # some faults put a file beside it
    for name, (spoil, _) in kinds.items():
        write_volume(source, name)
        spoil(source, name)
    found = scan_slices(source, workers=2)
    assert len(found.faults) == len(kinds), "\n".join(found.faults)
    for name, (_, expected) in kinds.items():
        (line,) = [
            line for line in found.faults if line.startswith((f"{name}/", f"{name}:", f"{name}_"))
        ]
        assert expected in line and "\n" not in line, line
    assert found.faulty_patients == sorted(kinds)
    assert len(found.without(kinds).volumes) == 3


def test_a_folder_that_is_a_link_to_itself_is_named_and_passed_over(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    found = scan_slices(tmp_path, workers=1)
    assert len(found.volumes) == 3 and "loop" in " ".join([*found.ignored_files, *found.faults])
