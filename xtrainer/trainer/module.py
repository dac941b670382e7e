"""The class that users subclass: it trains, evaluates, saves and restores what its parts hold."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from xtrainer.callbacks.progress_bar import tracked
from xtrainer.checkpoint import CheckpointItems
from xtrainer.data import DataModule, Phase
from xtrainer.errors import readable
from xtrainer.hooks import Hooks
from xtrainer.launch import is_main_process
from xtrainer.loop import (
    Agenda,
    Loaders,
    Plan,
    StepHook,
    evaluate_loader,
    every,
    make_plan,
    run_evaluation,
)
from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.step import TrainExecutor
from xtrainer.trainer import batch_trials, counting, online, overview, run, saving, start
from xtrainer.trainer import predict as predicting
from xtrainer.trainer import resume as resuming
from xtrainer.trainer.batch_size import BatchSizeTable, BatchTrial
from xtrainer.trainer.clean_end import clean_test
from xtrainer.trainer.data_modules import takes_data_module
from xtrainer.trainer.folders import held_folders
from xtrainer.trainer.restoring import TrainerRestoring
from xtrainer.trainer.training_set import validation_sets
from xtrainer.types import BatchLike, CountFunction, HostMetrics, PredictFunction


class TrainerModule(TrainerRestoring):
    """Trains, validates, checkpoints and evaluates a Flax model.

    Subclass it and write :meth:`loss_function`; every other method has a default that works. Random
    numbers, shardings and collectives are the trainer's business: the loss is written as if for one
    device and one big batch.

    Args:
        trainer_config: How to train.
        model_config: Which model, over which devices.
        optimizer_config: How parameters move, or a ready Optax transformation.
        batch: A batch, or its ``jax.ShapeDtypeStruct``s; only shapes and dtypes are used.
        mesh: The device mesh; built from ``model_config.parallel`` where None.

    Raises:
        ConfigError: Listing every mistake in the configs, before anything is compiled.
        BatchError: If the leaves of the batch have different leading axes.
        MeshError: If the mesh does not fit the devices.
    """

    # Training and evaluation.

    @readable
    @takes_data_module(Phase.TRAIN)
    def train_model(
        self,
        train_loader: Any,
        val_loader: Any = None,
        test_loader: Any = None,
        num_epochs: int | None = None,
        num_train_steps: int | None = None,
        steps_per_epoch: int | None = None,
        resume: resuming.Resume = "auto",
    ) -> dict[str, HostMetrics]:
        """Trains up to a number of epochs or steps, and returns all validation and test metrics.

        Both numbers count from the beginning of the run, so that a second call, or one after
        ``load_model``, goes on where the state is. ``stop_reason`` says how it ended.

        Args:
            train_loader: Batches; an epoch is one pass, or ``steps_per_epoch`` batches. Or a
                :class:`DataModule`, which has all loaders that are not given besides.
            val_loader: Validation batches, a dictionary of several sets, or None.
            test_loader: The same for a test at the end, with the best model where one is tracked.
            num_epochs: Epochs in all; an epoch ends with the loader's pass.
            num_train_steps: Steps in all; the loader is iterated again as often as needed.
            steps_per_epoch: Steps after which an epoch ends.
            resume: ``"auto"``: a trainer that has not trained yet goes on at the newest usable
                checkpoint of its own folder, if there is one. ``"must"``: it is an error if there
                is none. ``"never"``: it starts as it is. Or a step of its own folder, or another
                run's folder. Checkpoints of later steps are superseded: set aside, and removed when
                this course has come as far.

        Returns:
            ``val_epoch_N``, ``val_step_N`` and ``test`` with metrics by name; with several sets the
            names begin with ``SET_``. After a resume the newest validation before it is there too.

        Raises:
            ConfigError: For both or neither of ``num_epochs`` and ``num_train_steps``.
            LoaderError: If a loader is empty or has ended.
            NoUsableCheckpointError: If there are checkpoints to resume from, and all are damaged.
            CheckpointError: If a checkpoint does not fit this trainer, or cannot be written.
            FolderInUseError: If another run trains in the same folder.
        """
        config = self.trainer_config
        plan = make_plan(
            num_epochs,
            num_train_steps,
            steps_per_epoch,
            self.log_every_n_steps,
            config.check_val_every_n_epoch,
            config.check_val_every_n_steps,
        )
        with held_folders(self):
            resuming.resume_run(self, resume)
            sets = (val_loader, train_loader, config.evaluate_training_set)
            val = validation_sets(self.sources, *sets)
            loaders = Loaders(self.sources.of(train_loader, "train"), val)
            return run.train(self, plan, loaders, test_loader)

    @readable
    def train_online(self, loader: Iterable[BatchLike]) -> HostMetrics:
        """Updates the model with one pass over a loader, and returns the means over that pass.

        For data that come while a model is in use. Steps, and with them the learning rate, go on;
        they count for the ``num_train_steps`` of ``train_model``. No epoch is counted, and the
        training loader stays where it is, also within its pass. Nothing is validated, tested or
        saved: ``ModelCheckpoint`` and the hooks of epochs are left out, all other hooks are called.
        The guard works as ever, but the run never goes back: where ``nonfinite_policy`` is
        ``"rollback"``, the pass ends instead.

        Args:
            loader: Batches like those of training. An iterator is read to its end.

        Returns:
            Loss and metrics; of fewer steps where the pass was ended early, see ``stop_reason``.

        Raises:
            LoaderError: If there is no batch.
            FolderInUseError: If another run trains in the same folder.
        """
        return online.train_online(self, self.sources.of(loader, "online"))

    @readable
    @takes_data_module(Phase.VALIDATION)
    def eval_model(self, data_loader: Any, mode: str = "val", epoch_idx: int = 0) -> HostMetrics:
        """Returns the metrics of one or several sets, or of a :class:`DataModule`'s validation set,
        and logs them under ``mode``."""
        with self.ledger.spent("validation"):
            metrics = run_evaluation(self, self.sources.of_sets(data_loader, mode), mode, epoch_idx)
        self.logger.log_metrics(metrics, self.global_step, mode, epoch_idx)
        return metrics

    @readable
    @takes_data_module(Phase.TEST)
    def test_model(
        self, test_loader: Any, apply_callbacks: bool = False, epoch_idx: int = 0
    ) -> HostMetrics:
        """Returns the metrics of the test sets under the present state; test hooks on request.

        Without metrics where one of ``test_exceptions`` has ended it.
        """
        metrics: HostMetrics = {}
        with clean_test(self):
            if not apply_callbacks:
                return self.eval_model(test_loader, "test", epoch_idx)
            self.notify("on_test_epoch_start", epoch_idx)
            sets = self.sources.of_sets(test_loader, "test")
            found = run_evaluation(self, sets, "test", epoch_idx)
            self.notify("on_test_epoch_end", found, epoch_idx)
            self.logger.log_metrics(found, self.global_step, "test", epoch_idx)
            metrics = found
        return metrics

    @readable
    def test_eval_function(self, val_loader: Any) -> None:
        """Runs the evaluation step on the first batch, which stays the first.

        Raises:
            LoaderError: If there is no batch.
        """
        batch = start.first_eval_batch(self, self.sources.of(val_loader, "val"))
        jax.block_until_ready(
            self.compiled_eval_step(self.state, batch, self.compiled_eval_step.new_window())
        )

    @readable
    def evaluate_with(
        self, loss_function: Callable[..., Any], loader: Iterable[BatchLike], title: str
    ) -> HostMetrics:
        """Returns the metrics of another loss over one pass of a loader."""
        if loss_function not in self.compiled_evaluations:
            self.compiled_evaluations[loss_function] = self.compile_evaluation(loss_function)
        executor, prepare = self.compiled_evaluations[loss_function]
        window = evaluate_loader(self, self.sources.of(loader, title), executor, prepare, title)
        return self.get_metric_postprocess_fn()(finish(HostWindow.fetch(window), missing="nan"))

    def count_with(
        self, function: CountFunction, size: int, loader: Iterable[BatchLike], title: str
    ) -> np.ndarray:
        """Returns int64 ``(size,)``: the sums of what a function counts in each batch of a pass.

        Args:
            function: ``(params, apply_fn, batch, row_mask, rng)`` to integers ``(size,)`` of the
                rows that ``row_mask`` does not leave out; give the same object again, as it is
                compiled.
            size: How many things are counted.
            loader: Batches; a new pass is begun.
            title: For the progress bar and messages.

        Raises:
            LoaderError: If there is no batch.
            MetricError: If something else than so many integers is counted.
        """
        return counting.count(self, function, size, loader, title)

    @readable
    def tune_batch_size(
        self,
        loader: Any = None,
        *,
        max_batch_size: int | None = None,
        max_trials: int = 20,
        halving_limit: int = 3,
        steps_per_trial: int = 3,
        memory_limit: int | None = None,
        on_improvement: Callable[[BatchTrial], None] | None = None,
    ) -> BatchSizeTable:
        """Returns which batch sizes fit, how much memory each takes, and which is the fastest.

        Sizes are doubled from that of the loader or the example batch while they fit; where the
        first does not, it is halved until one does. Every size divides over the devices and into
        micro-batches. What a device has no room for, by what the compiler says of the step, is not
        tried; of the others a few steps are run and timed, on real rows where there are some. The
        state is kept in host memory meanwhile and is the same afterwards, bit for bit, as are the
        place in the loader and all compiled steps; all processes find the same.

        Args:
            loader: The training data: no batch is larger than they are, where they say it.
            max_batch_size: The most rows; None: 512 on a CPU, else any number.
            max_trials: Sizes that are tried at most.
            halving_limit: How often the first size is halved at most.
            steps_per_trial: Steps that are timed for each size; one runs before them.
            memory_limit: Bytes that one device has for the run; None: what the device says.
            on_improvement: Called with each size that is faster than all before it.

        Returns:
            The table; ``table.best.rows`` is the fastest size that fits.

        Raises:
            BatchError: If no size fits, or the data are fewer than the smallest batch.
            ConfigError: For numbers that cannot be.
        """
        limits = (max_batch_size, max_trials, halving_limit, steps_per_trial, memory_limit)
        return batch_trials.tune(self, loader, *limits, on_improvement)

    @readable
    def predict(
        self,
        loader: Iterable[BatchLike] | DataModule,
        function: PredictFunction | None = None,
        collect: bool = True,
    ) -> Any:
        """Returns what the model says of every example of a loader, in the loader's order.

        A last batch of fewer rows is padded and the padding taken off, so that no batch size, mesh
        or number of processes changes a row; each process gets the rows of all. Nothing else
        changes: neither the state nor the place in a training loader of its own.

        Args:
            loader: Batches, or a data module; a new pass is begun. There need be no targets where
                nothing reads them.
            function: Instead of :meth:`predict_function`; give the same object again, as it is
                compiled once for each shape of batch.
            collect: Return one tree with all rows; otherwise a generator of a tree per batch, for
                outputs that do not fit the host's memory. It is to be read to the end by all
                processes, and before the state is trained on.

        Returns:
            The outputs as NumPy arrays whose first axis are the examples.

        Raises:
            LoaderError: If there is no batch.
            PredictionError: If the outputs are not one row per example, or, to collect, are not of
                one shape.
        """
        batches = predicting.predictions(self, loader, function or self.predict_function)
        return predicting.collected(batches) if collect else batches

    def _run_model_eval(
        self, data_loader: Any, mode: str = "", epoch_idx: int = -1
    ) -> DeviceMetrics:
        """Returns the metrics of one set, still on the devices."""
        source = self.sources.of(data_loader, mode or "eval")
        parts = (self.compiled_eval_step, self.prepare_eval_batch)
        return evaluate_loader(self, source, *parts, mode)

    def tracker(self, iterator: Any, **kwargs: Any) -> Any:
        """Returns the iterator with a progress bar, where bars are enabled and can be seen."""
        wanted = self.trainer_config.enable_progress_bar and is_main_process()
        return tracked(iterator, self.callbacks, wanted, **kwargs)

    def log_training_info(
        self,
        num_epochs: int | None,
        num_train_steps: int | None,
        steps_per_epoch: int | None,
        train_loader: Any,
        val_loader: Any = None,
        test_loader: Any = None,
    ) -> None:
        """Logs model, devices, mesh, epochs, steps and data at the start."""
        val, test = (self.sources.of_sets(*s) for s in ((val_loader, "val"), (test_loader, "test")))
        lengths = {source.name: source.length for source in [*val.values(), *test.values()]}
        length = self.sources.of(train_loader, "train").length
        plan = (num_epochs, num_train_steps, steps_per_epoch)
        overview.log_facts(overview.training_facts(self, *plan, length, lengths))

    def log_training_summary(self) -> None:
        """Logs why a run has ended, how far it came, its best and last metrics, and its time.

        ``train_model`` calls it last, also after an error; the loggers get the text
        ``training_summary``.
        """
        overview.log_summary(self)

    # How the loop and the callbacks see this trainer.

    @property
    def max_steps_in_flight(self) -> int:
        """Steps that may be dispatched before the first of them has ended."""
        return self.trainer_config.max_steps_in_flight

    @property
    def log_every_n_steps(self) -> int:
        """Steps of a row."""
        logger = self.trainer_config.logger
        return logger.log_every_n_steps if logger else 50

    @property
    def nonfinite_limit(self) -> int | None:
        """Refused steps in a row that end the run."""
        return self.trainer_config.nonfinite_limit

    @property
    def spike_threshold(self) -> float | None:
        """How many times their median the loss of a row may be."""
        return self.trainer_config.spike_threshold

    @property
    def guards_transfers(self) -> bool:
        """Whether an implicit transfer in the loop is an error."""
        return not self.trainer_config.debug

    def train_executor(self) -> TrainExecutor:
        """Returns the compiled training step."""
        return self.compiled_train_step

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of this trainer and of every callback that is due."""
        getattr(self, hook)(*args)
        nothing = getattr(Hooks, hook)
        for callback in self.callbacks:
            if getattr(type(callback), hook) is not nothing and callback.is_due(hook, args):
                with self.ledger.spent(*callback.account):
                    getattr(callback, hook)(*args)

    def step_hooks(self) -> Sequence[StepHook]:
        """Returns the ``on_training_step`` hooks that do something."""
        own = type(self).on_training_step is not Hooks.on_training_step
        hooks = [StepHook(every(1), self.on_training_step, False)] if own else []
        for c in self.callbacks:
            if c.watches_steps():
                settled = c.needs_settled_state
                hooks.append(StepHook(c.next_step, c.on_training_step, settled, c.account))
        return hooks

    def agenda(self, plan: Plan, train_length: int | None) -> Agenda:
        """Returns when something else than a step is due, and the sizes of dispatches."""
        return start.make_agenda(self, plan, train_length)

    @property
    def feeds_host_batches(self) -> bool:
        """Whether small host batches go into the compiled step as they are."""
        return self.prepare_train_batch.feeds_host

    def gather_checkpoint(
        self, save_optimizer_state: bool, save_dataloader_state: bool, metrics: HostMetrics
    ) -> CheckpointItems:
        """Returns what a checkpoint of the present step holds."""
        return saving.gather_items(self, save_optimizer_state, save_dataloader_state, metrics)
