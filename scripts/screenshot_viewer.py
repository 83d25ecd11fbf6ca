"""Take the documentation's screenshot of viewer.html in a real browser.

python -m brainseg.evaluate checkpoint=runs/RUN
python scripts/screenshot_viewer.py evaluations/NAME/viewer.html
python scripts/screenshot_viewer.py evaluations/NAME/viewer.html --place 'patient=NAME&slice=8'

The script needs Debian's chromium. The picture in the documentation shows the phantom.
`brainseg.compare` writes a viewer.html, too.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from brainseg.core.files import write_bytes

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "viewer.png"
# Timeout for drawing the page on a busy machine.
SECONDS = 120
SIZE = (1400, 800)
# A palette needs a third of the bytes, and the difference is hardly visible.
COLOURS = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="viewer.html")
    parser.add_argument("--place", default="", help="the text after # in the page's address")
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or sys.exit(
        "chromium is not installed (Debian: apt install chromium)"
    )
    if not arguments.page.is_file():
        sys.exit(f"{arguments.page}: no such file. Create it with python -m brainseg.evaluate.")
    write_bytes(
        arguments.output,
        screenshot(browser, f"{arguments.page.resolve().as_uri()}#{arguments.place}"),
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} KB")


def screenshot(browser: str, link: str) -> bytes:
    """Return a PNG of the page at `link`, after its images are decoded."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        # The virtual time lets the page's timers run before the screenshot is taken.
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            "--no-first-run",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            "--virtual-time-budget=10000",
            f"--screenshot={picture}",
        ]
        subprocess.run(
            [browser, *options, link],
            check=True,
            timeout=SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        image = BytesIO()
        Image.open(picture).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
            image, "PNG", optimize=True
        )
        return image.getvalue()


if __name__ == "__main__":
    main()
