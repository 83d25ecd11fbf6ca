"""Readers of a cohort, under the names that other modules import; the code is in `readers/`."""

from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import NAME, Reader, Reading, Scan, check_images
from brainseg.data.readers.registry import scanner
from brainseg.data.readers.verify import scan

__all__ = ["NAME", "Reader", "Reading", "Scan", "check_images", "scan", "scanner", "to_uint8"]
