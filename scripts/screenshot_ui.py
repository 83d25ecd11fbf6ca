"""Take the README's screenshot of the MLflow page that a sweep's chart link opens.

python scripts/screenshot_ui.py
python scripts/screenshot_ui.py --uri sqlite:///elsewhere/mlflow.db --experiment NAME --sweep ID

The script needs a store with runs (by default mlflow.db in the current folder) and Debian's
chromium and chromium-driver. `--output` names another picture than that of the README.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

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
SECONDS_TO_DRAW = 5
SIZE = (1600, 1300)
# Charts that the page must have at least.
CHARTS = 3
# Colours of the PNG, so that the README loads quickly.
COLOURS = 128
# A browser with a mouse shows the toolbar of a chart only under the pointer.
MOUSE = (
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,"
    "primaryPointerType=4,availablePointerTypes=4"
)
CLOSE_ASSISTANT = """
const keys = Object.keys(localStorage).filter(key => key.includes("assistant.panelOpen"));
keys.forEach(key => localStorage.setItem(key, "false"));
return keys.length > 0;
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", help="SQLite store, in the form of tracking.uri")
    parser.add_argument("--experiment", default="brainseg")
    parser.add_argument("--sweep", help="show only the runs of this sweep")
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        sys.exit("chromium is not installed (Debian: apt install chromium chromium-driver)")
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
        write_bytes(arguments.output, screenshot(link))
    # The server must also end if the screenshot fails.
    finally:
        server.terminate()
        server.wait()
    print(f"{arguments.output}: {link}")


def screenshot(link: str) -> bytes:
    """Return a PNG of the page at `link` in a window of SIZE, after its charts are drawn."""
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", MOUSE):
        options.add_argument(option)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as browser:
        browser.set_window_size(*SIZE)
        # In a new browser profile MLflow opens its assistant, which hides a part of the page.
        browser.get(link)
        wait = WebDriverWait(browser, SECONDS)
        wait.until(lambda page: page.execute_script(CLOSE_ASSISTANT))
        browser.get("about:blank")
        browser.get(link)
        wait.until(lambda page: len(page.find_elements("css selector", "svg.main-svg")) >= CHARTS)
        # The charts are drawn a moment after their frames.
        time.sleep(SECONDS_TO_DRAW)
        picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    content = BytesIO()
    picture.quantize(COLOURS).save(content, format="png", optimize=True)
    return content.getvalue()


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
