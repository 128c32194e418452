"""The page at `/`: a person drops or takes a photograph and sees the answer. One file, nothing fetched elsewhere."""

import base64
import functools
import hashlib
import pathlib
import re

_FILE = pathlib.Path(__file__).with_name('upload_page.html')


@functools.cache
def html() -> str:
    """The page."""
    return _FILE.read_text(encoding='utf-8')


@functools.cache
def headers() -> dict[str, str]:
    """Its headers: only the page's own script and style run, and they talk to this server alone."""
    policy = {'default-src': "'none'", 'script-src': _hashes('script'), 'style-src': _hashes('style'),
              'img-src': 'blob: data:', 'connect-src': "'self'", 'base-uri': "'none'", 'form-action': "'none'",
              'frame-ancestors': "'none'"}
    return {'Content-Security-Policy': '; '.join(f'{name} {value}' for name, value in policy.items()),
            'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-cache'}


def _hashes(tag: str) -> str:
    parts = re.findall(rf'<{tag}>(.*?)</{tag}>', html(), re.DOTALL)
    return ' '.join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts)
