"""The graph makes of a file what training sees of its record, bit for bit, or says by a code why not."""

import functools
import io
import struct

import images_test as made
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec.data import images, source_decode
from boardrec.data.images import Limits

MAX_BYTES = 1 << 20
LIMITS = Limits(pixels=1_000_000, side=2000, ratio=200)


@functools.cache
def graph(height, width):
    """The function from files to (pixels, code) of the graph."""
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)  # a second less
    def decode(data):
        codes, decoders, heads = source_decode.inspect(data[None], LIMITS, MAX_BYTES)
        pixels, code = source_decode.decode(data, decoders[0], heads[0], LIMITS, height, width)
        return pixels, tf.where(codes[0] > 0, codes[0], code)

    return lambda data: decode(tf.constant(data))


def decode(data, height=32, width=32):
    """uint8 [height, width, 3] and the code's name."""
    pixels, code = graph(height, width)(data)
    return pixels.numpy(), source_decode.CODES[code]


def of_record(data, height=32, width=32):
    """What training sees of the record that is made from a file."""
    return images.decode(tf.constant(images.normalise(data)), height, width).numpy()


def check(data, *sizes):
    for height, width in sizes or ((32, 32), (11, 17)):
        pixels, code = decode(data, height, width)
        assert code == ''
        np.testing.assert_array_equal(pixels, of_record(data, height, width))


REFUSED = {
    '16-bit grey TIFF': 'unsupported_format', 'TIFF': 'unsupported_format', 'compressed TIFF': 'unsupported_format',
    'TIFF of two pages': 'unsupported_format', 'GIF': 'unsupported_gif', 'animated GIF': 'unsupported_gif',
    'GIF with a transparent colour': 'unsupported_gif', 'WebP with alpha': 'unsupported_webp',
    'animated WebP': 'unsupported_webp', 'palette BMP': 'unsupported_bmp', '1-bit BMP': 'unsupported_bmp',
}


@pytest.mark.parametrize('kind', [*made.KEPT, *made.REMADE])
def test_each_kind_is_as_its_record_or_refused_by_a_code(kind):
    data = made.KEPT.get(kind) or made.REMADE[kind][0]
    if kind in REFUSED:
        pixels, code = decode(data)
        assert code == REFUSED[kind] and not pixels.any()
    else:
        check(data)


def png(depth, colour_type, channels, **options):
    rows = np.random.default_rng(3).integers(0, 256, (40, 48 * channels * depth // 8), np.uint8)
    return made.png(48, 40, depth=depth, colour_type=colour_type, rows=rows, **options)


PALETTE_16 = made.chunk(b'PLTE', made.PALETTE[:16].tobytes())
MORE = {
    '2-bit PNG': png(2, 0, 1), '4-bit PNG': png(4, 0, 1), '1-bit palette PNG': png(1, 3, 1, extra=PALETTE_16),
    '2-bit palette PNG': png(2, 3, 1, extra=PALETTE_16), '16-bit RGBA PNG': png(16, 6, 4),
    '16-bit PNG of grey with alpha': png(16, 4, 2),
    'lossy WebP': made.encoded(Image.fromarray(made.SMOOTH), 'WEBP', quality=60),
    'WebP with a profile': made.encoded(Image.fromarray(made.NOISE), 'WEBP', lossless=True, icc_profile=b'x' * 200),
    'BMP of odd width': made.encoded(Image.fromarray(made.NOISE[:, :47]), 'BMP'),
    'BMP from top to bottom': (lambda data: data[:22] + struct.pack('<i', -40) + data[26:])(
        made.encoded(Image.fromarray(made.NOISE), 'BMP')),
    'RGB JPEG by Adobe': made.encoded(Image.fromarray(made.NOISE), 'JPEG', keep_rgb=True),
}


@pytest.mark.parametrize('kind', MORE)
def test_further_kinds_are_as_their_records(kind):
    check(MORE[kind])


@pytest.mark.parametrize(('data', 'code'), {
    'CMYK JPEG': (made.encoded(Image.fromarray(np.dstack([made.NOISE, made.GREY]), 'CMYK'), 'JPEG'),
                  'unsupported_cmyk'),
    '4-bit PNG with a transparent shade': (png(4, 0, 1, extra=made.chunk(b'tRNS', b'\0\3')),
                                           'unsupported_transparency'),
    '16-bit PNG with a transparent colour': (png(16, 2, 3, extra=made.chunk(b'tRNS', bytes(6))),
                                             'unsupported_transparency'),
    '32-bit BMP': (made.encoded(Image.fromarray(np.dstack([made.NOISE, made.ALPHA])), 'BMP'), 'unsupported_bmp'),
    'WebP with EXIF': (made.encoded(Image.fromarray(made.NOISE), 'WEBP', exif=made.exif(6)), 'unsupported_webp'),
    'AVIF': (b'\0\0\0 ftypavif' + bytes(60), 'unsupported_format'),
    'empty': (b'', 'empty'), 'a byte': (b'\xff', 'not_an_image'), 'text': (b'hello', 'not_an_image'),
    'WAV': (b'RIFF\x10\0\0\0WAVEfmt ' + bytes(60), 'not_an_image'),
    'many bytes': (made.KEPT['RGB JPEG'] + bytes(MAX_BYTES), 'too_large'),
    'PNG without its header': (images.PNG_MAGIC + bytes(40), 'damaged'),
}.values())
def test_what_is_refused_says_why(data, code):
    pixels, said = decode(data)
    assert said == code and not pixels.any()


def huge(file_format, width, height):
    """A file of a few bytes whose header claims this size."""
    options = {'lossless': True} if file_format == 'WEBP' else {}
    small = made.encoded(Image.fromarray(made.NOISE), file_format, **options)
    if file_format == 'JPEG':
        at = small.index(b'\xff\xc0') + 5
        return small[:at] + struct.pack('>HH', height, width) + small[at + 4:]
    if file_format == 'PNG':
        return made.png(width, height, depth=8, colour_type=2, rows=[b'\0' * 60])
    if file_format == 'BMP':
        return small[:18] + struct.pack('<ii', width, -height) + small[26:]
    return small[:21] + struct.pack('<I', (width - 1) | (height - 1) << 14) + small[25:]


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'BMP', 'WEBP'])
@pytest.mark.parametrize(('width', 'height', 'code'), [
    (1001, 1000, 'too_large'), (2001, 100, 'too_large'), (100, 2001, 'too_large'), (1608, 8, 'too_narrow'),
    (7, 1407, 'too_narrow')])
def test_a_size_over_a_limit_is_refused_by_the_header_alone(file_format, width, height, code):
    assert decode(huge(file_format, width, height))[1] == code


@pytest.mark.parametrize('orientation', [*made.UPRIGHT, 0, 9])
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
@pytest.mark.parametrize('big_endian', [False, True])
def test_orientation_is_applied(orientation, file_format, big_endian):
    stated = tiff(entry(0x0112, 3, 1, orientation)[big_endian], big_endian=big_endian)
    data = made.encoded(Image.fromarray(made.NOISE), file_format, exif=stated)
    check(data)
    turned = {1, 0, 9}.isdisjoint({orientation})
    plain = made.encoded(Image.fromarray(made.NOISE), file_format)
    assert (decode(data)[0] != decode(plain)[0]).any() == turned


def entry(tag, kind, count, value):
    """A directory entry in both byte orders; a value of 2 bytes, or else of 4."""
    form = 'HHIHxx' if kind in (3, 8) else 'HHII'
    return struct.pack('<' + form, tag, kind, count, value), struct.pack('>' + form, tag, kind, count, value)


def tiff(*entries, big_endian=False, start=8, count=None, end=b'\0\0\0\0', prefix=b'Exif\0\0'):
    order = '>' if big_endian else '<'
    head = (b'MM\0*' if big_endian else b'II*\0') + struct.pack(order + 'I', start)
    return prefix + head + struct.pack(order + 'H', len(entries) if count is None else count) + b''.join(entries) + end


def with_segments(*payloads, marker=b'\xff\xe1'):
    jpeg = made.KEPT['RGB JPEG']
    return jpeg[:2] + b''.join(marker + struct.pack('>H', len(one) + 2) + one for one in payloads) + jpeg[2:]


SIX = entry(0x0112, 3, 1, 6)[0]
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description %s/></x:xmpmeta>'
ODD = {
    'behind another segment': with_segments(bytes(300), tiff(SIX)),
    'behind padding': made.KEPT['RGB JPEG'][:2] + b'\xff\xff' + with_segments(tiff(SIX))[2:],
    'in another segment than APP1': with_segments(tiff(SIX), marker=b'\xff\xe2'),
    'as text in a comment': with_segments(b'Exif\0\0 tiff:Orientation="6"', marker=b'\xff\xfe'),
    'behind many entries': with_segments(tiff(*[entry(100 + i, 3, 1, i)[0] for i in range(40)], SIX)),
    'twice': with_segments(tiff(SIX, entry(0x0112, 3, 1, 3)[0])),
    'in two segments': with_segments(tiff(SIX), tiff(entry(0x0112, 3, 1, 3)[0])),
    'with the prefix twice': with_segments(b'Exif\0\0' + tiff(SIX)),
    'as a long': with_segments(tiff(entry(0x0112, 4, 1, 6)[0])),
    'as a byte': with_segments(tiff(entry(0x0112, 1, 1, 6)[0])),
    'as a signed byte': with_segments(tiff(entry(0x0112, 6, 1, 6)[0])),
    'as two numbers': with_segments(tiff(entry(0x0112, 3, 2, 6)[0])),
    'as no number': with_segments(tiff(entry(0x0112, 3, 0, 6)[0])),
    'of no type': with_segments(tiff(entry(0x0112, 99, 1, 6)[0])),
    'behind a text that is there': with_segments(tiff(entry(0x010F, 2, 9, 4)[0], SIX)),
    'behind a text that is not': with_segments(tiff(entry(0x010F, 2, 9, 60)[0], SIX)),
    'behind a text that is too long': with_segments(tiff(entry(0x010F, 2, 9000, 4)[0], SIX)),
    'in a directory that is cut behind it': with_segments(tiff(SIX, count=9, end=b'')),
    'in a directory that is cut in it': with_segments(tiff(SIX[:-1], end=b'')),
    'in a directory elsewhere': with_segments(tiff(SIX, start=4000)),
    'no TIFF': with_segments(b'Exif\0\0no TIFF header'),
    'cut in the head': with_segments(b'Exif\0\0II*\0\x08'),
    'nothing behind the prefix': with_segments(b'Exif\0\0'),
    'no TIFF, but XMP': with_segments(b'Exif\0\0no TIFF header', XMP % b'tiff:Orientation="6"'),
    'in XMP': with_segments(XMP % b'tiff:Orientation="6"'),
    'in XMP as an element': with_segments(XMP % b'<tiff:Orientation>8</tiff:Orientation>'),
    'in XMP as nonsense': with_segments(XMP % b'tiff:Orientation="x"'),
    'in XMP, EXIF has none': with_segments(tiff(entry(0x0100, 3, 1, 6)[0]), XMP % b'tiff:Orientation="3"'),
    'in XMP, EXIF says another': with_segments(tiff(SIX), XMP % b'tiff:Orientation="3"'),
}


@pytest.mark.filterwarnings('ignore')  # Pillow's, of damaged metadata
@pytest.mark.parametrize('kind', ODD)
def test_an_orientation_is_read_wherever_conversion_reads_it(kind):
    check(ODD[kind], (32, 32))


def test_an_orientation_of_an_odd_type_is_refused():
    assert decode(with_segments(tiff(entry(0x0112, 11, 1, 6)[0])))[1] == 'unsupported_orientation'
    assert decode(with_segments(*[b''] * 1001, b'Exif\0\0'))[1] == 'unsupported_orientation'


def test_an_orientation_behind_the_pixels_of_a_png_is_applied():
    plain = made.KEPT['RGB PNG']
    check(plain[:-12] + made.chunk(b'eXIf', tiff(SIX, prefix=b'')) + plain[-12:])


@pytest.mark.parametrize('colour', ['RGB', 'RGBA'])
def test_xmp_turns_a_png_where_conversion_remakes_it(colour):
    plain = made.encoded(Image.fromarray(made.NOISE).convert(colour), 'PNG')
    text = b'XML:com.adobe.xmp\0\0\0\0\0' + XMP.split(b'\0')[1] % b'tiff:Orientation="6"'
    check(plain[:33] + made.chunk(b'iTXt', text) + plain[33:])


def test_a_turned_photograph_is_as_its_record(tmp_path):
    """Of a size at which an upright one is taken at a DCT scale, and this one averaged."""
    random = np.random.default_rng(5)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).resize((397, 301))
    for subsampling in (0, 2):
        output = io.BytesIO()
        coarse.save(output, 'JPEG', quality=85, subsampling=subsampling, exif=made.exif(6))
        check(output.getvalue())


@pytest.mark.parametrize(('data', 'code'), [
    (made.JPEG[:-2], 'truncated'), (made.JPEG[:len(made.JPEG) // 2], 'truncated'), (made.JPEG[:100], 'truncated'),
    (made.JPEG[:-200] + bytes(200), 'truncated'), (made.PNG[:-12], 'truncated'), (made.PNG[:60], 'truncated'),
    (made.PNG[:60] + b'x' * 20 + made.PNG[80:], 'damaged'), (images.JPEG_MAGIC + bytes(30) + b'\xff\xd9', 'damaged'),
    (made.REMADE['BMP'][0][:-500], 'damaged'), (made.REMADE['WebP'][0][:-500], 'damaged'),
    (made.REMADE['16-bit grey PNG'][0][:-500], 'truncated')])
def test_what_does_not_decode_fails_and_its_code_can_be_asked_for(data, code):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(data)
    assert source_decode.CODES[source_decode.failure(tf.constant([data]))[0]] == code


def test_no_file_at_all():
    codes, decoders, heads = source_decode.inspect(tf.constant([], tf.string), LIMITS, MAX_BYTES)
    assert codes.shape == decoders.shape == (0,) and heads.shape == (0, source_decode.HEAD_BYTES)
