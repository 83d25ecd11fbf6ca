"""Copy the README's pictures from a finished run of the default command on the phantom.

python -m brainseg.train && python scripts/pictures.py runs/RUN
"""

import argparse
from pathlib import Path

from brainseg.core.files import write_bytes

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    folder = parser.parse_args().run
    # The training already writes these pictures, so that nothing has to be drawn again.
    for name in ("overlays.png", "curves.png"):
        write_bytes(DOCS / name, (folder / "pictures" / name).read_bytes())
        print(DOCS / name)


if __name__ == "__main__":
    main()
