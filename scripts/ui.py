"""Serve the MLflow pages of the runs in this folder until Ctrl-C, for this machine only.

    python scripts/ui.py             # or: make ui
    python scripts/ui.py --port 6000

The pages show `mlflow.db` of the current folder, or the store that MLFLOW_TRACKING_URI names. If
the port is in use, the next free port is used.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from mlflow.exceptions import MlflowException

from brainseg.core.errors import RequestError, check
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

SECONDS_TO_START = 60
# Job execution serves language-model evaluations only, and costs eight more processes of 250 MB
# each.
QUIET = NO_TELEMETRY | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=5000, help="the first port to try")
    try:
        port = free_port(parser.parse_args().port)
        uri = tracking_uri(None)
        link = newest_chart(uri).replace(LOCAL_UI, f"http://127.0.0.1:{port}")
    # MLflow raises its exception if the server does not answer, or if the store belongs to another
    # version of MLflow.
    except (RequestError, OSError, MlflowException) as error:
        print(error, file=sys.stderr)
        return 2
    command = ui_command(uri, port)
    if command is None:
        print(f"A server is already running: {link}")
        return 0
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.default_int_handler)
    # The server gets its own session, so that Ctrl-C reaches only this process. This process then
    # stops the server with all its workers.
    server = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, env=os.environ | QUIET
    )
    try:
        wait_for(server, port)
        hint = (
            ""
            if "/experiments/" in link
            else " (it contains no run yet: is this the folder where you trained?)"
        )
        print(f"MLflow charts of {uri}{hint}:\n  {link}\nCtrl-C ends it.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def free_port(first: int) -> int:
    """Return the first free port from `first` on. Raises RequestError."""
    check(0 < first < 65536, "--port", first, "must lie between 1 and 65535")
    for port in range(first, min(first + 100, 65536)):
        if is_free(port):
            return port
    raise RequestError(f"--port={first}: this port and the next 99 are in use; give another port")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Without this option, a port whose last server has just ended would count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def newest_chart(uri: str) -> str:
    """Return the link to the charts of the newest brainseg experiment.

    If there is no such experiment yet, return the link to the front page.
    """
    with short_timeouts(seconds=10):
        experiments = connect(uri).search_experiments(order_by=["creation_time DESC"])
    # Only experiments that brainseg created have the tag of its chart layout.
    experiment_ids = [
        experiment.experiment_id
        for experiment in experiments
        if experiment.tags.keys() >= experiment_tags().keys()
    ]
    return chart_link(uri, experiment_ids[0]) if experiment_ids else f"{ui_url(uri)}/"


def wait_for(server: subprocess.Popen, port: int) -> None:
    """Wait until the pages can be opened, or until the server has ended."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def stop(server: subprocess.Popen) -> None:
    """Stop the server and its workers. Kill them if they do not end within five seconds."""
    if server.poll() is None:
        # The signal goes to the whole process group, because the workers are separate processes.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
