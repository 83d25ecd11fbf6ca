"""TIFF files in the form of the public archive, built byte by byte, and mutations of files."""

import random
import struct

import numpy as np

ROWS = 11  # of a strip of the archive's slices
FIXED = {1: 1, 3: 2, 4: 4}  # bytes of TIFF's types BYTE, SHORT and LONG


def archive_bytes(pixels: np.ndarray, rows: int = ROWS, pad: bool = True) -> bytes:
    """Return an image (H, W, 3) or (H, W), uint8, as the archive's writer stores it.

    The file is little-endian. Its directory is at the end, and the last strip is padded with zeros to
    `rows` rows. `pad=False` leaves the last strip as short as TIFF allows.
    """
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    strips = -(-height // rows)
    row_bytes = width * samples
    data = pixels.tobytes() + bytes((strips * rows - height) * row_bytes if pad else 0)
    lengths = [len(data[index * rows * row_bytes :][: rows * row_bytes]) for index in range(strips)]
    starts = [8 + index * rows * row_bytes for index in range(strips)]
    entries = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [8] * samples),
        (259, 3, [1]),
        (262, 3, [2 if samples == 3 else 1]),
        (273, 4, starts),
        (277, 3, [samples]),
        (278, 3, [rows]),
        (279, 4, lengths),
        (284, 3, [1]),
        (339, 3, [1] * samples),
    ]
    directory = 8 + len(data)
    values_at = directory + 2 + 12 * len(entries) + 4
    table, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        table += struct.pack("<HHI", tag, kind, len(numbers))
        table += (
            packed.ljust(4, b"\0")
            if len(packed) <= 4
            else struct.pack("<I", values_at + len(values))
        )
        values += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<I", directory) + data + table + bytes(4) + values


def mutate(content: bytes, rng: random.Random, header: range) -> bytes:
    """Return the file cut short, or with some bytes changed, four in five of them in `header`."""
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 30])):
        at = rng.choice(header) if rng.random() < 0.8 else rng.randrange(len(content))
        size = rng.choice([1, 1, 2, 4])
        value = rng.choice(
            [rng.randbytes(size), bytes(size), b"\xff" * size, b"\xff\xff\xff\x7f"[-size:]]
        )
        changed[at : at + size] = value[: len(content) - at]
    return bytes(changed)
