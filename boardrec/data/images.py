"""How an image becomes a tensor: the only place that knows.

`normalise` runs once, at conversion (and in predict): bytes of any common format in, bytes of a JPEG or an 8-bit PNG
that TensorFlow decodes to the right pixels out, or `Rejected` with a reason. `decode` runs wherever pixels are needed
(training, evaluation, prediction and the exported graph), so that the same bytes are the same tensor everywhere.
"""

import io
import re

import numpy as np
from PIL import Image, ImageOps
import tensorflow as tf

DECODE_VERSION = 1  # raise it with every change of what `decode` returns: cached features depend on it
MAX_PIXELS = 100_000_000  # 300 MB once decoded; a 31 KB PNG can claim more
BACKGROUND = (255, 255, 255)  # under transparent pixels: product photographs are cut out to stand on white

JPEG_MAGIC = b'\xff\xd8\xff'
PNG_MAGIC = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xae\x42\x60\x82'  # the last chunk's type and checksum; it has no data
_PNG_DEPTH_BYTE = 24  # PNG specification, 11.2.2: bit depth within IHDR, which comes first
_EXIF_ORIENTATION = 0x0112
# What photographs come in. Others stay out: Pillow would hand EPS to Ghostscript, which runs programs.
_FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'DIB', 'TIFF', 'AVIF', 'JPEG2000', 'PPM', 'TGA', 'ICO', 'PCX')


class Rejected(ValueError):
    """An image that cannot become a record; the text is the reason, in the words of rejected.csv."""


def decode(encoded: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Decodes one JPEG or PNG and resizes it: string [] to uint8 [height, width, 3].

    Bilinear without antialiasing, aspect ratio not kept, as keras.utils.image_dataset_from_directory does by default.
    Raises InvalidArgumentError for bytes that do not decode.
    """
    # The kernel tells JPEG from PNG by itself. Its default DCT for JPEG is the fast, lossier one.
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method='INTEGER_ACCURATE')
    image = tf.image.resize(image, (height, width), method='bilinear')
    return tf.saturate_cast(tf.round(image), tf.uint8)


def is_decodable_type(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes begin like a JPEG or a PNG: string [] to bool []. Others may decode, but to another rank."""
    jpeg = tf.equal(tf.strings.substr(encoded, 0, len(JPEG_MAGIC)), JPEG_MAGIC)
    png = tf.equal(tf.strings.substr(encoded, 0, len(PNG_MAGIC)), PNG_MAGIC)
    return jpeg | png


def normalise(data: bytes) -> bytes:
    """Returns `data` itself where TensorFlow decodes it to the right pixels, else the same picture as an 8-bit RGB PNG.

    Orientation is applied, 16 bits are scaled to 8, palette, CMYK and transparency become RGB (over white), an
    animation becomes its first frame. Raises Rejected: empty, not an image, damaged header, too large, truncated,
    decoder error.
    """
    if not data:
        raise Rejected('empty')
    image = _open(data)
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(f'too large: {image.width}x{image.height} pixels, at most {MAX_PIXELS}')
    if not _keeps_its_pixels(data, image):
        data = _as_png(image)
    try:
        tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE')
    except tf.errors.InvalidArgumentError as error:
        # Without where in TensorFlow's graph it happened.
        message = re.sub(r'\{\{.*?\}\} *| *\[Op:.*', '', _first_line(error.message))
        raise Rejected('truncated' if _is_truncated(data) else f'decoder error: {message}') from None
    return data


def _open(data: bytes) -> Image.Image:
    try:
        # Pillow warns and raises on its own pixel limits; ours is checked by the caller, before any pixel is decoded.
        Image.MAX_IMAGE_PIXELS = None
        return Image.open(io.BytesIO(data), formats=_FORMATS)
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
        upright = ImageOps.exif_transpose(image)
        output = io.BytesIO()
        _as_rgb(upright).save(output, 'PNG', compress_level=4)
        return output.getvalue()
    except Rejected:
        raise
    except Exception as error:  # as above: any decoder, any bytes
        raise Rejected('truncated' if 'truncated' in str(error) else f'decoder error: {_first_line(error)}') from None


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
