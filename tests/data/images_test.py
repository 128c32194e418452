"""The same bytes are the same pixels everywhere, and they are the pixels that a viewer shows.

Expected pixels are computed here with NumPy from the array that was encoded, or with Pillow from the file.
"""

import io
import pathlib
import shutil
import struct
import zlib

import keras
import matplotlib
import numpy as np
from PIL import EpsImagePlugin, Image, ImageFile
import pytest
import sklearn.datasets
import tensorflow as tf

from boardrec.data import images
from boardrec.data.records import KEEP, Storage

HEIGHT, WIDTH = 40, 48
RANDOM = np.random.default_rng(20)
NOISE = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
ALPHA = RANDOM.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(
    np.linspace(20, 230, WIDTH)[None], np.linspace(200, 40, HEIGHT)[:, None], 90), -1).astype(np.uint8)
PALETTE = RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)


def encoded(image, file_format, **options):
    output = io.BytesIO()
    image.save(output, file_format, **options)
    return output.getvalue()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, *, depth, colour_type, rows, extra=b''):
    """A PNG written by hand, for kinds that Pillow does not write. `rows` is packed pixels, [H, bytes a row]."""
    data = b''.join(b'\0' + bytes(row) for row in rows)
    header = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, 0)
    return (images.PNG_MAGIC + chunk(b'IHDR', header) + extra + chunk(b'IDAT', zlib.compress(data))
            + chunk(b'IEND', b''))


def rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def as_indexed(indices, **options):
    image = Image.fromarray(indices, 'P')
    image.putpalette(PALETTE.tobytes())
    return encoded(image, **options)


def pixels(data):
    """What `decode` makes of normalised bytes in their own size, int [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return images.decode(tf.constant(data), height, width).numpy().astype(int)


def exif(orientation):
    values = Image.Exif()
    values[0x0112] = orientation
    return values.tobytes()


def pillow_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert('RGB'))


# Kinds that TensorFlow decodes rightly: kept byte for byte.
KEPT = {
    'RGB JPEG': encoded(Image.fromarray(NOISE), 'JPEG'),
    'grey JPEG': encoded(Image.fromarray(GREY), 'JPEG'),
    'progressive JPEG': encoded(Image.fromarray(SMOOTH), 'JPEG', progressive=True),
    'JPEG without subsampling': encoded(Image.fromarray(NOISE), 'JPEG', subsampling=0, quality=95),
    'upright JPEG': encoded(Image.fromarray(NOISE), 'JPEG', exif=exif(1)),
    'JPEG and more bytes': encoded(Image.fromarray(NOISE), 'JPEG') + b'more bytes',
    'RGB PNG': encoded(Image.fromarray(NOISE), 'PNG'),
    'grey PNG': encoded(Image.fromarray(GREY), 'PNG'),
    'palette PNG': as_indexed(GREY, file_format='PNG'),
    'upright PNG': encoded(Image.fromarray(NOISE), 'PNG', exif=exif(1)),
    'PNG with a text': encoded(Image.fromarray(NOISE), 'PNG')[:-12] + chunk(b'tEXt', b'Comment\0eXIf')
                       + chunk(b'IEND', b''),
}


@pytest.mark.parametrize('kind', KEPT)
def test_what_tensorflow_decodes_rightly_is_kept_byte_for_byte(kind):
    data = KEPT[kind]
    assert images.normalise(data) == data
    # Decoders of JPEG may differ in the last bit of the colour conversion.
    assert np.abs(pixels(data) - pillow_pixels(data)).max() <= (1 if data.startswith(images.JPEG_MAGIC) else 0)


WIDE = RANDOM.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
WIDE[0, :4] = 0, 128, 129, 65535
WIDE_RGB = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
WIDE_ROWS = WIDE_RGB.astype('>u2').reshape(HEIGHT, -1).view(np.uint8)
BITS = GREY > 127
INDEX_4 = GREY >> 4
FRAMES = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]

# Kinds that it does not: (bytes, expected pixels, how far a pixel may be off).
REMADE = {
    '16-bit grey PNG': (encoded(Image.fromarray(WIDE), 'PNG'), rgb(np.round(WIDE / 257)), 0),
    '16-bit RGB PNG': (png(WIDTH, HEIGHT, depth=16, colour_type=2, rows=WIDE_ROWS), WIDE_RGB / 257, 1),
    '16-bit grey TIFF': (encoded(Image.fromarray(WIDE), 'TIFF'), rgb(np.round(WIDE / 257)), 0),
    '1-bit PNG': (png(WIDTH, HEIGHT, depth=1, colour_type=0, rows=np.packbits(BITS, axis=1)), rgb(BITS * 255), 0),
    '4-bit palette PNG': (png(WIDTH, HEIGHT, depth=4, colour_type=3, rows=INDEX_4[:, ::2] << 4 | INDEX_4[:, 1::2],
                              extra=chunk(b'PLTE', PALETTE[:16].tobytes())), PALETTE[INDEX_4], 0),
    'palette PNG with a transparent colour': (
        as_indexed(GREY, file_format='PNG', transparency=7), over_white(PALETTE[GREY], np.where(GREY == 7, 0, 255)), 0),
    'palette PNG with alpha': (
        as_indexed(GREY, file_format='PNG', transparency=bytes(range(256))), over_white(PALETTE[GREY], GREY), 1),
    'grey PNG with a transparent shade': (
        encoded(Image.fromarray(GREY), 'PNG', transparency=9), over_white(rgb(GREY), np.where(GREY == 9, 0, 255)), 0),
    'RGB PNG with a transparent colour': (
        encoded(Image.fromarray(NOISE), 'PNG', transparency=tuple(int(n) for n in NOISE[3, 5])),
        np.where((NOISE == NOISE[3, 5]).all(-1, keepdims=True), 255, NOISE), 0),
    'RGBA PNG': (encoded(Image.fromarray(np.dstack([NOISE, ALPHA])), 'PNG'), over_white(NOISE, ALPHA), 1),
    'grey PNG with alpha': (
        encoded(Image.fromarray(np.dstack([GREY, ALPHA]), 'LA'), 'PNG'), over_white(rgb(GREY), ALPHA), 1),
    'animated PNG': (encoded(FRAMES[0], 'PNG', save_all=True, append_images=FRAMES[1:]), NOISE, 0),
    'GIF': (as_indexed(GREY, file_format='GIF'), PALETTE[GREY], 0),
    'GIF with a transparent colour': (
        as_indexed(GREY, file_format='GIF', transparency=7), over_white(PALETTE[GREY], np.where(GREY == 7, 0, 255)), 0),
    'animated GIF': (
        encoded(Image.fromarray(GREY), 'GIF', save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        rgb(GREY), 0),
    'WebP': (encoded(Image.fromarray(NOISE), 'WEBP', lossless=True), NOISE, 0),
    'WebP with alpha': (
        encoded(Image.fromarray(np.dstack([NOISE, ALPHA])), 'WEBP', lossless=True, exact=True),
        over_white(NOISE, ALPHA), 1),
    'animated WebP': (encoded(FRAMES[0], 'WEBP', lossless=True, save_all=True, append_images=FRAMES[1:]), NOISE, 0),
    'BMP': (encoded(Image.fromarray(NOISE), 'BMP'), NOISE, 0),
    'palette BMP': (as_indexed(GREY, file_format='BMP'), PALETTE[GREY], 0),
    '1-bit BMP': (encoded(Image.fromarray(BITS), 'BMP'), rgb(BITS * 255), 0),
    'TIFF': (encoded(Image.fromarray(NOISE), 'TIFF'), NOISE, 0),
    'compressed TIFF': (encoded(Image.fromarray(NOISE), 'TIFF', compression='tiff_lzw'), NOISE, 0),
    'TIFF of two pages': (encoded(FRAMES[0], 'TIFF', save_all=True, append_images=FRAMES[1:]), NOISE, 0),
}


@pytest.mark.parametrize('kind', REMADE)
def test_every_other_kind_becomes_an_rgb_png_of_the_same_picture(kind):
    data, expected, tolerance = REMADE[kind]
    made = images.normalise(data)
    assert made != data
    assert made.startswith(images.PNG_MAGIC)
    with Image.open(io.BytesIO(made)) as image:
        assert (image.mode, image.info.get('transparency')) == ('RGB', None)
    assert np.abs(pixels(made) - expected).max() <= tolerance
    assert images.normalise(made) == made


def test_a_cmyk_jpeg_shows_its_colours():
    inks = np.dstack([255 - SMOOTH, np.zeros_like(GREY)])  # without black, ink is what white lacks
    data = encoded(Image.fromarray(inks, 'CMYK'), 'JPEG', quality=100)
    assert Image.open(io.BytesIO(data)).mode == 'CMYK'
    made = images.normalise(data)
    assert made.startswith(images.PNG_MAGIC)
    assert np.abs(pixels(made) - SMOOTH).max() <= 4  # JPEG of quality 100, smooth


UPRIGHT = {  # EXIF 2.32, 4.6.4 A, tag 274: where the stored rows and columns belong
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_orientation_is_applied(orientation, file_format):
    options = {'WEBP': {'lossless': True}}.get(file_format, {})
    data = encoded(Image.fromarray(NOISE), file_format, exif=exif(orientation), **options)
    made = images.normalise(data)
    expected = UPRIGHT[orientation](pillow_pixels(data) if file_format == 'JPEG' else NOISE)
    got = pixels(made)
    assert got.shape == expected.shape
    kept = orientation == 1 and file_format in ('JPEG', 'PNG')
    assert np.abs(got - expected).max() <= (1 if kept and file_format == 'JPEG' else 0)
    assert (made == data) == kept
    with Image.open(io.BytesIO(made)) as image:
        assert image.getexif().get(0x0112, 1) == 1, 'a viewer must not turn it a second time'


def test_an_orientation_after_the_pixels_of_a_png_is_applied():
    plain = encoded(Image.fromarray(NOISE), 'PNG')
    made = images.normalise(plain[:-12] + chunk(b'eXIf', exif(6).removeprefix(b'Exif\0\0')) + plain[-12:])
    np.testing.assert_array_equal(pixels(made), np.rot90(NOISE, -1))


GARBAGE = b'Exif\0\0no TIFF header'


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')  # Pillow's, on standard error
@pytest.mark.parametrize('data', [
    KEPT['RGB JPEG'][:2] + b'\xff\xe1' + struct.pack('>H', len(GARBAGE) + 2) + GARBAGE + KEPT['RGB JPEG'][2:],
    KEPT['RGB PNG'][:33] + chunk(b'eXIf', b'no TIFF header') + KEPT['RGB PNG'][33:],
    KEPT['RGB PNG'][:33] + chunk(b'eXIf', b'II*\0\xff\xff\0\0') + KEPT['RGB PNG'][33:],
], ids=['JPEG', 'PNG', 'PNG, far offset'])
def test_a_damaged_exif_block_leaves_the_picture_as_it_is(data):
    assert np.abs(pixels(images.normalise(data)) - pillow_pixels(data)).max() <= 1


def reason(data):
    with pytest.raises(images.Rejected) as caught:
        images.normalise(data)
    return str(caught.value)


HUGE = png(20000, 20000, depth=8, colour_type=2, rows=[b'\0' * 60])
JPEG, PNG = KEPT['RGB JPEG'], KEPT['RGB PNG']
TEXT_BOMB = chunk(b'zTXt', b'eXIf\0\0' + zlib.compress(bytes(4 << 20)))


REASONS = {
    'empty': (b'', 'empty'),
    'text': (b'hello', 'not an image'),
    'SVG': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
    'zeros': (bytes(10000), 'not an image'),
    'JPEG magic': (images.JPEG_MAGIC, 'damaged header'),
    'PNG magic': (images.PNG_MAGIC + bytes(100), 'damaged header'),
    'JPEG cut in its header': (JPEG[:100], 'damaged header'),
    'PNG cut in its header': (PNG[:30], 'damaged header'),
    'JPEG without its end marker': (JPEG[:-2], 'truncated'),  # TensorFlow fails, viewers do not
    'JPEG with half of its end marker': (JPEG[:-1], 'truncated'),
    'half a JPEG': (JPEG[:len(JPEG) // 2], 'truncated'),
    'JPEG with zeros at its end': (JPEG[:-200] + bytes(200), 'truncated'),  # a download into a file made long enough
    'half a PNG': (PNG[:len(PNG) // 2], 'truncated'),
    'hardly a PNG': (PNG[:60], 'truncated'),
    'PNG without its end chunk': (PNG[:-12], 'truncated'),  # all pixels are there
    'PNG with half of its end chunk': (PNG[:-4], 'truncated'),
    'PNG cut in a checksum': (PNG[:-14], 'truncated'),
    'PNG with a text, cut': (PNG[:33] + chunk(b'tEXt', b'Comment\0eXIf') + PNG[33:-500], 'truncated'),
    'GIF, cut': (REMADE['GIF'][0][:-500], 'truncated'),
    'BMP, cut': (REMADE['BMP'][0][:-500], 'truncated'),
    '16-bit PNG, cut': (REMADE['16-bit grey PNG'][0][:-500], 'truncated'),
    'huge': (HUGE, 'too large: 20000x20000 pixels, at most 100000000'),
}


@pytest.mark.parametrize('kind', REASONS)
def test_a_file_that_is_no_whole_image_is_rejected_with_the_reason(kind):
    data, expected = REASONS[kind]
    assert reason(data) == expected


@pytest.mark.parametrize('data', [
    PNG[:200] + bytes(50) + PNG[250:],
    REMADE['16-bit grey PNG'][0][:200] + bytes(50) + REMADE['16-bit grey PNG'][0][250:],
    JPEG[:JPEG.index(b'\xff\xc4') + 5] + b'\xff' * 16 + JPEG[JPEG.index(b'\xff\xc4') + 21:],  # a Huffman table
], ids=['PNG', '16-bit PNG', 'JPEG'])
def test_what_a_decoder_cannot_decode_is_rejected_in_words_for_a_person(data):
    text = reason(data)
    assert text.startswith('decoder error: ')
    assert text.count('decoder error') == 1
    assert '\n' not in text
    assert 'function_node' not in text and '[Op:' not in text


def test_a_text_that_is_a_bomb_stops_nothing_else():
    assert reason(PNG[:33] + TEXT_BOMB + PNG[33:]) == 'damaged header'
    data = PNG[:-12] + TEXT_BOMB + PNG[-12:]  # after the pixels, which are good
    assert images.normalise(data) == data


def test_floating_point_pixels_are_rejected():
    data = encoded(Image.fromarray(GREY.astype(np.float32)), 'TIFF')
    assert reason(data) == 'decoder error: floating-point pixels have no stated range'


def test_a_postscript_file_is_never_run(monkeypatch):
    """Pillow gives EPS to Ghostscript, which is a programming language."""
    data, runs = encoded(Image.fromarray(NOISE), 'EPS'), []
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kwargs: runs.append(args))
    assert reason(data) == 'not an image'
    assert runs == []


def test_too_large_is_seen_in_the_header_without_decoding(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError('decoded')

    monkeypatch.setattr(ImageFile.ImageFile, 'load', never)
    monkeypatch.setattr(tf.io, 'decode_jpeg', never)
    assert reason(HUGE).startswith('too large')


@pytest.mark.parametrize('data', [PNG, JPEG, REMADE['GIF'][0]], ids=['PNG', 'JPEG', 'GIF'])
@pytest.mark.parametrize(('name', 'limit', 'less', 'told'), [
    ('pixels', HEIGHT * WIDTH, HEIGHT * WIDTH - 1, f'at most {HEIGHT * WIDTH - 1}'),
    ('side', max(HEIGHT, WIDTH), max(HEIGHT, WIDTH) - 1, f'at most {max(HEIGHT, WIDTH) - 1} a side'),
    ('ratio', max(HEIGHT, WIDTH) / min(HEIGHT, WIDTH), 1.15, 'sides of at most 1:1.15')])
def test_the_limit_itself_is_allowed(data, name, limit, less, told):
    images.normalise(data, images.Limits(**{name: limit}))
    with pytest.raises(images.Rejected) as rejected:
        images.normalise(data, images.Limits(**{name: less}))
    kind = 'too narrow' if name == 'ratio' else 'too large'
    assert str(rejected.value) == f'{kind}: {WIDTH}x{HEIGHT} pixels, {told}'


SIZES = [(HEIGHT, WIDTH), (24, 24), (17, 31), (100, 96)]


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_eager_graph_and_pipeline_give_the_same_bits(size):
    every = [images.normalise(data) for data in [*KEPT.values(), *(remade[0] for remade in REMADE.values())]]
    eager = [images.decode(tf.constant(data), *size).numpy() for data in every]
    assert {(image.shape, image.dtype) for image in eager} == {((*size, 3), np.dtype(np.uint8))}
    graph = tf.function(lambda data: images.decode(data, *size), input_signature=[tf.TensorSpec([], tf.string)])
    dataset = tf.data.Dataset.from_tensor_slices(every).map(
        lambda data: images.decode(data, *size), num_parallel_calls=4, deterministic=True)
    assert dataset.element_spec == tf.TensorSpec((*size, 3), tf.uint8)
    for data, one, other in zip(every, eager, dataset.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(graph(tf.constant(data)).numpy(), one)
        np.testing.assert_array_equal(other, one)


def bilinear(image, height, width):
    """Bilinear interpolation between pixel centres, edges repeated, without antialiasing."""
    result = image.astype(np.float64)
    for axis, size in enumerate((height, width)):
        place = np.clip((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0, image.shape[axis] - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, image.shape[axis] - 1)
        result = np.take(result, low, axis) * (1 - share) + np.take(result, high, axis) * share
    return result


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize(('data', 'tolerance'), [
    (PNG, 0.501),  # half a step of rounding, and float32
    (KEPT['JPEG without subsampling'], 1.501),  # and the last bit of the colour conversion; the fast DCT would be 4 off
], ids=['PNG', 'JPEG'])
def test_resizing_is_bilinear_and_rounds(data, tolerance, size):
    got = images.decode(tf.constant(data), *size).numpy()
    assert np.abs(got - bilinear(pillow_pixels(data), *size)).max() <= tolerance


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_pixels_are_those_of_keras_image_dataset_from_directory(tmp_path, size):
    (tmp_path / 'a').mkdir()
    for name, image in {'0.png': NOISE, '1.png': GREY}.items():
        (tmp_path / 'a' / name).write_bytes(encoded(Image.fromarray(image), 'PNG'))
    (tmp_path / 'a' / '2.jpg').write_bytes(encoded(Image.fromarray(SMOOTH), 'JPEG', quality=95))
    dataset = keras.utils.image_dataset_from_directory(
        tmp_path, labels=None, image_size=size, shuffle=False, batch_size=None, verbose=False)
    paths = sorted((tmp_path / 'a').iterdir())
    for path, expected in zip(paths, dataset.as_numpy_iterator(), strict=True):
        got = images.decode(tf.constant(path.read_bytes()), *size).numpy()
        difference = np.abs(got - expected)
        if path.suffix == '.png':
            assert difference.max() <= 0.501, 'Keras does not round'
        else:
            assert difference.mean() <= 1.5, 'Keras leaves the DCT at the fast one'


@pytest.mark.parametrize('data', [b'', b'hello', JPEG[:-2], PNG[:-20]], ids=['empty', 'text', 'JPEG', 'PNG'])
def test_decode_raises_for_bytes_that_do_not_decode(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(data), 8, 8)


def photographs():
    """Real ones, from the packages that this project needs anyway."""
    folder = pathlib.Path(sklearn.datasets.__file__).parent / 'images'
    yield from (folder / 'china.jpg', folder / 'flower.jpg')
    yield pathlib.Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg'


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other)**2))


# From a quarter of the photographs' sides to nearly all of them: DCT scales of 1/4, 1/2 and 1.
@pytest.mark.parametrize('size', [(96, 128), (106, 150), (160, 160), (200, 310), (224, 224), (300, 300), (400, 600)])
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_real_photographs_are_as_good_as_what_keras_makes_of_them(tmp_path, size, file_format):
    """Against a full, accurate decode and an antialiased resize: each of them."""
    (tmp_path / 'all').mkdir()
    for number, path in enumerate(photographs()):
        if file_format == 'JPEG':
            shutil.copyfile(path, tmp_path / 'all' / f'{number}.jpg')
        else:
            Image.open(path).save(tmp_path / 'all' / f'{number}.jpg', 'PNG', compress_level=1)
    theirs = next(iter(keras.utils.image_dataset_from_directory(
        tmp_path, labels=None, image_size=size, shuffle=False, batch_size=3, verbose=False))).numpy()
    gains = []
    for number, its in enumerate(theirs):
        data = tf.constant((tmp_path / 'all' / f'{number}.jpg').read_bytes())
        full = tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE')
        best = tf.image.resize(full, size, antialias=True).numpy()
        its = its if file_format == 'JPEG' else np.rint(its)  # without averaging, only rounding is between the two
        gains.append(psnr(images.decode(data, *size).numpy(), best) - psnr(its, best))
    assert min(gains) >= (0 if file_format == 'JPEG' else -0.001), gains  # a tie may be rounded either way


@pytest.mark.parametrize('size', [(224, 224), (299, 299), (427, 640), (700, 900)], ids=str)
def test_images_are_resized_to_the_bits_of_the_kernel_for_bytes(monkeypatch, size):
    """Small ones as floats, large ones as they are; 427x640 is one photograph's own size, where nothing is resized."""
    for path in photographs():
        data = tf.constant(path.read_bytes())
        full = tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE')
        if min(full.shape[0] // size[0], full.shape[1] // size[1]) >= 2:
            continue  # decoded at a DCT scale
        expected = tf.raw_ops.ResizeBilinear(images=full[None], size=size, half_pixel_centers=True)[0]
        expected = tf.cast(expected + 0.5, tf.uint8).numpy()
        for limit in (0, 10**9):
            monkeypatch.setattr(images, '_MAX_FLOATS', limit)
            np.testing.assert_array_equal(images.decode(data, *size).numpy(), expected)
            graph = tf.function(lambda data: images.decode(data, *size))
            np.testing.assert_array_equal(graph(data).numpy(), expected)


@pytest.mark.parametrize(('shape', 'size', 'scale'), [
    ((400, 400), (400, 400), 1), ((400, 400), (201, 200), 1), ((400, 400), (200, 200), 2), ((401, 401), (200, 200), 2),
    ((399, 400), (200, 200), 1), ((400, 400), (100, 100), 4), ((400, 400), (100, 101), 2), ((400, 400), (50, 50), 8),
    ((400, 400), (8, 8), 8), ((100, 400), (60, 60), 1)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_large_enough(shape, size, scale):
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    data = tf.constant(encoded(Image.fromarray(noise), 'JPEG', quality=95))
    scaled = tf.io.decode_jpeg(data, channels=3, ratio=scale, dct_method='INTEGER_ACCURATE')
    expected = np.rint(tf.image.resize(scaled, size).numpy())
    assert np.abs(images.decode(data, *size) - expected).max() <= 1


@pytest.mark.parametrize(('shape', 'size', 'scale'), [
    ((96, 128), (24, 32), 4), ((99, 131), (24, 32), 4), ((96, 128), (25, 32), 2), ((64, 64), (8, 8), 8),
    ((256, 256), (8, 8), 8), ((96, 128), (49, 64), 1)])
def test_the_pixels_of_a_png_are_averaged_where_a_jpeg_would_be_decoded_at_a_scale(shape, size, scale):
    """So that neither aliases, and both are as sharp: a class of PNGs is not told from one of JPEGs by that."""
    noise = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    rows, columns = (np.arange(-(-side // scale) + 1) * side / -(-side // scale) for side in shape)

    def means(values, edges):  # over stretches that may begin and end within a pixel
        sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        whole, part = np.floor(edges).astype(int), (edges % 1)[:, None, None]
        at = sums[whole] + part * values[np.minimum(whole, len(values) - 1)]
        return np.diff(at, axis=0) / np.diff(edges)[:, None, None]

    blocks = means(np.swapaxes(means(noise.astype(np.float64), rows), 0, 1), columns).swapaxes(0, 1)
    expected = tf.image.resize(np.rint(blocks), size).numpy()
    data = tf.constant(encoded(Image.fromarray(noise), 'PNG'))
    assert np.abs(images.decode(data, *size).numpy() - expected).max() <= 1.51
    whole = tf.constant([0.0, 0, 1, 1])
    raw = images.decode_stored(tf.constant(noise.tobytes()), Storage('raw', shape, 'squash'), *size, whole)
    np.testing.assert_array_equal(raw, images.decode(data, *size))


BOXES = [(0, 0, 1, 1), (0.25, 0.5, 0.5, 0.25), (0, 0.1, 0.9, 0.9), (0.99, 0.99, 0.01, 0.01), (0.5, 0, 0.5, 1)]


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
@pytest.mark.parametrize('box', BOXES)
def test_a_box_is_cut_out_before_the_resize(file_format, box):
    """The colours change by 4 a pixel at most; at a DCT scale, a box may lie half a pixel of that scale beside."""
    data = tf.constant(encoded(Image.fromarray(SMOOTH), file_format, quality=95))  # which PNG ignores
    whole = tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE').numpy()
    top, left, height, width = (round(share * side) for share, side in zip(box, (HEIGHT, WIDTH) * 2, strict=True))
    top, left = min(top, HEIGHT - max(1, height)), min(left, WIDTH - max(1, width))
    cut = whole[top:top + max(1, height), left:left + max(1, width)]
    expected = tf.image.resize(cut, (10, 12)).numpy()
    got = images.decode(data, 10, 12, tf.constant(box, tf.float32)).numpy()
    assert np.abs(got - expected).max() <= (6 if file_format == 'JPEG' else 1)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_the_box_of_everything_is_the_whole_image(file_format):
    data = tf.constant(encoded(Image.fromarray(NOISE), file_format))
    for size in ((40, 48), (20, 24), (7, 9)):
        np.testing.assert_array_equal(
            images.decode(data, *size, tf.constant([0.0, 0, 1, 1])), images.decode(data, *size))


# Resized and encoded anew, for a record


def prepared_pixels(image, storage):
    """What `prepare` resizes this array to, and what its record holds."""
    made = images.prepare(encoded(Image.fromarray(image), 'PNG'), storage)
    return np.asarray(made.image), made.stored


# By hand: (storage, height and width of the image, those of what is stored, those of the picture in it, its top left).
GEOMETRY = [
    (Storage('png', (16, 16), 'shorter'), (40, 48), (16, 19), (16, 19), (0, 0)),  # 19.2
    (Storage('png', (16, 16), 'shorter'), (48, 40), (19, 16), (19, 16), (0, 0)),
    (Storage('png', (16, 16), 'shorter'), (33, 17), (31, 16), (31, 16), (0, 0)),  # 31.06
    (Storage('png', (16, 16), 'shorter'), (16, 90), (16, 90), (16, 90), (0, 0)),
    (Storage('png', (16, 16), 'shorter'), (100, 12), (100, 12), (100, 12), (0, 0)),  # never enlarged
    (Storage('png', (20, 30), 'squash'), (40, 48), (20, 30), (20, 30), (0, 0)),
    (Storage('png', (20, 30), 'squash'), (3, 100), (20, 30), (20, 30), (0, 0)),
    (Storage('png', (20, 30), 'squash'), (20, 30), (20, 30), (20, 30), (0, 0)),
    (Storage('png', (20, 30), 'pad'), (40, 48), (20, 30), (20, 24), (0, 3)),
    (Storage('png', (20, 30), 'pad'), (40, 100), (20, 30), (12, 30), (4, 0)),
    (Storage('png', (20, 30), 'pad'), (10, 10), (20, 30), (20, 20), (0, 5)),
    (Storage('png', (20, 30), 'pad'), (10, 15), (20, 30), (20, 30), (0, 0)),
    (Storage('png', (20, 30), 'pad'), (1, 500), (20, 30), (1, 30), (9, 0)),  # 0.06
    (Storage('jpeg', quality=95), (40, 48), (40, 48), (40, 48), (0, 0)),
]


@pytest.mark.parametrize(('storage', 'size', 'stored_size', 'picture', 'corner'), GEOMETRY)
def test_an_image_is_resized_to_the_size_and_place_that_its_mode_says(storage, size, stored_size, picture, corner):
    white, _ = prepared_pixels(np.full((*size, 3), 255, np.uint8), storage)
    assert white.shape == (*stored_size, 3)
    rows, columns = np.nonzero(white.any(-1))
    assert (rows.min(), columns.min()) == corner
    assert (rows.max() + 1 - rows.min(), columns.max() + 1 - columns.min()) == picture
    assert len(rows) == picture[0] * picture[1]
    assert (white[rows, columns] == 255).all(), 'no border is mixed into it'


def antialiased(image, height, width):
    """Bilinear, with a triangle as wide as two pixels of the smaller image; rows first, as for what is separable."""
    result = image.astype(np.float64)
    for axis, size in enumerate((height, width)):
        length, step = image.shape[axis], image.shape[axis] / size
        distance = np.arange(length) + 0.5 - (np.arange(size)[:, None] + 0.5) * step
        weights = np.maximum(0, 1 - np.abs(distance) / max(1, step))
        weights /= weights.sum(axis=1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


@pytest.mark.parametrize(('storage', 'size'), [
    (Storage('raw', (20, 30), 'squash'), (20, 30)), (Storage('png', (13, 13), 'shorter'), (13, 16)),
    (Storage('raw', (8, 9), 'squash'), (8, 9)), (Storage('png', (70, 60), 'squash'), (70, 60)),
    (Storage('raw', (20, 24), 'pad'), (20, 24))], ids=str)
def test_resizing_for_a_record_is_antialiased(storage, size):
    got, _ = prepared_pixels(NOISE, storage)
    assert np.abs(got - antialiased(NOISE, *size)).max() <= 1.01  # two roundings, one for each axis
    assert np.abs(got - bilinear(NOISE, *size)).max() > 30 or size > NOISE.shape


def test_a_photograph_that_is_turned_is_stored_upright():
    data = encoded(Image.fromarray(NOISE), 'PNG', exif=exif(6))
    made = images.prepare(data, Storage('raw', (WIDTH, HEIGHT), 'squash'))
    assert made.stored == np.rot90(NOISE, -1).tobytes()
    assert made.normalised == images.normalise(data)


RAW = Storage('raw', (20, 30), 'squash')


def test_raw_records_hold_the_resized_pixels_bit_for_bit():
    pixels, stored = prepared_pixels(NOISE, RAW)
    assert stored == pixels.tobytes()
    assert len(stored) == 20 * 30 * 3
    np.testing.assert_array_equal(images.decode_stored(tf.constant(stored), RAW, 20, 30), pixels)


@pytest.mark.parametrize('size', [(20, 30), (10, 15), (31, 17)], ids=str)
def test_raw_records_are_resized_as_decode_does_in_a_graph_too(size):
    pixels, stored = prepared_pixels(NOISE, RAW)
    got = images.decode_stored(tf.constant(stored), RAW, *size).numpy()
    assert np.abs(got - bilinear(pixels, *size)).max() <= 0.501
    png = tf.constant(encoded(Image.fromarray(pixels), 'PNG'))
    np.testing.assert_array_equal(got, images.decode(png, *size))
    dataset = tf.data.Dataset.from_tensors(stored).map(lambda data: images.decode_stored(data, RAW, *size))
    assert dataset.element_spec == tf.TensorSpec((*size, 3), tf.uint8)
    np.testing.assert_array_equal(next(dataset.as_numpy_iterator()), got)


@pytest.mark.parametrize('box', BOXES)
def test_a_box_is_cut_out_of_raw_records_too(box):
    pixels, stored = prepared_pixels(NOISE, RAW)
    box = tf.constant(box, tf.float32)
    for size in ((20, 30), (7, 9)):
        np.testing.assert_array_equal(
            images.decode_stored(tf.constant(stored), RAW, *size, box),
            images.decode(tf.constant(encoded(Image.fromarray(pixels), 'PNG')), *size, box))


@pytest.mark.parametrize('stored', [b'', bytes(20 * 30 * 3 - 1), bytes(20 * 30 * 3 + 1), PNG])
def test_raw_records_of_another_length_raise(stored):
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode_stored(tf.constant(stored), RAW, 20, 30)


@pytest.mark.parametrize('image', [NOISE, SMOOTH, GREY], ids=['noise', 'smooth', 'grey'])
def test_png_records_are_lossless(image):
    pixels, stored = prepared_pixels(image, Storage('png', (16, 16), 'shorter'))
    assert stored.startswith(images.PNG_MAGIC)
    np.testing.assert_array_equal(images.decode_stored(tf.constant(stored), Storage('png'), *pixels.shape[:2]), pixels)


def test_jpeg_records_are_as_good_as_their_quality():
    errors = []
    for path in photographs():
        for quality in (95, 75):
            storage = Storage('jpeg', (160, 160), 'shorter', quality)
            made = images.prepare(path.read_bytes(), storage)
            assert made.stored.startswith(images.JPEG_MAGIC)
            again = images.decode_stored(tf.constant(made.stored), storage, made.image.height, made.image.width).numpy()
            errors.append(psnr(again, np.asarray(made.image)))
    assert min(errors[::2]) >= 36, errors
    assert (np.array(errors[::2]) > np.array(errors[1::2]) + 2).all()


@pytest.mark.parametrize('storage', [Storage('jpeg', quality=95), Storage('png')], ids=str)
def test_a_grey_picture_is_stored_with_one_channel(storage):
    _, stored = prepared_pixels(GREY, storage)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.mode == 'L'
    decoded = images.decode_stored(tf.constant(stored), storage, HEIGHT, WIDTH).numpy()
    np.testing.assert_array_equal(decoded, rgb(decoded[..., 0]))
    _, stored = prepared_pixels(NOISE, storage)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.mode == 'RGB'


def test_kept_records_hold_what_normalise_gives():
    for data in (JPEG, PNG, REMADE['GIF'][0]):
        assert images.prepare(data, KEEP)[:3] == (images.normalise(data), None, images.normalise(data))


@pytest.mark.parametrize('storage', [KEEP, RAW, Storage('jpeg', quality=95)], ids=str)
def test_an_image_is_decoded_once(monkeypatch, storage):
    decoded, decode = [], tf.raw_ops.DecodeJpeg

    def counted(contents, **settings):
        decoded.append(contents)
        return decode(contents=contents, **settings)

    monkeypatch.setattr(tf.raw_ops, 'DecodeJpeg', counted)
    monkeypatch.setattr(tf.io, 'decode_jpeg', lambda *_, **__: pytest.fail('decoded otherwise, too'))
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda _: pytest.fail('decoded by Pillow, too'))
    images.prepare(JPEG, storage)
    assert decoded == [JPEG]


@pytest.mark.parametrize('kind', ['empty', 'text', 'half a JPEG', 'PNG without its end chunk', 'huge'])
def test_what_is_no_whole_image_is_rejected_in_every_storage(kind):
    data, expected = REASONS[kind]
    for storage in (RAW, Storage('jpeg', quality=95)):
        with pytest.raises(images.Rejected, match=expected):
            images.prepare(data, storage)


def test_what_is_too_long_for_a_jpeg_is_rejected():
    line = np.zeros((1, 65501, 3), np.uint8)
    prepared_pixels(line[:, 1:], Storage('jpeg', quality=95))
    too_long, limits = encoded(Image.fromarray(line), 'PNG'), images.Limits(side=100_000)
    images.prepare(too_long, Storage('png'), limits)
    with pytest.raises(images.Rejected, match='^too large for a JPEG: 65501x1 pixels, at most 65500 a side$'):
        images.prepare(too_long, Storage('jpeg', quality=95), limits)


@pytest.mark.parametrize('storage', [KEEP, RAW, Storage('png', (16, 16), 'shorter')], ids=str)
def test_a_viewer_shows_what_a_record_holds(storage):
    made = images.prepare(PNG, storage)
    shown = images.picture(made.stored, storage)
    np.testing.assert_array_equal(pillow_pixels(shown), NOISE if storage == KEEP else np.asarray(made.image))
    assert (shown == made.stored) == (storage != RAW)


def test_a_reader_gives_the_pixels_of_what_conversion_keeps(tmp_path):
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 8
    for shape in ((130, 90, 3), (64, 48, 3), (64, 47, 3), (63, 48), (33, 300, 3), (32, 24, 3), (9, 7, 4), (90, 70, 4)):
        image = Image.fromarray(random.integers(0, 256, shape, np.uint8))
        image.save(tmp_path / f'{image.size}.png')
        image.convert('RGB' if len(shape) == 3 else 'L').save(tmp_path / f'{image.size}.jpg')
        image.convert('RGB').save(tmp_path / f'{image.size}turned.jpg', exif=exif)
        image.convert('RGB').quantize(9).save(tmp_path / f'{image.size}palette.png')
    read = images.reader(32, 24)
    for path in sorted(tmp_path.iterdir()):
        kept = images.prepare(path.read_bytes(), KEEP).stored
        np.testing.assert_array_equal(read(path.read_bytes()), images.decode(tf.constant(kept), 32, 24), path.name)
    with pytest.raises(images.Rejected, match='truncated'):
        read(path.read_bytes()[:-20])
