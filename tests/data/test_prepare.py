"""From folder to file: nothing is written unless the data are sound, equal data give equal bytes, and the command says what it did."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiffs import write_cohort, write_slice, write_volume

from brainseg import prepare as command
from brainseg.config import PrepareConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.kaggle_3m import in_processes
from brainseg.data.store import Store

IMAGE = np.full((16, 16, 3), 7, np.uint8)
MASK = np.zeros((16, 16), np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "kaggle_3m")


def test_bytes_depend_on_neither_workers_nor_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = convert(source, tmp_path / "one.h5", workers=1)
    monkeypatch.chdir(source)
    convert(".", tmp_path / "two.h5", workers=2)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with Store(tmp_path / "one.h5") as store:
        assert (
            summary.written
            and store.fingerprint == summary.fingerprint
            and store.shape == (10, 3, 16, 16)
        )
        store.verify()


def test_unchanged_source_and_file_are_left_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "lgg.h5"
    convert(source, output, workers=1)
    os.utime(output, (1, 1))
    assert not convert(source, output, workers=1).written and output.stat().st_mtime == 1
    content = bytearray(output.read_bytes())
    with Store(output) as store:
        at = store._file()["images"].id.get_chunk_info(3).byte_offset
    content[at] ^= 1
    output.write_bytes(content)  # damaged: the same fingerprint, another pixel
    assert convert(source, output, workers=1).written
    with Store(output) as store:
        store.verify()
    write_slice(source, "TCGA_AA_0000_20010101", 2, IMAGE, None)
    assert convert(source, output, workers=1).written


def test_faulty_data_write_nothing_and_name_every_fault(source: Path, tmp_path: Path) -> None:
    write_slice(source, "TCGA_AA_0000_20010101", 9, IMAGE, None)
    write_slice(source, "TCGA_AA_0001_20010102", 2, IMAGE[:8], None)
    output = tmp_path / "new" / "lgg.h5"
    with pytest.raises(FaultyCohortError) as caught:
        convert(source, output, workers=1)
    assert len(caught.value.faults) == 3 and all(
        fault in str(caught.value) for fault in caught.value.faults
    )
    assert not output.parent.exists()


def test_skip_patient_leaves_out_every_volume_of_the_patient(source: Path, tmp_path: Path) -> None:
    write_volume(source, "TCGA_AA_0001_20050505")
    write_slice(source, "TCGA_AA_0001_20010102", 9, IMAGE, None)
    summary = convert(source, tmp_path / "lgg.h5", on_fault="skip_patient", workers=1)
    assert summary.left_out == ["TCGA_AA_0001"] and summary.faults == [
        "TCGA_AA_0001_20010102/TCGA_AA_0001_20010102_9.tif: no mask"
    ]
    with Store(tmp_path / "lgg.h5") as store:
        assert store.patients == ["TCGA_AA_0000", "TCGA_AA_0002"]


def test_skip_patient_needs_a_patient_without_a_fault(tmp_path: Path) -> None:
    write_slice(tmp_path / "source", "a", 1, IMAGE, None)
    with pytest.raises(FaultyCohortError, match="no patient is without a fault"):
        convert(tmp_path / "source", tmp_path / "lgg.h5", on_fault="skip_patient", workers=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"source=.*empty: no patient found"):
        convert(tmp_path / "empty", tmp_path / "lgg.h5", on_fault="skip_patient", workers=1)
    assert not (tmp_path / "lgg.h5").exists()


def test_request_is_refused_before_anything_is_read(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("not to be overwritten")
    for chosen, output, rule in [
        (tmp_path / "nowhere", "lgg.h5", "no such folder"),
        (tmp_path / "thesis.txt", "lgg.h5", "is a file"),
        (source, tmp_path, "is a folder"),
        (source, tmp_path / "thesis.txt", "not a file that brainseg.prepare made"),
        (source, tmp_path / "thesis.txt" / "lgg.h5", "cannot be written to"),
    ]:
        with pytest.raises(RequestError, match=rule):
            command.check_request(PrepareConfig(source=str(chosen), output=str(output)))
    command.check_request(
        PrepareConfig(source=str(source), output=str(tmp_path / "a" / "b" / "lgg.h5"))
    )
    assert sorted(os.listdir(tmp_path)) == ["kaggle_3m", "thesis.txt"]


def test_an_output_that_is_open_in_another_program_is_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "lgg.h5"
    convert(source, output, workers=1)
    config = PrepareConfig(source=str(source), output=str(output))
    with h5py.File(output, "r+", libver="latest", locking=False) as file:
        file.flush()
        with pytest.raises(
            RequestError,
            match=r"lgg\.h5: is open for writing in another program, or was not closed; close that program",
        ):
            command.check_request(config)
    command.check_request(config)


def test_a_link_as_output_is_written_through(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, stored = tmp_path / "lgg.h5", tmp_path / "disk" / "stored.h5"
    link.symlink_to(stored)
    command.check_request(PrepareConfig(source=str(source), output=str(link)))
    assert convert(source, link, workers=1).written and link.is_symlink()
    convert(source, tmp_path / "plain.h5", workers=1)
    assert stored.read_bytes() == (tmp_path / "plain.h5").read_bytes()
    assert not convert(source, link, workers=1).written
    write_slice(source, "TCGA_AA_0000_20010101", 2, IMAGE, None)
    assert (
        convert(source, link, workers=1).written
        and link.is_symlink()
        and os.listdir(tmp_path / "disk") == ["stored.h5"]
    )


def test_command_says_what_is_in_the_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "notes.txt").touch()
    for number in (1, 3):
        write_slice(source, "TCGA_BB_0009_20010101", number, IMAGE, MASK)
    config = PrepareConfig(source=str(source), output=str(tmp_path / "lgg.h5"), workers=1)
    assert command.run(config) == 0
    printed = capsys.readouterr().out
    for expected in [
        "4 patients, 4 volumes, 12 slices of 16x16 pixels, 4 with tumour",
        "written",
        "ignored: notes.txt",
        "warning: TCGA_BB_0009_20010101: slices are numbered up to 3, without 2",
        "MB per slice, fingerprint",
        "no pre-contrast (FLAIR stands in for it) in 1 of 4 volumes: TCGA_BB_0009_20010101",
        "constant FLAIR (gives zeros) in 1 of 4 volumes: TCGA_BB_0009_20010101",
    ]:
        assert expected in printed
    assert command.run(config) == 0 and "unchanged, nothing to do" in capsys.readouterr().out


def test_command_reports_faults_on_stderr_and_exits_1(source: Path, tmp_path: Path) -> None:
    write_slice(source, "TCGA_AA_0000_20010101", 9, IMAGE, None)
    write_slice(source, "TCGA_AA_0001_20010102", 9, None, MASK)
    arguments = [f"source={source}", f"output={tmp_path / 'lgg.h5'}"]
    done = subprocess.run(
        [sys.executable, "-m", "brainseg.prepare", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "2 faults; nothing was written" in done.stderr and len(done.stderr.splitlines()) == 3
    assert not (tmp_path / "lgg.h5").exists()


def test_real_patients(real_source: Path, tmp_path: Path) -> None:
    summary = convert(real_source, tmp_path / "lgg.h5")
    with Store(tmp_path / "lgg.h5") as store:
        assert (
            store.shape == (3274, 3, 256, 256)
            and len(set(store.patients)) == 88
            and (store.tumour_pixels > 0).sum() == 1141
        )
        assert store.copies.sum(axis=0).tolist() == [
            4,
            0,
            7,
        ]  # missing sequences: pre-contrast, post-contrast
        assert (tmp_path / "lgg.h5").stat().st_size / 3274 <= 220_000
        images = store.images(int(store.first_slice[7]), int(store.first_slice[8]))
        low, high = np.percentile(images, (10, 99), axis=(0, 2, 3)).astype(np.float32)
        assert np.array_equal(store.low[7], low) and np.array_equal(store.high[7], high)
    assert not convert(real_source, tmp_path / "lgg.h5").written and summary.written


def _die(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does to who asks for too much memory
    return item


def test_a_process_that_is_killed_names_what_to_lower() -> None:
    with pytest.raises(
        DataError, match="workers=2: a process was lost, perhaps for want of memory; lower workers"
    ):
        list(in_processes(_die, [1, 2, 3], 2))
