"""Take the picture of viewer.html for the documentation, as a real browser shows it.

python -m brainseg.evaluate checkpoint=runs/RUN               # or compare, which writes one too; here of the phantom
python scripts/screenshot_viewer.py evaluations/NAME/viewer.html   # needs Debian's chromium
python scripts/screenshot_viewer.py evaluations/NAME/viewer.html --place 'patient=PHANTOM_D_0009_20000101&slice=8'
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
SECONDS = 120  # for a page to draw on a busy machine
SIZE = (1400, 800)
COLOURS = 256  # a palette: a third of the bytes, and hardly an eye sees it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="viewer.html")
    parser.add_argument("--place", default="", help="what stands behind # in the page's address")
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or sys.exit(
        "chromium is not installed (Debian: apt install chromium)"
    )
    if not arguments.page.is_file():
        sys.exit(f"{arguments.page}: no such file; make it with python -m brainseg.evaluate")
    write_bytes(
        arguments.output,
        screenshot(browser, f"{arguments.page.resolve().as_uri()}#{arguments.place}"),
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} KB")


def screenshot(browser: str, link: str) -> bytes:
    """PNG of the page behind `link`, after its images are decoded."""
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
            "--no-first-run",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        options += [
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
