"""Copies have near hashes and small differences; other photographs, other brightness and small defects have not."""

import io
import itertools

import numpy as np
from PIL import Image, ImageEnhance
import pytest

from boardrec.data import images, perceptual


def picture(seed=0, size=(375, 500)):
    """Large shapes and some noise, as a Pillow image."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (7, 9, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(shapes) + random.normal(0, 6, (*size, 3)), 0, 255).astype(np.uint8))


def thumbnail(image):
    data = io.BytesIO()
    image.save(data, 'PNG')
    return images.thumbnail(data.getvalue())


def bits(one, other):
    return (perceptual.hash_of(np.asarray(one)) ^ perceptual.hash_of(np.asarray(other))).bit_count()


def encoded(image, quality):
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=quality)
    return Image.open(data)


COPIES = {
    'jpeg 50': lambda image: encoded(image, 50), 'jpeg 95': lambda image: encoded(image, 95),
    'a quarter': lambda image: image.resize((125, 94)), 'twice': lambda image: image.resize((1000, 750)),
    'squashed': lambda image: image.resize((224, 224)),
    'brighter': lambda image: ImageEnhance.Brightness(image).enhance(1.04),
    'darker': lambda image: ImageEnhance.Brightness(image).enhance(0.96),
}


@pytest.mark.parametrize('copy', COPIES)
@pytest.mark.parametrize('seed', range(3))
def test_a_copy_is_the_same_photograph(copy, seed):
    image = picture(seed)
    assert bits(image, COPIES[copy](image)) <= perceptual.MOST_BITS
    assert perceptual.difference(thumbnail(image), thumbnail(COPIES[copy](image))) <= perceptual.SAME


def test_other_photographs_are_not():
    pictures = [picture(seed) for seed in range(10)]
    thumbnails = [thumbnail(image) for image in pictures]
    pairs = list(itertools.combinations(pictures, 2))
    assert 28 < np.mean([bits(*pair) for pair in pairs]) < 36, 'as of random bits'
    assert min(bits(*pair) for pair in pairs) > perceptual.MOST_BITS
    assert min(itertools.starmap(perceptual.difference, itertools.combinations(thumbnails, 2))) > 3 * perceptual.SAME


def test_a_scratch_is_a_difference():
    image = picture()
    pixels = np.array(image)
    pixels[100:220, 200:206] = 0
    scratched = Image.fromarray(pixels)
    assert bits(image, scratched) <= perceptual.MOST_BITS, 'a candidate'
    assert perceptual.difference(thumbnail(image), thumbnail(scratched)) > perceptual.SAME


@pytest.mark.parametrize('value', [0, 1, 77, 255])
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (96, 96), (193, 1000), (375, 500)])
def test_an_even_image_has_the_hash_zero(value, size):
    assert perceptual.hash_of(np.full((*size, 3), value, np.uint8)) == 0


def test_even_images_are_the_same_if_they_are_about_as_bright():
    def even(*colour):
        return np.broadcast_to(np.array(colour, np.uint8), (perceptual.THUMBNAIL, perceptual.THUMBNAIL, 3))

    assert perceptual.difference(even(0, 0, 0), even(1, 1, 1)) == 0
    assert perceptual.difference(even(0, 0, 0), even(255, 255, 255)) == np.inf
    assert perceptual.difference(even(200, 0, 0), even(0, 0, 200)) > 1


def test_much_brighter_or_flatter_is_no_copy():
    image = picture()
    for change in (ImageEnhance.Brightness(image).enhance(0.8), ImageEnhance.Contrast(image).enhance(0.7)):
        assert perceptual.difference(thumbnail(image), thumbnail(change)) == np.inf


def test_the_difference_is_the_same_either_way():
    a, b = thumbnail(picture()), thumbnail(encoded(picture(), 50))
    assert perceptual.difference(a, b) == perceptual.difference(b, a) > 0
    assert perceptual.difference(a, a) == 0


@pytest.mark.parametrize('size', [(48, 64), (100, 640), (3000, 500)])
@pytest.mark.parametrize('part', [0, 1, 2, 3])
def test_the_hash_looks_at_the_whole_image_whatever_its_size(size, part):
    one, other = (np.array(picture(seed, size)) for seed in (0, 1))
    top, left = part // 2 * size[0] // 2, part % 2 * size[1] // 2
    place = slice(top, top + size[0] // 2), slice(left, left + size[1] // 2)
    changed = one.copy()
    changed[place] = other[place]
    assert bits(one, changed) > perceptual.MOST_BITS / 2
    assert bits(one, one[::2, ::2]) <= perceptual.MOST_BITS


def test_the_hash_is_exact():
    """Changes are changes of journals: raise VERSION. Sums are of integers, so any machine comes to these."""
    ramp = (np.arange(375)[:, np.newaxis] * 3 + np.arange(500)**2 // 700) % 256
    assert perceptual.hash_of(np.repeat(ramp[..., np.newaxis], 3, axis=2).astype(np.uint8)) == HASH


HASH = 39005744771727701
