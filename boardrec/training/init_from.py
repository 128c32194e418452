"""The weights that a run starts from: of the backbone as published, or of another run."""

import pathlib

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.training import backbones, checkpoint, model, run_dir
from boardrec.training.model import Classes, Classifier
from boardrec.training.run_dir import RunDir


def load_weights(config: TrainConfig, classes: Classes, classifier: Classifier, *, goes_on: bool = False) -> None:
    """Sets the classifier's variables as --weights or --init_from say.

    From a run come the backbone's, and the last layer's if it has the same classes. Where config.run_dir `goes_on` they
    come from its own best weights, if there are any: the other run may be gone, and what is trained is restored later.
    Raises UserError if there is no finished run, or it has another backbone.
    """
    if not config.init_from:
        backbones.load_weights(config.backbone, config.weights, classifier.backbone_layers)
    elif not (goes_on and _load_own(config, classifier)):
        _load_others(config, classes, classifier)


def _load_own(config: TrainConfig, classifier: Classifier) -> bool:
    folder = RunDir(pathlib.Path(config.run_dir)).checkpoints
    if not checkpoint.exists(folder):  # nothing will be restored: training begins anew, from the other run's weights
        return False
    for path in folder.glob('best-*.weights.h5'):
        try:
            classifier.model.load_weights(path)
        except (OSError, ValueError, KeyError):  # a damaged file
            continue
        return True
    return False


def _load_others(config: TrainConfig, classes: Classes, classifier: Classifier) -> None:
    run, theirs, facts = run_dir.require_finished(config.init_from, flag='init_from')
    if theirs.backbone != config.backbone:
        raise UserError(f'--init_from={config.init_from} is a run with --backbone={theirs.backbone}, not '
                        f'{config.backbone}: give that, or name another run.')
    their_classes = model.resolve_classes(facts['class_names'], theirs.positive_class)
    other = model.build(theirs, their_classes, 'float32')
    other.model.load_weights(run.weights)
    backbones.copy_weights(other.backbone_layers, classifier.backbone_layers)
    same = their_classes == classes
    if same:
        classifier.model.get_layer('logits').set_weights(other.model.get_layer('logits').get_weights())
    progress.say(f'weights from {config.init_from}' + ('' if same else ', but for the last layer: its classes are '
                                                       f'{_listed(their_classes)}'))


def _listed(classes: Classes) -> str:
    """The classes' names, of many the first; of two which is positive."""
    more = f' and {len(classes.names) - 8} more' if len(classes.names) > 8 else ''
    positive = '' if classes.positive is None else f' ({classes.names[classes.positive]} the positive one)'
    return ', '.join(classes.names[:8]) + more + positive
