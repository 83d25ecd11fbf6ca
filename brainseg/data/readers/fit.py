"""Resampling in plane, central cropping and padding, to give all slices of a cohort one size."""

from collections.abc import Sequence

import numpy as np

from brainseg.core.errors import DataError


def crop_or_pad(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return (..., H, W) cropped or zero-padded around its centre to `size`, height and width.

    If an odd number of rows or columns is cut or added, the extra one is at the bottom or at the
    right.
    """
    for axis, side in zip((-2, -1), size, strict=True):
        excess = slices.shape[axis] - side
        if excess > 0:
            slices = np.take(slices, range(excess // 2, excess // 2 + side), axis)
        elif excess < 0:
            pad_before = -excess // 2
            widths = [(0, 0)] * slices.ndim
            widths[axis] = (pad_before, -excess - pad_before)
            slices = np.pad(slices, widths)
    return np.ascontiguousarray(slices)


def resample_and_crop(
    images: np.ndarray,
    masks: np.ndarray,
    spacing: Sequence[float],
    to_spacing: float | None,
    size: Sequence[int] | None,
) -> tuple[np.ndarray, np.ndarray, Sequence[float], list[str]]:
    """Resample images uint8 (S, C, H, W) and masks (S, H, W) in plane, then crop or pad them.

    Pixels become `to_spacing` mm wide. Slices get the height and width `size`. Returns images,
    masks, spacing and notes. Raises DataError if the present spacing is unknown.
    """
    notes = []
    if to_spacing is not None:
        # Unknown distances are NaN.
        if np.isnan(spacing).any():
            rule = f"the file gives no voxel size, so spacing={to_spacing:g} cannot be reached"
            raise DataError(f"{rule}; set the voxel size in its header, or leave spacing out")
        if not np.allclose(spacing[1:], to_spacing, rtol=1e-4):
            linear = [
                resample_in_plane(images[:, c], spacing, to_spacing) for c in range(images.shape[1])
            ]
            images = np.stack(linear, axis=1)
            masks = resample_in_plane(masks, spacing, to_spacing, nearest=True)
            notes.append(
                f"resampled in plane to {to_spacing:g} mm (linear, the mask by nearest neighbour)"
            )
        spacing = (spacing[0], to_spacing, to_spacing)
    if size is not None and tuple(size) != images.shape[2:]:
        tumour_pixels = np.count_nonzero(masks)
        images, masks = crop_or_pad(images, size), crop_or_pad(masks, size)
        if lost := tumour_pixels - np.count_nonzero(masks):
            sides = "x".join(map(str, size))
            notes.append(
                f"size={sides} cuts off {lost:,} of {tumour_pixels:,} mask pixels; "
                "give a larger size"
            )
    return images, masks, spacing, notes


def resample_in_plane(
    volume: np.ndarray, spacing: Sequence[float], to_spacing: float, nearest: bool = False
) -> np.ndarray:
    """Return (S, H, W) with pixels of `to_spacing` mm, by linear or nearest interpolation."""
    import SimpleITK as sitk

    slices, *sides = volume.shape
    new_sides = [
        max(1, round(side * mm / to_spacing)) for side, mm in zip(sides, spacing[1:], strict=True)
    ]
    image = sitk.GetImageFromArray(volume if nearest else volume.astype(np.float32))
    image.SetSpacing([spacing[2], spacing[1], spacing[0]])
    # The centre of the field of view stays in place, so the first pixel's centre moves.
    origin = [
        (side * mm - count * to_spacing) / 2 + (to_spacing - mm) / 2
        for side, count, mm in zip(sides, new_sides, spacing[1:], strict=True)
    ]
    resampler = sitk.ResampleImageFilter()
    # Worker processes are forked, and ITK's pool of threads does not survive a fork.
    resampler.SetNumberOfThreads(1)
    resampler.SetSize([new_sides[1], new_sides[0], slices])
    resampler.SetOutputSpacing([to_spacing, to_spacing, spacing[0]])
    resampler.SetOutputOrigin([origin[1], origin[0], 0.0])
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    # Pixels at the edge may lie beyond the outermost centres, and take the value of the edge.
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampled = sitk.GetArrayFromImage(resampler.Execute(image))
    return np.rint(resampled).astype(volume.dtype)
