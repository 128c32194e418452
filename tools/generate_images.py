"""Generates images of circuit boards, flawless and scratched, for smoke runs: no download, no licence.

python tools/generate_images.py --output_dir=IMAGES
"""

import dataclasses
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Settings of this tool."""

    output_dir: str = setting('folder for negative/ and positive/; must not exist')
    images: int = setting('how many of each class', 100)
    size: int = setting('pixels a side', 96)
    contrast: float = setting('how far scratches stand out, up to 1: small values make hard images', 1.0)
    seed: int = setting('seed of all that is random', 0)

    def __post_init__(self):
        if self.images < 1 or self.size < 32:
            raise UserError(f'--images={self.images} --size={self.size}: at least 1 image of at least 32 pixels.')
        if not 0 < self.contrast <= 1:
            raise UserError(f'--contrast={self.contrast}: must be above 0 and at most 1.')


def main(config: GenerateConfig) -> None:
    """Writes --images boards of each class: negative (flawless, PNG) and positive (scratched, PNG)."""
    output = pathlib.Path(config.output_dir)
    if output.exists():
        raise UserError(f'--output_dir={output} exists already: name another folder.')
    random = np.random.default_rng(config.seed)
    with files.temporary_folder(output) as folder:
        for label, flaws in (('negative', 0), ('positive', 4)):
            (folder / label).mkdir()
            for number in range(config.images):
                image = board(config.size, flaws=flaws, contrast=config.contrast, random=random)
                image.save(folder / label / f'board{number:04d}.png')
        files.commit_folder(folder, output)
    progress.say(f'{output}: {2 * config.images:,} images')


def board(size: int, *, flaws: int, contrast: float, random: np.random.Generator) -> Image.Image:
    """A green board with a grid of pads and `flaws` pale scratches: RGB, size x size."""
    green = np.array([20, 90, 50]) + random.integers(-12, 13, 3)
    image = Image.fromarray(np.clip(green + random.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8))
    draw, step = ImageDraw.Draw(image), size // 8
    for x in range(step, size - step // 2, step):
        for y in range(step, size - step // 2, step):
            if random.random() < 0.8:
                radius = step / 5
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(190, 160, 80))
    scratch = tuple(int(value) for value in green + contrast * (np.array([225, 228, 222]) - green))
    for _ in range(flaws):
        start, angle = random.uniform(0.2, 0.8, 2) * size, random.uniform(0, 2 * np.pi)
        end = start + size * random.uniform(0.4, 0.7) * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*start, *end], fill=scratch, width=max(2, size // 24))
    return image


if __name__ == '__main__':
    cli.run(main, GenerateConfig)
