"""What a run's network says of each record of a split, kept in uncalibrated.npz so that it need be asked only once."""

import json
import pathlib
from typing import Any
import zipfile

import numpy as np

import boardrec
from boardrec.data import files, images
from boardrec.training.inference import Predictor

_FILE = 'uncalibrated.npz'


def identity(predictor: Predictor, records_fingerprint: str) -> dict[str, Any]:
    """What the network's probabilities depend on."""
    return {'inference_precision': predictor.config.inference_precision,
            'inference_views': predictor.config.inference_views,
            'weights_sha256': predictor.facts['weights_sha256'],
            'records_fingerprint': records_fingerprint,
            'decode_version': images.DECODE_VERSION, 'boardrec': boardrec.__version__}


def write(predictor: Predictor, split: str, records_fingerprint: str, probabilities: np.ndarray, speed: float) -> None:
    """Keeps float32 [N, C], at temperature 1 and in record_id order, and images/s."""
    path = _path(predictor, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        np.savez(file, probabilities=probabilities, identity=json.dumps(identity(predictor, records_fingerprint)),
                 images_per_second=speed)


def read(predictor: Predictor, split: str, records_fingerprint: str, count: int) -> tuple[np.ndarray | None, float]:
    """What was kept of the same; (None, 0) if it is not there or damaged, which each member's CRC tells."""
    wanted = json.dumps(identity(predictor, records_fingerprint))
    try:
        with open(_path(predictor, split), 'rb') as file, np.load(file, allow_pickle=False) as kept:
            if str(kept['identity']) == wanted and len(kept['probabilities']) == count:
                return kept['probabilities'], float(kept['images_per_second'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None, 0.0


def _path(predictor: Predictor, split: str) -> pathlib.Path:
    return predictor.run.evaluation(split) / _FILE
