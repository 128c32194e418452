"""Asks a running server, TF Serving or boardrec.serve, what a deployment must answer: python deploy/smoke.py HOST:PORT.

Standard library only. Ends with status 1 at the first answer that is wrong.
"""

import base64
import json
import struct
import sys
import urllib.error
import urllib.request
import zlib

SECONDS = 30


def main(address: str, name: str = 'boardrec', labels: tuple[str, ...] = ()) -> None:
    """Prints a line a check. Raises SystemExit with the reason where one fails."""
    model = f'http://{address}/v1/models/{name}'
    versions = _ask(model)['model_version_status']
    available = [one['version'] for one in versions if one['state'] == 'AVAILABLE']
    _check(available, f'versions {", ".join(available)} are available', f'no version is available: {versions}')
    signatures = _ask(f'{model}/metadata')['metadata']['signature_def']['signature_def']
    _check('image_bytes' in signatures['serving_default']['inputs'], 'serving_default takes image_bytes',
           f'serving_default takes {list(signatures["serving_default"]["inputs"])}')
    for path in ('', *(f'/labels/{label}' for label in labels)):
        rows = _ask(f'{model}{path}:predict', {'instances': [{'b64': _b64(png())}, {'b64': _b64(b'')}]})['predictions']
        _check([row['valid'] for row in rows] == [True, False], f'{path or "newest"}: {rows[0]["label"]!r}, '
               f'score {rows[0]["score"]:.3f}; an empty image costs nobody else', f'{path}: {rows}')
        _check(abs(sum(rows[0]['probabilities']) - 1) < 1e-3, 'probabilities add up to 1', f'{path}: {rows[0]}')
    with urllib.request.urlopen(f'http://{address}/monitoring/prometheus/metrics', timeout=SECONDS) as response:
        _check(b'# TYPE' in response.read(), 'metrics are there', 'no metrics')


def png() -> bytes:
    """A grey image of 64x64."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = zlib.compress((b'\0' + b'\x80' * 3 * 64) * 64)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 64, 64, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', rows) + chunk(b'IEND', b''))


def _ask(url: str, document: object = None) -> dict:
    body = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f'FAILED {url}: {error.code}: {error.read()[:300].decode(errors="replace")}')
    except OSError as error:
        sys.exit(f'FAILED {url}: {error}')


def _check(good: object, passed: str, failed: str) -> None:
    if not good:
        sys.exit(f'FAILED {failed}')
    print(f'ok {passed}')


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('python deploy/smoke.py HOST:PORT [MODEL [LABEL ...]]')
    main(*sys.argv[1:3], labels=tuple(sys.argv[3:]))
