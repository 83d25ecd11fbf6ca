"""Take the README's picture of the MLflow page: the chart link of a sweep, as a real browser shows it without a further click.

python scripts/screenshot_ui.py                  # needs a store with runs here (mlflow.db) and Debian's chromium
python scripts/screenshot_ui.py --uri sqlite:///elsewhere/mlflow.db --experiment NAME --sweep ID --output picture.png
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
SECONDS = 120  # for a server to start and a page to draw on a busy machine
SIZE = "2000,1150"
SHOWN = 0.75  # of its width: a fresh browser has MLflow's assistant open at the right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", help="SQLite store; as tracking.uri")
    parser.add_argument("--experiment", default="brainseg")
    parser.add_argument("--sweep", help="show the runs of this sweep alone")
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
    port = free_port()
    link = chart_link(uri, experiment.experiment_id, arguments.sweep).replace(
        LOCAL_UI, f"http://127.0.0.1:{port}"
    )
    command = ui_command(uri, port) or sys.exit(f"--uri {uri}: is a server; name a SQLite store")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        write_bytes(arguments.output, screenshot(browser, link))
    finally:
        server.terminate()
        server.wait()
    print(f"{arguments.output}: {link}")


def screenshot(browser: str, link: str) -> bytes:
    """PNG of the page behind `link` in a window of SIZE, after its charts are drawn."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        options += [
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
        image.imsave(cropped, pixels[:, : round(SHOWN * pixels.shape[1])], format="png")
        return cropped.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str) -> None:
    """Until the server answers; exits if it does not within SECONDS."""
    for _ in range(SECONDS):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    sys.exit(f"{address} did not answer within {SECONDS} s")


if __name__ == "__main__":
    main()
