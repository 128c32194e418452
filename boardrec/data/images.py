"""How an image becomes a tensor: the only place that knows.

`normalise` runs once, at conversion (and in predict): bytes of any common format in, bytes of a JPEG or an 8-bit PNG
that TensorFlow decodes to the right pixels out, or `Rejected` with a reason. Where conversion resizes or encodes anew,
`prepare` does both. `decode` runs wherever pixels are needed (training, evaluation, prediction and the exported graph),
so that the same bytes are the same tensor everywhere; `decode_stored` also reads records that hold raw pixels.
"""

from collections.abc import Callable
from fractions import Fraction
import functools
import io
import math
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
import tensorflow as tf

from boardrec.data import perceptual
from boardrec.data.records import Storage

DECODE_VERSION = 3  # raise it with every change of what `decode` returns: cached features depend on it
BACKGROUND = (255, 255, 255)  # under transparent pixels: product photographs are cut out to stand on white

JPEG_MAGIC = b'\xff\xd8\xff'
PNG_MAGIC = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xae\x42\x60\x82'  # the last chunk's type and checksum; it has no data
_PNG_DEPTH_BYTE = 24  # PNG specification, 11.2.2: bit depth within IHDR, which comes first
_EXIF_ORIENTATION = 0x0112
_DCT = 'INTEGER_ACCURATE'  # TensorFlow's default is the fast, lossier one
_JPEG_MAX_SIDE = 65500  # libjpeg's JPEG_MAX_DIMENSION
_DCT_SCALES = (1, 2, 4, 8)  # what libjpeg decodes at a fraction of the cost
_MAX_FLOATS = 1 << 21  # 8 MiB, for each image that is being decoded
# What photographs come in. Others stay out: Pillow would hand EPS to Ghostscript, which runs programs.
_FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'DIB', 'TIFF', 'AVIF', 'JPEG2000', 'PPM', 'TGA', 'ICO', 'PCX')


class Rejected(ValueError):
    """An image that cannot become a record; the text is the reason, in the words of rejected.csv."""


class Limits(NamedTuple):
    """What an image may have, by its header; more is rejected without being decoded."""

    pixels: int = 100_000_000  # 300 MB once decoded; a 31 KB PNG can claim more
    side: int = 65_500  # pixels; libjpeg's JPEG_MAX_DIMENSION
    ratio: float = math.inf  # of the longer side to the shorter


class Prepared(NamedTuple):
    """An image file on its way into a record."""

    normalised: bytes  # as `normalise` returns
    image: Image.Image | None  # RGB, resized; None where the normalised bytes are kept
    stored: bytes  # what the record holds
    perceptual_hash: int  # 64 bits, of all its pixels


def decode(encoded: tf.Tensor, height: int, width: int, box: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes one JPEG or PNG, or the part of it in `box`, and resizes it: string [] to uint8 [height, width, 3].

    A JPEG is decoded at the smallest of its DCT scales (1, 1/2, 1/4, 1/8) that is not smaller than the result, which
    costs less and averages instead of leaving out pixels; the pixels of a PNG are averaged by the same scale. Then
    bilinear, aspect ratio not kept. `box`, float32 [4], is (top, left, height, width) as fractions of the image; what
    lies outside is not decoded where that can be avoided.
    Raises InvalidArgumentError for bytes that do not decode.
    """
    image = tf.cond(_begins_with(encoded, JPEG_MAGIC), lambda: _decode_jpeg(encoded, height, width, box),
                    lambda: _decode_png(encoded, height, width, box))
    return _bilinear(image, height, width)


def decode_stored(stored: tf.Tensor, storage: Storage, height: int, width: int, box: tf.Tensor | None = None
                  ) -> tf.Tensor:
    """As `decode`, of what a record holds."""
    if storage.encoding != 'raw':
        return decode(stored, height, width, box)
    image = tf.reshape(tf.io.decode_raw(stored, tf.uint8), [*storage.image_size, 3])
    if box is None and storage.image_size == (height, width):
        return image
    return _bilinear(_averaged(_crop(image, box), height, width), height, width)


def decode_whole(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes all of a JPEG in its own size, as `normalise` does where it remakes one: string [] to uint8 [H, W, 3]."""
    return tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT)


def resize(pixels: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """What `decode` makes of a PNG's pixels: uint8 [H, W, 3] to uint8 [height, width, 3]."""
    return _bilinear(_averaged(pixels, height, width), height, width)


def normalise(data: bytes, limits: Limits = Limits()) -> bytes:  # noqa: B008 (immutable)
    """Returns `data` itself where TensorFlow decodes it to the right pixels, else the same picture as an 8-bit RGB PNG.

    Orientation is applied, 16 bits are scaled to 8, palette, CMYK and transparency become RGB (over white), an
    animation becomes its first frame. Raises Rejected: empty, not an image, damaged header, too large, truncated,
    decoder error.
    """
    return _normalise(data, limits)[0]


def prepare(data: bytes, storage: Storage, limits: Limits = Limits()) -> Prepared:  # noqa: B008 (immutable)
    """Makes an image file what a record holds of it. Raises Rejected as `normalise`."""
    normalised, tensor = _normalise(data, limits)
    pixels = np.asarray(memoryview(tensor))  # .numpy() would copy
    perceptual_hash = perceptual.hash_of(pixels)
    if storage.encoding == 'keep':
        return Prepared(normalised, None, normalised, perceptual_hash)
    resized = _resized(pixels, storage)
    return Prepared(normalised, resized, _encode(resized, storage), perceptual_hash)


def reader(height: int, width: int, limits: Limits = Limits()  # noqa: B008 (immutable)
           ) -> Callable[[bytes], np.ndarray]:
    """The function that decodes what `normalise` makes of a file, to uint8 [height, width, 3]; it raises Rejected, too.

    What `normalise` has decoded is not decoded again, unless a JPEG is taken at another DCT scale.
    """
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def scaled(encoded: tf.Tensor) -> tf.Tensor:
        with tf.device('CPU:0'):  # as tf.data does; a GPU may round otherwise
            return decode(encoded, height, width)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def resized(pixels: tf.Tensor) -> tf.Tensor:
        with tf.device('CPU:0'):
            return resize(pixels, height, width)

    def read(data: bytes) -> np.ndarray:
        kept, pixels = _normalise(data, limits)
        is_scaled = kept.startswith(JPEG_MAGIC) and pixels.shape[0] // 2 >= height and pixels.shape[1] // 2 >= width
        return (scaled(tf.constant(kept)) if is_scaled else resized(pixels)).numpy()

    return read


def thumbnail(data: bytes, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 (immutable)
    """An image file as perceptual.difference compares it, uint8 [H, W, 3]. Raises Rejected as `normalise`."""
    image = Image.fromarray(np.asarray(memoryview(_normalise(data, limits)[1])))
    return np.asarray(image.resize((perceptual.THUMBNAIL,) * 2, Image.Resampling.BILINEAR))


def picture(stored: bytes, storage: Storage) -> bytes:
    """What a record holds, as bytes that a viewer shows."""
    if storage.encoding != 'raw':
        return stored
    return _png(Image.fromarray(np.frombuffer(stored, np.uint8).reshape(*storage.image_size, 3)))


def _normalise(data: bytes, limits: Limits) -> tuple[bytes, tf.Tensor]:
    """As `normalise`, and the pixels, uint8 [H, W, 3]."""
    if not data:
        raise Rejected('empty')
    image = _open(data)
    _check_size(image.width, image.height, limits)
    if not _keeps_its_pixels(data, image):
        data = _as_png(image)
    try:
        # The op itself: tf.io.decode_jpeg takes a tenth longer to pass bytes on.
        pixels = tf.raw_ops.DecodeJpeg(contents=tf.constant(data), channels=3, dct_method=_DCT)
    except tf.errors.ResourceExhaustedError:
        raise MemoryError from None
    except tf.errors.InvalidArgumentError as error:
        # Without where in TensorFlow's graph it happened.
        message = re.sub(r'\{\{.*?\}\} *| *\[Op:.*', '', _first_line(error.message))
        raise Rejected('truncated' if _is_truncated(data) else f'decoder error: {message}') from None
    return data, pixels


def _check_size(width: int, height: int, limits: Limits) -> None:
    found, (shorter, longer) = f'too large: {width}x{height} pixels', sorted((width, height))
    if width * height > limits.pixels:
        raise Rejected(f'{found}, at most {limits.pixels}')
    if longer > limits.side:
        raise Rejected(f'{found}, at most {limits.side} a side')
    if longer > limits.ratio * shorter:
        raise Rejected(f'too narrow: {width}x{height} pixels, sides of at most 1:{limits.ratio:g}')


def _resized(pixels: np.ndarray, storage: Storage) -> Image.Image:
    """Resizes uint8 [H, W, 3] as a storage says: bilinear and antialiased, so that each pixel counts."""
    image = Image.fromarray(pixels)
    if storage.image_size is None:
        return image
    height, width = _size_in(storage, *pixels.shape[:2])
    if image.size != (width, height):
        # Without reducing_gap, which saves an eighth of the work on photographs of 9 megapixels and is up to 4 levels
        # off.
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if storage.resize == 'pad':
        full_height, full_width = storage.image_size
        canvas = Image.new('RGB', (full_width, full_height))
        canvas.paste(image, ((full_width - width) // 2, (full_height - height) // 2))
        image = canvas
    return image


def _size_in(storage: Storage, height: int, width: int) -> tuple[int, int]:
    """The height and width that an image of this size is resized to, before any padding."""
    if storage.resize == 'squash':
        return storage.image_size
    scales = Fraction(storage.image_size[0], height), Fraction(storage.image_size[1], width)
    scale = min(scales) if storage.resize == 'pad' else min(1, max(scales))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _encode(image: Image.Image, storage: Storage) -> bytes:
    if storage.encoding == 'raw':
        return image.tobytes()
    if _is_grey(image):
        image = image.getchannel(0)  # is smaller, and decodes to the same three
    if storage.encoding == 'png':
        return _png(image)
    if max(image.size) > _JPEG_MAX_SIDE:
        raise Rejected(f'too large for a JPEG: {image.width}x{image.height} pixels, at most {_JPEG_MAX_SIDE} a side')
    output = io.BytesIO()
    # 4:4:4, because 4:2:0 of quality 95 has less PSNR in more bytes than 4:4:4 of 90 (photographs at 256 pixels: 43.1
    # dB in 22.7 KiB, 43.8 dB in 20.2 KiB), and decodes hardly faster.
    image.save(output, 'JPEG', quality=storage.quality, subsampling='4:4:4')
    return output.getvalue()


def _is_grey(image: Image.Image) -> bool:
    sample = image.resize((16, 16), Image.Resampling.NEAREST)  # tells almost all that are not
    return all((pixels == pixels[..., :1]).all() for pixels in map(np.asarray, (sample, image)))


def _begins_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


def _decode_jpeg(encoded: tf.Tensor, height: int, width: int, box: tf.Tensor | None) -> tf.Tensor:
    """Decodes a JPEG at its DCT scale for a size: uint8 [H, W, 3]."""
    size = tf.io.extract_jpeg_shape(encoded)[:2]
    kept = size if box is None else _window(size, box)[2:]

    def at(scale: int) -> tf.Tensor:
        if box is None:
            return tf.io.decode_jpeg(encoded, channels=3, ratio=scale, dct_method=_DCT)
        window = _window(-(-size // scale), box)
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, ratio=scale, dct_method=_DCT)

    return tf.switch_case(_halvings(kept, height, width), [functools.partial(at, scale) for scale in _DCT_SCALES])


def _decode_png(encoded: tf.Tensor, height: int, width: int, box: tf.Tensor | None) -> tf.Tensor:
    return _averaged(_crop(tf.io.decode_png(encoded, channels=3), box), height, width)


def _halvings(size: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Which of the DCT scales is the smallest that makes no less than height x width of a size, int32 [2]: int32 []."""
    return tf.reduce_sum([tf.cast(tf.reduce_all(size // scale >= (height, width)), tf.int32)
                          for scale in _DCT_SCALES[1:]])


def _averaged(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """What a JPEG's DCT scale does, to pixels, uint8 [H, W, 3]: it costs about a tenth of what decoding a PNG does."""
    size = tf.shape(image)[:2]
    scale = tf.gather(_DCT_SCALES, _halvings(size, height, width))

    def averaged() -> tf.Tensor:
        pixels = tf.raw_ops.ResizeArea(images=image[tf.newaxis], size=-(-size // scale))[0]
        return tf.cast(pixels + 0.5, tf.uint8)

    return tf.cond(scale > 1, averaged, lambda: image)


def _crop(image: tf.Tensor, box: tf.Tensor | None) -> tf.Tensor:
    if box is None:
        return image
    top, left, height, width = tf.unstack(_window(tf.shape(image)[:2], box))
    return image[top:top + height, left:left + width]


def _bilinear(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Resizes uint8 [H, W, 3] to uint8 [height, width, 3], without antialiasing."""
    def resized(pixels: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.ResizeBilinear(images=pixels[tf.newaxis], size=(height, width), half_pixel_centers=True)[0]

    def resized_and_rounded() -> tf.Tensor:
        # To the same result: the kernel for floats takes, with the cast, about half the time of that for uint8, but
        # four times the memory.
        is_small = tf.size(image) <= _MAX_FLOATS
        pixels = tf.cond(is_small, lambda: resized(tf.cast(image, tf.float32)), lambda: resized(image))
        return tf.cast(pixels + 0.5, tf.uint8)

    fits = tf.reduce_all(tf.shape(image)[:2] == (height, width))
    return tf.ensure_shape(tf.cond(fits, lambda: image, resized_and_rounded), [height, width, 3])


def _window(size: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """A box in whole pixels of an image of this size (int32 [2]): int32 [4], at least one pixel, within the image."""
    size_as_float = tf.cast(size, tf.float32)
    extent = tf.clip_by_value(tf.cast(tf.round(box[2:] * size_as_float), tf.int32), 1, size)
    corner = tf.clip_by_value(tf.cast(tf.round(box[:2] * size_as_float), tf.int32), 0, size - extent)
    return tf.concat([corner, extent], axis=0)


def _open(data: bytes) -> Image.Image:
    try:
        # Pillow warns and raises on its own pixel limits; ours is checked by the caller, before any pixel is decoded.
        Image.MAX_IMAGE_PIXELS = None
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception:  # Pillow's format plug-ins raise whatever the bytes make them raise
        raise Rejected('damaged header' if data.startswith((JPEG_MAGIC, PNG_MAGIC)) else 'not an image') from None


def _keeps_its_pixels(data: bytes, image: Image.Image) -> bool:
    """Whether TensorFlow's decoder gives the pixels that a viewer shows."""
    if data.startswith(JPEG_MAGIC):
        return image.mode in ('L', 'RGB') and _orientation(image) == 1
    if data.startswith(PNG_MAGIC):
        # Pillow decodes the whole of a PNG to look for its EXIF chunk, which few have.
        upright = b'eXIf' not in data or _orientation(image) == 1
        return (upright and image.mode in ('L', 'RGB', 'P') and data[_PNG_DEPTH_BYTE] == 8
                and 'transparency' not in image.info and not getattr(image, 'is_animated', False))
    return False


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, if there is none or it cannot be read, as viewers take it."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # as above; pixels that cannot be decoded either are told by the decoder
        return 1


def _as_png(image: Image.Image) -> bytes:
    try:
        image.load()
        return _png(_as_rgb(ImageOps.exif_transpose(image)))
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # as above: any decoder, any bytes
        raise Rejected('truncated' if 'truncated' in str(error) else f'decoder error: {_first_line(error)}') from None


def _png(image: Image.Image) -> bytes:
    output = io.BytesIO()
    image.save(output, 'PNG', compress_level=4)
    return output.getvalue()


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16-bit grey, also where Pillow holds it in 32; convert() would saturate it
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == 'F':
        raise Rejected('decoder error: floating-point pixels have no stated range')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, BACKGROUND), image).convert('RGB')
    return image.convert('RGB')


def _is_truncated(data: bytes) -> bool:
    try:
        _open(data).load()
    except Exception as error:  # as above
        return 'truncated' in str(error)
    if data.startswith(PNG_MAGIC):
        return _PNG_END not in data
    return data.startswith(JPEG_MAGIC) and b'\xff\xd9' not in data[-2:]


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [''])[0][:200]
