#!/usr/bin/env python
"""Makes the bundled sample pairs below data/Image/<TASK>/Sample, the same files from the same seeds.

    python data/make_sample.py                # everything (about half an hour on one core, most of it for the rendered scenes)
    python data/make_sample.py --task mef     # one task

Photographs and anatomy come from files that packages on PyPI ship under free licences (data/NOTICE.md names each); the
scenes of IVF and two of MFF are rendered here. All pairs are simulated, and called so:

    MEF  a photograph, exposed twice through a camera model
    MFF  a photograph with measured disparity, blurred in depth layers; two scenes traced through a thin lens
    IVF  rendered scenes: light and reflectance for one camera, temperature and emissivity for the other
    MIF  a real average MRI; PET, SPECT and CT simulated from the tissue maps that belong to it

Needs, beside film itself: scikit-image and scipy (pip install -e '.[dev]'), and for MIF:
pip install nibabel==5.4.2 and pip install --no-deps nilearn==0.14.1 (only its data files are read)."""
import argparse, sys, time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage, special

from film.core import TASKS, FilmError, atomic_write, write_image

DATA = Path(__file__).resolve().parent
WIDTH, HEIGHT = 448, 336           # of the rendered scenes
SAMPLES, LENS_SAMPLES = 12, 64     # rays a pixel: through a pinhole, through an open lens


# ---------------------------------------------------------------- sources and camera

def photograph(name):
    "(H, W, 3) float32 RGB in [0, 1], linear light, from a file inside the scikit-image package."
    spec = find_spec("skimage")
    if spec is None: raise FilmError("scikit-image is missing: pip install -e '.[dev]'")
    path = Path(spec.origin).parent/"data"/name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None: raise FilmError(f"{path}: not in this version of scikit-image; 0.26.0 has it")
    return to_linear(image[..., ::-1] / np.float32(255))


def to_linear(x): return np.where(x <= 0.04045, x / 12.92, ((np.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(x):
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055).astype(np.float32)


def expose(irradiance, gain, rng, full_well=9000, read_noise=5):
    "A camera: gain, photon noise, read noise, clipping, 12-bit conversion, sRGB response -> uint8."
    electrons = np.maximum(irradiance * gain, 0) * full_well
    electrons = rng.normal(electrons, np.sqrt(electrons + read_noise**2))  # Poisson, by its normal limit
    raw = np.rint(np.clip(electrons / full_well, 0, 1) * 4095) / 4095
    return np.rint(to_srgb(raw) * 255).astype(np.uint8)


def shrink(image, width):
    "The image at that width, area-averaged in linear light."
    return cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------- MEF: one photograph, two exposures

def make_mef():
    for number, (name, file, width, over, under) in enumerate([
            ("rocket", "rocket.jpg", 480, 2.3, -1.2), ("coffee", "coffee.png", 480, 1.7, -2.6), ("astronaut", "astronaut.png", 400, 1.6, -2.8)]):
        rng = np.random.default_rng((1, number))
        light = shrink(photograph(file), width)
        scene = light / (1.12 - light)  # a printed picture's compressed highlights, spread again (inverse of x / (1 + x))
        yield name, expose(scene, 2**over, rng), expose(scene, 2**under, rng)


# ---------------------------------------------------------------- MFF: a photograph with measured disparity

def disc(radius):
    "Kernel of a round aperture, its rim antialiased, sum 1."
    half = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-half:half + 1, -half:half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def fill(image, known):
    "`image` where `known`, elsewhere continued smoothly from there (coarse to fine, normalised averages)."
    if min(image.shape[:2]) <= 4:
        weight = known.sum()
        return image * known[..., None] + (1 - known[..., None]) * (image * known[..., None]).sum((0, 1)) / max(weight, 1e-6)
    size = (image.shape[1] // 2, image.shape[0] // 2)
    weight = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(image * known[..., None], size, interpolation=cv2.INTER_AREA) / np.maximum(weight, 1e-6)[..., None]
    coarse = fill(coarse, np.minimum(weight * 4, 1))
    behind = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return image * known[..., None] + behind * (1 - known[..., None])


def refocus(image, disparity, focus, pixels_per_disparity, layers=40):
    """A thin lens by depth layers, far to near, in linear light.

    The circle of confusion grows with |1/depth - 1/focus|, which is proportional to |disparity - focus|. Each layer is laid
    over what is behind it with a mask blurred like itself (soft edges); what a nearer object hides is continued from around it."""
    edges = np.linspace(disparity.min(), disparity.max() + 1e-3, layers + 1)
    result = None
    for low, high in zip(edges[:-1], edges[1:]):
        kernel = disc(abs((low + high) / 2 - focus) * pixels_per_disparity)
        blur = lambda x: cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        nearer = cv2.dilate((disparity >= high).astype(np.uint8), np.ones((3, 3))).astype(np.float32)  # edge pixels mix both: not the background's
        layer = blur(fill(image, 1 - nearer))
        if result is None: result = layer
        else:
            alpha = blur((disparity >= low).astype(np.float32))[..., None]
            result = layer * alpha + result * (1 - alpha)
    return result


def motorcycle():
    "The Middlebury scene: left image, its disparity, holes filled from the farther side of the row."
    image = photograph("motorcycle_left.png")
    with np.load(Path(find_spec("skimage").origin).parent/"data"/"motorcycle_disp.npz") as file: disparity = file["arr_0"]
    height, width = disparity.shape
    valid, column = np.isfinite(disparity), np.arange(width)
    left = np.maximum.accumulate(np.where(valid, column, -1), 1)
    right = np.minimum.accumulate(np.where(valid, column, width)[:, ::-1], 1)[:, ::-1]
    rows = np.arange(height)[:, None]
    from_left = np.where(left >= 0, disparity[rows, np.maximum(left, 0)], np.inf)
    from_right = np.where(right < width, disparity[rows, np.minimum(right, width - 1)], np.inf)
    disparity = np.where(valid, disparity, np.minimum(from_left, from_right)).astype(np.float32)
    disparity = cv2.medianBlur(disparity, 5)  # single wrong pixels would become discs
    return image, disparity


# ---------------------------------------------------------------- MIF: a real average MRI and what other scanners would show

def volume(name):
    "(197, 233, 189) float32 in [0, 1] at 1 mm: a map of the MNI ICBM 152 template, from inside the nilearn package."
    spec = find_spec("nilearn")
    if spec is None or find_spec("nibabel") is None:
        raise FilmError("MIF needs two packages: pip install nibabel==5.4.2 and pip install --no-deps nilearn==0.14.1")
    import nibabel
    path = Path(spec.origin).parent/"datasets"/"data"/f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.load(path).dataobj, np.float32) / 255


def smooth_noise(shape, sigma, rng):
    "Gaussian noise, blurred, of unit variance."
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma)
    return noise / noise.std()


def colour_bar(values, stops):
    "(H, W) in [0, 1] -> (H, W, 3) by linear interpolation between (position, (r, g, b))."
    positions = [p for p, _ in stops]
    return np.stack([np.interp(values, positions, [c[i] for _, c in stops]) for i in range(3)], -1)


HOT = [(0, (0, 0, 0)), (0.2, (0.15, 0, 0.35)), (0.45, (0.75, 0.05, 0.3)), (0.7, (1, 0.5, 0)), (0.9, (1, 0.92, 0.2)), (1, (1, 1, 0.85))]
RAINBOW = [(0, (0, 0, 0)), (0.15, (0.05, 0, 0.45)), (0.35, (0, 0.35, 0.95)), (0.5, (0, 0.8, 0.65)), (0.65, (0.25, 0.9, 0.1)),
           (0.8, (1, 0.9, 0)), (0.93, (1, 0.25, 0)), (1, (0.9, 0.9, 0.9))]


def axial(volume, z):
    "Axial slice z of a (197, 233, 189) volume, front up, on 256 x 256 pixels of 1 mm."
    slice_ = np.rot90(volume[:, :, z])
    top, left = (256 - slice_.shape[0]) // 2, (256 - slice_.shape[1]) // 2
    return np.pad(slice_, ((top, 256 - top - slice_.shape[0]), (left, 256 - left - slice_.shape[1]), (0, 0))[:slice_.ndim])


def tracer(uptake, fwhm, counts, rng):
    "Emission tomography: `uptake` through a scanner of that resolution (mm), with count noise as the reconstruction's filter leaves it."
    sigma = fwhm / 2.355
    seen = ndimage.gaussian_filter(uptake, sigma)
    noise = smooth_noise(seen.shape, 0.6 * sigma, rng) * np.sqrt(seen.max() * np.maximum(seen, 0) / counts)
    seen = np.maximum(seen + noise, 0)
    return seen / np.percentile(seen[seen > 0.2 * seen.max()], 99.7)


def make_mif():
    t1, gray_matter, white_matter = volume("t1"), volume("gm"), volume("wm")
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in t1.shape), indexing="ij")
    ball = lambda cx, cy, cz, r: np.exp(-((x - cx)**2 + (y - cy)**2 + (z - cz)**2) / (2 * r * r))
    scan = lambda z: np.rint(axial(np.clip((t1 - 0.12) * 1.12, 0, 1), z) * 255).astype(np.uint8)
    picture = lambda values, stops: np.rint(colour_bar(np.clip(values, 0, 1), stops) * 255).astype(np.uint8)

    # FDG: gray matter takes up about four times what white matter does; one parietal region takes up less, as in disease
    rng = np.random.default_rng(31)
    uptake = (4 * gray_matter + white_matter) * (1 + 0.06 * smooth_noise(t1.shape, 12, rng))
    uptake *= 1 - 0.55 * ball(148, 78, 84, 17)
    yield "pet", scan(84), picture(axial(tracer(uptake, 5, 350, rng), 84), HOT)

    # blood flow: less contrast between the tissues, coarser scanner, one hot focus
    rng = np.random.default_rng(32)
    flow = (2.6 * gray_matter + white_matter) * (1 + 0.08 * smooth_noise(t1.shape, 14, rng))
    flow += 1.6 * ball(58, 140, 100, 7)
    yield "spect", scan(102), picture(axial(tracer(flow, 8, 250, rng), 102), RAINBOW)

    # CT: water-like brain, and a skull drawn as a shell around it (the template has none)
    rng = np.random.default_rng(33)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(t1 > 0.12, iterations=6))
    vault = ndimage.gaussian_filter(np.pad(brain, 24).astype(np.float32), 5) > 0.32  # bone does not follow the furrows
    outside = ndimage.distance_transform_edt(~vault).astype(np.float32)[24:-24, 24:-24, 24:-24]
    ripple = smooth_noise(t1.shape, 14, rng)
    inner, outer = 2.5 + 0.3 * ripple, 9.5 + 1.1 * np.roll(ripple, 40, 1)
    skin = outer + 6 + 0.8 * np.roll(ripple, 80, 1)
    between = lambda low, high: np.clip(outside - low + 0.5, 0, 1) * np.clip(high - outside + 0.5, 0, 1)
    depth = (outside - inner) / np.maximum(outer - inner, 1)
    marrow = np.exp(-((depth - 0.5) / 0.17)**2) * (0.7 + 0.2 * smooth_noise(t1.shape, 2, rng))
    units = np.full(t1.shape, -1000, np.float32)
    units[outside < skin] = -60 + 35 * np.clip(smooth_noise(t1.shape, 2, rng), -1, 1)[outside < skin]           # scalp: fat and muscle
    units += between(skin - 2, skin) * (40 - units)                                                                # skin
    units += between(inner, outer) * (1150 - 700 * marrow - units)                                                 # two tables and marrow
    soft = np.where(brain, 6 + 31 * gray_matter + 24 * white_matter, 8)
    units = np.where(outside < inner, soft, units)
    for cx, cy, cz, r in ((98, 107, 74, 1.8), (82, 103, 75, 1.7), (115, 104, 75, 1.9)): units += 420 * ball(cx, cy, cz, r)  # pineal and choroid plexus, calcified
    units = ndimage.gaussian_filter(units, 0.6)
    cut = axial(units + 1000, 74) - 1000 + 4 * smooth_noise((256, 256), 0.7, rng)
    shown = np.interp(cut, [-1000, -200, -20, 60, 500, 1300], [0, 0.05, 0.17, 0.40, 0.75, 1])
    yield "ct", scan(74), np.rint(shown * 255).astype(np.uint8)


# ---------------------------------------------------------------- a small ray tracer: light for one camera, heat for another
# Metres; x right, y up, z away from the camera. A thing is a bounding sphere, a signed distance to its surface, and a paint:
# what the surface reflects and emits in the visible, how warm it is and how well it emits in the thermal infrared.

def vec(*values): return np.array(values, np.float32)


def length(v): return np.sqrt(np.einsum("...j,...j->...", v, v))  # on three columns much faster than np.linalg.norm


def unit(v): return v / np.maximum(length(v)[..., None], 1e-9)


LATTICE = np.random.default_rng(5).random((64, 64, 64), np.float32)


def noise(p, size, octaves=4):
    "Value noise in [0, 1] at points (N, 3): lumps of `size` metres and, `octaves` deep, finer ones."
    total, weight = np.zeros(len(p), np.float32), 0
    for octave in range(octaves):
        q = (p * (2**octave / size) + 17.3 * octave).T
        total += ndimage.map_coordinates(LATTICE, q, order=1, mode="grid-wrap") / 2**octave
        weight += 1 / 2**octave
    return total / weight


class Picture:
    "A picture laid on a surface, mirrored at its borders; blurred copies answer when seen from afar."
    def __init__(self, image):
        self.levels = [image]
        while min(self.levels[-1].shape[:2]) > 16: self.levels.append(cv2.pyrDown(self.levels[-1]))

    def __call__(self, u, v, footprint):
        "u right, v down, in widths of the picture; `footprint` of a pixel in the same unit -> (N, 3)."
        level = np.clip(np.log2(np.maximum(footprint * self.levels[0].shape[1], 1)), 0, len(self.levels) - 1).round().astype(int)
        result = np.empty((len(u), 3), np.float32)
        for k in np.unique(level):
            image, m = self.levels[k], level == k
            at = np.stack([v[m] * image.shape[1], u[m] * image.shape[1]]) - 0.5
            for c in range(3): result[m, c] = ndimage.map_coordinates(image[..., c], at, order=1, mode="reflect")
        return result


def ball(p, centre, radius): return length(p - centre) - radius


def rod(p, a, b, ra, rb=None):
    "Distance to a rod with round ends from a (radius ra) to b (radius rb)."
    ba = b - a
    h = np.clip((p - a) @ ba / (ba @ ba), 0, 1)
    return length(p - a - h[:, None] * ba) - (ra + ((ra if rb is None else rb) - ra) * h)


def egg(p, centre, radii):
    q = p - centre
    k = length(q / radii)
    return k * (k - 1) / np.maximum(length(q / radii**2), 1e-6)


def block(p, centre, half, edge=0.0):
    q = np.abs(p - centre) - (half - edge)
    return length(np.maximum(q, 0)) + np.minimum(np.maximum(np.maximum(q[:, 0], q[:, 1]), q[:, 2]), 0) - edge


def disc_rod(p, centre, radius, half, axis, edge=0.02):
    "Distance to a cylinder along a coordinate axis, its edges rounded."
    q, (i, j) = p - centre, [k for k in range(3) if k != axis]
    across = np.hypot(q[:, i], q[:, j]) - radius + edge
    along = np.abs(q[:, axis]) - half + edge
    return np.hypot(np.maximum(across, 0), np.maximum(along, 0)) + np.minimum(np.maximum(across, along), 0) - edge


def join(a, b, k):
    "Smooth union: the two surfaces melt into each other over about k."
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def meet(a, b, k): return -join(-a, -b, k)


def bricks(across, up, eye, long=0.25, tall=0.083):
    "Reflectance of a brick wall, about 0.45 on average: courses, mortar, each brick its own tone; the joints fade with the distance."
    row = np.floor(up / tall)
    column = np.floor(across / long + 0.5 * np.mod(row, 2))
    u, v = across / long + 0.5 * np.mod(row, 2) - column, up / tall - row
    tone = LATTICE[column.astype(int) % 64, row.astype(int) % 64, (column + row).astype(int) % 64]
    rough = noise(np.stack([across, up, across * 0], 1), 0.05, 3)
    joint = np.clip(1.5 - np.minimum(np.minimum(u, 1 - u) * long, np.minimum(v, 1 - v) * tall) / 0.0045, 0, 1)
    joint = joint * np.exp(-(eye / 14) ** 2) + 0.15 * (1 - np.exp(-(eye / 14) ** 2))
    return ((0.22 + 0.30 * tone + 0.22 * (rough - 0.5)) * (1 - joint) + 0.75 * joint).astype(np.float32)


class Surface:
    "What was hit, point by point; a paint fills in what differs from matt gray at air temperature."
    def __init__(self, n, air):
        self.albedo, self.light = np.full((n, 3), 0.2, np.float32), np.zeros((n, 3), np.float32)
        self.celsius, self.emissivity = np.full(n, air, np.float32), np.full(n, 0.95, np.float32)
        self.mirror, self.rough = np.zeros(n, np.float32), np.full(n, 0.05, np.float32)


class Thing:
    "A solid: bounding sphere, distance(p) -> (N,), paint(p, normal, distance from the eye, surface); `place` turns world into own axes."
    def __init__(self, centre, radius, distance, paint, yaw=0.0, at=(0, 0, 0), step=0.9):
        c, s = np.cos(yaw), np.sin(yaw)
        self.turn, self.at = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32), vec(*at)
        self.centre, self.radius = self.turn @ vec(*centre) + self.at, radius
        self.distance, self.paint, self.step = distance, paint, step

    def place(self, p): return (p - self.at) @ self.turn

    def hit(self, origin, direction, limit):
        "Distance along each ray, `limit` where there is no nearer hit."
        offset = self.centre - origin
        along = np.einsum("ij,ij->i", offset, direction)
        reach = self.radius**2 - (np.einsum("ij,ij->i", offset, offset) - along**2)
        half = np.sqrt(np.maximum(reach, 0))
        index = np.flatnonzero((reach > 0) & (along + half > 1e-3) & (along - half < limit))
        result = limit.copy()
        if not len(index): return result
        o, d = (origin[index] - self.at) @ self.turn, direction[index] @ self.turn
        t, end = np.maximum(along - half, 1e-3)[index], np.minimum(along + half, limit)[index]
        for _ in range(110):
            gap = self.distance(o + t[:, None] * d)
            there = gap < 4e-4 * np.maximum(t, 1)
            result[index[there]] = t[there]
            t = t + np.maximum(gap, 1e-4) * self.step
            on = ~there & (t < end)
            if not on.any(): break
            index, o, d, t, end = index[on], o[on], d[on], t[on], end[on]
        return result

    def normal(self, p):
        q, e, total = self.place(p), np.float32(1.5e-3), 0
        for k in (vec(1, -1, -1), vec(-1, -1, 1), vec(-1, 1, -1), vec(1, 1, 1)): total = total + self.distance(q + e * k)[:, None] * k
        return unit(total) @ self.turn.T


class Box:
    "An upright box by exact intersection, for what is large: walls, pavements."
    def __init__(self, low, high, paint):
        self.low, self.high, self.paint = vec(*low), vec(*high), paint

    def place(self, p): return p

    def hit(self, origin, direction, limit):
        inverse = 1 / np.where(np.abs(direction) < 1e-7, 1e-7, direction)
        a, b = (self.low - origin) * inverse, (self.high - origin) * inverse
        first, last = np.minimum(a, b), np.maximum(a, b)
        enter = np.maximum(np.maximum(first[:, 0], first[:, 1]), first[:, 2])
        leave = np.minimum(np.minimum(last[:, 0], last[:, 1]), last[:, 2])
        return np.where((enter < leave) & (enter > 1e-3) & (enter < limit), enter, limit).astype(np.float32)

    def normal(self, p):
        q = (p - (self.low + self.high) / 2) / ((self.high - self.low) / 2)
        axis = np.abs(q).argmax(1)
        result = np.zeros_like(p)
        result[np.arange(len(p)), axis] = np.sign(q[np.arange(len(p)), axis])
        return result


class Lamp:
    "A light: where, how strong (per colour, candela-like), its radius; a beam if it has a direction."
    def __init__(self, at, power, radius=0.1, beam=None, tight=1.0):
        self.at, self.power, self.radius, self.tight = vec(*at), vec(*power), radius, tight
        self.beam = None if beam is None else unit(vec(*beam))

    def strength(self, toward):
        "Relative strength in the directions `toward` (unit, away from the lamp)."
        return np.ones(len(toward), np.float32) if self.beam is None else np.maximum(toward @ self.beam, 0) ** self.tight


class Scene:
    def __init__(self, things, lamps, sky, air, ambient, sky_celsius, smoke=()):
        self.things, self.lamps, self.sky, self.air = things, lamps, sky, air
        self.ambient, self.sky_celsius, self.smoke = vec(*ambient), sky_celsius, smoke

    def trace(self, origin, direction, far=200.0):
        "(distance, index of the thing or -1)."
        t, which = np.full(len(origin), far, np.float32), np.full(len(origin), -1)
        for number, thing in enumerate(self.things):
            new = thing.hit(origin, direction, t)
            which[new < t] = number
            t = new
        return t, which

    def blocked(self, origin, direction, limit):
        t = limit * np.float32(0.999)
        open_ = np.ones(len(origin), bool)
        for thing in self.things:
            i = np.flatnonzero(open_)
            if not len(i): break
            open_[i] = thing.hit(origin[i], direction[i], t[i]) >= t[i]
        return ~open_

    def shade(self, origin, direction, rng, bounce=1, travelled=0.0):
        "Light (N, 3) and heat (N,) in degrees of a black body that arrive along the rays from there; and the distance."
        t, which = self.trace(origin, direction)
        light = self.sky(direction)
        heat = self.sky_celsius(direction)
        hit = np.flatnonzero(which >= 0)
        p = origin[hit] + t[hit, None] * direction[hit]
        n, s, eye = np.empty_like(p), Surface(len(p), self.air), t[hit] + np.broadcast_to(travelled, t.shape)[hit]
        for number in np.unique(which[hit]):
            m, part = which[hit] == number, Surface(0, self.air)
            part.__init__(int(m.sum()), self.air)
            n[m] = self.things[number].normal(p[m])
            self.things[number].paint(self.things[number].place(p[m]), n[m], eye[m], part)
            for key, value in vars(part).items(): getattr(s, key)[m] = value
        facing = np.einsum("ij,ij->i", n, direction[hit])
        n[facing > 0] *= -1
        p = p + n * 2e-3
        # sky light, dimmed where something stands close: one random direction a sample
        out = unit(n + unit(rng.standard_normal(p.shape).astype(np.float32)))
        shut = self.blocked(p, out, np.full(len(p), 4.0, np.float32))
        lit = self.ambient * np.where(shut, 0.25, 1.0)[:, None].astype(np.float32)
        for lamp in self.lamps:
            way = lamp.at + lamp.radius * unit(rng.standard_normal(p.shape).astype(np.float32)) - p
            far = length(way)
            way /= far[:, None]
            amount = np.maximum(np.einsum("ij,ij->i", n, way), 0) * lamp.strength(-way) / far**2 * lamp.power.max()
            i = np.flatnonzero(amount > 2e-4 * max(self.ambient.max(), 1e-3))
            if not len(i): continue
            i = i[~self.blocked(p[i], way[i], far[i] - lamp.radius - 0.02)]
            lit[i] += (amount[i, None] / lamp.power.max()) * lamp.power
        seen = s.light + s.albedo * lit / np.pi
        emitted = s.celsius
        shiny = np.flatnonzero(s.mirror > 0.004)
        if bounce and len(shiny):
            wobble = rng.standard_normal((len(shiny), 3)).astype(np.float32) * s.rough[shiny, None]
            m = unit(n[shiny] + wobble)
            d = direction[hit][shiny]
            cosine = np.clip(-np.einsum("ij,ij->i", m, d), 0, 1)
            r = d + 2 * cosine[:, None] * m
            other, _, _ = self.shade(p[shiny], unit(r), rng, bounce - 1, eye[shiny])
            share = s.mirror[shiny] + (1 - s.mirror[shiny]) * (1 - cosine) ** 5 * np.minimum(s.mirror[shiny] * 12, 1)
            seen[shiny] = seen[shiny] * (1 - share[:, None]) + other * share[:, None]
        mirrored = direction[hit] - 2 * np.einsum("ij,ij->i", n, direction[hit])[:, None] * n
        heat[hit] = s.emissivity * emitted + (1 - s.emissivity) * self.sky_celsius(mirrored)
        light[hit] = seen
        # smoke: Gaussian puffs that scatter light and let heat pass
        if self.smoke and not np.isscalar(travelled): return light, heat, t
        for centre, radius, density, colour in self.smoke:
            offset = vec(*centre) - origin
            along = np.einsum("ij,ij->i", offset, direction)
            past = np.maximum(np.einsum("ij,ij->i", offset, offset) - along**2, 0)
            i = np.flatnonzero((past < (3 * radius)**2) & (along > 0))
            middle = origin[i] + np.minimum(along, t)[i, None] * direction[i]
            share = 0.5 * (1 + special.erf((t[i] - along[i]) / (radius * 2**0.5)))
            depth = density * radius * 2.5 * np.exp(-past[i] / (2 * radius**2)) * share * np.clip(noise(middle - vec(0, 0.3, 0) * middle[:, :1], 0.9, 5) * 5 - 1.7, 0.05, 2)
            clear = np.exp(-depth)[:, None].astype(np.float32)
            light[i] = light[i] * clear + vec(*colour) * (1 - clear)
            heat[i] += (1 - np.exp(-0.06 * depth)) * (self.air + 4 - heat[i])
        return light, heat, t


def render(scene, width, height, eye, look, focal, samples, seed, aperture=0.0, focus=1.0):
    """Light (H, W, 3) and heat (H, W) as averages over `samples` rays a pixel.

    focal: in image widths. aperture: radius of the lens in metres, in focus at the distance `focus`; 0 is a pinhole."""
    rng = np.random.default_rng(seed)
    eye, forward = vec(*eye), unit(vec(*look) - vec(*eye))
    right = unit(np.cross(vec(0, 1, 0), forward))
    up = np.cross(forward, right)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light, heat = 0, 0
    for sample in range(samples):
        # a lattice of subpixels and lens points, shifted at random from pixel to pixel
        a, b, c, d = (np.mod(rng.random((height, width), np.float32) + sample * g, 1) for g in (0.7549, 0.5698, 0.8192, 0.6711))
        u, v = (x + a - width / 2) / (focal * width), -(y + b - height / 2) / (focal * width)
        direction = forward + u[..., None] * right + v[..., None] * up
        if aperture:
            radius, angle = aperture * np.sqrt(c), 2 * np.pi * d
            shift = (radius * np.cos(angle))[..., None] * right + (radius * np.sin(angle))[..., None] * up
            direction = direction * focus - shift
            origin = eye + shift
        else: origin = np.broadcast_to(eye, direction.shape)
        one, warm, _ = scene.shade(np.ascontiguousarray(origin.reshape(-1, 3), np.float32), unit(direction.reshape(-1, 3)).astype(np.float32), rng)
        light, heat = light + np.minimum(one, 400), heat + warm
    return (light / samples).reshape(height, width, 3).astype(np.float32), (heat / samples).reshape(height, width).astype(np.float32)


def lens_glare(light, spread=((0.86, 0.5), (0.07, 2), (0.04, 9), (0.03, 35))):
    "A real lens: a little blur, and light that strays around bright sources. (share, sigma in pixels) ..."
    return sum(share * cv2.GaussianBlur(light, (0, 0), sigma) for share, sigma in spread)


def thermal(heat, rng, sharp=0.9, low=4, high=99.7, sensitivity=0.12):
    "A thermal camera: soft optics, column pattern and detector noise (in kelvin), automatic range -> uint8."
    seen = cv2.GaussianBlur(heat, (0, 0), sharp)
    seen += sensitivity * (rng.standard_normal(seen.shape) + 0.6 * rng.standard_normal(seen.shape[1])[None] + 0.3 * smooth_noise(seen.shape, 12, rng))
    a, b = np.percentile(seen, [low, high])
    return np.rint(np.clip((seen - a) / (b - a), 0, 1) ** 0.85 * 255).astype(np.uint8)


# ---------------------------------------------------------------- things that stand in the scenes

def person(x, z, yaw=0.0, height=1.76, stride=0.35, jacket=(0.2, 0.22, 0.3), trousers=(0.07, 0.08, 0.12), hair=(0.05, 0.03, 0.02), skin=(0.55, 0.36, 0.27), crouch=0.0):
    "Someone walking: head, jacket, trousers, shoes; warm where there is skin, cooler where the cloth is thick."
    s = height / 1.76
    swing, drop = stride, crouch
    hip, chest, neck, head = (vec(0, h - drop, 0) for h in (0.92, 1.30, 1.50, 1.655))
    legs, arms = [], []
    for side, phase in ((-1, 1), (1, -1)):
        top = hip + vec(0.09 * side, -0.02, 0)
        knee = vec(0.10 * side, max(0.47 - drop * 0.35, 0.2), swing * 0.45 * phase + 0.06 + drop * 0.55)
        ankle = vec(0.10 * side, 0.09, swing * 0.95 * phase - 0.03)
        legs.append((top, knee, ankle))
        shoulder = vec(0.195 * side, 1.42 - drop, 0)
        elbow = vec(0.255 * side, 1.15 - drop, -swing * 0.30 * phase - 0.02)
        hand = vec(0.245 * side, 0.93 - drop + 0.06 * abs(swing), -swing * 0.62 * phase + 0.06)
        arms.append((shoulder, elbow, hand))

    def parts(p):
        body = join(egg(p, chest, vec(0.195, 0.27, 0.135)), egg(p, (chest + hip) / 2 - vec(0, .02, 0), vec(0.175, 0.24, 0.13)), 0.08)
        for shoulder, elbow, hand in arms:
            body = join(body, rod(p, shoulder, elbow, 0.068, 0.052), 0.04)
            body = np.minimum(body, rod(p, elbow, hand + (elbow - hand) * 0.12, 0.052, 0.042))
        cloth = egg(p, hip, vec(0.178, 0.13, 0.135))
        for top, knee, ankle in legs:
            cloth = join(cloth, rod(p, top, knee, 0.095, 0.068), 0.05)
            cloth = np.minimum(cloth, rod(p, knee, ankle, 0.068, 0.052))
        bare = join(egg(p, head, vec(0.078, 0.115, 0.098)), rod(p, neck, head, 0.055), 0.03)
        bare = np.minimum(bare, egg(p, head + vec(0, -0.02, 0.09), vec(0.014, 0.025, 0.022)))  # nose
        for _, elbow, hand in arms: bare = np.minimum(bare, egg(p, hand, vec(0.035, 0.065, 0.045)))
        top = egg(p, head + vec(0, 0.035, -0.018), vec(0.089, 0.105, 0.104))  # hair
        shoes = np.full(len(p), 9, np.float32)
        for _, _, ankle in legs: shoes = np.minimum(shoes, egg(p, ankle + vec(0, -0.035, 0.05), vec(0.05, 0.055, 0.125)))
        return body, cloth, bare, top, shoes

    def distance(p):
        body, cloth, bare, top, shoes = parts(p / s)
        return np.minimum(np.minimum(join(body, cloth, 0.02), np.minimum(bare, shoes)), top) * s

    def paint(p, n, eye, f):
        q = p / s
        body, cloth, bare, top, shoes = parts(q)
        face = (q[:, 2] > 0.02) & (q[:, 1] < head[1] + 0.06) & (q[:, 1] > head[1] - 0.2)
        which = np.argmin(np.stack([body, cloth, bare, np.where(face, 9, top), shoes]), 0)
        folds = noise(p + x, 0.16, 3)
        for part, colour, warm in ((0, jacket, 20), (1, trousers, 21), (2, skin, 32.5), (3, hair, 25), (4, (0.03, 0.03, 0.03), 16)):
            f.albedo[which == part] = colour
            f.celsius[which == part] = warm
        soft = which < 2
        f.albedo[soft] *= (0.65 + 0.7 * folds[soft])[:, None]
        f.celsius[soft] += 7 * (folds[soft] - 0.5) + 3.0 * np.clip((q[soft, 1] - 1.28 + drop) / 0.2, 0, 1)  # warm air leaves at the collar
        f.celsius[which == 2] += 2 * (folds[which == 2] - 0.5)
        zip_ = (which == 0) & (np.abs(q[:, 0]) < 0.012) & (q[:, 2] > 0)
        f.albedo[zip_] *= 0.3
        f.celsius[zip_] += 3
    return Thing((0, 0.9 * s, 0), 1.05 * s, distance, paint, yaw, (x, 0, z), step=0.85)


def deer(x, z, yaw=0.0):
    legs = [(vec(sx * 0.11, 0.85, sz), vec(sx * 0.13, 0.45, sz + b), vec(sx * 0.12, 0.05, sz + c)) for sx, sz, b, c in
            ((-1, 0.42, 0.05, 0.0), (1, 0.42, -0.02, 0.12), (-1, -0.42, -0.06, 0.04), (1, -0.42, 0.02, -0.1))]
    def distance(p):
        d = join(egg(p, vec(0, 1.0, 0.0), vec(0.24, 0.27, 0.62)), egg(p, vec(0, 1.02, 0.38), vec(0.21, 0.28, 0.26)), 0.1)
        d = join(d, rod(p, vec(0, 1.12, 0.5), vec(0, 1.52, 0.74), 0.13, 0.075), 0.1)
        d = join(d, rod(p, vec(0, 1.56, 0.74), vec(0, 1.47, 0.98), 0.085, 0.04), 0.04)
        for side in (-1, 1):
            d = np.minimum(d, egg(p, vec(0.12 * side, 1.68, 0.72), vec(0.075, 0.035, 0.025)))
            d = np.minimum(d, rod(p, vec(0.05 * side, 1.62, 0.72), vec(0.2 * side, 1.95, 0.66), 0.018, 0.01))
            d = np.minimum(d, rod(p, vec(0.14 * side, 1.83, 0.68), vec(0.17 * side, 1.95, 0.85), 0.012, 0.008))
        for a, b, c in legs: d = np.minimum(join(d, rod(p, a, b, 0.09, 0.045), 0.06), rod(p, b, c, 0.042, 0.026))
        return d
    def paint(p, n, eye, f):
        fur = noise(p * vec(3, 3, 1), 0.2, 4)
        f.albedo[:] = vec(0.22, 0.14, 0.08) * (0.6 + 0.8 * fur)[:, None]
        f.albedo[p[:, 2] < -0.5] = 0.45
        legs_ = p[:, 1] < 0.7
        f.celsius[:] = 20 + 7 * (fur - 0.5)
        f.celsius[legs_] = 16
        f.celsius[(p[:, 1] > 1.45) & (p[:, 2] > 0.6)] = 27
    return Thing((0, 1.0, 0.1), 1.25, distance, paint, yaw, (x, 0, z), step=0.85)


def car(x, z, yaw=0.0, colour=(0.35, 0.02, 0.02), lights=0.0, warm=0.0, rear=0.6):
    """A saloon; own axes: forward +z, length 4.3 m. `lights`: brightness of the headlights, `rear`: of the tail lights.
    warm: 0 parked for hours, 1 just driven."""
    wheels = [vec(0.77, 0.31, z) for z in (-1.28, 1.32)]  # of the right side; the left is its mirror image
    fold = lambda p: np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1)

    def planes(p, k, *faces):
        d = None
        for normal, point in faces:
            e = (p - vec(*point)) @ unit(vec(*normal))
            d = e if d is None else meet(d, e, k)
        return d

    def shell(p):
        low = planes(p, 0.10, ((0, 0.10, 1), (0, 0.6, 2.14)), ((0, 1, 0.13), (0, 0.93, 0.9)), ((0, 1, 0), (0, 0.96, 0)), ((0, 0.05, -1), (0, 0.6, -2.13)),
                     ((0, -1, 0), (0, 0.22, 0)), ((1, 0.10, 0), (0.86, 0.7, 0)), ((1, -0.12, 0), (0.85, 0.5, 0)), ((0.45, 0, 1), (0.75, 0, 2.12)), ((0.45, 0, -1), (0.75, 0, -2.12)))
        top = planes(p, 0.09, ((0, 0.82, 0.57), (0, 1.18, 0.62)), ((0, 1, 0.02), (0, 1.42, 0)), ((0, 0.85, -0.52), (0, 1.18, -1.42)), ((1, 0.42, 0), (0.70, 1.15, 0)), ((0, -1, 0), (0, 0.7, 0)))
        return low, top

    def rolling(p):
        d = np.full(len(p), 9, np.float32)
        for w in wheels: d = np.minimum(d, disc_rod(p, w, 0.31, 0.10, 0, 0.035))
        return d

    def distance(p):
        p = fold(p)
        low, top = shell(p)
        arch = np.full(len(p), 9, np.float32)
        for w in wheels: arch = np.minimum(arch, disc_rod(p, w * vec(1.05, 1, 1), 0.375, 0.2, 0, 0.02))
        return np.minimum(np.maximum(join(low, top, 0.05), -arch), rolling(p))

    def paint(p, n, eye, f):
        side, p = p[:, 0], fold(p)
        X, Y, Z = p.T
        low, top = shell(p)
        f.albedo[:], f.mirror[:], f.rough[:] = colour, 0.06, 0.012
        f.celsius[:] += 1.0 + 1.5 * noise(p, 1.5, 2) + warm * (11 * np.clip((Z - 0.3) / 0.6, 0, 1) * np.exp(-((Y - 0.75) / 0.4)**2))
        f.emissivity[:] = 0.86
        band = (top < low) & (Y > 0.99) & (Y < 1.36)
        slope = np.abs(n[:, 1]) < 0.93
        posts = (np.abs(Z + 0.33) < 0.045) | (X - 0.70 + 0.42 * (Y - 1.15) > -0.03) & (((Z > 0.62 - (Y - 1.18) * 1.44 - 0.16)) | (Z < -1.42 + (Y - 1.18) * 1.63 + 0.2))
        glass = band & slope & ~posts
        f.albedo[glass], f.mirror[glass], f.rough[glass], f.emissivity[glass] = 0.012, 0.09, 0.004, 0.80
        f.celsius[glass] += 1.0 + 2.5 * warm
        trim = (Y < 0.33) | (np.abs(Y - 0.60) < 0.02) & (np.abs(Z) < 1.8)
        f.albedo[trim & ~glass], f.mirror[trim & ~glass] = 0.02, 0.0
        gaps = ((np.abs(Z - 0.72) < 0.008) | (np.abs(Z + 0.38) < 0.008) | (np.abs(Z + 1.25) < 0.008)) & (X > 0.72) & (Y < 0.97) & (Y > 0.36)
        f.albedo[gaps] *= 0.1
        grille = (Z > 2.0) & (X < 0.42) & (Y > 0.42) & (Y < 0.66)
        f.albedo[grille], f.mirror[grille] = 0.015, 0.0
        f.celsius[grille] += 14 * warm
        plate = (np.abs(Z) > 2.03) & (X < 0.26) & (np.abs(Y - 0.50) < 0.055)
        f.albedo[plate], f.mirror[plate] = 0.6, 0.0
        front = (Z > 1.88) & (X > 0.46) & (X < 0.80) & (Y > 0.62) & (Y < 0.76)
        f.albedo[front], f.light[front] = 0.5, vec(1, 0.93, 0.8) * lights
        f.celsius[front] += 10 * (lights > 0)
        back = (Z < -1.93) & (X > 0.48) & (Y > 0.68) & (Y < 0.84)
        f.albedo[back], f.light[back] = (0.35, 0.01, 0.01), vec(1, 0.03, 0.02) * rear
        pipe = (Z < -1.95) & (Y < 0.36) & (np.abs(side - 0.45) < 0.12)
        f.celsius[pipe] += 30 * warm
        wheel = rolling(p) < np.minimum(low, top)
        if wheel.any():
            d = np.min([np.hypot(Y - w[1], Z - w[2]) for w in wheels], 0)
            angle = np.min([np.where(np.hypot(Y - w[1], Z - w[2]) < 0.33, np.mod(np.arctan2(Y - w[1], Z - w[2]), 2 * np.pi / 5), 9) for w in wheels], 0)
            rim = wheel & (d < 0.205)
            f.albedo[wheel], f.mirror[wheel] = 0.02, 0.0
            f.emissivity[wheel] = 0.95
            f.celsius[wheel] = f.celsius[wheel] + warm * 9
            f.albedo[rim], f.mirror[rim], f.rough[rim] = 0.45, 0.10, 0.1
            f.albedo[rim & (np.abs(angle - np.pi / 5) < 0.28) & (d > 0.06)] = 0.03
            f.celsius[rim] += warm * 12
    return Thing((0, 0.7, 0), 2.5, distance, paint, yaw, (x, 0, z), step=0.85)


def tree(x, z, height=6.0, spread=2.0, seed=0, green=(0.10, 0.15, 0.05), trunk=0.17, bare=0.38):
    rng = np.random.default_rng((77, seed))
    lumps = [(vec(*(rng.uniform(-0.55, 0.55, 2) * spread).tolist(), 0)[[0, 2, 1]] + vec(0, height * (bare + (0.95 - bare) * h), 0), spread * (0.62 - 0.30 * h) * rng.uniform(0.8, 1.15))
             for h in np.linspace(0.22, 0.95, 9)]
    base, fork = vec(0, -0.2, 0), vec(0.1, height * 0.75, 0)
    def parts(p):
        stem = rod(p, base, fork, trunk * 1.3, trunk * 0.4)
        crown = np.full(len(p), 99, np.float32)
        for c, r in lumps: crown = np.minimum(crown, ball(p, c, r))
        near = crown < 0.6
        if near.any(): crown[near] += (noise(p[near] + x, 0.8, 4) - 0.40) * 0.8 + (noise(p[near] + x, 0.22, 2) - 0.5) * 0.55
        return stem, crown
    def distance(p): return np.minimum(*parts(p))
    def paint(p, n, eye, f):
        stem, crown = parts(p)
        leaf, grain = noise(p, 0.12, 3), noise(p * vec(6, 1, 6), 0.5, 4)
        f.albedo[:] = vec(*green) * (0.2 + 1.6 * leaf * (0.5 + noise(p, 1.2, 2)))[:, None]
        f.celsius[:] += 0.8 + 2.4 * (noise(p, 0.5, 4) - 0.5)
        wood = stem < crown
        f.albedo[wood] = vec(0.17, 0.12, 0.08) * (0.4 + 1.2 * grain[wood])[:, None]
        f.celsius[wood] += 1.6
    return Thing((0, height * 0.5, 0), max(height * 0.56, height * 0.45 + spread * 0.7), distance, paint, 0.0, (x, 0, z), step=0.55)


def bush(x, z, radius=0.8, seed=0, green=(0.09, 0.14, 0.05)):
    rng = np.random.default_rng((78, seed))
    lumps = [(vec(rng.uniform(-0.7, 0.7) * radius, rng.uniform(0.25, 0.75) * radius, rng.uniform(-0.5, 0.5) * radius), radius * rng.uniform(0.45, 0.7)) for _ in range(6)]
    def distance(p):
        d = np.full(len(p), 99, np.float32)
        for c, r in lumps: d = np.minimum(d, ball(p, c, r))
        near = d < 0.3
        if near.any(): d[near] += (noise(p[near] + z, 0.35, 4) - 0.4) * 0.5 * radius
        return d
    def paint(p, n, eye, f):
        f.albedo[:] = vec(*green) * (0.3 + 1.4 * noise(p, 0.08, 3))[:, None]
        f.celsius[:] += 0.5 + 2 * (noise(p, 0.3, 3) - 0.5)
    return Thing((0, radius * 0.5, 0), radius * 1.6, distance, paint, 0.0, (x, 0, z), step=0.55)


def street_lamp(x, z, reach=1.2, height=5.2, power=(80, 52, 22), glow=30.0):
    "(thing, lamp): a post with an arm of that reach (negative: to the left)."
    head = vec(reach, height, 0)
    def distance(p):
        d = np.minimum(rod(p, vec(0, 0, 0), vec(0, height, 0), 0.075, 0.05), rod(p, vec(0, height, 0), head, 0.045))
        return np.minimum(np.minimum(d, disc_rod(p, vec(0, 0.3, 0), 0.12, 0.3, 1)), egg(p, head, vec(0.34, 0.10, 0.16)))
    def paint(p, n, eye, f):
        f.albedo[:] = vec(0.10, 0.11, 0.11)
        below = (p[:, 1] < height - 0.02) & (np.abs(p[:, 0] - reach) < 0.3) & (n[:, 1] < -0.2)
        f.light[below] = unit(vec(*power)) * glow
        head_ = np.abs(p[:, 0] - reach) < 0.36
        f.celsius[head_ & (p[:, 1] > height - 0.2)] += 22
    return Thing((reach / 2, height / 2, 0), height * 0.56 + abs(reach) * 0.5, distance, paint, 0.0, (x, 0, z)), Lamp((x + reach, height - 0.14, z), power, 0.12, (0, -1, 0), 0.6)


def facade(seed, wall=(0.45, 0.22, 0.15), lit=0.35, shop=None, floor=3.0, bay=2.2, base=0.0):
    "Paint of a building: brickwork, windows in rows, some lit; a shop window along the ground floor if `shop` is its light."
    table = np.random.default_rng((79, seed)).random((64, 64, 2)).astype(np.float32)
    def paint(p, n, eye, f):
        across = np.where(np.abs(n[:, 0]) > 0.5, p[:, 2], p[:, 0])
        up = p[:, 1] - base
        stone = bricks(across, up, eye)
        f.albedo[:] = vec(*wall) * (0.35 + 1.3 * stone)[:, None] * (0.75 + 0.5 * noise(p, 2.5, 3))[:, None]
        f.celsius[:] += 2.5 + 1.6 * (noise(p, 3.0, 3) - 0.5) + 1.2 * (stone - 0.5)
        column, row = np.floor(across / bay).astype(int), np.floor(up / floor).astype(int)
        u, v = across / bay - column, up / floor - row
        window = (np.abs(u - 0.5) < 0.27) & (np.abs(v - 0.52) < 0.27) & (row >= (1 if shop is not None else 0))
        frame = window & ((np.abs(u - 0.5) > 0.245) | (np.abs(v - 0.52) > 0.25) | (np.abs(u - 0.5) < 0.012) | (np.abs(v - 0.62) < 0.010))
        sill = (np.abs(u - 0.5) < 0.31) & (np.abs(v - 0.235) < 0.02) & (row >= (1 if shop is not None else 0))
        band = np.abs(v - 0.985) < 0.02
        choice = table[column % 64, row % 64]
        on = window & (choice[:, 0] < lit)
        curtain = 0.45 + 0.55 * (np.abs(u - 0.5) < 0.14 + 0.1 * choice[:, 1])
        f.albedo[window], f.mirror[window], f.rough[window], f.emissivity[window] = 0.015, 0.08, 0.003, 0.84
        f.celsius[window] += 1.5
        colour = np.where(choice[:, 1:] < 0.75, vec(1.0, 0.62, 0.28), vec(0.75, 0.85, 1.0))
        f.light[on] = (colour * (curtain * (0.5 + choice[:, 1]))[:, None])[on] * 0.55
        f.celsius[on] += 2.5
        f.albedo[frame | sill | band], f.light[frame], f.mirror[frame | sill | band], f.emissivity[frame | sill | band] = 0.45, 0, 0, 0.93
        f.celsius[sill | frame] += 1.0
        if shop is not None:
            ground = row == 0
            glass = ground & (v > 0.16) & (v < 0.80) & (np.abs(u - 0.5) < 0.46)
            goods = noise(np.stack([across * 1.5, up * 3, across * 0], 1), 0.6, 3)
            f.light[glass] = vec(*shop) * (0.35 + 1.1 * goods * (up / floor < 0.62) + 0.5 * (up / floor >= 0.62))[glass, None]
            f.albedo[glass], f.mirror[glass], f.rough[glass], f.emissivity[glass] = 0.02, 0.07, 0.003, 0.85
            f.celsius[glass] += 4
            sign = ground & (v > 0.84) & (v < 0.97)
            f.albedo[sign], f.light[sign] = (0.05, 0.12, 0.10), vec(*shop) * 0.12
            dark = ground & ~glass & ~sign
            f.albedo[dark] = f.albedo[dark] * 0.35
    return paint


def road(gravel, wet=0.0, half=3.6, dashes=True, verge=None):
    "Paint of the ground: asphalt with markings inside `half` metres of the middle, `verge` (a paint) outside."
    def paint(p, n, eye, f):
        X, Z = p[:, 0], p[:, 2]
        grain = gravel(X / 1.2, Z / 1.2, eye**1.4 * 0.0016 / 1.2)[:, 0]
        worn = noise(p, 3.0, 4)
        f.albedo[:] = (0.045 + 0.09 * grain * (0.6 + 0.8 * worn))[:, None]
        f.celsius[:] += 3.0 + 1.2 * (worn - 0.5) + 0.5 * np.exp(-((np.abs(np.abs(X) - 1.8) - 0.75) / 0.3)**2)
        line = (np.abs(np.abs(X) - (half - 0.3)) < 0.07) & (worn > 0.30)
        if dashes: line |= (np.abs(X) < 0.07) & (np.mod(Z, 6) < 2.6) & (worn > 0.28)
        f.albedo[line] = 0.5
        f.celsius[line] -= 0.8
        if wet:
            pool = np.clip((noise(p + 40, 2.2, 3) - 0.42) * 7, 0, 1)
            f.albedo *= (1 - 0.45 * wet)
            f.mirror[:], f.rough[:] = wet * (0.012 + 0.03 * pool), 0.05 - 0.045 * pool
            f.celsius[:] -= 0.8 * pool * wet
        if verge is not None:
            out = np.abs(X) > half
            if out.any():
                part = Surface(int(out.sum()), f.celsius.mean())
                part.celsius = f.celsius[out] - 2
                verge(p[out], n[out], eye[out], part)
                for key, value in vars(part).items(): getattr(f, key)[out] = value
    return paint


def meadow(grass, green=(0.30, 0.42, 0.12), cool=0.0):
    def paint(p, n, eye, f):
        blade = grass(p[:, 0] / 1.6, p[:, 2] / 1.6, eye**1.4 * 0.0016 / 1.6)[:, 0]
        patch = noise(p, 2.5, 4)
        tuft = noise(p, 0.25, 3)
        f.albedo[:] = (vec(*green) + vec(0.14, 0.05, 0.02) * np.clip(patch * 3 - 1.4, 0, 1)[:, None]) * (0.1 + 1.5 * blade)[:, None] * (0.35 + 0.7 * patch + 0.6 * tuft)[:, None]
        f.celsius[:] += -cool + 3.0 * (blade - 0.4) + 2.0 * (patch - 0.5)
        f.mirror[:] = 0
    return paint


def woods(z, height=6.0, green=(0.07, 0.10, 0.04)):
    "The edge of a wood across the whole view."
    def distance(p): return np.maximum(block(p, vec(0, height / 2 - 1, 1.5), vec(90, height / 2, 1.5)), -9) + (noise(p, 2.6, 4) - 0.42) * 3.2
    def paint(p, n, eye, f):
        f.albedo[:] = vec(*green) * (0.2 + 1.7 * noise(p, 0.5, 4) * (p[:, 1] / height * 0.7 + 0.5))[:, None]
        f.celsius[:] += 1.2 + 2.4 * (noise(p, 1.5, 4) - 0.5)
    return Thing((0, height / 2, 0), 92, distance, paint, 0.0, (0, 0, z), step=0.5)


def plain(colour, warm=0.0, grain=0.4):
    def paint(p, n, eye, f):
        f.albedo[:] = vec(*colour) * (1 - grain / 2 + grain * noise(p, 0.5, 4))[:, None]
        f.celsius[:] += warm
    return paint


# ---------------------------------------------------------------- IVF: the same scene for two cameras

def textures():
    gray = lambda name: Picture(np.repeat(photograph(name).mean(-1, keepdims=True), 3, -1) / photograph(name).mean() * 0.45)
    return gray("gravel.png"), gray("grass.png")


def night_sky(low, high):
    def sky(d): return vec(*high) + (vec(*low) - vec(*high)) * np.exp(-np.maximum(d[:, 1:2], 0) * 5)
    return sky


def day_sky(d):
    flat = np.stack([d[:, 0], d[:, 1] * 0 + 3.1, d[:, 2]], 1) / (np.maximum(d[:, 1:2], 0) + 0.15)
    cloud = np.clip(noise(flat, 2.2, 5) * 3 - 1.35, 0, 1)[:, None]
    clear = vec(0.20, 0.38, 0.72) + (vec(0.66, 0.76, 0.88) - vec(0.20, 0.38, 0.72)) * np.exp(-np.maximum(d[:, 1:2], 0) * 4)
    return clear + (vec(0.95, 0.95, 0.96) - clear) * cloud * 0.8


def cold_sky(horizon, zenith):
    "A clear sky is cold overhead and nearly as warm as the air at the horizon."
    def sky(d): return (zenith + (horizon - zenith) * np.exp(-np.maximum(d[:, 1], 0) * 3.5)).astype(np.float32)
    return sky


def street_by_night():
    gravel, _ = textures()
    posts, lamps = zip(street_lamp(-4.4, 6.5), street_lamp(4.4, 15, -1.2), street_lamp(-4.4, 25), street_lamp(4.4, 36, -1.2))
    lamps = list(lamps) + [Lamp((-1.1 + s * 0.62, 0.7, 26.3), (900, 860, 760), 0.06, (0.02, -0.05, -1), 40) for s in (-1, 1)]
    lamps += [Lamp((-6.0, 1.8, 13.0), (14, 9, 4.5), 0.9, (1, -0.2, 0), 1)]
    things = [
        Box((-200, -1, -20), (200, 0, 200), road(gravel, wet=1.0)),
        Box((-7, 0, -20), (-3.7, 0.13, 120), plain((0.17, 0.165, 0.155), 3.5)), Box((3.7, 0, -20), (7, 0.13, 120), plain((0.17, 0.165, 0.155), 3.5)),
        Box((-20, 0, -4), (-7, 10.5, 8.6), facade(1, lit=0.25)), Box((-20, 0, 8.8), (-6.8, 13.4, 19), facade(2, (0.34, 0.30, 0.24), 0.35, shop=(1.0, 0.72, 0.38))),
        Box((-20, 0, 19.2), (-7.2, 10.4, 42), facade(3, (0.42, 0.2, 0.13), 0.3)),
        Box((7, 0, -4), (20, 13.4, 13), facade(4, (0.38, 0.33, 0.27), 0.3)), Box((7.1, 0, 13.3), (20, 10.4, 26), facade(5, (0.45, 0.2, 0.12), 0.3)),
        Box((7, 0, 26.2), (20, 13.4, 50), facade(6, (0.3, 0.27, 0.24), 0.35)), Box((-30, 0, 62), (30, 16.4, 70), facade(7, (0.35, 0.2, 0.15), 0.4)),
        *posts,
        car(2.55, 7.2, 0.0, (0.03, 0.06, 0.16), warm=0.0, rear=0.0), car(2.6, 13.3, 0.0, (0.42, 0.42, 0.43), warm=0.9, rear=0.0),
        car(-2.6, 14.5, np.pi, (0.25, 0.02, 0.02), rear=0), car(-1.1, 28.5, np.pi, (0.1, 0.1, 0.1), lights=60, warm=1),
        person(-5.3, 8.2, 2.9, 1.78, 0.34, (0.24, 0.05, 0.05)), person(5.3, 9.4, 0.3, 1.72, 0.3, (0.03, 0.03, 0.035), (0.03, 0.03, 0.04)),
        person(0.4, 10.6, 1.5, 1.80, 0.42, (0.05, 0.055, 0.06), (0.04, 0.04, 0.045)), person(5.0, 17.5, 3.3, 1.68, 0.3, (0.3, 0.28, 0.22)), person(5.6, 17.9, 3.2, 1.8, -0.3, (0.05, 0.07, 0.12)),
        tree(-5.6, 17.5, 6.5, 1.7, 3), tree(5.9, 22.5, 6, 1.6, 4),
    ]
    for t in things:
        if isinstance(t, Thing) and abs(t.at[0]) > 3.8: t.at[1] += 0.13; t.centre[1] += 0.13
    scene = Scene(things, lamps, night_sky((0.030, 0.024, 0.022), (0.006, 0.008, 0.016)), 8.0, (0.020, 0.022, 0.030), cold_sky(3, 0))  # overcast: clouds are warm
    return scene, dict(eye=(0.6, 2.6, -1.5), look=(0.1, 1.45, 10), focal=0.85), 3.4


def road_with_glare():
    gravel, grass = textures()
    rng = np.random.default_rng(9)
    trees = [tree(s * rng.uniform(7.0, 13), z, rng.uniform(6, 9), rng.uniform(1.7, 2.6), i) for i, (s, z) in enumerate((s, z) for z in (9, 15, 20, 27, 34) for s in (-1, 1))]
    lamps = [Lamp((s * 0.6, 0.65, 0.3), (420, 400, 360), 0.06, (0.02, -0.035, 1), 26) for s in (-1, 1)]
    lamps += [Lamp((-1.75 + s * 0.62, 0.7, 16.1), (1500, 1480, 1450), 0.06, (0.06, -0.03, -1), 30) for s in (-1, 1)]
    ground = meadow(grass, (0.22, 0.30, 0.10), cool=1.5)
    things = [Box((-200, -1, -20), (200, 0, 200), road(gravel, wet=0.5, verge=ground)), *trees, woods(62, 8.0),
              car(-1.75, 18.3, np.pi + 0.03, (0.12, 0.13, 0.15), lights=260, warm=1.0),
              person(-4.1, 13.6, 3.0, 1.75, 0.3, (0.05, 0.05, 0.06), (0.04, 0.045, 0.06)), person(2.9, 15.5, 0.2, 1.7, 0.36, (0.10, 0.09, 0.06), (0.05, 0.05, 0.07)),
              deer(5.9, 11.8, -2.0), deer(8.0, 19.5, -0.9), bush(-5.2, 10.2, 0.9, 1), bush(4.6, 15.8, 0.7, 2), bush(6.9, 8.6, 0.8, 3)]
    for i in range(14): things.append(post(-4.0 if i % 2 else 4.0, 4 + 6 * (i // 2)))
    scene = Scene(things, lamps, night_sky((0.010, 0.012, 0.018), (0.004, 0.005, 0.010)), 6.0, (0.008, 0.009, 0.012), cold_sky(1, -22))
    return scene, dict(eye=(0.2, 1.45, -0.5), look=(0.25, 1.35, 10), focal=0.9), 2.4


def post(x, z):
    def distance(p): return block(p, vec(0, 0.45, 0), vec(0.055, 0.5, 0.04), 0.02)
    def paint(p, n, eye, f):
        f.albedo[:] = 0.55
        f.albedo[(p[:, 1] > 0.68) & (p[:, 1] < 0.84)] = 0.02
        f.albedo[(p[:, 1] > 0.72) & (p[:, 1] < 0.80) & (np.abs(p[:, 0]) < 0.035)] = 2.5  # a reflector sends light back to its source
        f.celsius[:] -= 0.5
    return Thing((0, 0.45, 0), 0.55, distance, paint, 0.0, (x, 0, z))


def smoke_by_day():
    gravel, grass = textures()
    rng = np.random.default_rng(12)
    trees = [tree(x, z, h, s, i, g) for i, (x, z, h, s, g) in enumerate((
        (-6.5, 15, 8, 2.4, (0.10, 0.16, 0.04)), (-2.8, 24, 9, 2.8, (0.13, 0.17, 0.04)), (7.5, 17, 8.5, 2.6, (0.09, 0.15, 0.05)), (3.6, 27, 10, 3.0, (0.15, 0.17, 0.05)),
        (-11, 22, 9, 2.8, (0.11, 0.16, 0.05)), (12, 26, 9, 3.0, (0.12, 0.17, 0.05)), (-7, 32, 11, 3.2, (0.12, 0.16, 0.06)), (9, 36, 11, 3.4, (0.11, 0.15, 0.06)), (0.5, 38, 11, 3.4, (0.13, 0.16, 0.06))))]
    def fire_distance(p):
        d = np.full(len(p), 9, np.float32)
        for k in range(6):
            a = k * 1.05
            d = np.minimum(d, rod(p, vec(0.42 * np.cos(a), 0.06, 0.42 * np.sin(a)), vec(-0.06 * np.cos(a), 0.34, -0.06 * np.sin(a)), 0.05))
        for k in range(10):
            a = k * 0.63
            d = np.minimum(d, egg(p, vec(0.66 * np.cos(a), 0.06, 0.66 * np.sin(a)), vec(0.15, 0.12, 0.15)))
        return d
    def fire_paint(p, n, eye, f):
        r = np.hypot(p[:, 0], p[:, 2])
        stone = r > 0.5
        f.albedo[:] = vec(0.10, 0.07, 0.05)
        f.albedo[stone] = 0.32 * (0.6 + 0.8 * noise(p[stone], 0.2))[:, None]
        ember = np.exp(-((p[:, 1] - 0.10) / 0.13)**2) * (r < 0.4)
        f.light[:] = vec(3.0, 0.7, 0.1) * (ember * noise(p, 0.1)**2)[:, None]
        f.celsius[:] += 8 + 45 * np.exp(-r / 0.3)
    fire = Thing((0, 0.2, 0), 0.95, fire_distance, fire_paint, 0.0, (0.3, 0, 7.6))
    def log_distance(p): return rod(p, vec(-0.9, 0.2, 0), vec(0.9, 0.2, 0), 0.2, 0.18)
    def log_paint(p, n, eye, f):
        f.albedo[:] = vec(0.26, 0.19, 0.12) * (0.4 + 1.2 * noise(p * vec(1, 8, 8), 0.5, 4))[:, None]
        f.celsius[:] += 3
    logs = [Thing((0, 0.2, 0), 1.15, log_distance, log_paint, yaw, (x, 0, z)) for x, z, yaw in ((-1.9, 8.6, 1.2), (2.5, 8.0, -1.1))]
    tent = Thing((0, 0.8, 0), 1.9, lambda p: np.maximum(np.maximum((np.abs(p[:, 0]) * 0.80 + p[:, 1] * 0.60) - 0.86, np.abs(p[:, 2]) - 1.25), -p[:, 1]) + 0.03 * noise(p, 0.6, 2),
                 plain((0.48, 0.16, 0.035), 5.0, 0.5), 0.5, (-4.3, 0, 11.2), step=0.8)
    people = [person(0.9, 9.7, 3.3, 1.78, 0.2, (0.14, 0.16, 0.07), (0.10, 0.09, 0.06)), person(-0.7, 9.4, 2.9, 1.68, 0.15, (0.09, 0.13, 0.08), (0.08, 0.09, 0.12)),
              person(4.7, 12.5, -1.0, 1.8, 0.4, (0.10, 0.13, 0.05), (0.09, 0.10, 0.05), crouch=0.0)]
    things = [Box((-200, -1, -20), (200, 0, 200), meadow(grass, (0.26, 0.36, 0.11), cool=-1.5)), *trees, woods(52, 7.0, (0.10, 0.14, 0.05)), fire, *logs, tent, *people,
              bush(4.3, 11.4, 0.95, 5, (0.09, 0.14, 0.05)), bush(5.4, 11.8, 0.85, 6, (0.10, 0.15, 0.05)), bush(-7.4, 12.6, 1.0, 7), bush(7.6, 13.6, 1.2, 8), deer(-3.2, 19.0, 1.3)]
    sun = Lamp((-200, 160, -20), (2.7e5, 2.4e5, 1.9e5), 1.6)
    smoke = []
    for k in range(16):  # rises, drifts to the right, widens and thins
        h = 0.3 + 0.27 * k
        smoke.append(((0.3 + 0.16 * h + 0.05 * h**2 + rng.normal(0, 0.05 + 0.05 * h), h, 7.6 + 0.25 * h + rng.normal(0, 0.1)), 0.20 + 0.13 * h, 2.6 / (1 + 0.5 * h), (0.66, 0.67, 0.69)))
    smoke += [((0.75, 1.15, 8.6), 0.55, 1.5, (0.62, 0.63, 0.65)), ((-0.1, 0.9, 8.5), 0.45, 1.1, (0.62, 0.63, 0.65)), ((1.1, 1.6, 8.8), 0.5, 1.5, (0.66, 0.67, 0.69))]
    scene = Scene(things, [sun], day_sky, 11.0, (0.50, 0.60, 0.78), cold_sky(7, -5), smoke)
    return scene, dict(eye=(0.0, 1.7, 0.0), look=(0.1, 1.55, 10), focal=0.95), 0.62


def make_ivf():
    for number, (name, make) in enumerate([("street", street_by_night), ("glare", road_with_glare), ("smoke", smoke_by_day)]):
        scene, view, gain = make()
        light, heat = render(scene, WIDTH, HEIGHT, **view, samples=SAMPLES, seed=(4, number))
        rng = np.random.default_rng((5, number))
        yield name, thermal(heat, rng, high=98.8 if name == "smoke" else 99.7), expose(lens_glare(light), gain, rng, full_well=4000)


# ---------------------------------------------------------------- MFF: two rendered scenes through a thin lens

def sheet(picture, width, height, thick=0.002, border=(0.7, 0.7, 0.68), reflect=0.9):
    "Distance and paint of an upright plate with a picture on its front (-z)."
    half = vec(width / 2, height / 2, thick)
    def distance(p): return block(p, vec(0, height / 2, 0), half, 0.0005)
    def paint(p, n, eye, f):
        f.albedo[:] = border
        front = p[:, 2] < -thick * 0.5
        f.albedo[front] = reflect * picture((p[front, 0] / width + 0.5) * 0.999, (1 - p[front, 1] / height) * 0.999 * picture.levels[0].shape[0] / picture.levels[0].shape[1], eye[front] * 0.002 / width)
    return distance, paint, (0, height / 2, 0), 0.6 * np.hypot(width, height)


def desk():
    cat = Picture(photograph("chelsea.png"))
    card = np.full((300, 600, 3), 235, np.uint8)
    for line, (text, size, thick) in enumerate([("Two pictures, one desk", 1.5, 4), ("one is sharp where it is near,", 1.12, 2), ("one where it is far. Fused:", 1.12, 2), ("both can be read at once.", 1.12, 2)]):
        cv2.putText(card, text, (22, 70 + 66 * line), cv2.FONT_HERSHEY_SIMPLEX, size, (30, 30, 35), thick, cv2.LINE_AA)
    page = Picture(to_linear(card / np.float32(255)))
    def table(p, n, eye, f):
        board = np.floor(p[:, 0] / 0.14)
        q = p + board[:, None] * vec(3.1, 0, 7.7)
        grain = noise(q * vec(9, 1, 0.7), 0.10, 5)
        rings = 0.5 + 0.5 * np.sin(60 * q[:, 0] + 14 * noise(q * vec(1, 1, 0.25), 0.25, 2))
        f.albedo[:] = vec(0.46, 0.24, 0.11) * (0.35 + 0.75 * grain + 0.25 * rings + 0.3 * (LATTICE[board.astype(int) % 64, 3, 5] - 0.5))[:, None]
        f.albedo[np.abs(p[:, 0] / 0.14 - board - 0.5) > 0.491] *= 0.25
        f.mirror[:], f.rough[:] = 0.02, 0.05
    def wall(p, n, eye, f): f.albedo[:] = vec(1.05, 0.62, 0.45) * bricks(p[:, 0], p[:, 1], eye, 0.22, 0.07)[:, None]
    def mug(p):
        body = np.maximum(disc_rod(p, vec(0, 0.05, 0), 0.042, 0.05, 1, 0.004), -disc_rod(p, vec(0, 0.062, 0), 0.037, 0.05, 1, 0.004))
        q = p - vec(0.045, 0.05, 0)
        ring = np.hypot(np.hypot(q[:, 0], q[:, 1]) - 0.024, q[:, 2]) - 0.0055
        return np.minimum(body, np.maximum(ring, -(q[:, 0] + 0.006)))
    def glaze(p, n, eye, f):
        f.albedo[:] = (0.55, 0.06, 0.03)
        f.albedo[(np.abs(p[:, 1] - 0.055) < 0.017) & (np.mod(np.arctan2(p[:, 2], p[:, 0]) * 6 / np.pi, 1) < 0.5)] = (0.85, 0.80, 0.70)
        f.albedo[np.hypot(p[:, 0], p[:, 2]) < 0.0385] = (0.75, 0.72, 0.66)
        f.mirror[:], f.rough[:] = 0.03, 0.01
    def globe(p, n, eye, f):
        q = p - vec(0, 0.17, 0)
        height = noise(q + 3, 0.13, 6)
        land, ice = height > 0.54, np.abs(q[:, 1]) > 0.094 + 0.02 * (height - 0.5)
        f.albedo[:] = (0.05, 0.16, 0.34)
        f.albedo[land] = vec(0.42, 0.36, 0.16) + (vec(0.12, 0.28, 0.08) - vec(0.42, 0.36, 0.16)) * np.clip(6 * height[land] - 3.3, 0, 1)[:, None]
        f.albedo[ice] = 0.75
        f.albedo[np.abs(np.mod(np.arctan2(q[:, 0], q[:, 2]) * 6 / np.pi, 1) - 0.5) > 0.485] *= 0.55
        f.mirror[:], f.rough[:] = 0.03, 0.03
        foot = p[:, 1] < 0.058
        f.albedo[foot], f.mirror[foot] = (0.35, 0.22, 0.08), 0.08
    things = [Box((-6, -1, -6), (6, 0, 6), table), Box((-6, -1, 1.75), (6, 5, 3), wall),
              Thing((0, 0.05, 0), 0.10, mug, glaze, 0.5, (0.135, 0, 0.03)),
              Thing((0, 0.15, 0), 0.2, lambda p: np.minimum(ball(p, vec(0, 0.17, 0), 0.11), np.minimum(disc_rod(p, vec(0, 0.012, 0), 0.06, 0.012, 1, 0.004), rod(p, vec(0, 0, 0), vec(0, 0.07, 0), 0.012))), globe, 0.3, (0.33, 0, 1.18))]
    distance, paint, centre, radius = sheet(page, 0.28, 0.14)
    things.append(Thing(centre, radius, distance, paint, -0.22, (-0.12, 0.0, 0.02)))
    distance, paint, centre, radius = sheet(cat, 0.46, 0.46 * 300 / 451, 0.006)
    things.append(Thing(centre, radius, distance, paint, 0.0, (-0.02, 0.30, 1.742)))
    frame = lambda p: np.maximum(block(p, vec(0, 0.153, 0), vec(0.255, 0.178, 0.012), 0.004), -block(p, vec(0, 0.153, -0.01), vec(0.228, 0.151, 0.05)))
    things.append(Thing((0, 0.15, 0), 0.34, frame, plain((0.10, 0.07, 0.05), 0, 0.6), 0.0, (-0.02, 0.30, 1.738)))
    rng = np.random.default_rng(21)
    x = -0.62
    for k, colour in enumerate([(0.30, 0.05, 0.04), (0.05, 0.12, 0.25), (0.45, 0.38, 0.22), (0.06, 0.2, 0.11), (0.5, 0.28, 0.05), (0.15, 0.15, 0.17), (0.4, 0.08, 0.10), (0.1, 0.25, 0.3)]):
        thick, tall = rng.uniform(0.014, 0.028), rng.uniform(0.17, 0.25)
        def spine(p, n, eye, f, colour=colour, tall=tall, thick=thick):
            f.albedo[:] = colour
            gold = (np.abs(p[:, 1] - tall * 0.85) < 0.004) | (np.abs(p[:, 1] - tall * 0.15) < 0.004) | ((np.abs(p[:, 0]) < thick * 0.5) & (np.abs(p[:, 1] - tall * 0.5) < tall * 0.22) & (np.mod(p[:, 1] * 90, 1) < 0.55) & (noise(p * vec(1, 3, 0), 0.02, 1) > 0.42))
            f.albedo[gold & (n[:, 2] < -0.5)] = (0.75, 0.6, 0.25)
            f.albedo[n[:, 1] > 0.5] = 0.6
        things.append(Thing((0, tall / 2, 0), tall * 0.75, lambda p, thick=thick, tall=tall: block(p, vec(0, tall / 2, 0.07), vec(thick, tall / 2, 0.085), 0.003), spine, 0.0, (x + thick, 0, 1.25)))
        x += 2 * thick + 0.002
    def leaf_distance(p):
        d = disc_rod(p, vec(0, 0.035, 0), 0.045, 0.035, 1, 0.006)
        for k in range(9):
            a = 2.4 * k
            tip = vec(0.10 * np.cos(a) * (0.5 + 0.06 * k), 0.13 + 0.012 * k, 0.10 * np.sin(a) * (0.5 + 0.06 * k))
            d = np.minimum(d, rod(p, vec(0, 0.06, 0), tip, 0.005, 0.012))
            d = np.minimum(d, egg(p, tip, vec(0.024, 0.012, 0.024)))
        return d
    def leaf_paint(p, n, eye, f):
        f.albedo[:] = vec(0.10, 0.24, 0.06) * (0.5 + noise(p, 0.02, 2))[:, None]
        f.albedo[p[:, 1] < 0.072] = (0.42, 0.20, 0.12)
    things.append(Thing((0, 0.1, 0), 0.17, leaf_distance, leaf_paint, 0.0, (-0.235, 0, 0.16)))
    lamps = [Lamp((-1.6, 1.9, -0.6), (5.2, 4.9, 4.4), 0.35), Lamp((1.5, 1.4, 0.7), (1.5, 1.2, 0.9), 0.2)]
    scene = Scene(things, lamps, lambda d: np.full((len(d), 3), 0.35, np.float32), 20.0, (0.34, 0.35, 0.38), lambda d: np.full(len(d), 20, np.float32))
    return scene, dict(eye=(0, 0.30, -0.58), look=(0.02, 0.145, 0.6), focal=0.98, aperture=0.011), (0.62, 1.9), 2.2


def fence():
    gravel, grass = textures()
    plate = np.full((150, 240, 3), (238, 206, 62), np.uint8)
    cv2.rectangle(plate, (7, 7), (232, 142), (36, 36, 36), 4)
    for text, y, size in (("PRIVATE", 62, 1.45), ("NO PARKING", 112, 1.02)):
        (w, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 4)
        cv2.putText(plate, text, (120 - w // 2, y), cv2.FONT_HERSHEY_SIMPLEX, size, (36, 36, 36), 4, cv2.LINE_AA)
    mesh, wire = 0.075, 0.0032
    def fence_distance(p):
        u, v = (p[:, 0] + p[:, 1]) / 2**0.5, (p[:, 0] - p[:, 1]) / 2**0.5
        fold = lambda w: np.mod(w + mesh / 2, mesh) - mesh / 2
        weave = 0.004 * np.cos(np.pi * (u + v) / mesh)
        net = np.minimum(np.hypot(fold(u), p[:, 2] - weave), np.hypot(fold(v), p[:, 2] + weave)) - wire
        net = np.maximum(net, p[:, 1] - 2.0)
        rail = np.hypot(p[:, 1] - 2.0, p[:, 2]) - 0.02
        posts = np.hypot(np.mod(p[:, 0] + 0.62 + 1.1, 2.2) - 1.1, p[:, 2] - 0.03) - 0.026
        return np.minimum(np.minimum(net, rail), posts)
    def fence_paint(p, n, eye, f): f.albedo[:], f.mirror[:], f.rough[:] = 0.42, 0.12, 0.2
    distance, paint, centre, radius = sheet(Picture(to_linear(plate / np.float32(255))), 0.40, 0.25, 0.003)
    things = [Box((-200, -1, -20), (200, 0, 200), road(gravel, half=300, dashes=False)), Box((-60, 0, 13), (60, 9.4, 20), facade(8, (0.62, 0.30, 0.20), 0.0, base=0.1)),
              Box((-60, 0, 11.2), (60, 0.14, 13), plain((0.36, 0.35, 0.33))),
              Thing((0, 1, 0), 4.0, fence_distance, fence_paint, 0.0, (0, 0, 1.25), step=0.8), Thing(centre, radius, distance, paint, 0.03, (-0.13, 1.24, 1.235)),
              car(0.9, 9.0, 1.45, (0.55, 0.03, 0.02), rear=0.0), car(-4.6, 9.3, 1.60, (0.03, 0.10, 0.30), rear=0.0), tree(-3.0, 11.9, 6.5, 1.9, 11, (0.14, 0.20, 0.05)), tree(5.6, 12.0, 6.0, 1.7, 12, (0.16, 0.20, 0.05)),
              person(3.2, 11.8, 2.4, 1.75, 0.35, (0.08, 0.28, 0.35)), bush(-5.6, 12.2, 0.7, 13)]
    sun = Lamp((-140, 190, -110), (2.6e5, 2.4e5, 2.0e5), 1.4)
    scene = Scene(things, [sun], day_sky, 18.0, (0.55, 0.63, 0.78), cold_sky(10, -10))
    return scene, dict(eye=(0, 1.55, 0), look=(0.0, 1.42, 5), focal=1.05, aperture=0.0125), (1.22, 9.0), 1.05


def make_mff():
    image, disparity = motorcycle()
    near, far = np.percentile(disparity[290:], 90), np.percentile(disparity[:217], 30)
    yield "motorcycle", *(expose(shrink(refocus(image, disparity, focus, 0.2), 512), 0.98, np.random.default_rng((2, i))) for i, focus in enumerate((near, far)))
    for number, (name, make) in enumerate([("desk", desk), ("fence", fence)]):
        scene, view, depths, gain = make()
        yield name, *(expose(render(scene, WIDTH, HEIGHT, **view, focus=focus, samples=LENS_SAMPLES, seed=(6, number, i))[0], gain, np.random.default_rng((7, number, i)))
                      for i, focus in enumerate(depths))


# ---------------------------------------------------------------- writing

MAKERS = dict(ivf=make_ivf, mif=make_mif, mef=make_mef, mff=make_mff)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Origin and licence of every picture: data/NOTICE.md")
    parser.add_argument("--task", choices=TASKS, action="append", help="make this task only (may be given more than once)")
    parser.add_argument("--out", type=Path, default=DATA, help="data root to write below (default: the folder of this script)")
    options = parser.parse_args()
    total = 0
    for task in options.task or TASKS:
        folder, names = options.out/"Image"/TASKS[task].folder/"Sample", []
        start = time.perf_counter()
        for name, *images in MAKERS[task]():
            for modality, image in zip(TASKS[task].modalities, images, strict=True):
                path = folder/modality/f"{name}{'.jpg' if image.ndim == 3 and task != 'mif' else '.png'}"
                write_image(path, image)
                total += path.stat().st_size
            names.append(name)
            print(f"{task}: {name}, {images[0].shape[1]}x{images[0].shape[0]}, {time.perf_counter() - start:.0f} s")
        for split, members in (("test", names), ("train", names[:-1])):
            with atomic_write(folder/f"{split}.txt") as temporary: temporary.write_text("".join(f"{name}\n" for name in members))
    print(f"{total / 1e6:.2f} MB in {options.out/'Image'}")


if __name__ == "__main__":
    try: main()
    except FilmError as e: sys.exit(f"error: {e}")
