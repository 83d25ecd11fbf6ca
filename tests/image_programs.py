"""Programs that write image files, where they are installed."""

import shutil
import subprocess


def image_magick() -> str | None:
    """Return the path of ImageMagick's converter, None where it is not installed.

    Another program may have the name `convert`.
    """
    for name in ("/usr/bin/convert", "/usr/local/bin/magick", "magick", "convert"):
        if path := shutil.which(name):
            version = subprocess.run(
                [path, "-version"], capture_output=True, text=True, check=False
            )
            if "ImageMagick" in version.stdout:
                return path
    return None
