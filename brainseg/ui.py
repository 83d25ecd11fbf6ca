"""Open the MLflow page of your runs, and serve it until Ctrl-C, for this machine only.

    python -m brainseg.ui                                   mlflow.db in the current folder
    python -m brainseg.ui port=6000 browser=false
    python -m brainseg.ui tracking.uri=sqlite:///other.db   another database

If the port is in use, the next free port is used. Without a display, the link is only printed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from contextlib import ExitStack, suppress

from brainseg.cli.main import run_command
from brainseg.config import UiConfig
from brainseg.core.errors import RequestError, shorten_error
from brainseg.core.signals import Signals
from brainseg.tracking.chart_layout import experiment_tags
from brainseg.tracking.client import (
    LOCAL_UI,
    NO_TELEMETRY,
    chart_link,
    connect,
    short_timeouts,
    tracking_uri,
    ui_command,
    ui_url,
)

# Seconds until the server must have started, on a busy machine.
SECONDS_TO_START = 120
# Job execution serves language-model evaluations only, and costs eight more processes of 250 MB
# each.
QUIET = NO_TELEMETRY | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
}


def run(config: UiConfig) -> int:
    """Serve the page until a signal arrives, and return the exit code.

    Raises RequestError if the database does not exist, or if no port is free.
    """
    uri = tracking_uri(config.tracking.uri)
    print(f"starting the MLflow page of {uri} ...", flush=True)
    # The address is known before the slow part starts.
    port = find_free_port(config.port)
    link = find_newest_charts(uri).replace(LOCAL_UI, f"http://127.0.0.1:{port}")
    command = ui_command(uri, port)
    if command is None:
        print(f"{uri} is a server, which serves its own page:\n  {link}")
        open_browser(link, config.browser)
        return 0
    # The server is stopped after the block of signals, so that a second Ctrl-C interrupts the stop.
    # Ctrl-C is the usual end of this command, and no interruption. Pressed twice at once it must
    # not end this process before the server, which nobody would stop then.
    with ExitStack() as stack, Signals(exits_at_second=False) as signals:
        # The server gets its own session, so that Ctrl-C reaches only this process. This process
        # then stops the server with all its workers.
        server = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, env=os.environ | QUIET
        )
        stack.callback(stop_server, server)
        wait_for_page(server, port, signals)
        if signals.pending is None and server.poll() is None:
            print(f"  {link}\nCtrl-C ends it.", flush=True)
            open_browser(link, config.browser)
        while server.poll() is None and signals.pending is None:
            time.sleep(0.2)
    if signals.pending is None:
        print(f"error: the MLflow server ended with exit code {server.returncode}", file=sys.stderr)
        return 1
    print("\nstopped the MLflow page")
    return 0


def find_free_port(first: int) -> int:
    """Return the first free port from `first` on. Raises RequestError."""
    for port in range(first, min(first + 100, 65536)):
        if is_free(port):
            return port
    raise RequestError(f"port={first}: this port and the next 99 are in use; give another port")


def is_free(port: int) -> bool:
    """Return True if no program on this machine listens at the port."""
    with socket.socket() as probe:
        # Without this option, a port whose last server has just ended would count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def find_newest_charts(uri: str) -> str:
    """Return the link to the charts of the newest brainseg experiment.

    If there is no such experiment yet, return the link to the front page. Raises RequestError if
    the store does not exist, does not answer, or belongs to another version of MLflow.
    """
    with short_timeouts(seconds=10):
        from mlflow.exceptions import MlflowException

        try:
            client = connect(uri, make=False)
            experiments = client.search_experiments(order_by=["creation_time DESC"])
        except (OSError, MlflowException) as error:
            reason = shorten_error(error)
            raise RequestError(
                f"tracking.uri={uri}: {reason}; start it in the folder where you trained, or set "
                "tracking.uri"
            ) from error
    # Only experiments that brainseg created have the tag of its chart layout.
    experiment_ids = [
        experiment.experiment_id
        for experiment in experiments
        if experiment.tags.keys() >= experiment_tags().keys()
    ]
    return chart_link(uri, experiment_ids[0]) if experiment_ids else f"{ui_url(uri)}/"


def open_browser(link: str, is_wanted: bool) -> None:
    """Open the link in a graphical browser, if there is a display. Never use a text browser."""
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    has_display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, names))
    if is_wanted and has_display:
        webbrowser.open(link)


def wait_for_page(server: subprocess.Popen, port: int, signals: Signals) -> None:
    """Wait until the page can be opened, the server has ended, or a signal has arrived."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None and signals.pending is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def stop_server(server: subprocess.Popen) -> None:
    """Stop the server and its workers.

    Kill them if they do not end within five seconds, or at a second Ctrl-C.
    """
    if server.poll() is None:
        # The signal goes to the whole process group, because the workers are separate processes.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=5)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def main() -> None:
    """Run `python -m brainseg.ui` or `brainseg ui`."""
    run_command("ui", run, lambda config: tracking_uri(config.tracking.uri))


if __name__ == "__main__":
    main()
