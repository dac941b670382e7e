"""How does a function run on the machines of a Ray cluster? As one JAX run, by Ray Train.

Synopsis:
    from xtrainer.launch import ray

    def train(width):                  # runs on every worker, joined by jax.distributed
        trainer = ...                  # paths are absolute: a worker has a folder of its own
        trainer.train_model(loader, None, num_epochs=3)
        return trainer.state.params    # global arrays are gathered

    result = ray.run(train, num_workers=4, use_gpu=True, kwargs={"width": 64})
    result.value                       # what process 0 returned, as NumPy arrays

A logging tool that sends every row to the program that called ``run``:

    class RayLogger(LoggerTool):
        def log_metrics(self, metrics, step, mode, epoch):
            ray.report({f"{mode}/{key}": value for key, value in metrics.items()}, step)
"""

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from xtrainer.errors import ConfigError, MissingDependencyError, PeerError, require
from xtrainer.launch.distributed import initialize
from xtrainer.launch.exchange import runtime_process
from xtrainer.launch.host_values import host_tree
from xtrainer.launch.peers import announce, settle
from xtrainer.launch.ray_reports import Inbox, Listener, host_row
from xtrainer.launch.ray_request import RayRequest
from xtrainer.types import HostMetrics, PyTree

_EXTRA = "ray"
_INBOX = "XTRAINER_RAY_INBOX"  # set for the workers; names the actor that they report to


@dataclass(frozen=True, kw_only=True)
class RayResult:
    """What a run on Ray gave.

    Attributes:
        value: What process 0 returned, with NumPy arrays in place of JAX's.
        history: What was reported, by step, in the order in which the steps came. Reports of one
            step are one row; one that comes again, after a restart, takes the old one's place.
        num_processes: How many processes JAX counted.
        path: Ray's own folder of the run.
    """

    value: PyTree
    history: Mapping[int, HostMetrics] = field(default_factory=dict)
    num_processes: int = 1
    path: str = ""

    @property
    def metrics(self) -> HostMetrics:
        """Returns the metrics of the last step that was reported; empty where none was.

        Example:
            >>> RayResult(value=None, history={1: {"loss": 2.0}, 2: {"loss": 1.5}}).metrics
            {'loss': 1.5}
        """
        return dict(self.history[max(self.history)]) if self.history else {}


def run(
    fn: Callable[..., PyTree],
    num_workers: int,
    resources: Mapping[str, float] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    use_gpu: bool = False,
    jax_platform: str | None = None,
    env_vars: Mapping[str, str] | None = None,
    storage_path: str | os.PathLike[str] | None = None,
    name: str | None = None,
    max_failures: int = 0,
    start_attempts: int = 10,
    on_report: Callable[[HostMetrics, int], None] | None = None,
    scaling_options: Mapping[str, Any] | None = None,
) -> RayResult:
    """Runs a function on workers that are the processes of one JAX run; returns what it gave.

    A Ray that is connected is used, then that of ``RAY_ADDRESS``; else one is started on this
    machine and ended afterwards. Ray sends ``fn``, its arguments and its result.

    Args:
        fn: Called on every worker as ``fn(**kwargs)``; the result of process 0 counts.
        num_workers: How many processes.
        resources: What one worker gets, such as ``{"CPU": 4, "GPU": 8}``; one CPU where None.
        kwargs: Arguments of ``fn``.
        use_gpu: Gives each worker a GPU where ``resources`` name none.
        jax_platform: ``"cpu"``, ``"cuda"`` or ``"tpu"``; what the resources imply where None.
        env_vars: Environment of the workers.
        storage_path: Where Ray keeps its folder of the run; ``~/ray_results`` where None.
        name: Name of that folder.
        max_failures: How often failed workers are all started again, from the beginning of ``fn``,
            which restores its own checkpoint; -1 for any number.
        start_attempts: How many minutes Ray may wait for resources; -1, in a queue: any number.
        on_report: Called here with what ``report`` was given, as it comes.
        scaling_options: More of Ray's ``ScalingConfig``: ``topology``, ``placement_strategy``.

    Raises:
        ConfigError: For arguments that cannot work; all of them are named.
        MissingDependencyError: If Ray, or a Ray with a ``JaxTrainer``, is not installed.
        PeerError: If a worker failed more often than allowed; its traceback is the cause.
    """
    request = RayRequest(
        fn=fn,
        num_workers=num_workers,
        resources=resources,
        kwargs=kwargs or {},
        use_gpu=use_gpu,
        jax_platform=jax_platform,
        env_vars=env_vars or {},
        storage_path=storage_path,
        name=name,
        max_failures=max_failures,
        start_attempts=start_attempts,
        on_report=on_report,
        scaling_options=scaling_options or {},
    )
    return _run(request)


def report(metrics: Mapping[str, Any], step: int) -> None:
    """Sends metrics from inside the function to the program that called ``run``; never waits.

    Every process may call it; what process 0 says counts.

    Args:
        metrics: One number by name.
        step: Training steps done.

    Raises:
        ConfigError: If this is no worker of ``run``.
        MetricError: If a value is not one number.
    """
    name = os.environ.get(_INBOX)
    if name is None:
        raise ConfigError(
            "Found a call of xtrainer.launch.ray.report() in a program that is no worker of "
            "xtrainer.launch.ray.run(). Start the function by run(), or call report() only there."
        )
    row = host_row(metrics)
    if runtime_process() == 0:
        _inbox(name).put.remote(int(step), row)


# On this machine.


def _run(request: RayRequest) -> RayResult:
    if problems := request.problems():
        raise ConfigError(problems)
    ray, trainer_class, config_class = _import_ray()
    scaling = _scaling(request)
    with _signals_kept(), _connected(ray, request):
        inbox_name = f"xtrainer-{uuid.uuid4().hex}"
        inbox = ray.remote(num_cpus=0)(Inbox).options(name=inbox_name).remote()
        try:
            with Listener(ray, inbox, request.on_report) as listener:
                path = _fit(trainer_class, config_class, request, scaling, inbox_name)
            result = ray.get(inbox.result.remote())
        finally:
            ray.kill(inbox)
    return RayResult(history=listener.history, path=path, **result)


def _import_ray() -> tuple[Any, Any, Any]:
    """Returns ``ray``, its ``JaxTrainer`` and ``JaxConfig``."""
    ray = require("ray", _EXTRA)
    require("ray.train", _EXTRA)  # needs more packages than ray itself
    try:
        found = require("ray.train.v2.jax", _EXTRA)
        names = {f.name for f in dataclasses.fields(found.JaxConfig)}
    except MissingDependencyError:
        names = set()
    if not {"use_gpu", "use_tpu"} <= names:
        raise MissingDependencyError(
            f"Found Ray {ray.__version__}, expected one whose JaxTrainer starts jax.distributed "
            f'(2.53 or later). Update it with: pip install -U "xtrainer[{_EXTRA}]"'
        )
    return ray, found.JaxTrainer, found.JaxConfig


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    # Ray sets handlers of its own for Ctrl-C and SIGTERM and leaves them there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _connected(ray: Any, request: RayRequest) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    joins = bool(os.environ.get("RAY_ADDRESS"))
    try:
        if joins:
            ray.init(logging_level=logging.WARNING)
        else:
            ray.init(address="local", logging_level=logging.WARNING)
            # A cluster may grow; one machine does not, and Ray would wait without end.
            if problems := request.shortages(ray.cluster_resources()):
                raise ConfigError(problems)
        yield
    finally:
        ray.shutdown()


def _scaling(request: RayRequest) -> Any:
    try:
        return require("ray.train", _EXTRA).ScalingConfig(**request.scaling())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Ray refuses the resources, or the scaling_options {dict(request.scaling_options)}: "
            f"{error} Give what its ScalingConfig takes."
        ) from error


def _fit(
    trainer_class: Any, config_class: Any, request: RayRequest, scaling: Any, inbox_name: str
) -> str:
    """Returns Ray's folder of the run, after it has ended well."""
    train = require("ray.train", _EXTRA)
    fn, kwargs, count = request.fn, dict(request.kwargs), request.num_workers

    def work() -> None:
        _work(fn, kwargs, count)

    tpu = request.platform == "tpu"
    trainer = trainer_class(
        work,
        # On CPU it is use_gpu, with JAX_PLATFORMS=cpu, that makes Ray start jax.distributed.
        jax_config=config_class(use_tpu=tpu, use_gpu=not tpu),
        scaling_config=scaling,
        run_config=train.RunConfig(
            name=request.name or f"xtrainer-{uuid.uuid4().hex[:8]}",
            storage_path=request.storage,
            failure_config=train.FailureConfig(**request.failures()),
            worker_runtime_env={"env_vars": {**request.environ(), _INBOX: inbox_name}},
        ),
    )
    try:
        return str(trainer.fit().path)
    except train.TrainingFailedError as error:
        message, cause = _told(error, count)
        raise PeerError(message) from cause


def _told(error: Any, count: int) -> tuple[str, BaseException]:
    """Returns what to say of a failed run, and the failure that explains it best."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    if not failures:
        return f"Ray could not run the workers: {error}", error
    # A worker that ended because another had failed, or was ended by Ray, explains less.
    rank = min(failures, key=lambda r: (_is_consequence(failures[r]), r))
    first_line = traceback.format_exception_only(failures[rank])[0].strip().splitlines()[0]
    others = "" if len(failures) == 1 else f" (as have {sorted(failures.keys() - {rank})})"
    return (
        f"Worker {rank} of {count} has failed{others}: {first_line}\n"
        "The cause of this error shows its traceback. Give max_failures=... where a new start "
        "from your checkpoint may help.",
        failures[rank],
    )


def _is_consequence(failure: BaseException) -> bool:
    return isinstance(failure, PeerError) or type(failure).__module__.startswith("ray.exceptions")


# On a worker.


@functools.cache
def _inbox(name: str) -> Any:
    return require("ray", _EXTRA).get_actor(name)


def _work(fn: Callable[..., PyTree], kwargs: Mapping[str, Any], count: int) -> None:
    """Does what one worker does."""
    if jax.process_count() != count:
        raise PeerError(
            f"Found {jax.process_count()} process(es) of JAX, expected {count}: Ray has not joined "
            "the workers, and each would train alone. Update Ray, or give another jax_platform."
        )
    _check_gpus()
    initialize()  # joins nothing any more; lets the processes end together
    try:
        value = host_tree(fn(**kwargs), "result of a Ray worker")
        if runtime_process() == 0:
            result = {"value": value, "num_processes": count}
            # Rows that were sent before have arrived when this has.
            inbox = _inbox(os.environ[_INBOX])
            require("ray", _EXTRA).get(inbox.finish.remote(result))
    except BaseException as error:
        announce(error)
        settle()  # Ray is to fetch the error from this process, then ends it
        # A traceback does not travel with the error, and Ray's text of it is cut short.
        error.add_note(f"On worker {runtime_process()}:\n{traceback.format_exc().rstrip()}")
        raise


def _check_gpus() -> None:
    local_rank = require("ray.train", _EXTRA).get_context().get_local_rank()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if jax.default_backend() == "gpu" and local_rank and visible[:1] == "0":
        raise ConfigError(
            f"Found worker {local_rank} of one machine with the GPUs {visible}, which "
            "its neighbour has as well: Ray numbers them from 0 for each. Start one worker a "
            "machine, with all its GPUs: resources={'GPU': ...}."
        )
