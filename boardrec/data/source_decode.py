"""An image file as it is, decoded by a TensorFlow graph to what training sees of the record that is made from it.

`inspect` judges a batch of files by their first bytes, before anything is decoded; `decode` makes the pixels of one
that passed. Together they do what `images.normalise` and `images.decode` do to the same bytes, bit for bit, or say why
not: an error code in place of a picture that would differ from its record.
"""

from collections.abc import Callable
import functools

import tensorflow as tf

from boardrec.data import exif, images
from boardrec.data.images import Limits

# '' is an image. What a code means, for people, is in README.md.
CODES = ('', 'empty', 'too_large', 'too_narrow', 'not_an_image', 'truncated', 'damaged', 'unsupported_format',
         'unsupported_gif', 'unsupported_webp', 'unsupported_bmp', 'unsupported_cmyk', 'unsupported_transparency',
         'unsupported_orientation')
_NUMBERS = {code: number for number, code in enumerate(CODES)}
HEAD_BYTES = 40
# Formats that conversion takes and TensorFlow has no decoder for, by their first bytes and where those begin.
_FOREIGN = ((0, b'II*\0'), (0, b'MM\0*'), (4, b'ftyp'), (4, b'jP  \r\n\x87\n'), (0, b'\xff\x4f\xff\x51'), (0, b'P5'),
            (0, b'P6'), (0, b'\0\0\1\0'))  # TIFF, AVIF and HEIC, JPEG 2000, PPM, ICO
_NOTHING, _JPEG, _PNG, _WIDE_GREY_PNG, _OTHER = range(5)  # what decodes it
_GREY_PNG, _GREY_ALPHA_PNG, _RGBA_PNG = 0, 4, 6  # PNG specification, 11.2.2: colour types
_WEBP_FLAGS = 0b1_1110  # WebP container specification, VP8X: alpha, EXIF, XMP, animation


def inspect(image_bytes: tf.Tensor, limits: Limits, max_bytes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Judges files by their first 40 bytes: string [N] to codes int32 [N], decoders int32 [N], heads int32 [N, 40].

    A code is an index of CODES. Only of a JPEG are width and height not among these bytes: `decode` judges them.
    """
    sizes = tf.strings.length(image_bytes)
    heads = tf.cast(tf.io.decode_raw(image_bytes, tf.uint8, fixed_length=HEAD_BYTES), tf.int32)
    is_a = functools.partial(_has, heads)
    is_png, is_webp, is_bmp = is_a(0, images.PNG_MAGIC), is_a(0, b'RIFF') & is_a(8, b'WEBP'), is_a(0, b'BM')
    is_wide_grey = is_png & (heads[:, 24] == 16) & (heads[:, 25] == _GREY_PNG)
    decoders = _first_of([(is_a(0, images.JPEG_MAGIC), _JPEG), (is_wide_grey, _WIDE_GREY_PNG), (is_png, _PNG),
                          (is_webp | is_bmp, _OTHER)], _NOTHING)
    is_foreign = functools.reduce(tf.logical_or, (is_a(place, magic) for place, magic in _FOREIGN))
    width, height = _size_of(heads, is_png, is_webp)
    knows_size = (decoders == _PNG) | (decoders == _WIDE_GREY_PNG) | (decoders == _OTHER)
    codes = _first_of([
        (sizes == 0, 'empty'), (sizes > max_bytes, 'too_large'), (is_a(0, b'GIF8'), 'unsupported_gif'),
        (is_foreign, 'unsupported_format'), (decoders == _NOTHING, 'not_an_image'),
        (is_png & ~is_a(12, b'IHDR'), 'damaged'), (is_webp & ~_is_plain_webp(heads), 'unsupported_webp'),
        (is_bmp & ~_is_plain_bmp(heads), 'unsupported_bmp'),
        *((knows_size & is_over, code) for is_over, code in _over(width, height, limits))], '')
    return codes, tf.where(codes == 0, decoders, _NOTHING), heads


def decode(encoded: tf.Tensor, decoder: tf.Tensor, head: tf.Tensor, limits: Limits, height: int, width: int
           ) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one file that `inspect` has judged: string [] to (uint8 [height, width, 3], code int32 []).

    Black if there is a code. Raises InvalidArgumentError for bytes that do not decode: see `failure`.
    """
    def nothing() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([height, width, 3], tf.uint8), tf.constant(0)

    def wide() -> tuple[tf.Tensor, tf.Tensor]:
        return _decode_png(encoded, head, height, width, lambda: _scaled(tf.io.decode_png(encoded, 1, tf.uint16)))

    def other() -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return images.resize(tf.ensure_shape(pixels, [None, None, 3]), height, width), tf.constant(0)

    return tf.switch_case(decoder, {
        _NOTHING: nothing, _JPEG: lambda: _decode_jpeg(encoded, limits, height, width),
        _PNG: lambda: _decode_png(encoded, head, height, width, lambda: tf.io.decode_png(encoded, 3)),
        _WIDE_GREY_PNG: wide, _OTHER: other})


def failure(image_bytes: tf.Tensor) -> tf.Tensor:
    """The codes of files that did not decode, string [N] to int32 [N]: truncated, by their last bytes, or damaged."""
    is_jpeg, is_png = (tf.equal(tf.strings.substr(image_bytes, 0, len(magic)), magic)
                       for magic in (images.JPEG_MAGIC, images.PNG_MAGIC))
    last = tf.minimum(2, tf.strings.length(image_bytes))
    tail = tf.strings.substr(image_bytes, -last, last)
    has_end = tf.strings.regex_full_match(image_bytes, r'(?s)\C*IEND\C{4}\C*')
    is_cut = is_jpeg & tf.not_equal(tail, b'\xff\xd9') | is_png & ~has_end
    return tf.where(is_cut, _NUMBERS['truncated'], _NUMBERS['damaged'])


def _decode_jpeg(encoded: tf.Tensor, limits: Limits, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    shape = tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64)
    orientation = exif.of_jpeg(encoded)
    code = _first_of([*_over(shape[1], shape[0], limits), (shape[2] == 4, 'unsupported_cmyk'),
                      (shape[2] == 2, 'unsupported_format'),
                      (orientation == exif.UNKNOWN, 'unsupported_orientation')], '')

    def upright() -> tf.Tensor:
        return images.decode(encoded, height, width)

    def turned() -> tf.Tensor:
        return images.resize(_turned(images.decode_whole(encoded), orientation), height, width)

    way = tf.where(code > 0, 0, tf.where(orientation == exif.UPRIGHT, 1, 2))
    return tf.switch_case(way, [lambda: tf.zeros([height, width, 3], tf.uint8), upright, turned]), code


def _decode_png(encoded: tf.Tensor, head: tf.Tensor, height: int, width: int, pixels: Callable[[], tf.Tensor]
                ) -> tuple[tf.Tensor, tf.Tensor]:
    """A PNG; `pixels` decodes it if it is opaque."""
    depth, colour = head[24], head[25]
    has_key = exif.contains(encoded, 'tRNS')  # a colour that is transparent; by chance it changes nothing
    has_alpha = (colour == _GREY_ALPHA_PNG) | (colour == _RGBA_PNG) | has_key
    is_kept = (depth == 8) & ~has_alpha & ~exif.contains(encoded, 'acTL')
    orientation = exif.of_png(encoded, is_kept)
    # Of other depths TensorFlow (or, of 16 bits, Pillow) makes something else of it.
    code = _first_of([(has_key & (depth != 8), 'unsupported_transparency'),
                      (orientation == exif.UNKNOWN, 'unsupported_orientation')], '')

    def decoded() -> tf.Tensor:
        shown = tf.cond(has_alpha, lambda: _over_background(tf.io.decode_png(encoded, 4)), pixels)
        return images.resize(_turned(shown, orientation), height, width)

    return tf.cond(code > 0, lambda: tf.zeros([height, width, 3], tf.uint8), decoded), code


def _over_background(pixels: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 4] on the background of records: uint8 [H, W, 3], rounded as Pillow's alpha_composite does."""
    pixels = tf.cast(pixels, tf.uint16)  # up to 65,153; int32 takes five times the memory, three times as long
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    blend = colour * alpha + tf.constant(images.BACKGROUND, tf.uint16) * (255 - alpha) + 128
    return tf.cast(_high_byte(blend + _high_byte(blend)), tf.uint8)


def _high_byte(numbers: tf.Tensor) -> tf.Tensor:
    """Of uint16."""
    return tf.bitwise.right_shift(numbers, tf.constant(8, tf.uint16))


def _scaled(grey: tf.Tensor) -> tf.Tensor:
    """uint16 [H, W, 1] to uint8 [H, W, 3], rounded as conversion does."""
    return tf.repeat(tf.cast((tf.cast(grey, tf.int32) + 128) // 257, tf.uint8), 3, axis=2)


def _turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3], turned or mirrored so that it is upright. EXIF 2.32, 4.6.4 A, tag 274."""
    pixels = tf.cond(orientation > 4, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    upside_down = tf.reduce_any(tf.equal(orientation, (3, 4, 7, 8)))  # rows as they are now, and columns
    mirrored = tf.reduce_any(tf.equal(orientation, (2, 3, 6, 7)))
    # The fastest ops for each by measurement: slices with a step of -1 take ten times as long.
    rows = tf.range(tf.shape(pixels)[0] - 1, -1, -1)
    pixels = tf.cond(upside_down, lambda: tf.gather(pixels, rows), lambda: pixels)
    pixels = tf.cond(mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.ensure_shape(pixels, [None, None, 3])


def _over(width: tf.Tensor, height: tf.Tensor, limits: Limits) -> list[tuple[tf.Tensor, str]]:
    """As images._check_size: sizes int64 that are over a limit, and their codes."""
    shorter, longer = tf.minimum(width, height), tf.maximum(width, height)
    is_narrow = tf.cast(longer, tf.float64) > limits.ratio * tf.cast(shorter, tf.float64)
    return [((width * height > limits.pixels) | (longer > limits.side), 'too_large'), (is_narrow, 'too_narrow')]


def _size_of(heads: tf.Tensor, is_png: tf.Tensor, is_webp: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Widths and heights, int64 [N], by the headers of PNG, WebP and BMP."""
    def number(*places: int) -> tf.Tensor:
        """Of bytes from the highest to the lowest."""
        return functools.reduce(lambda high, low: 256 * high + low, (tf.cast(heads[:, i], tf.int64) for i in places))

    bits = number(24, 23, 22, 21)  # of lossless WebP
    sizes = [(is_png, number(16, 17, 18, 19), number(20, 21, 22, 23)),
             (is_webp & _has(heads, 12, b'VP8X'), number(26, 25, 24) + 1, number(29, 28, 27) + 1),
             (is_webp & _has(heads, 12, b'VP8L'), bits % 2**14 + 1, bits // 2**14 % 2**14 + 1),
             (is_webp, number(27, 26) % 2**14, number(29, 28) % 2**14)]
    rows = number(25, 24, 23, 22)
    width, height = number(21, 20, 19, 18), tf.minimum(rows, 2**32 - rows)  # of a BMP: negative from top to bottom
    for is_it, its_width, its_height in reversed(sizes):
        width, height = tf.where(is_it, its_width, width), tf.where(is_it, its_height, height)
    return width, height


def _is_plain_webp(heads: tf.Tensor) -> tf.Tensor:
    """Whether WebP has neither alpha nor frames nor metadata, which can turn it."""
    is_extended, is_lossless = _has(heads, 12, b'VP8X'), _has(heads, 12, b'VP8L')
    return _first_of([(is_extended, (heads[:, 20] & _WEBP_FLAGS) == 0), (is_lossless, heads[:, 24] & 0x10 == 0)],
                     _has(heads, 12, b'VP8 '))


def _is_plain_bmp(heads: tf.Tensor) -> tf.Tensor:
    """Whether BMP has 24 bits a pixel, uncompressed, behind one of the usual headers: the others decode wrongly."""
    is_usual = functools.reduce(tf.logical_or, (_has(heads, 14, bytes([size, 0, 0, 0])) for size in (40, 108, 124)))
    return is_usual & _has(heads, 28, b'\x18\0') & _has(heads, 30, bytes(4))


def _has(heads: tf.Tensor, place: int, magic: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(heads[:, place:place + len(magic)], list(magic)), axis=1)


def _first_of(cases: list[tuple[tf.Tensor, object]], default: object) -> tf.Tensor:
    """The value of the first case that is true, element by element; codes by their names."""
    def value(given: object) -> object:
        return _NUMBERS[given] if isinstance(given, str) else given

    result = value(default)
    for is_it, given in reversed(cases):
        result = tf.where(is_it, value(given), result)
    return result
