"""Pictures for a page: small JPEGs as data URIs, and heat maps laid over them."""

import base64
from collections.abc import Callable
import io

import numpy as np
from PIL import Image

from boardrec.reporting import page

THUMBNAIL = 176  # pixels, longer side
# Dark violet to pale yellow, its lightness rising evenly, so that grey paper and colour-blind readers see the same.
_COLOURS = np.array([[24, 15, 62], [87, 15, 109], [147, 38, 103], [201, 66, 73], [240, 112, 32], [252, 178, 32],
                     [252, 255, 164]], np.float32)
GRADIENT = 'linear-gradient(to right, ' + ', '.join(
    f'rgb({red:.0f} {green:.0f} {blue:.0f})' for red, green, blue in _COLOURS) + ')'


def small(encoded: bytes) -> Image.Image:
    """The image in RGB, at most THUMBNAIL pixels a side. Raises OSError, ValueError or SyntaxError."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft('RGB', (2 * THUMBNAIL, 2 * THUMBNAIL))  # decodes a large JPEG at a fraction of its size
        picture = image.convert('RGB')
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A grey version of the picture with the heat map, float [h, w] of any size, at least 0, drawn over it.

    The map is stretched over all of the picture, as the network saw it, and scaled by its own maximum.
    """
    highest = float(heat.max())
    scaled = np.clip(heat / highest if highest > 0 else np.zeros_like(heat), 0, 1).astype(np.float32)
    values = np.clip(np.asarray(Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC)), 0, 1)
    grey = np.asarray(picture.convert('L'), np.float32)[..., None]
    opacity = 0.25 + 0.45 * values[..., None]
    return Image.fromarray(np.round(grey * (1 - opacity) + _colours(values) * opacity).astype(np.uint8))


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG in the page itself."""
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=80)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')


def shown(record_id: int, alt: str, read_image: Callable[[int], bytes], heat: np.ndarray | None = None,
          heat_alt: str = '') -> str:
    """A record's picture, with its heat map beside it; a note where its bytes are no picture."""
    try:
        picture = small(read_image(record_id))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's answers to broken files
        return '<div class="pair single"><div class="missing">no picture</div></div>'
    images = [f'<img src="{data_uri(picture)}" alt="{page.text(alt)}">']
    if heat is not None:
        images.append(f'<img src="{data_uri(overlay(picture, heat))}" alt="{page.text(heat_alt)}">')
    return f'<div class="pair{"" if len(images) > 1 else " single"}">{"".join(images)}</div>'


def _colours(values: np.ndarray) -> np.ndarray:
    """float32 [h, w] from 0 to 1 to colours float32 [h, w, 3]."""
    places = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, places, _COLOURS[:, i]) for i in range(3)], axis=-1).astype(np.float32)
