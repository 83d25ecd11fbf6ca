"""The reader protocol under the names that other modules import. The code is in `readers/`."""

from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Reader, Scan, check_images

__all__ = ["Reader", "Scan", "check_images", "to_uint8"]
