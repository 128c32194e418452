"""The weights that a run starts from: of the backbone as published, or of another run."""

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.training import backbones, model, run_dir
from boardrec.training.model import Classes, Classifier


def load_weights(config: TrainConfig, classes: Classes, classifier: Classifier) -> None:
    """Sets the classifier's variables as --weights or --init_from say.

    From a run come the backbone's, and the last layer's if it has the same classes. Raises UserError if there is no
    finished run, or it has another backbone.
    """
    if not config.init_from:
        backbones.load_weights(config.backbone, config.weights, classifier.backbone_layers)
        return
    run, theirs, facts = run_dir.require_finished(config.init_from, flag='init_from')
    if theirs.backbone != config.backbone:
        raise UserError(f'--init_from={config.init_from}: is a run with --backbone={theirs.backbone}, not '
                        f'{config.backbone}.')
    their_classes = model.resolve_classes(facts['class_names'], theirs.positive_class)
    other = model.build(theirs, their_classes, 'float32')
    other.model.load_weights(run.weights)
    for layer, of_other in zip(classifier.backbone_layers, other.backbone_layers, strict=True):
        layer.set_weights(of_other.get_weights())
    same = their_classes == classes
    if same:
        classifier.model.get_layer('logits').set_weights(other.model.get_layer('logits').get_weights())
    progress.say(f'weights from {config.init_from}' + ('' if same else ', but for the last layer: its classes are '
                                                       f'{", ".join(their_classes.names)}'))
