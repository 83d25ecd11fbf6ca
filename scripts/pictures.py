"""Copy the README's figure from a finished run of the default command on the phantom.

python -m brainseg.train && python scripts/pictures.py runs/RUN
"""

import argparse
from pathlib import Path

from brainseg.core.files import write_bytes

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "overlays.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    folder = parser.parse_args().run
    # The training already draws this picture.
    write_bytes(FIGURE, (folder / "pictures" / "overlays.png").read_bytes())
    print(FIGURE)


if __name__ == "__main__":
    main()
