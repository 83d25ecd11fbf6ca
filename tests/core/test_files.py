"""The one writer: complete under its name, or not there."""

import json
import os
import time
from pathlib import Path

import pytest

from brainseg.core import files
from brainseg.core.files import remove_stale, rename, write_json, write_text, writing


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), writing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_after_the_content_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a.txt", "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_windows_waits_for_a_reader_of_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is open cannot be replaced there."""
    replace, refusals = os.replace, iter([PermissionError, PermissionError])

    def replace_later(source: Path, target: Path) -> None:
        for refusal in refusals:
            raise refusal(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_later)
    monkeypatch.setattr(files, "HAS_FOLDER_DESCRIPTORS", False)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    refusals = iter([PermissionError] * 100)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_the_suffix_survives_and_folders_are_made(tmp_path: Path) -> None:
    with writing(tmp_path / "new" / "a.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path / "new"
        temporary.write_bytes(b"x")
    assert (tmp_path / "new" / "a.png").read_bytes() == b"x"


def test_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


def test_a_link_stays_one_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "stored").write_text("old")
    link = tmp_path / "plot.png"
    link.symlink_to(Path("disk") / "stored")
    with writing(link) as temporary:
        assert temporary.parent == tmp_path / "disk" and temporary.suffix == ".png", (
            "the link's suffix says the format"
        )
        temporary.write_text("new")
    assert link.is_symlink() and (tmp_path / "disk" / "stored").read_text() == "new"
    assert os.listdir(tmp_path / "disk") == ["stored"]


def test_a_link_whose_target_is_not_there_yet_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(tmp_path / "second")
    (tmp_path / "second").symlink_to(tmp_path / "new" / "stored.json")
    write_json(tmp_path / "first", [1])
    assert json.loads((tmp_path / "new" / "stored.json").read_text()) == [1]
    assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()


def test_what_a_kill_left_beside_the_target_of_a_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.h5").symlink_to(tmp_path / "disk" / "b.h5")
    left = tmp_path / "disk" / ".a.77.partial.h5"
    left.touch()
    os.utime(left, (1, 1))
    remove_stale(tmp_path / "a.h5")
    assert not left.exists() and (tmp_path / "a.h5").is_symlink()


def test_rename_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "a")
    write_text(tmp_path / "b", "b")
    rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"
    assert not (tmp_path / "a").exists()


def test_what_a_kill_left_of_a_file_is_removed_when_it_is_old(tmp_path: Path) -> None:
    names = [
        ".a[1].77.partial.h5-journal",
        ".a[1].77.partial.h5",
        ".a[1].78.partial.h5",
        ".b.77.partial.h5",
        "a[1].h5",
    ]
    for name, age in zip(names, (7200, 7200, 60, 7200, 7200), strict=True):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_stale(tmp_path / "a[1].h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:]), (
        "the young one may be another's work"
    )
    remove_stale(tmp_path / "a[1].h5", seconds=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[3:])
    remove_stale(tmp_path / "none" / "a.h5")
