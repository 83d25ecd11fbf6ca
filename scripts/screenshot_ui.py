"""Take the README's screenshot of the MLflow page that a sweep's chart link opens.

python scripts/screenshot_ui.py
python scripts/screenshot_ui.py --uri sqlite:///elsewhere/mlflow.db --experiment NAME --sweep ID

The script needs a store with runs (by default mlflow.db in the current folder) and Debian's
chromium. `--output` names another picture than that of the README.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

from matplotlib import image

from brainseg.core.files import write_bytes
from brainseg.tracking.client import (
    LOCAL_UI,
    chart_link,
    connect,
    short_timeouts,
    tracking_uri,
    ui_command,
)

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "mlflow.png"
# Timeout for the start of the server and for drawing the page, on a busy machine.
SECONDS = 120
SIZE = "2000,1150"
# The share of the width that is kept. In a new browser profile, MLflow's assistant is open at the
# right.
VISIBLE_SHARE = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", help="SQLite store, in the form of tracking.uri")
    parser.add_argument("--experiment", default="brainseg")
    parser.add_argument("--sweep", help="show only the runs of this sweep")
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or sys.exit(
        "chromium is not installed (Debian: apt install chromium)"
    )
    uri = tracking_uri(arguments.uri)
    with short_timeouts(SECONDS):
        experiment = connect(uri, make=False).get_experiment_by_name(arguments.experiment)
    if experiment is None:
        sys.exit(f"--experiment {arguments.experiment}: no such experiment in {uri}")
    # A free port, because another server may already use the default port.
    port = free_port()
    link = chart_link(uri, experiment.experiment_id, arguments.sweep).replace(
        LOCAL_UI, f"http://127.0.0.1:{port}"
    )
    command = ui_command(uri, port) or sys.exit(f"--uri {uri}: is a server. Name a SQLite store.")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        write_bytes(arguments.output, screenshot(browser, link))
    # The server must also end if the screenshot fails.
    finally:
        server.terminate()
        server.wait()
    print(f"{arguments.output}: {link}")


def screenshot(browser: str, link: str) -> bytes:
    """Return a PNG of the page at `link` in a window of SIZE, after its charts are drawn."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        # The virtual time lets the page's timers run before the screenshot is taken.
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={SIZE}",
            "--virtual-time-budget=60000",
            f"--screenshot={picture}",
        ]
        subprocess.run(
            [browser, *options, link],
            check=True,
            timeout=2 * SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pixels = image.imread(picture)
        cropped = BytesIO()
        image.imsave(cropped, pixels[:, : round(VISIBLE_SHARE * pixels.shape[1])], format="png")
        return cropped.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str) -> None:
    """Wait until the server answers. Exit if it does not answer within SECONDS."""
    for _ in range(SECONDS):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    sys.exit(f"{address} did not answer within {SECONDS} s")


if __name__ == "__main__":
    main()
