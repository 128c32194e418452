"""The orientation that a JPEG or PNG states, read by a TensorFlow graph as `images.normalise` reads it with Pillow.

TensorFlow's decoders ignore it. Damaged metadata leaves a picture as it is. What a graph cannot follow is told, so that
the image can be refused instead of being shown lying.
"""

import tensorflow as tf

UPRIGHT = 1
OTHER = 0  # a value without a meaning: the picture stays as it is, and yet a record of it is a PNG
UNKNOWN = -1  # stated in a way that is not read here
_SEGMENTS = 1000  # before a JPEG's pixels: a colour profile alone may have 255
_CHUNKS = 20_000  # of a PNG, which has its pixels in chunks of 8 KiB and more
_ORIENTATION = 0x0112
# TIFF 6.0, section 2: bytes of a value of each type; 0 is none.
_VALUE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8)
_BYTES_TYPES, _INTEGER_TYPES = (1, 2, 7), (3, 4, 6, 8, 9, 13)
_BIG_ENDIAN, _LITTLE_ENDIAN = (b'MM\0*', b'MM*\0', b'MM\0+'), (b'II*\0', b'II\0*')  # the last of two as Pillow
_IN_JPEG = b'Exif\0\0'
_XMP = b'http://ns.adobe.com/xap/1.0/\0'
_IN_XMP = 'tiff:Orientation'
_XMP_VALUE = rf'(?s)^\C*?{_IN_XMP}(?:="|>)([0-9])\C*$'


def contains(encoded: tf.Tensor, text: str) -> tf.Tensor:
    """Whether `text` is anywhere in string []: bool []. 10 us for 50 KiB; a match of the whole would take 100."""
    without = tf.strings.regex_replace(encoded, text, '', replace_global=False)
    return tf.strings.length(without) != tf.strings.length(encoded)


def of_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """string [] to int32 []: 1 to 8, OTHER or UNKNOWN. 0.25 ms where there is EXIF or XMP."""
    stated = contains(encoded, r'Exif\x00\x00') | contains(encoded, _IN_XMP)
    return tf.cond(stated, lambda: _of_segments(encoded), lambda: UPRIGHT)


def of_png(encoded: tf.Tensor, is_kept: tf.Tensor) -> tf.Tensor:
    """As of_jpeg. Of those that conversion keeps byte for byte, as far as the orientation goes, XMP does not count."""
    stated = contains(encoded, 'eXIf') | ~is_kept & (contains(encoded, _IN_XMP) | contains(encoded, 'Raw profile'))
    return tf.cond(stated, lambda: _of_chunks(encoded), lambda: UPRIGHT)


def _of_segments(encoded: tf.Tensor) -> tf.Tensor:
    size = tf.strings.length(encoded)

    def next_segment(step, position, exif, xmp):
        head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, position, 4), tf.uint8), tf.int32)
        begin, marker, length = head[0], head[1], 256 * head[2] + head[3]
        is_metadata = (begin == 0xFF) & (marker == 0xE1)
        payload = tf.strings.substr(encoded, position + 4, tf.where(is_metadata, tf.maximum(length - 2, 0), 0))
        is_exif = tf.equal(tf.strings.substr(payload, 0, len(_IN_JPEG)), _IN_JPEG)
        more = tf.strings.regex_replace(payload, r'^Exif\x00\x00', '', replace_global=False)
        exif = tf.where(is_exif, tf.strings.join([exif, more]), exif)
        xmp = tf.where(tf.equal(tf.strings.substr(payload, 0, len(_XMP)), _XMP), payload, xmp)
        has_length = (marker >= 0xC0) & ((marker < 0xD0) | (marker > 0xD9))
        used = tf.where((begin != 0xFF) | (marker == 0xFF), 1, tf.where(has_length, tf.maximum(length, 2) + 2, 2))
        is_pixels = (begin == 0xFF) & (marker == 0xDA)
        return step + 1, tf.where(is_pixels, size, position + used), exif, xmp

    steps, _, exif, xmp = tf.while_loop(
        lambda step, position, *_: (position + 4 <= size) & (step < _SEGMENTS), next_segment,
        (0, 2, tf.constant(b''), tf.constant(b'')), parallel_iterations=1)
    return tf.where(steps < _SEGMENTS, _of_metadata(exif, xmp), UNKNOWN)


def _of_chunks(encoded: tf.Tensor) -> tf.Tensor:
    size = tf.strings.length(encoded)

    def next_chunk(step, position, exif):
        head = tf.strings.substr(encoded, position, 8)
        length = _number(tf.io.decode_raw(head, tf.uint8)[:4], 4, True)
        length = tf.cast(tf.minimum(length, tf.cast(size - position, tf.int64)), tf.int32)
        is_exif = tf.equal(tf.strings.substr(head, 4, 4), b'eXIf')
        exif = tf.where(is_exif, tf.strings.substr(encoded, position + 8, length), exif)
        return step + 1, position + 12 + length, exif

    steps, _, exif = tf.while_loop(
        lambda step, position, _: (position + 8 <= size) & (step < _CHUNKS), next_chunk, (0, 8, tf.constant(b'')),
        parallel_iterations=1)
    is_in_text = tf.equal(exif, b'') & contains(encoded, 'Raw profile type exif')
    return tf.where(is_in_text | (steps == _CHUNKS), UNKNOWN, _of_metadata(exif, encoded))


def _of_metadata(exif: tf.Tensor, xmp: tf.Tensor) -> tf.Tensor:
    """The orientation in EXIF's bytes, a TIFF file; if it has none, that in XMP's."""
    exif = tf.strings.regex_replace(exif, r'^Exif\x00\x00', '', replace_global=False)  # some write it twice
    begin = tf.strings.substr(exif, 0, 4)
    is_big_endian = tf.reduce_any(tf.equal(begin, _BIG_ENDIAN))
    is_tiff = (is_big_endian | tf.reduce_any(tf.equal(begin, _LITTLE_ENDIAN))) & (tf.strings.length(exif) >= 8)
    found, value = tf.cond(is_tiff, lambda: _of_tiff(exif, is_big_endian), lambda: (False, UPRIGHT))
    without = tf.equal(exif, b'') | is_tiff & ~found
    return tf.cond(without, lambda: _of_xmp(xmp), lambda: value)


def _of_tiff(exif: tf.Tensor, is_big_endian: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(whether the first directory states an orientation, int32 []). A directory that is cut is read as far as it goes.

    A value that lies outside of the file ends the reading, and so hides what stands behind it.
    """
    data, size = tf.io.decode_raw(exif, tf.uint8), tf.strings.length(exif)

    def number(field: tf.Tensor, width: int) -> tf.Tensor:
        return _number(field, width, is_big_endian)

    start = tf.cast(tf.minimum(number(data[4:8], 4), tf.cast(size, tf.int64)), tf.int32)
    count = tf.cast(number(tf.pad(data, [[0, 2]])[start:start + 2], 2), tf.int32)
    count = tf.maximum(tf.minimum(count, (size - start - 2) // 12), 0)
    entries = tf.reshape(data[start + 2:start + 2 + 12 * count], [-1, 12])
    entries = tf.pad(entries, [[0, 1], [0, 0]])  # never empty; 0 is no type
    tags, types = number(entries[:, :2], 2), number(entries[:, 2:4], 2)
    counts, places = number(entries[:, 4:8], 4), number(entries[:, 8:], 4)
    value_bytes = tf.gather(tf.constant(_VALUE_BYTES, tf.int64), tf.where(types < len(_VALUE_BYTES), types, 0))
    sizes, limit = counts * value_bytes, tf.cast(size, tf.int64)
    is_elsewhere = sizes > 4
    is_read = ~is_elsewhere | (tf.cumsum(tf.where(is_elsewhere, sizes, 0)) <= limit)
    ends = is_elsewhere & is_read & (places + sizes > limit)
    is_read &= (sizes > 0) & (tf.cumsum(tf.cast(ends, tf.int32)) == 0)
    is_orientation = is_read & (tags == _ORIENTATION)
    first = tf.argmax(tf.cast(is_orientation, tf.int32))
    return tf.reduce_any(is_orientation), _value(
        entries[first], types[first], value_bytes[first], is_elsewhere[first], is_big_endian)


def _value(entry: tf.Tensor, kind: tf.Tensor, value_bytes: tf.Tensor, is_elsewhere: tf.Tensor,
           is_big_endian: tf.Tensor) -> tf.Tensor:
    """The orientation in a directory's entry, uint8 [12], or the first of several: int32 []."""
    short, long = _number(entry[8:10], 2, is_big_endian), _number(entry[8:12], 4, is_big_endian)
    value = tf.case([(value_bytes == 1, lambda: tf.cast(entry[8], tf.int64)), (value_bytes == 2, lambda: short)],
                    default=lambda: long)
    value = tf.where((value >= 1) & (value <= 8), tf.cast(value, tf.int32), OTHER)
    is_integer = tf.reduce_any(tf.equal(kind, _INTEGER_TYPES)) & ~is_elsewhere
    is_bytes = tf.reduce_any(tf.equal(kind, _BYTES_TYPES))
    return tf.where(is_integer, value, tf.where(is_bytes, OTHER, UNKNOWN))


def _of_xmp(xmp: tf.Tensor) -> tf.Tensor:
    def stated() -> tf.Tensor:
        value = tf.strings.to_number(tf.strings.regex_replace(xmp, _XMP_VALUE, r'\1'), tf.int32)
        return tf.where((value >= 1) & (value <= 8), value, OTHER)

    return tf.cond(tf.strings.regex_full_match(xmp, _XMP_VALUE), stated, lambda: UPRIGHT)


def _number(data: tf.Tensor, width: int, is_big_endian: tf.Tensor | bool) -> tf.Tensor:
    """Unsigned numbers of `width` bytes, uint8 [..., width] to int64 [...]."""
    weights = tf.constant([256 ** i for i in range(width)], tf.int64)
    return tf.reduce_sum(tf.cast(data, tf.int64) * tf.where(is_big_endian, weights[::-1], weights), axis=-1)
