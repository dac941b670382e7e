"""How does a trainer take back what was saved? By step, from another run, from a dictionary."""

from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import jax
from jax.sharding import Mesh

from xtrainer.checkpoint import read_meta
from xtrainer.errors import CheckpointNotFoundError, readable
from xtrainer.trainer import from_dict, rebuild, resume, saving, shared
from xtrainer.trainer.answers import TrainerAnswers
from xtrainer.trainer.pretrained import PretrainedMap, PretrainedReport, load_mapped
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike


class TrainerRestoring(TrainerAnswers):
    """A trainer that can be put where a checkpoint says; :class:`TrainerModule` adds the runs."""

    @readable
    def load_model(
        self, step_idx: shared.StepIndex = -1, raise_if_not_found: bool = True
    ) -> int | None:
        """Restores this run from its own folder; the next ``train_model`` goes on from there.

        Args:
            step_idx: A step, ``"best"``, ``"latest"``, or -1 for the latest.
            raise_if_not_found: Otherwise a missing checkpoint is a warning.

        Returns:
            The step, None where nothing was found.

        Raises:
            CheckpointNotFoundError: If there is no such checkpoint.
            CheckpointError: If it does not fit this trainer.
        """
        which = saving.step_index(step_idx)
        try:
            found = resume.load_usable(
                cast(TrainerView, self),
                saving.checkpoint_folder(cast(TrainerView, self)),
                which,
                own=True,
            )
        except CheckpointNotFoundError as error:
            if raise_if_not_found:
                raise
            saving.warn_not_found(error)
            return None
        return int(found.name)

    @readable
    def load_data_loaders(
        self,
        step_idx: shared.StepIndex = -1,
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
    ) -> None:
        """Puts loaders where they were at a step, by default the present one.

        Raises:
            CheckpointNotFoundError: If there is no such checkpoint.
        """
        step = self.global_step if step_idx == -1 else step_idx
        meta = read_meta(
            shared.choose_step(saving.checkpoint_folder(cast(TrainerView, self)), step)[0]
        )
        given = {"train": train_loader, "val": val_loader, "test": test_loader}
        saving.restore_sources(self.sources, meta, given)

    @readable
    def restore_model(self, state_dict: dict[str, Any]) -> None:
        """Replaces parts of the state: ``params``, and any of ``step, opt_state, rng`` and
        ``mutable_variables``.

        Raises:
            CheckpointError: If a leaf differs in path, shape or dtype.
        """
        self.state = from_dict.restore_state(self.state, state_dict)
        self.progress.step = int(jax.device_get(self.state.step))

    @staticmethod
    @readable
    def restore_data_loaders(
        state_dict: dict[str, Any],
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
    ) -> None:
        """Puts loaders with ``set_state`` where ``state_dict`` says, by ``train, val, test``."""
        given = {"train": train_loader, "val": val_loader, "test": test_loader}
        from_dict.restore_loaders(state_dict, given)

    @overload
    def load_pretrained_model(
        self,
        checkpoint_path: str | Path,
        step_idx: shared.StepIndex = -1,
        load_best: bool = False,
        load_optimizer: bool = True,
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
        delete_params_before_loading: bool = True,
        param_map: PretrainedMap | None = None,
        *,
        dry_run: Literal[True],
    ) -> PretrainedReport: ...

    @overload
    def load_pretrained_model(
        self,
        checkpoint_path: str | Path,
        step_idx: shared.StepIndex = -1,
        load_best: bool = False,
        load_optimizer: bool = True,
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
        delete_params_before_loading: bool = True,
        param_map: PretrainedMap | None = None,
        dry_run: Literal[False] = False,
    ) -> int: ...

    @readable
    def load_pretrained_model(
        self,
        checkpoint_path: str | Path,
        step_idx: shared.StepIndex = -1,
        load_best: bool = False,
        load_optimizer: bool = True,
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
        delete_params_before_loading: bool = True,
        param_map: PretrainedMap | None = None,
        dry_run: bool = False,
    ) -> int | PretrainedReport:
        """Takes the model of another run, which is only read, and returns the step it was saved at.

        Args:
            checkpoint_path: A run folder, its checkpoints, or one step's folder.
            step_idx: A step, ``"best"``, ``"latest"``, or -1 for the latest.
            load_best: Take the best step instead.
            load_optimizer: Take the state of training too, and go on with it; otherwise only
                parameters and mutable collections are taken, and training begins at step 0.
            train_loader: Put where it was in that run.
            val_loader: The same.
            test_loader: The same.
            delete_params_before_loading: Free the present parameters as soon as the new ones are
                read. They are kept until then: a failed load changes nothing.
            param_map: What may differ between the models; only parameters and mutable collections
                are taken then, and a table says what became of each.
            dry_run: Load nothing, and return what would become of each array; ``print`` shows it as
                a table.

        Raises:
            CheckpointNotFoundError: If there is no such checkpoint.
            CheckpointError: If it does not fit this trainer.
        """
        which = "best" if load_best else saving.step_index(step_idx)
        folder = Path(checkpoint_path).expanduser()
        if param_map is not None or dry_run:
            step_folder, _ = shared.choose_step(folder, which)
            rules = param_map or PretrainedMap()
            report = load_mapped(cast(TrainerView, self), step_folder, rules, dry_run)
            return report if dry_run else int(step_folder.name)
        old = self.state
        step_folder = resume.load_usable(
            cast(TrainerView, self), folder, which, False, load_optimizer
        )
        if delete_params_before_loading:
            saving.delete_model(old, kept=self.state)
        given = {"train": train_loader, "val": val_loader, "test": test_loader}
        saving.restore_sources(self.sources, read_meta(step_folder), given)
        return int(step_folder.name)

    @classmethod
    @readable
    def load_from_checkpoint(
        cls,
        checkpoint: str | Path,
        exmp_input: BatchLike = None,
        batch_size: int = -1,
        *,
        model_class: Any = None,
        mesh: Mesh | None = None,
    ) -> Self:
        """Returns a trainer with the configs and the model of a checkpoint, ready to evaluate.

        It has no logger and no callbacks, so that the run it came from stays as it is.

        Args:
            checkpoint: A run folder (the best step is taken where one was tracked, else the newest)
                or one step's folder.
            exmp_input: A batch for its shapes; needed only where batches are of a class of yours.
            batch_size: Rows of the example batch; -1: as many as it has.
            model_class: The model's class; else that of this class, else the registered name.
            mesh: The device mesh; else built as the checkpoint's config says.

        Raises:
            CheckpointNotFoundError: If there is no checkpoint.
            CheckpointError: If it cannot be read or does not fit the model.
            ConfigError: If the model's class cannot be known.
        """
        step_folder = rebuild.best_or_latest(checkpoint)
        meta = read_meta(step_folder)
        configs = rebuild.configs_from_meta(meta, model_class or cls.model_class)
        trainer = cls(*configs, rebuild.batch_from_meta(meta, exmp_input, batch_size), mesh)
        rebuild.load_model_parts(cast(TrainerView, trainer), step_folder, meta)
        return trainer

    @classmethod
    @readable
    def from_run(cls, folder: str | Path) -> Self:
        """Returns a trainer with the configs and the model of a run's newest checkpoint."""
        return cls.load_from_checkpoint(shared.choose_step(folder, "latest")[0])
