"""What a training holds beside its records: the network, the optimizer, and a moving average of the weights."""

from typing import Any, NamedTuple

import keras

from boardrec.config import TrainConfig
from boardrec.training import distribute, init_from, model, optim
from boardrec.training.model import Classes, Classifier
from boardrec.training.optim import Average


class Parts(NamedTuple):
    """All of it lies on the devices of a strategy."""

    classifier: Classifier
    optimizer: Any  # of Keras, built; around it a LossScaleOptimizer for float16
    average: Average | None

    @property
    def variables(self) -> list[keras.Variable]:
        """What training changes, which a saved state holds."""
        return [*model.changing_variables(self.classifier), *self.optimizer.variables,
                *(self.average.variables if self.average else ())]


def build(config: TrainConfig, classes: Classes, strategy: Any, *, goes_on: bool = False) -> Parts:
    """Builds the parts, with starting weights; those of --init_from are left out in a run that goes on.

    Raises UserError for settings or weights that do not fit the backbone.
    """
    with distribute.scope(strategy):
        classifier = model.build(config, classes, config.precision)
        init_from.load_weights(config, classes, classifier, goes_on=goes_on)
        optimizer = optim.make_optimizer(config, config.precision)
        optimizer.build(classifier.model.trainable_variables)
        average = (Average(classifier.model.trainable_variables, config.ema_decay, strategy) if config.ema_decay
                   else None)
    return Parts(classifier, optimizer, average)
