"""Fetches the demo's photographs: electroluminescence images of solar cells, as {train,val,test}/{negative,positive}/.

They come out of the wheel elpv-dataset, which is unzipped and never installed; the PNG files keep their bytes. Beside
the folder, under its name with .csv, lies a table with what the data set says of each image, and the weight that its
label may be given in training (as the published work does; boardrec.train --record_weights=FOLDER.csv).
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import os
import pathlib
import zipfile

import wheels

from boardrec import cli
from boardrec.config import setting, UserError
from boardrec.data import files
from boardrec.progress import bar, say

ELPV = wheels.Wheel(
    'elpv-dataset', '1.0.0.post1', '85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c', 87)
DATA_FOLDER = 'elpv_dataset/data'
SPLIT_IMAGES = {'train': 1672, 'val': 296, 'test': 656}
# Of cells that have a defect with a probability of 0, 1, 2 and 3 thirds. Where the experts were not sure, Deitsch et
# al. weigh with 33 % what was rather taken for sound and with 67 % what was rather taken for defective.
WEIGHTS = ('1', '0.3333', '0.6667', '1')
LICENCE = ('The ELPV images are licensed CC BY-NC-SA 4.0 (no commercial use). Cite Buerhop-Lutz et al., A Benchmark '
           'for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, EU PVSEC 2018, and '
           'Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence '
           'images, Solar Energy 185, 2019.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchDemoDataConfig:
    """Settings of tools/fetch_demo_data.py."""

    output_dir: str = setting('folder for the images; made if it does not exist')
    seed: int = setting('seed of the split', 0)

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise UserError(f'--seed={self.seed}: must be at least 0 and below 2**32.')


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image and one line of the table; `path` is relative to the folder, `probability` of a defect as published."""

    path: str
    label: str
    split: str
    probability: str
    module_type: str
    bytes: int
    weight: str = dataclasses.field(init=False)  # for --record_weights

    def __post_init__(self):
        object.__setattr__(self, 'weight', WEIGHTS[round(3 * float(self.probability))])


HEADER = [field.name for field in dataclasses.fields(Cell)]


def main(config: FetchDemoDataConfig) -> None:
    """Fetches 2,624 photographs of solar cells, with and without defects, for the demo."""
    output = pathlib.Path(os.path.abspath(os.path.expanduser(config.output_dir)))
    table = output.with_name(f'{output.name}.csv') if output.name else output
    if is_complete(output, table, config.seed):
        _renew(table)
        say(f'The {sum(SPLIT_IMAGES.values()):,} demo images are already there: {output}')
        return
    _refuse_other_files(output, table, config.seed)
    wheel = wheels.fetch(ELPV, files.cache_dir())
    say(LICENCE)
    write(wheel, output, table=table, seed=config.seed)
    say(f'Wrote {", ".join(f"{n:,} {split}" for split, n in SPLIT_IMAGES.items())} images to {output}')


def split_names(strata: Sequence[str], seed: int) -> list[str]:
    """A split for each image: 25% test, then 15% of the rest val, alike in each stratum.

    The same two calls as in the figures that README compares with; another order of calls is another split.
    """
    from sklearn.model_selection import train_test_split  # a second of import

    rest, test = train_test_split(
        range(len(strata)), test_size=0.25, random_state=seed, stratify=strata)
    _, val = train_test_split(
        rest, test_size=0.15, random_state=seed, stratify=[strata[i] for i in rest])
    test, val = set(test), set(val)
    return ['test' if i in test else 'val' if i in val else 'train' for i in range(len(strata))]


def read_cells(archive: zipfile.ZipFile, seed: int) -> dict[str, Cell]:
    """Each image's name in the wheel with what becomes of it, in the order of the data set's own labels.csv."""
    lines = archive.read(f'{DATA_FOLDER}/labels.csv').decode().splitlines()
    rows = [line.split() for line in lines]  # 'images/cell0001.png  1.0                 mono'
    splits = split_names([f'{probability} {module_type}' for _, probability, module_type in rows], seed)
    cells = {}
    for (name, probability, module_type), split in zip(rows, splits, strict=True):
        label = 'positive' if float(probability) > 0.5 else 'negative'
        member = f'{DATA_FOLDER}/{name}'
        path = f'{split}/{label}/{pathlib.PurePosixPath(name).name}'
        cells[member] = Cell(path, label, split, probability, module_type, archive.getinfo(member).file_size)
    assert _counts(cells.values()) == SPLIT_IMAGES, _counts(cells.values())
    return cells


def write(wheel: pathlib.Path, output: pathlib.Path, *, table: pathlib.Path, seed: int) -> None:
    """Writes the table and then, in one rename, the folder; an empty folder at `output` gives way."""
    with zipfile.ZipFile(wheel) as archive, files.temporary_folder(output) as folder:
        cells = read_cells(archive, seed)
        for group in sorted({os.path.dirname(cell.path) for cell in cells.values()}):
            (folder / group).mkdir(parents=True)
        with bar('Writing', total=len(cells), unit='images') as progress:
            for member, cell in cells.items():
                with files.naming(output):
                    (folder / cell.path).write_bytes(archive.read(member))
                progress.update(1)
        with files.atomic_write(table) as file:
            file.write(_table_text(cells.values()).encode())
        if output.is_dir():
            output.rmdir()
        files.commit_folder(folder, output)


def is_complete(output: pathlib.Path, table: pathlib.Path, seed: int) -> bool:
    """Whether the folder holds what the table says, byte count for byte count, split by this seed.

    Names that begin with a dot do not count: file managers leave such files.
    """
    if not output.is_dir():
        return False
    cells = _read_table(table)
    found = {path.relative_to(output).as_posix(): path.stat().st_size
             for path in output.rglob('*') if path.is_file() and not path.name.startswith('.')}
    if _counts(cells) != SPLIT_IMAGES or found != {cell.path: cell.bytes for cell in cells}:
        return False
    return [cell.split for cell in cells] == split_names([f'{c.probability} {c.module_type}' for c in cells], seed)


def _refuse_other_files(output: pathlib.Path, table: pathlib.Path, seed: int) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f'--output_dir={output}: holds something other than the complete demo images of --seed={seed}; '
                        'delete it or name another folder.')
    if table.exists() and not _read_table(table):
        raise UserError(f'{table}: would be overwritten by the table of the demo images; rename it or name another '
                        '--output_dir.')


def _renew(table: pathlib.Path) -> None:
    """Brings a table that an earlier version wrote up to date."""
    text = _table_text(_read_table(table))
    if table.read_text() != text:
        with files.atomic_write(table) as file:
            file.write(text.encode())


def _counts(cells) -> dict[str, int]:
    splits = [cell.split for cell in cells]
    return {split: splits.count(split) for split in SPLIT_IMAGES}


def _table_text(cells) -> str:
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(HEADER)
    writer.writerows(dataclasses.astuple(cell) for cell in cells)
    return text.getvalue()


def _read_table(table: pathlib.Path) -> list[Cell]:
    """The table's lines; none if it is not there or not such a table."""
    try:
        header, *rows = csv.reader(table.read_text().splitlines())
        given = [field.name for field in dataclasses.fields(Cell) if field.init]  # tables of old have no weights
        if header[:len(given)] != given:
            return []
        return [Cell(**{**dict(zip(given, row, strict=False)), 'bytes': int(row[len(given) - 1])}) for row in rows]
    except (FileNotFoundError, ValueError, TypeError, IndexError, csv.Error):
        return []


if __name__ == '__main__':
    cli.run(main, FetchDemoDataConfig, resumes=True)
