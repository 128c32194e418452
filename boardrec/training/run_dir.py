"""What a run's folder holds, and the settings and facts that make it this run: the only place that knows its names.

    RUN/
      run.flags        every setting, each `auto` resolved: --flagfile=RUN/run.flags repeats the run
      run.json         facts: records' fingerprint, classes, versions; best epoch and sums once it is finished
      history.csv      one row an epoch
      checkpoints/     the last two states (to continue from) and best-epoch-NNN-loss-L.weights.h5
      non_finite.json  the step that was not finite, and its records, if one was
      tensorboard/
      model.keras, model.weights.h5, model.json         the best epoch by validation loss, when finished
      decision.json    threshold and temperature, chosen on the validation records; evaluate writes it
      evaluation/SPLIT/ predictions.csv, metrics.json, summary.txt, classification_report.txt, and uncalibrated.npz:
                       what the network says, from which the others are made without it
      report/          index.html, of the split evaluated last; compare-NAME.html and .json, beside the run NAME
"""

from collections.abc import Iterator
import contextlib
import csv
import dataclasses
import io
import json
import pathlib
from typing import Any

from boardrec import cli
from boardrec.config import TrainConfig, UserError
from boardrec.data import files

# Settings that say where and how fast, not what is computed: a run may continue with others.
_FREE = {'records', 'run_dir', 'verify_records', 'feature_cache', 'feature_cache_dir', 'gpus', 'strategy',
         'pipeline_ram_mb', 'data_service', 'xla', 'steps_per_call', 'deterministic',
         'record_weights',  # the place of the file, not the weights: their sum is a fact
         'checkpoint_every_steps', 'on_nan', 'log_every_steps', 'profile_steps', 'dry_run'}
_LOCK = '.lock'


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The paths of a run."""

    path: pathlib.Path

    @property
    def flags(self) -> pathlib.Path:
        """Settings."""
        return self.path / 'run.flags'

    @property
    def facts(self) -> pathlib.Path:
        """Facts about data, versions and outcome."""
        return self.path / 'run.json'

    @property
    def history(self) -> pathlib.Path:
        """One row an epoch."""
        return self.path / 'history.csv'

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of RunState and the best weights."""
        return self.path / 'checkpoints'

    @property
    def non_finite(self) -> pathlib.Path:
        """The step whose loss or gradients were not finite, and its records."""
        return self.path / 'non_finite.json'

    @property
    def tensorboard(self) -> pathlib.Path:
        """Folder for TensorBoard."""
        return self.path / 'tensorboard'

    @property
    def weights(self) -> pathlib.Path:
        """The finished run's weights."""
        return self.path / 'model.weights.h5'

    @property
    def model(self) -> pathlib.Path:
        """The finished run's whole model."""
        return self.path / 'model.keras'

    @property
    def architecture(self) -> pathlib.Path:
        """The finished run's architecture."""
        return self.path / 'model.json'

    @property
    def decision(self) -> pathlib.Path:
        """The threshold and the temperature."""
        return self.path / 'decision.json'

    @property
    def report(self) -> pathlib.Path:
        """The page that people look at."""
        return self.path / 'report' / 'index.html'

    def comparison(self, name: str) -> pathlib.Path:
        """The page that sets this run beside another one of that name."""
        return self.path / 'report' / f'compare-{name}.html'

    def evaluation(self, split: str) -> pathlib.Path:
        """Folder of one split's evaluation."""
        return self.path / 'evaluation' / split


def find(run: RunDir, config: TrainConfig, facts: dict[str, Any]) -> TrainConfig | None:
    """The settings to continue the folder's run with, or None if a new run may begin there.

    What may differ (places and devices) is taken from `config`, all else from the run.
    Raises UserError if the folder holds a run on other data or with other settings, or something that is no run.
    """
    if not run.flags.is_file():
        _require_free(run)
        return None
    require_equal(run, facts)
    earlier = read_config(run.path)
    differences = [f'--{field.name}={getattr(config, field.name)} (there: {getattr(earlier, field.name)})'
                   for field in dataclasses.fields(config)
                   if field.name not in _FREE and getattr(config, field.name) != getattr(earlier, field.name)]
    if differences:
        raise UserError(f'--run_dir={run.path} was begun with other settings: {"; ".join(differences)}. '
                        'Name another folder for a new run, or repeat the settings to continue.')
    return _with_free(earlier, config)


def with_own(lines: list[str], config: TrainConfig) -> TrainConfig:
    """The settings that another host says, as lines of a flag file, with this host's places and devices."""
    return _with_free(cli.parse(TrainConfig, lines), config)


def require_equal(run: RunDir, facts: dict[str, Any]) -> None:
    """Raises UserError if the run was begun on other data than these facts tell of."""
    earlier = read_facts(run.path)
    for name, value in facts.items():
        if name != 'versions' and earlier.get(name) != value:
            raise UserError(f'--run_dir={run.path} was begun with other {FACT_NAMES[name]}: name another folder.')


@contextlib.contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Makes the folder, and keeps other trainings out of it; takes it away again if it has not become a run's.

    Raises UserError if another training has it or it holds something that is no run, and OSError if it cannot be
    written.
    """
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f'--run_dir={run.path} is a file: name a folder.')
    if not run.flags.is_file():
        _require_free(run)  # before a lock is left in somebody's folder
    made = not run.path.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    lock = files.LockFile(run.path / _LOCK)
    try:
        if not lock.acquire(0, 1):
            raise UserError(f'--run_dir={run.path}: another training is at work in it: wait for it, or name another '
                            'folder.')
        yield
    finally:
        left = [path.name for path in run.path.iterdir()]
        if made and left == [_LOCK]:
            (run.path / _LOCK).unlink()
            run.path.rmdir()
        lock.close()


def create(run: RunDir, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Makes the folder a run with these settings; of one that is there already, what may change is changed."""
    if run.flags.is_file():
        if read_config(run.path) == config:
            return
    else:
        run.path.mkdir(parents=True, exist_ok=True)
        write_facts(run, facts)
    with files.atomic_write(run.flags) as file:  # last: its presence makes the folder a run
        file.write((_HEAD + cli.to_flagfile(config)).encode())


def read_config(path: str | pathlib.Path, *, flag: str = 'run_dir') -> TrainConfig:
    """The settings of the run in a folder. Raises UserError if there is none."""
    run = RunDir(pathlib.Path(path))
    if not run.flags.is_file():
        raise UserError(f'--{flag}={path}: there is no run in it (run.flags is missing); make one with '
                        'python -m boardrec.train.')
    return cli.read_flagfile(TrainConfig, run.flags)


def read_facts(path: str | pathlib.Path) -> dict[str, Any]:
    """run.json. Raises UserError if it is missing or damaged."""
    facts = RunDir(pathlib.Path(path)).facts
    try:
        return json.loads(facts.read_bytes())
    except (OSError, ValueError):
        raise UserError(f'{facts} is missing or damaged: train again into another folder.') from None


def write_facts(run: RunDir, facts: dict[str, Any]) -> None:
    """Writes run.json."""
    with files.atomic_write(run.facts) as file:
        file.write(json.dumps(facts, indent=1).encode() + b'\n')


def require_finished(path: str | pathlib.Path, *, flag: str = 'run_dir') -> tuple[RunDir, TrainConfig, dict[str, Any]]:
    """The run, its settings and its facts. Raises UserError if it is not finished or its weights were changed."""
    config, facts = read_config(path, flag=flag), read_facts(path)
    run = RunDir(pathlib.Path(path))
    if not facts.get('finished'):
        raise UserError(f'--{flag}={path}: training is not finished; continue it with '
                        f'python -m boardrec.train --flagfile={run.flags} --run_dir={path}')
    if not run.weights.is_file() or files.sha256_of(run.weights) != facts['weights_sha256']:
        raise UserError(f'{run.weights} is missing or was changed since training; train again into another folder.')
    return run, config, facts


def write_history(run: RunDir, rows: list[dict[str, Any]]) -> None:
    """Writes history.csv."""
    text = io.StringIO()
    # A run that was begun by an earlier version may lack columns in its first rows.
    writer = csv.DictWriter(text, rows[-1], restval='nan', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    with files.atomic_write(run.history) as file:
        file.write(text.getvalue().encode())


def read_history(run: RunDir) -> list[dict[str, float]]:
    """history.csv with its values as numbers; empty if there is none yet."""
    if not run.history.is_file():
        return []
    with open(run.history, encoding='utf-8', newline='') as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


FACT_NAMES = {'records_fingerprint': 'records', 'class_names': 'classes', 'positive_class': 'positive class',
               'frozen_sha256': 'starting weights', 'decode_version': 'decoding of images (of another boardrec)',
              'class_weights': 'class weights', 'record_weights': 'record weights', 'versions': 'packages'}
_HEAD = '# Every setting of this run, each auto resolved: python -m boardrec.train --flagfile=THIS_FILE\n'


def write_non_finite(run: RunDir, step: dict[str, Any]) -> None:
    """Writes non_finite.json."""
    with files.atomic_write(run.non_finite) as file:
        file.write(json.dumps(step, indent=1).encode() + b'\n')


def write_decision(run: RunDir, decision: dict[str, Any]) -> None:
    """Writes decision.json."""
    with files.atomic_write(run.decision) as file:
        file.write(json.dumps(decision, indent=1, allow_nan=False).encode() + b'\n')


def read_decision(run: RunDir, facts: dict[str, Any]) -> dict[str, Any] | None:
    """decision.json: `threshold` (None with more than two classes), `temperature` and how they were chosen.

    None if nothing was chosen for these weights yet. Raises UserError if it is damaged.
    """
    if not run.decision.is_file():
        return None
    try:
        decision = json.loads(run.decision.read_bytes())
        threshold, temperature = decision['threshold'], decision['temperature']
        good = (threshold is None or 0 <= threshold <= 1) and temperature > 0
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f'{run.decision} is damaged: delete it, and choose again with python -m boardrec.evaluate '
                        f'--run_dir={run.path}')
    return decision if decision.get('weights_sha256') == facts['weights_sha256'] else None


def _with_free(settings: TrainConfig, config: TrainConfig) -> TrainConfig:
    free = {name: getattr(config, name) for name in _FREE}
    return dataclasses.replace(settings, **{name: value for name, value in free.items() if value != 'auto'})


def _require_free(run: RunDir) -> None:
    if run.path.exists() and (not run.path.is_dir() or _foreign(run.path)):
        raise UserError(f'--run_dir={run.path} holds something that is no run: name another folder.')


def _foreign(folder: pathlib.Path) -> list[pathlib.Path]:
    """What does not come from a start that was killed between writing run.json and run.flags."""
    return [path for path in folder.iterdir()
            if path.name not in ('run.json', _LOCK) and not path.name.startswith(files.TEMPORARY_PREFIX)]
