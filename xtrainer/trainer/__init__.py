"""What does the user subclass? ``TrainerModule``, its configs, and the state it starts from.

Synopsis:
    class Classifier(TrainerModule):
        def loss_function(self, params, apply_fn, batch, rng, train=True): ...

    trainer = Classifier(TrainerConfig(), ModelConfig(model_class=Net), OptimizerConfig(), batch)
    trainer.train_model(train_loader, val_loader, num_epochs=3)
"""

from xtrainer.trainer.assemble import abstract_state, init_state
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.trainer.journal_lines import JournalError, JournalLine, read_journal
from xtrainer.trainer.module import TrainerModule
from xtrainer.trainer.nnx_model import NNXModel
from xtrainer.trainer.pretrained import PretrainedMap
from xtrainer.trainer.shapes import shapes_only

__all__ = [
    "JournalError",
    "JournalLine",
    "ModelConfig",
    "NNXModel",
    "PretrainedMap",
    "TrainerConfig",
    "TrainerModule",
    "abstract_state",
    "init_state",
    "read_journal",
    "shapes_only",
]
