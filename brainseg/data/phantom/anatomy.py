"""What a synthetic head is made of: skull, face, brain, lesions and tumour, as maps of tissue in three dimensions.

Places are given in head units: x to the right of the picture, y to the front (up), z to the crown; the head's half-length is
1, about 90 mm. A map holds the share of each voxel, 0 to 1, that a tissue fills, so that edges are as soft as a scanner's.
A layer is a tissue's name and its map; layers are painted one over the other, in the order of the lists returned here.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = np.ndarray  # float32
Layer = tuple[str, Array]
Random = np.random.Generator


def soft(distance: Array, pixel: float) -> Array:
    """Share of a voxel that is inside, from the signed distance of its centre to the edge (positive inside)."""
    return np.clip(distance / pixel + 0.5, 0, 1)


def smooth_noise(random: Random, shape: tuple[int, ...], cells: tuple[int, ...]) -> Array:
    """Smooth random field of unit variance, about: a cubic B-spline over a lattice of `cells` along each axis."""
    field = random.standard_normal([n + 3 for n in cells]).astype(np.float32)
    for size, n in zip(shape, cells, strict=True):
        position = np.linspace(0, n - 1e-4, size, dtype=np.float32)
        distance = np.abs(position[:, None] + 1 - np.arange(n + 3, dtype=np.float32))
        weights = np.where(
            distance < 1,
            2 / 3 - distance**2 + distance**3 / 2,
            np.clip(2 - distance, 0, None) ** 3 / 6,
        )
        weights /= np.sqrt((weights**2).sum(1, keepdims=True))
        field = np.moveaxis(
            np.tensordot(weights, field, (1, 0)), 0, -1
        )  # this axis goes last, so that after all of them the order is back
    return field


def to_segment(
    point: Array, start: tuple[float, float, float], end: tuple[float, float, float]
) -> Array:
    """Distance of each point (3, S, H, W) to a line segment."""
    a, line = (
        np.array(start, np.float32).reshape(3, 1, 1, 1),
        np.subtract(end, start).astype(np.float32).reshape(3, 1, 1, 1),
    )
    along = np.clip(((point - a) * line).sum(0) / (line**2).sum(), 0, 1)
    return np.sqrt(((point - a - along * line) ** 2).sum(0))


def head_depth(random: Random, point: Array) -> Array:
    """Depth under the skin: an egg, wider behind, high-domed above, that closes below the jaw."""
    x, y, z = point
    width, egg, square = (
        random.uniform(0.76, 0.86),
        random.uniform(0.04, 0.14),
        random.uniform(2.0, 2.4),
    )
    plane = (np.abs(x) / (width * (1 - egg * y))) ** square + np.abs(y) ** square
    up = np.where(z > 0, z / 0.92, (z / 0.97) ** 2)
    return (
        1
        - np.sqrt(plane ** (2 / square) + up**2)
        + 0.012 * smooth_noise(random, z.shape, (3, 5, 5))
    )


def skull_and_face(random: Random, point: Array, pixel: float) -> tuple[list[Layer], Array]:
    """Layers outside the brain, in the order in which they are painted, and the depth under the inside of the skull."""
    x, y, z = point
    side = np.stack([np.abs(x), y, z])
    shape = z.shape
    skin = random.uniform(0.05, 0.09) * np.exp(0.25 * smooth_noise(random, shape, (3, 5, 5)))
    bone = random.uniform(0.055, 0.08) * np.exp(0.15 * smooth_noise(random, shape, (3, 6, 6)))
    depth = head_depth(random, point)
    texture = smooth_noise(random, shape, (5, 20, 20)) + 0.6 * smooth_noise(
        random, shape, (5, 40, 40)
    )
    texture = texture + texture[..., ::-1]  # a face is roughly symmetric
    # The brain's lower edge rises from the neck over the temporal lobes to the roof of the orbits; behind and below it hangs the
    # cerebellum, with the brain stem that leaves through the neck.
    floor = np.interp(y, (-0.4, -0.1, 0.35, 0.5, 0.9), (-0.62, -0.60, -0.56, -0.34, -0.2)).astype(
        np.float32
    )
    hollow = 0.42 * (
        1 - np.sqrt((x / 0.60) ** 2 + ((y + 0.42) / 0.44) ** 2 + ((z + 0.45) / 0.42) ** 2)
    )
    stem = 0.14 - to_segment(point, (0, 0.0, -0.30), (0, -0.14, -1.0))
    petrous = 0.07 - to_segment(side, (0.62, -0.28, -0.52), (0.18, -0.02, -0.48)) + 0.008 * texture
    lower = np.maximum.reduce([0.8 * (z - floor) + 0.015 * texture, hollow, stem])
    inside = np.minimum.reduce([depth - skin - bone, lower, -petrous])
    below = soft(-lower, pixel) * soft(depth - skin, pixel)
    orbit = 0.19 - to_segment(side, (0.28, 0.62, -0.40), (0.16, 0.36, -0.40))
    eye = 0.125 - to_segment(side, (0.29, 0.67, -0.41), (0.29, 0.69, -0.40))
    nerve = 0.022 - to_segment(side, (0.28, 0.56, -0.40), (0.12, 0.28, -0.40))
    airway = 0.08 - to_segment(point, (0, 0.72, -0.44), (0, 0.22, -0.75)) + 0.015 * texture
    layers = [
        ("muscle", soft(depth, pixel)),
        ("fat", soft(depth - 0.02, pixel)),
        ("bone", soft(depth - skin, pixel)),
        ("marrow", 0.6 * soft(0.22 * bone - np.abs(depth - skin - bone / 2), 1.5 * pixel)),
        ("muscle", below),
        ("fat", below * soft(0.03 * (texture - 1.2), pixel)),
        ("bone", below * soft(0.03 * (-1.0 - texture), pixel)),
        ("bone", soft(petrous, pixel) * soft(depth - skin, pixel)),
        ("bone", 0.8 * below * soft(lower + 0.05, pixel)),
        ("fat", 0.9 * below * soft(orbit, pixel)),
        ("muscle", below * soft(nerve, pixel)),
        ("csf", below * soft(eye, pixel)),
        ("air", below * soft(airway, pixel)),
        ("csf", soft(inside, pixel)),
    ]
    return layers, inside


def ventricles_at(random: Random, point: Array) -> tuple[Array, Array, Array]:
    """Depth inside the ventricles, distance to the tips of the horns, and to the choroid plexus."""
    side = np.stack(
        [np.abs(point[0] - 0.02 * random.normal()), point[1], point[2]]
    )  # both sides from one, a little off the midline
    size, bend = random.uniform(0.035, 0.085), random.uniform(0.8, 1.2)
    tip, front, body = (0.13 * bend, 0.36, -0.02), (0.05, 0.14, 0.10), (0.09 * bend, -0.10, 0.20)
    atrium, back, temple = (
        (0.21 * bend, -0.34, 0.06),
        (0.17 * bend, -0.52, 0.0),
        (0.34, -0.05, -0.25),
    )
    parts = [
        (tip, front, 0.9),
        (front, body, 0.9),
        (body, atrium, 1.0),
        (atrium, back, 0.7),
        (atrium, temple, 0.5),
    ]
    lateral = np.max([size * width - to_segment(side, a, b) for a, b, width in parts], axis=0)
    third = 0.4 * size - to_segment(point, (0, 0.06, -0.05), (0, -0.12, -0.12))
    fourth = 0.05 - to_segment(point, (0, -0.24, -0.45), (0, -0.22, -0.6))
    horns = np.minimum(
        to_segment(side, tip, (0.15 * bend, 0.42, 0.04)), to_segment(side, back, atrium)
    )
    return np.maximum.reduce([lateral, third, fourth]), horns, to_segment(side, body, atrium)


def fold_distance(random: Random, point: Array, pixel: float) -> tuple[Array, Array]:
    """Distance to the nearest open sulcus and to the nearest closed one: level lines of a noise.

    The noise hardly changes along the radius, so that folds run inwards from the surface.
    """
    from scipy.ndimage import map_coordinates

    radius = np.sqrt((point**2).sum(0)) + 1e-3
    warp = np.stack([0.05 * smooth_noise(random, radius.shape, (5, 12, 12)) for _ in range(3)])
    lattice = random.standard_normal((32, 32, 32)).astype(np.float32)
    where = (point / radius * (0.55 + 0.45 * radius) + warp) * 11 + 15.5
    noise = map_coordinates(lattice, where, order=3, prefilter=False, mode="grid-wrap")
    down, right = np.gradient(noise, axis=(1, 2))
    slope = np.sqrt(down**2 + right**2 + 1e-4) / pixel
    return np.abs(noise) / slope, np.abs(np.abs(noise) - 0.7) / slope


def brain(
    random: Random, point: Array, inside: Array, pixel: float
) -> tuple[list[Layer], Array, Array]:
    """Layers of the brain in painting order, the share of cerebrum that a tumour may take, and its share of white matter."""
    x, y, z = point
    side = np.stack([np.abs(x), y, z])
    gap, cortex = random.uniform(0.006, 0.016), random.uniform(0.030, 0.042)
    midline = np.abs(x + 0.012 * smooth_noise(random, z.shape, (3, 6, 6)))
    callosum = 1 - np.sqrt(((y + 0.02) / 0.45) ** 2 + ((z + 0.05) / 0.34) ** 2)
    folds, closed = fold_distance(random, point, pixel)
    folds += 0.012 * smooth_noise(random, z.shape, (6, 16, 16)) + 0.6 * np.clip(
        inside - random.uniform(0.12, 0.22), 0, None
    )
    closed += 0.5 * np.clip(inside - 0.24, 0, None)  # folds end some 15 to 20 mm under the surface
    sylvian = to_segment(side, (0.70, 0.0, 0.05), (0.40, 0.12, -0.08))
    surface = np.minimum.reduce([inside, folds, midline + np.clip(callosum, 0, None), sylvian])
    fossa = 0.4 * (1 - np.sqrt((x / 0.56) ** 2 + ((y + 0.47) / 0.44) ** 2))
    tent = np.minimum(-0.16 - 0.6 * np.abs(x) - z, fossa) + 0.015 * smooth_noise(
        random, z.shape, (3, 8, 8)
    )  # depth in the cerebellum
    stem = soft(0.12 - to_segment(point, (0, 0.0, -0.30), (0, -0.14, -1.0)), pixel) * soft(
        -0.2 - z, 0.05
    )
    cerebellum = soft(tent, 0.04) * soft(inside - 0.015, pixel)
    stripes = np.sin(
        75 * (y + 0.5 * np.abs(x) + 0.7 * z) + 1.5 * smooth_noise(random, z.shape, (4, 8, 8))
    )
    tissue = soft(surface - gap, 1.2 * pixel) * (1 - 0.7 * soft(0.01 - np.abs(tent), 0.02))
    white = soft(np.minimum(surface - gap - cortex, closed - 0.7 * cortex), 1.3 * pixel)
    ventricles, horns, plexus = ventricles_at(random, point)
    nuclei = np.maximum.reduce(
        [
            0.085 - to_segment(side, (0.13, -0.08, 0.02), (0.10, 0.02, 0.0)),  # thalamus
            0.050 - to_segment(side, (0.30, 0.16, 0.0), (0.32, -0.08, 0.02)),  # putamen
            0.035 - to_segment(side, (0.13, 0.26, 0.02), (0.17, 0.0, 0.2)),  # caudate
        ]
    )
    sinus = soft(0.03 - to_segment(point, (0, -0.84, 0.2), (0, -0.6, 0.62)), pixel) * soft(
        inside + 0.02, pixel
    )
    caps = random.uniform(0.3, 1.0) * np.exp(-((horns / random.uniform(0.05, 0.10)) ** 2))
    cerebrum = tissue * (1 - soft(tent, 0.04))
    layers = [
        ("grey", cerebrum),
        ("white", cerebrum * white),
        ("grey", 0.8 * cerebrum * soft(nuclei, 0.04)),
        ("grey", cerebellum),
        ("white", cerebellum * (0.4 + 0.3 * stripes) * soft(inside - 0.05, 0.06)),
        ("white", stem),
        ("gliosis", caps * cerebrum * white),
        ("csf", soft(ventricles, 1.3 * pixel) * soft(inside, pixel)),
        ("choroid", soft(0.018 - plexus, pixel) * soft(ventricles + 0.01, pixel)),
        ("vessel", sinus),
    ]
    return layers, cerebrum * (1 - soft(ventricles, pixel)) * (1 - stem), white


def lesions(random: Random, point: Array, pixel: float) -> Array:
    """Small white-matter hyperintensities, as bright as tumour on FLAIR: none in some patients, up to 14 in others."""
    total = np.zeros_like(point[0])
    for _ in range(int(random.integers(0, 15))):
        angle, radius = random.uniform(0, 2 * np.pi), random.uniform(0.25, 0.6)
        centre = (0.75 * radius * np.cos(angle), radius * np.sin(angle), random.uniform(-0.1, 0.5))
        end = tuple(np.add(centre, random.normal(0, 0.03, 3)))
        total = np.maximum(
            total, soft(random.uniform(0.015, 0.045) - to_segment(point, centre, end), 1.5 * pixel)
        )
    return total


def tumour_centre(random: Random, point: Array) -> tuple[Array, float]:
    """Where a tumour sits (3, 1, 1, 1), and its radius in head units; its middle is on a slice, so that none is lost between two."""
    x, y = random.uniform(0.2, 0.5) * random.choice((-1, 1)), random.uniform(-0.55, 0.5)
    levels = point[2].mean((1, 2))
    z = levels[np.abs(levels - random.uniform(-0.05, 0.45)).argmin()]
    return np.array((x, y, z), np.float32).reshape(3, 1, 1, 1), math.exp(
        random.uniform(math.log(0.16), math.log(0.36))
    )


def displace(random: Random, point: Array, centre: Array, radius: float) -> Array:
    """Mass effect: where the tissue of each voxel was before the tumour pushed it away (midline and ventricles shift)."""
    away = point - centre
    return point - random.uniform(0.0, 0.5) * away * np.exp(-(away**2).sum(0) / (1.6 * radius) ** 2)


def tumour(
    random: Random,
    point: Array,
    pixel: float,
    centre: Array,
    radius: float,
    cerebrum: Array,
    white: Array,
) -> tuple[NDArray[np.bool_], Array]:
    """The tumour's mask, one connected body, and its level: 1 at the centre, 0 at the edge, which follows the white matter."""
    from scipy.ndimage import label

    stretch = np.exp(random.normal(0, 0.2, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt((((point - centre) * stretch) ** 2).sum(0)) / radius
    edge = 0.16 * smooth_noise(random, white.shape, (6, 14, 14)) + 0.08 * smooth_noise(
        random, white.shape, (8, 30, 30)
    )
    other_side = np.clip(-point[0] * np.sign(centre[0]), 0, 0.1) * 6
    level = (1 - distance + edge + 0.25 * (white - 1) - other_side).astype(np.float32)
    ball = (
        4 / 3 * math.pi * radius**3 / (pixel**2 * float(point[2, 1, 0, 0] - point[2, 0, 0, 0]))
    )  # in voxels
    for limit in np.arange(
        0, -1.5, -0.1
    ):  # sulci can cut a tumour to pieces: it grows until one is large enough
        parts, _ = label((cerebrum > 0.5) & (level >= limit))
        sizes = np.bincount(parts.ravel(), minlength=2)[1:]
        if sizes.max() >= max(3, 0.3 * ball):
            break
    return parts == sizes.argmax() + 1, (level - limit) / (level.max() - limit)


def tumour_layers(random: Random, mask: NDArray[np.bool_], level: Array) -> list[Layer]:
    """What a tumour looks like: a diffuse bright body; in some a dark necrotic core, in some of those an enhancing rim."""
    from scipy.ndimage import gaussian_filter

    body = gaussian_filter(mask.astype(np.float32), (0, 0.8, 0.8)) * random.uniform(0.8, 1.0)
    body *= np.clip(0.92 + 0.08 * smooth_noise(random, mask.shape, (6, 20, 20)), 0, 1)
    layers = [
        ("tumour", body),
        ("gliosis", random.uniform(0, 1) * body),
    ]  # the more of the latter, the less it shows beside FLAIR
    if random.random() < 0.4:
        core = random.uniform(0.4, 0.6)
        layers.append(("necrosis", 0.85 * soft(level - core, 0.2) * mask))
        if random.random() < 0.6:
            layers.append(("enhancing", soft(0.1 - np.abs(level - core), 0.1) * mask))
    return layers
