"""Hostile data files, predictions and run folders: each is refused in one line, and nothing outside is read or sent."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_store import cohort
from tracked_runs import write_run
from traps import refused

from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.reports.predictions import Prediction, read_predictions, write_predictions
from brainseg.tracking.upload import upload_run


def _replaced(name: str, array: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=array, **options) if not isinstance(
            array, tuple
        ) else file.create_dataset(name, *array, **options)

    return change


def _linked(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"] = link

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((9, 3, 8, 8), np.uint8)
    layout[:] = h5py.VirtualSource("nowhere.h5", "images", shape=(9, 3, 8, 8))
    del file["images"]
    file.create_virtual_dataset("images", layout)


def _endless(file: h5py.File) -> None:
    """Rows without end in a file of a few kilobytes."""
    for name in ("images", "masks", "slice_number", "tumour_pixels"):
        shape, kind = file[name].shape[1:], file[name].dtype
        del file[name]
        file.create_dataset(name, (2**40, *shape), kind, chunks=True)


HOSTILE_FILES: dict[str, Callable[[h5py.File], None]] = {  # each is whole and well-formed
    "another file's": _linked(h5py.ExternalLink("other.h5", "images")),
    "dangling": _linked(h5py.SoftLink("/nothing")),
    "virtual": _virtual,
    "raw bytes of any file": _replaced(
        "images", ((9, 3, 8, 8), np.uint8), external=[("/etc/hostname", 0, 9 * 3 * 64)]
    ),
    "never written": _replaced("images", ((9, 3, 8, 8), np.uint8), chunks=(1, 3, 8, 8)),
    "insane size": _replaced("images", ((9, 3, 2**31, 2**31), np.uint8), chunks=(1, 3, 8, 8)),
    "endless": _endless,
    "group": lambda file: (file.__delitem__("images"), file.create_group("images")),
    "empty": _replaced("images", h5py.Empty("u1")),
    "names are numbers": _replaced("volumes", np.arange(3)),
    "names are objects": _replaced(
        "volumes", np.array(["a", "b", "c"], object), dtype=h5py.string_dtype()
    ),
    "names with escapes": _replaced("volumes", np.array([b"a\nb", b"\x1b[31m", b"c"], "S10")),
    "names of no encoding": _replaced("volumes", np.array([b"\xff\xfe", b"b", b"c"], "S10")),
    "fractional rows": _replaced("first_slice", np.array([0, 2, 5, 9.0])),
    "records": _replaced("slice_number", np.zeros(9, [("a", "i4")])),
    "no number": _replaced("low", np.full((3, 3), np.nan, np.float32)),
    "text for numbers": _replaced("low", np.array([[b"a"] * 3] * 3)),
    "many schemas": lambda file: file.attrs.__setitem__("schema", np.array([1, 2])),
}


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_no_hostile_data_file_is_opened(tmp_path: Path, kind: str) -> None:
    write_store(tmp_path / "other.h5", *cohort())
    path = Path(shutil.copy(tmp_path / "other.h5", tmp_path / "lgg.h5"))
    with h5py.File(path, "r+") as file:
        HOSTILE_FILES[kind](file)
    assert str(path) in refused(lambda: Store(path))


HOSTILE_PREDICTIONS: dict[str, Callable[[h5py.File], None]] = {
    "raw bytes of any file": _replaced(
        "masks", ((2, 4, 4), np.uint8), external=[("/etc/hostname", 0, 32)]
    ),
    "another file's": lambda file: (
        file.__delitem__("masks"),
        file.__setitem__("masks", h5py.ExternalLink("other.h5", "images")),
    ),
    "missing": lambda file: file.__delitem__("roles"),
    "names are numbers": _replaced("volumes", np.arange(1)),
    "names of no encoding": _replaced("volumes", np.array([b"\xff\xfe"], "S10")),
}


@pytest.mark.parametrize("kind", HOSTILE_PREDICTIONS)
def test_no_hostile_predictions_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "predictions.h5"
    write_predictions(path, [Prediction("v", "test", np.ones((2, 4, 4), np.uint8), None)])
    assert read_predictions(path, "v").mask.sum() == 32
    with h5py.File(path, "r+") as file:
        HOSTILE_PREDICTIONS[kind](file)
    assert str(path) in refused(lambda: read_predictions(path, "v"))


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["code.diff", "config.yaml", "pictures/curves.png", "checkpoints/best.pt"]
)
def test_sync_sends_no_file_that_a_link_in_a_run_folder_names(tmp_path: Path, name: str) -> None:
    """A run folder from elsewhere names the server too: it would fetch any file of its reader."""
    folder = write_run(tmp_path / "r", f"sqlite:///{tmp_path / 'mlflow.db'}", state="finished")
    (tmp_path / "private").write_text("note: private")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="link"):
        upload_run(folder)
    sent = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert not any("private" in path.read_text() for path in sent)
