"""`python -m brainseg.ui`: the port, the link, and what is refused. tests/tracking serves a real page with it."""

import socket
from pathlib import Path

import pytest

from brainseg import ui
from brainseg.cli.main import run_command
from brainseg.core.errors import RequestError


def test_a_port_in_use_is_left_to_its_program() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not ui.is_free(port)
        assert ui.find_free_port(port) != port


def test_without_a_free_port_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "is_free", lambda port: False)
    with pytest.raises(RequestError, match="port=7: this port and the next 99 are in use"):
        ui.find_free_port(7)


@pytest.mark.parametrize(
    ("display", "is_wanted", "opened"),
    [("", True, []), (":0", True, ["http://page"]), (":0", False, [])],
)
def test_a_browser_needs_a_display(
    display: str, is_wanted: bool, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ui.sys, "platform", "linux")
    monkeypatch.setattr(ui.webbrowser, "open", calls.append)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    ui.open_browser("http://page", is_wanted)
    assert calls == opened


def test_a_folder_without_runs_is_refused_and_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_command("ui", ui.run, lambda config: None, [])
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == f"starting the MLflow page of sqlite:///{tmp_path}/mlflow.db ...\n"
    assert shown.err.endswith("start it in the folder where you trained, or set tracking.uri\n")
    assert shown.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_server_serves_its_own_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(ui, "find_newest_charts", lambda uri: f"{uri}/#/charts")
    with pytest.raises(SystemExit) as stop:
        run_command(
            "ui", ui.run, lambda config: None, ["tracking.uri=http://host:1", "browser=false"]
        )
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "http://host:1 is a server, which serves its own page:",
        "  http://host:1/#/charts",
    ]
