"""Serves the MLflow pages of the runs in this folder, on this machine alone, until Ctrl-C.

    python scripts/ui.py             # or: make ui
    python scripts/ui.py --port 6000

Shows `mlflow.db` of the current folder, or the store that MLFLOW_TRACKING_URI names. Takes the next free port.
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
# Job execution is for language-model evaluations: eight further processes of 250 MB each.
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
    except (
        RequestError,
        OSError,
        MlflowException,
    ) as error:  # the last: no answer, or a store of another version of MLflow
        print(error, file=sys.stderr)
        return 2
    command = ui_command(uri, port)
    if command is None:
        print(f"A server is there already: {link}")
        return 0
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.default_int_handler)
    # A session of its own: Ctrl-C reaches us alone, and we end the server with all its workers.
    server = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, env=os.environ | QUIET
    )
    try:
        wait_for(server, port)
        empty = (
            ""
            if "/experiments/" in link
            else " (no run in it yet: is this the folder where you trained?)"
        )
        print(f"MLflow charts of {uri}{empty}:\n  {link}\nCtrl-C ends it.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def free_port(wanted: int) -> int:
    """`wanted`, or the next port that is free. Raises RequestError."""
    check(0 < wanted < 65536, "--port", wanted, "must lie between 1 and 65535")
    for port in range(wanted, min(wanted + 100, 65536)):
        if is_free(port):
            return port
    raise RequestError(f"--port={wanted}: this port and those after it are taken; give another one")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def newest_chart(uri: str) -> str:
    """The charts of our experiment that was made last; the front page where there is none yet."""
    with short_timeouts(seconds=10):
        experiments = connect(uri).search_experiments(order_by=["creation_time DESC"])
    ours = [
        experiment.experiment_id
        for experiment in experiments
        if experiment.tags.keys() >= experiment_tags().keys()
    ]
    return chart_link(uri, ours[0]) if ours else f"{ui_url(uri)}/"


def wait_for(server: subprocess.Popen, port: int) -> None:
    """Until the pages can be opened, or the server has ended."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def stop(server: subprocess.Popen) -> None:
    """End the server and its workers; they get five seconds to do so by themselves."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
