"""Reader of NIfTI-1 and NIfTI-2 with nibabel, in single files or in pairs of .hdr and .img.

The header is checked before any voxel is read. The position in the patient follows nibabel's rule.
The sform is used if its code is above 0, else the qform if its code is above 0, else nibabel's
default axes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from brainseg.core.errors import DataError
from brainseg.data.imageio.base import (
    check_finite,
    check_shear,
    check_volume,
    is_plausible,
    spans_volume,
    volume_index,
)
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.nifti_header import (
    Header,
    header_class_of,
    pair_suffix,
    partner,
    read_header,
)
from brainseg.data.imageio.streams import check_length, read_at, read_start

# Millimetres in a unit of length, by the header's code of the unit.
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
UNITS = {1: "metres", 3: "micrometres"}
# Intent code of an image whose values are numbers of labels.
LABELS = 1002

# nibabel logs the corrections of headers here, and nothing is printed.
_silent = logging.Logger("brainseg.nifti")
_silent.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class NiftiVolume:
    """An `ImageVolume` of a file, or of its volume with number `volume`, from 1."""

    path: Path
    volume: int | None = None

    @cached_property
    def header_path(self) -> Path:
        """Return the file of the header. Raises DataError."""
        # A NIfTI file with header and voxels may be named .img.
        if pair_suffix(self.path) != ".img" or header_class_of(read_start(self.path, 540)):
            return self.path
        return partner(self.path)

    @cached_property
    def voxel_path(self) -> Path:
        """Return the file of the voxels. Raises DataError."""
        return self.path if pair_suffix(self.path) != ".hdr" else partner(self.path)

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys((self.header_path, self.voxel_path)))

    @cached_property
    def names(self) -> Sequence[str]:
        """Return the file's name, the header's description and, for an image of labels, "label"."""
        try:
            header = self.stored_header
        except DataError:
            # A damaged file is refused later, when its grid is needed.
            return (self.path.name,)
        description = bytes(header["descrip"]).split(b"\0")[0].decode("latin-1").strip()
        label = "label" if int(header["intent_code"]) == LABELS else ""
        texts = (self.path.name, description, label)
        return tuple(text for text in texts if text and text.isprintable())

    @cached_property
    def stored_header(self) -> Header:
        """Return the header without any correction. Raises DataError."""
        return read_header(self.header_path)

    @cached_property
    def header(self) -> Header:
        """Return the header with nibabel's corrections of its fields. Raises DataError."""
        self._check_type()
        header = self.stored_header.copy()
        sides = header["pixdim"][1:4]
        sides[~np.isfinite(sides)] = 1
        try:
            header.check_fix(_silent)
        except HeaderDataError as error:
            start = float(header["vox_offset"])
            rule = f"its first voxel lies at byte {start:g}, within the header"
            raise DataError(f"{self.path}: {rule}; copy or download it again") from error
        return header

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of voxels along (i, j, k). Raises DataError."""
        stored_shape = tuple(int(side) for side in self.header.get_data_shape())
        i, j, k = (*stored_shape, 1, 1)[:3]
        shape = (i, j, k)
        check_volume(shape, self.path)
        volume_index(self.volume, self._count_volumes(stored_shape), self.path)
        size = math.prod(stored_shape) * self.header.get_data_dtype().itemsize
        check_length(self.voxel_path, self._start + size)
        return shape

    @cached_property
    def grid(self) -> Grid:
        """Return the grid that the header gives. Raises DataError naming the file."""
        shape = self.shape
        try:
            affine = np.array(self.header.get_best_affine(), np.float64)
        except (HeaderDataError, ValueError) as error:
            raise DataError(
                f"{self.path}: its qform holds no rotation; set its sform or qform anew"
            ) from error
        name = _form(self.header)
        if not spans_volume(affine):
            raise DataError(
                f"{self.path}: its {name} maps voxels to no volume; "
                f"set it anew, or set {name}_code to 0"
            )
        check_shear(affine, self.path)
        # The lowest three bits of xyzt_units are the unit of length.
        scale = MILLIMETRES.get(int(self.stored_header["xyzt_units"]) & 7, 1.0)
        has_sides = bool((np.isfinite(self._sides) & (self._sides != 0)).all())
        spacing_known = name == "sform" or has_sides
        sides = np.linalg.norm(affine[:3, :3], axis=0) * scale
        if not is_plausible(sides):
            return Grid(shape, affine, spacing_known=False, orientation_known=bool(name))
        affine[:3] *= scale
        return Grid(shape, affine, spacing_known, orientation_known=bool(name))

    @cached_property
    def notes(self) -> Sequence[str]:
        """Return remarks on how the image is read, one line each. Raises DataError."""
        grid, notes = self.grid, []
        form = _form(self.header)
        unit = UNITS.get(int(self.stored_header["xyzt_units"]) & 7)
        if not form:
            notes.append(
                "the header does not say how the head lies (sform and qform codes are 0): "
                "nibabel's axes are assumed, left and right may be exchanged"
            )
        if not grid.spacing_known:
            size = " x ".join(f"{side:g}" for side in self._sides)
            notes.append(
                f"the header gives voxels of {size} {unit or 'mm'}, which cannot be right: "
                "no volume in millilitres"
            )
        elif unit:
            notes.append(f"the header's unit is {unit}: converted to mm")
        if form == "sform" and int(self.header["qform_code"]) > 0 and self._forms_differ(grid):
            notes.append("sform and qform differ: the sform is used, as in nibabel")
        if self.volume is not None:
            notes.append(f"volume {self.volume} of the file")
        return tuple(filter(None, (*notes, check_shear(grid.affine, self.path))))

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k), scaled as the header says. Raises DataError."""
        shape, header = self.shape, self.header
        if read_header(self.header_path).binaryblock != self.stored_header.binaryblock:
            raise DataError(f"{self.path}: changed since its header was read; start again")
        kind = header.get_data_dtype()
        size = math.prod(shape) * kind.itemsize
        skipped = ((self.volume or 1) - 1) * size
        content = read_at(self.voxel_path, self._start + skipped, size)
        voxels = np.frombuffer(content, kind).reshape(shape, order="F")
        slope, intercept = self._scaling()
        with np.errstate(all="ignore"):
            voxels = apply_read_scaling(voxels, slope, intercept)
        check_finite(voxels, self.path)
        return voxels

    @property
    def _sides(self) -> np.ndarray:
        """Return the sides of a voxel by the form in use, in the header's unit."""
        if _form(self.header) == "sform":
            return np.linalg.norm(np.asarray(self.header.get_sform())[:3, :3], axis=0)
        return np.array(self.stored_header["pixdim"][1:4], np.float64)

    @property
    def _start(self) -> int:
        """Return the place of the first voxel in its file, in bytes. Raises DataError."""
        offset = float(self.header["vox_offset"])
        if not math.isfinite(offset) or offset < 0:
            raise DataError(f"{self.path}: its header does not say where the voxels begin")
        if self.header_path != self.voxel_path:
            return int(offset)
        if bytes(self.stored_header["magic"])[:2] == b"ni":
            rule = "its voxels lie in another file; name this one .hdr, and put the .img beside it"
            raise DataError(f"{self.path}: {rule}")
        return int(self.header.get_data_offset())

    def _count_volumes(self, stored_shape: Sequence[int]) -> int:
        """Return the number of volumes in the file. Raises DataError for vectors in each voxel."""
        extra_sides = stored_shape[3:]
        dimensions = " x ".join(map(str, stored_shape))
        if min(extra_sides, default=1) < 1:
            raise DataError(f"{self.path}: its header gives dimensions of {dimensions}")
        # The fourth dimension counts volumes, and the fifth the components of a vector.
        if any(side > 1 for side in extra_sides[1:]):
            raise DataError(
                f"{self.path}: holds {dimensions} values: vectors or more than four "
                "dimensions; save the one volume to segment in a file of its own"
            )
        return math.prod(extra_sides)

    def _check_type(self) -> None:
        """Raise DataError unless the voxels are real numbers of a type that NumPy has."""
        code, type_codes = int(self.stored_header["datatype"]), nibabel.nifti1.data_type_codes
        if code not in type_codes.value_set():
            rule = f"its header is damaged: datatype {code} is none of NIfTI's"
            raise DataError(f"{self.path}: {rule}; copy or download it again")
        kind = self.stored_header.get_data_dtype()
        if kind.names:
            rule = "voxels are colours (RGB); save the grey values of one sequence"
        elif kind.kind == "c":
            rule = "voxels are complex numbers; save their magnitude"
        elif kind.kind not in "iuf" or kind.itemsize not in (1, 2, 4, 8):
            rule = f"voxels are of type {type_codes.label[code]}; save them as int16 or float32"
        else:
            return
        raise DataError(f"{self.path}: {rule}")

    def _scaling(self) -> tuple[float, float]:
        """Return the slope and the intercept of the values. Raises DataError."""
        try:
            slope, intercept = self.header.get_slope_inter()
        except HeaderDataError as error:
            raise DataError(
                f"{self.path}: its scl_inter is not a finite number; set it to 0"
            ) from error
        return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)

    def _forms_differ(self, grid: Grid) -> bool:
        """Return True if sform and qform place the voxels differently."""
        try:
            qform = np.array(self.header.get_qform(), np.float64)
        except (HeaderDataError, ValueError):
            return True
        sform = np.asarray(self.header.get_sform(), np.float64)
        return bool(Grid(grid.shape, sform).difference(Grid(grid.shape, qform)))


def _form(header: Header) -> str:
    """Return the form that gives the position: "sform", "qform", or "" for neither."""
    if int(header["sform_code"]) > 0:
        return "sform"
    return "qform" if int(header["qform_code"]) > 0 else ""
