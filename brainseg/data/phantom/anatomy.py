"""Anatomy of a synthetic head, with skull, face, brain, lesions and tumour as maps of tissue.

Positions are in head units, with x to the right of the picture, y to the front (up) and z to the
crown. The half-length of the head is 1, about 90 mm. A map contains the share of each voxel, 0 to
1, that a tissue fills, so that edges are as soft as those of a scanner. A layer is the name of a
tissue and its map. Layers are painted over each other, in the order of the lists returned here.
"""

import math

import numpy as np
from numpy.typing import NDArray

# float32.
Array = np.ndarray
Layer = tuple[str, Array]
Random = np.random.Generator


def soft_edge(distance: Array, pixel: float) -> Array:
    """Return the share of each voxel that is inside of an edge.

    `distance` is the signed distance of the voxel's centre to the edge, positive inside.
    """
    return np.clip(distance / pixel + 0.5, 0, 1)


def smooth_noise(random: Random, shape: tuple[int, ...], cells: tuple[int, ...]) -> Array:
    """Return a smooth random field of about unit variance.

    It is a cubic B-spline over a lattice of random values with `cells` cells along each axis.
    """
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
        # The new axis moves to the end, which restores the order of the axes after the last one.
        field = np.moveaxis(np.tensordot(weights, field, (1, 0)), 0, -1)
    return field


def distance_to_segment(
    point: Array, start: tuple[float, float, float], end: tuple[float, float, float]
) -> Array:
    """Return the distance (S, H, W) of each point (3, S, H, W) to a line segment."""
    origin = np.array(start, np.float32).reshape(3, 1, 1, 1)
    line = np.subtract(end, start).astype(np.float32).reshape(3, 1, 1, 1)
    # The position of the nearest point, 0 at the start of the segment and 1 at its end.
    fraction = np.clip(((point - origin) * line).sum(0) / (line**2).sum(), 0, 1)
    return np.sqrt(((point - origin - fraction * line) ** 2).sum(0))


def head_depth(random: Random, point: Array) -> Array:
    """Return the depth under the skin.

    The head has the shape of an egg that is wider at the back, has a high dome and closes below the
    jaw.
    """
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
    """Return the layers outside the brain in painting order, and the depth inside of the skull."""
    x, y, z = point
    side = np.stack([np.abs(x), y, z])
    shape = z.shape
    skin = random.uniform(0.05, 0.09) * np.exp(0.25 * smooth_noise(random, shape, (3, 5, 5)))
    bone = random.uniform(0.055, 0.08) * np.exp(0.15 * smooth_noise(random, shape, (3, 6, 6)))
    depth = head_depth(random, point)
    texture = smooth_noise(random, shape, (5, 20, 20)) + 0.6 * smooth_noise(
        random, shape, (5, 40, 40)
    )
    # A face is roughly symmetric.
    texture = texture + texture[..., ::-1]
    # The lower edge of the brain rises from the neck over the temporal lobes to the roof of the
    # orbits. The cerebellum lies behind and below it, and the brain stem leaves through the neck.
    floor = np.interp(y, (-0.4, -0.1, 0.35, 0.5, 0.9), (-0.62, -0.60, -0.56, -0.34, -0.2)).astype(
        np.float32
    )
    hollow = 0.42 * (
        1 - np.sqrt((x / 0.60) ** 2 + ((y + 0.42) / 0.44) ** 2 + ((z + 0.45) / 0.42) ** 2)
    )
    stem = 0.14 - distance_to_segment(point, (0, 0.0, -0.30), (0, -0.14, -1.0))
    petrous = (
        0.07
        - distance_to_segment(side, (0.62, -0.28, -0.52), (0.18, -0.02, -0.48))
        + 0.008 * texture
    )
    lower = np.maximum.reduce([0.8 * (z - floor) + 0.015 * texture, hollow, stem])
    inside = np.minimum.reduce([depth - skin - bone, lower, -petrous])
    below = soft_edge(-lower, pixel) * soft_edge(depth - skin, pixel)
    orbit = 0.19 - distance_to_segment(side, (0.28, 0.62, -0.40), (0.16, 0.36, -0.40))
    eye = 0.125 - distance_to_segment(side, (0.29, 0.67, -0.41), (0.29, 0.69, -0.40))
    nerve = 0.022 - distance_to_segment(side, (0.28, 0.56, -0.40), (0.12, 0.28, -0.40))
    airway = 0.08 - distance_to_segment(point, (0, 0.72, -0.44), (0, 0.22, -0.75)) + 0.015 * texture
    layers = [
        ("muscle", soft_edge(depth, pixel)),
        ("fat", soft_edge(depth - 0.02, pixel)),
        ("bone", soft_edge(depth - skin, pixel)),
        ("marrow", 0.6 * soft_edge(0.22 * bone - np.abs(depth - skin - bone / 2), 1.5 * pixel)),
        ("muscle", below),
        ("fat", below * soft_edge(0.03 * (texture - 1.2), pixel)),
        ("bone", below * soft_edge(0.03 * (-1.0 - texture), pixel)),
        ("bone", soft_edge(petrous, pixel) * soft_edge(depth - skin, pixel)),
        ("bone", 0.8 * below * soft_edge(lower + 0.05, pixel)),
        ("fat", 0.9 * below * soft_edge(orbit, pixel)),
        ("muscle", below * soft_edge(nerve, pixel)),
        ("csf", below * soft_edge(eye, pixel)),
        ("air", below * soft_edge(airway, pixel)),
        ("csf", soft_edge(inside, pixel)),
    ]
    return layers, inside


def ventricles_at(random: Random, point: Array) -> tuple[Array, Array, Array]:
    """Return the depth inside the ventricles, and the distances to horns and choroid plexus.

    The distance to the horns is that to their tips.
    """
    # The absolute value of x mirrors one side to the other, at a plane a little off the midline.
    side = np.stack([np.abs(point[0] - 0.02 * random.normal()), point[1], point[2]])
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
    lateral = np.max(
        [size * width - distance_to_segment(side, a, b) for a, b, width in parts], axis=0
    )
    third = 0.4 * size - distance_to_segment(point, (0, 0.06, -0.05), (0, -0.12, -0.12))
    fourth = 0.05 - distance_to_segment(point, (0, -0.24, -0.45), (0, -0.22, -0.6))
    horns = np.minimum(
        distance_to_segment(side, tip, (0.15 * bend, 0.42, 0.04)),
        distance_to_segment(side, back, atrium),
    )
    return (
        np.maximum.reduce([lateral, third, fourth]),
        horns,
        distance_to_segment(side, body, atrium),
    )


def fold_distance(random: Random, point: Array, pixel: float) -> tuple[Array, Array]:
    """Return the distances to the nearest open sulcus and to the nearest closed sulcus.

    Sulci are level lines of a noise. The noise hardly changes along the radius, so that folds run
    inwards from the surface.
    """
    from scipy.ndimage import map_coordinates

    radius = np.sqrt((point**2).sum(0)) + 1e-3
    warp = np.stack([0.05 * smooth_noise(random, radius.shape, (5, 12, 12)) for _ in range(3)])
    lattice = random.standard_normal((32, 32, 32)).astype(np.float32)
    position = (point / radius * (0.55 + 0.45 * radius) + warp) * 11 + 15.5
    noise = map_coordinates(lattice, position, order=3, prefilter=False, mode="grid-wrap")
    gradient_y, gradient_x = np.gradient(noise, axis=(1, 2))
    slope = np.sqrt(gradient_y**2 + gradient_x**2 + 1e-4) / pixel
    # The difference to the level divided by the slope approximates the distance to the level line.
    return np.abs(noise) / slope, np.abs(np.abs(noise) - 0.7) / slope


def brain(
    random: Random, point: Array, inside: Array, pixel: float
) -> tuple[list[Layer], Array, Array]:
    """Return the layers of the brain in painting order, and maps of cerebrum and white matter.

    The map of the cerebrum excludes ventricles and brain stem, where no tumour may grow.
    """
    x, y, z = point
    side = np.stack([np.abs(x), y, z])
    gap, cortex = random.uniform(0.006, 0.016), random.uniform(0.030, 0.042)
    midline = np.abs(x + 0.012 * smooth_noise(random, z.shape, (3, 6, 6)))
    callosum = 1 - np.sqrt(((y + 0.02) / 0.45) ** 2 + ((z + 0.05) / 0.34) ** 2)
    folds, closed = fold_distance(random, point, pixel)
    folds += 0.012 * smooth_noise(random, z.shape, (6, 16, 16)) + 0.6 * np.clip(
        inside - random.uniform(0.12, 0.22), 0, None
    )
    # Folds end some 15 to 20 mm under the surface.
    closed += 0.5 * np.clip(inside - 0.24, 0, None)
    sylvian = distance_to_segment(side, (0.70, 0.0, 0.05), (0.40, 0.12, -0.08))
    surface = np.minimum.reduce([inside, folds, midline + np.clip(callosum, 0, None), sylvian])
    fossa = 0.4 * (1 - np.sqrt((x / 0.56) ** 2 + ((y + 0.47) / 0.44) ** 2))
    # The depth in the cerebellum.
    tent = np.minimum(-0.16 - 0.6 * np.abs(x) - z, fossa) + 0.015 * smooth_noise(
        random, z.shape, (3, 8, 8)
    )
    stem = soft_edge(
        0.12 - distance_to_segment(point, (0, 0.0, -0.30), (0, -0.14, -1.0)), pixel
    ) * soft_edge(-0.2 - z, 0.05)
    cerebellum = soft_edge(tent, 0.04) * soft_edge(inside - 0.015, pixel)
    stripes = np.sin(
        75 * (y + 0.5 * np.abs(x) + 0.7 * z) + 1.5 * smooth_noise(random, z.shape, (4, 8, 8))
    )
    tissue = soft_edge(surface - gap, 1.2 * pixel) * (
        1 - 0.7 * soft_edge(0.01 - np.abs(tent), 0.02)
    )
    white = soft_edge(np.minimum(surface - gap - cortex, closed - 0.7 * cortex), 1.3 * pixel)
    ventricles, horns, plexus = ventricles_at(random, point)
    thalamus = 0.085 - distance_to_segment(side, (0.13, -0.08, 0.02), (0.10, 0.02, 0.0))
    putamen = 0.050 - distance_to_segment(side, (0.30, 0.16, 0.0), (0.32, -0.08, 0.02))
    caudate = 0.035 - distance_to_segment(side, (0.13, 0.26, 0.02), (0.17, 0.0, 0.2))
    nuclei = np.maximum.reduce([thalamus, putamen, caudate])
    sinus = soft_edge(
        0.03 - distance_to_segment(point, (0, -0.84, 0.2), (0, -0.6, 0.62)), pixel
    ) * soft_edge(inside + 0.02, pixel)
    caps = random.uniform(0.3, 1.0) * np.exp(-((horns / random.uniform(0.05, 0.10)) ** 2))
    cerebrum = tissue * (1 - soft_edge(tent, 0.04))
    layers = [
        ("grey", cerebrum),
        ("white", cerebrum * white),
        ("grey", 0.8 * cerebrum * soft_edge(nuclei, 0.04)),
        ("grey", cerebellum),
        ("white", cerebellum * (0.4 + 0.3 * stripes) * soft_edge(inside - 0.05, 0.06)),
        ("white", stem),
        ("gliosis", caps * cerebrum * white),
        ("csf", soft_edge(ventricles, 1.3 * pixel) * soft_edge(inside, pixel)),
        ("choroid", soft_edge(0.018 - plexus, pixel) * soft_edge(ventricles + 0.01, pixel)),
        ("vessel", sinus),
    ]
    return layers, cerebrum * (1 - soft_edge(ventricles, pixel)) * (1 - stem), white


def lesions(random: Random, point: Array, pixel: float) -> Array:
    """Return a map of 0 to 14 small white-matter hyperintensities.

    These lesions are as bright as tumour on FLAIR.
    """
    total = np.zeros_like(point[0])
    for _ in range(int(random.integers(0, 15))):
        angle, radius = random.uniform(0, 2 * np.pi), random.uniform(0.25, 0.6)
        centre = (0.75 * radius * np.cos(angle), radius * np.sin(angle), random.uniform(-0.1, 0.5))
        end = tuple(np.add(centre, random.normal(0, 0.03, 3)))
        total = np.maximum(
            total,
            soft_edge(
                random.uniform(0.015, 0.045) - distance_to_segment(point, centre, end), 1.5 * pixel
            ),
        )
    return total


def tumour_centre(random: Random, point: Array) -> tuple[Array, float]:
    """Return the centre of a tumour (3, 1, 1, 1) and its radius in head units."""
    x, y = random.uniform(0.2, 0.5) * random.choice((-1, 1)), random.uniform(-0.55, 0.5)
    # The centre lies on a slice, so that no tumour is lost between two slices.
    levels = point[2].mean((1, 2))
    z = levels[np.abs(levels - random.uniform(-0.05, 0.45)).argmin()]
    return np.array((x, y, z), np.float32).reshape(3, 1, 1, 1), math.exp(
        random.uniform(math.log(0.16), math.log(0.36))
    )


def displace(random: Random, point: Array, centre: Array, radius: float) -> Array:
    """Return the position of each voxel's tissue before the tumour displaced it.

    This mass effect shifts the midline and the ventricles.
    """
    offset = point - centre
    strength = random.uniform(0.0, 0.5)
    return point - strength * offset * np.exp(-(offset**2).sum(0) / (1.6 * radius) ** 2)


def tumour(
    random: Random,
    point: Array,
    pixel: float,
    centre: Array,
    radius: float,
    cerebrum: Array,
    white: Array,
) -> tuple[NDArray[np.bool_], Array]:
    """Return the mask of the tumour, which is one connected body, and its level.

    The level falls from 1 at the centre to 0 at the edge. The edge follows the white matter.
    """
    from scipy.ndimage import label

    stretch = np.exp(random.normal(0, 0.2, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt((((point - centre) * stretch) ** 2).sum(0)) / radius
    edge = 0.16 * smooth_noise(random, white.shape, (6, 14, 14)) + 0.08 * smooth_noise(
        random, white.shape, (8, 30, 30)
    )
    other_side = np.clip(-point[0] * np.sign(centre[0]), 0, 0.1) * 6
    level = (1 - distance + edge + 0.25 * (white - 1) - other_side).astype(np.float32)
    voxel = pixel**2 * float(point[2, 1, 0, 0] - point[2, 0, 0, 0])
    # The number of voxels of a ball with this radius.
    ball = 4 / 3 * math.pi * radius**3 / voxel
    # Sulci can cut a tumour into parts, so it grows until one part is large enough.
    for limit in np.arange(0, -1.5, -0.1):
        parts, _ = label((cerebrum > 0.5) & (level >= limit))
        sizes = np.bincount(parts.ravel(), minlength=2)[1:]
        if sizes.max() >= max(3, 0.3 * ball):
            break
    return parts == sizes.argmax() + 1, (level - limit) / (level.max() - limit)


def tumour_layers(random: Random, mask: NDArray[np.bool_], level: Array) -> list[Layer]:
    """Return the layers of a tumour in painting order.

    Every tumour has a diffuse bright body. Some have a dark necrotic core, too, and some of these
    have an enhancing rim.
    """
    from scipy.ndimage import gaussian_filter

    body = gaussian_filter(mask.astype(np.float32), (0, 0.8, 0.8)) * random.uniform(0.8, 1.0)
    body *= np.clip(0.92 + 0.08 * smooth_noise(random, mask.shape, (6, 20, 20)), 0, 1)
    # The larger the share of gliosis, the less visible the tumour is on the sequences beside FLAIR.
    layers = [("tumour", body), ("gliosis", random.uniform(0, 1) * body)]
    if random.random() < 0.4:
        core = random.uniform(0.4, 0.6)
        layers.append(("necrosis", 0.85 * soft_edge(level - core, 0.2) * mask))
        if random.random() < 0.6:
            layers.append(("enhancing", soft_edge(0.1 - np.abs(level - core), 0.1) * mask))
    return layers
