"""Whether two images are the same photograph: a hash of 64 bits to find candidates, a measure of pixels to decide.

In: decoded images, uint8. The hash is the signs of an image's 64 lowest frequencies, so that re-encoding, resizing and
a little brightness flip few of its bits. Different photographs may share it too; `difference` tells them apart.
"""

import functools

import numpy as np

THUMBNAIL = 24  # pixels a side of what `difference` compares; larger ones show what JPEG does to small copies
VERSION = 1  # raise it with every change of what is the same photograph
MOST_BITS = 8  # of 64 in which the hashes of copies differ, but for one copy in 250
SAME = 0.13  # differences up to this are those of copies: see BUILD.md

_SAMPLES = 96  # rows and columns that the hash looks at, at least, if there are so many
_SCALE = 256  # cosines become integers, so that sums are exact in float32 (255 * 256 * 191 < 2**24) in any order
_TILES = 8  # a side
_LEAST_CONTRAST = 2.0  # grey levels; what is flatter differs by noise alone
_MOST_BRIGHTER, _MOST_CONTRAST = 0.1, 1.25

# The 64 lowest frequencies (vertical, horizontal) of a square, but for the mean.
_FREQUENCIES = np.array(sorted(((y, x) for y in range(10) for x in range(10) if y + x),
                               key=lambda at: (at[0]**2 + at[1]**2, at))[:64])
_COUNT = _FREQUENCIES.max() + 1
_PLACES = _FREQUENCIES @ [_COUNT, 1]


def hash_of(pixels: np.ndarray) -> int:
    """The perceptual hash of an image, uint8 [H, W, 3]: 64 bits, the same on each machine.

    Takes about 20 us, because it looks at some ten thousand of the pixels, and at green alone.
    """
    (height, width), steps = pixels.shape[:2], [max(1, size // _SAMPLES) for size in pixels.shape[:2]]
    green = pixels[steps[0] // 2::steps[0], steps[1] // 2::steps[1], 1].astype(np.float32)
    amplitudes = (_cosines(height, steps[0]) @ green).astype(np.float64) @ _cosines(width, steps[1]).T
    return int.from_bytes(np.packbits(amplitudes.take(_PLACES) > 0).tobytes(), 'big')


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """How much two thumbnails, uint8 [THUMBNAIL, THUMBNAIL, 3], differ: 0 if they are equal, infinite if one is
    brighter or has more contrast by more than a copy would.

    Both are brought to the same mean and contrast; what counts is the tile that differs most (its root mean square, in
    units of the contrast), for a scratch on one of two alike parts is small.
    """
    (mean, contrast, a), (other_mean, other_contrast, b) = _standardised(one), _standardised(other)
    if (abs(mean - other_mean) > _MOST_BRIGHTER * max(mean, other_mean) + _LEAST_CONTRAST
            or max(contrast, other_contrast) > _MOST_CONTRAST * min(contrast, other_contrast)):
        return float('inf')
    side = THUMBNAIL // _TILES
    squares = ((a - b)**2).reshape(_TILES, side, _TILES, side, 3)
    return float(np.sqrt(squares.mean((1, 3, 4)).max()))


def _standardised(thumbnail: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Mean, contrast, and the thumbnail without them, float32."""
    mean = float(thumbnail.mean(dtype=np.float64))
    contrast = max(_LEAST_CONTRAST, float(thumbnail.std(dtype=np.float64)))
    return mean, contrast, (thumbnail.astype(np.float32) - np.float32(mean)) / np.float32(contrast)


@functools.lru_cache(maxsize=1024)
def _cosines(size: int, step: int) -> np.ndarray:
    """The cosines of each frequency at every step-th of `size` pixels: whole numbers, float32 [frequencies, samples].

    Each but the first sums to zero, so that an even image has no amplitudes.
    """
    at = (np.arange(step // 2, size, step) + 0.5) / size
    waves = np.cos(np.pi * np.arange(_COUNT)[:, np.newaxis] * at)
    waves[1:] -= waves[1:].mean(axis=1, keepdims=True)
    waves = np.round(waves * _SCALE)
    for wave in waves[1:]:
        rest = int(wave.sum())
        wave[:abs(rest)] -= np.sign(rest)
    return waves.astype(np.float32)
