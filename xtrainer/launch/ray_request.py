"""What is asked of Ray, and can it be? The arguments of a run, checked before Ray is touched."""

import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtrainer.errors import did_you_mean

# The CPU stays reachable beside an accelerator: host arrays live there.
_JAX_PLATFORMS = {"cpu": "cpu", "cuda": "cuda,cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_DEVICE_OF = {"cuda": "GPU", "tpu": "TPU"}
_OURS = ("num_workers", "use_gpu", "use_tpu", "resources_per_worker")


@dataclass(frozen=True, kw_only=True)
class RayRequest:
    """The arguments of ``xtrainer.launch.ray.run``, explained there."""

    fn: Any
    num_workers: int
    resources: Mapping[str, float] | None
    kwargs: Mapping[str, Any]
    use_gpu: bool
    jax_platform: str | None
    env_vars: Mapping[str, str]
    storage_path: str | os.PathLike[str] | None
    name: str | None
    max_failures: int
    start_attempts: int
    on_report: Any
    scaling_options: Mapping[str, Any]

    @property
    def platform(self) -> str:
        """Returns ``"cpu"``, ``"cuda"`` or ``"tpu"``: as given, or as the resources imply."""
        if self.jax_platform is not None:
            return "cuda" if self.jax_platform == "gpu" else self.jax_platform
        named = self.resources or {}
        if self.use_gpu or "GPU" in named:
            return "cuda"
        return "tpu" if "TPU" in named or "topology" in self.scaling_options else "cpu"

    @property
    def storage(self) -> str | None:
        """Returns the folder that Ray writes to, absolute unless it is an address."""
        if self.storage_path is None:
            return None
        path = os.fspath(self.storage_path)
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    def worker_resources(self) -> dict[str, float] | None:
        """Returns what one worker gets; None where Ray works it out from a TPU's topology."""
        found: dict[str, float] = dict(self.resources or {})
        device = _DEVICE_OF.get(self.platform)
        if device == "TPU" and "topology" in self.scaling_options and device not in found:
            return found or None
        found = {device: 1, **found} if device else found
        # Ray counts devices with range(), which takes no 8.0.
        counts = {k: int(v) if float(v).is_integer() else v for k, v in found.items()}
        return {"CPU": 1, **counts}

    def scaling(self) -> dict[str, Any]:
        """Returns the arguments of Ray's ``ScalingConfig``."""
        asked = {
            "num_workers": self.num_workers,
            "use_gpu": self.platform == "cuda",
            "resources_per_worker": self.worker_resources(),
        }
        if self.platform == "tpu":
            asked["use_tpu"] = True
        return {**asked, **self.scaling_options}

    def failures(self) -> dict[str, int]:
        """Returns the arguments of Ray's ``FailureConfig``."""
        # Ray waits for resources a minute at a time, and without end where nothing is said.
        limit = -1 if self.start_attempts == -1 else self.start_attempts - 1
        return {"max_failures": self.max_failures, "controller_failure_limit": limit}

    def environ(self) -> dict[str, str]:
        """Returns the variables that every worker gets."""
        return {**self.env_vars, "JAX_PLATFORMS": _JAX_PLATFORMS[self.platform]}

    def shortages(self, available: Mapping[str, float]) -> list[str]:
        """Returns a sentence for each resource of which all workers together ask too much.

        Args:
            available: What there is in all.
        """
        found = []
        for name, one in (self.worker_resources() or {}).items():
            total = one * self.num_workers
            if total > available.get(name, 0):
                found.append(
                    f"resources: {self.num_workers} workers with {one:g} {name} each need "
                    f"{total:g}, found {available.get(name, 0):g} on this machine. Ask for less, "
                    "or connect to a cluster first: ray.init(address=...) or RAY_ADDRESS."
                )
        return found

    def problems(self) -> list[str]:
        """Returns a sentence for each mistake."""
        return [
            *_call_problems(self.fn, self.kwargs),
            *_number_problems("num_workers", self.num_workers, 1),
            *_number_problems("max_failures", self.max_failures, 0, without_end=-1),
            *_number_problems("start_attempts", self.start_attempts, 1, without_end=-1),
            *(_resource_problems(self.resources) or self._platform_problems()),
            *_environ_problems(self.env_vars),
            *self._option_problems(),
        ]

    def _platform_problems(self) -> list[str]:
        if self.jax_platform is not None and self.jax_platform not in _JAX_PLATFORMS:
            return [
                f"jax_platform: found {self.jax_platform!r}, expected one that Ray can start. "
                + did_you_mean(str(self.jax_platform), _JAX_PLATFORMS)
            ]
        found = []
        asked = {name for name in ("GPU", "TPU") if name in (self.resources or {})}
        if self.use_gpu:
            asked.add("GPU")
        for name in sorted(asked - {_DEVICE_OF.get(self.platform)}):
            found.append(
                f"jax_platform: found {self.platform!r}, but a {name} for each worker, which JAX "
                f"would not use. Leave the {name} out, or choose its platform."
            )
        return found

    def _option_problems(self) -> list[str]:
        found = []
        if twice := [name for name in _OURS if name in self.scaling_options]:
            found.append(
                f"scaling_options: found {', '.join(twice)}, which run() has arguments for: "
                "num_workers, use_gpu, resources. Use those."
            )
        if self.on_report is not None and not callable(self.on_report):
            found.append(
                f"on_report: found {self.on_report!r:.80}, expected a function of metrics and step."
            )
        if self.name is not None and (not self.name or "/" in str(self.name)):
            found.append(f"name: found {self.name!r}, expected the name of a folder, without '/'.")
        return found


def _call_problems(fn: Any, kwargs: Mapping[str, Any]) -> list[str]:
    if not callable(fn):
        return [f"fn: found {fn!r:.80}, expected a function that every worker calls."]
    try:
        inspect.signature(fn).bind(**kwargs)
    except TypeError as error:
        return [
            f"kwargs: found {sorted(kwargs)}, with which fn cannot be called ({error}). "
            "Give kwargs={...} with its arguments."
        ]
    except ValueError:  # a function of C that tells no signature
        return []
    return []


def _number_problems(
    name: str, value: Any, least: int, without_end: int | None = None
) -> list[str]:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and (value >= least or value == without_end):
        return []
    end = "" if without_end is None else f", or {without_end} for any number"
    return [f"{name}: found {value!r}, expected a whole number >= {least}{end}."]


def _resource_problems(resources: Any) -> list[str]:
    found = []
    if not isinstance(resources or {}, Mapping):
        return [f"resources: found {resources!r:.80}, expected amounts by name: {{'CPU': 4}}."]
    for name, value in (resources or {}).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            found.append(f"resources[{name!r}]: found {value!r}, expected a number > 0.")
        elif name in ("GPU", "TPU") and not float(value).is_integer():
            found.append(
                f"resources[{name!r}]: found {value!r}, expected a whole number: JAX takes whole "
                "devices."
            )
    return found


def _environ_problems(env_vars: Mapping[str, Any]) -> list[str]:
    found = [
        f"env_vars[{name!r}]: found {value!r:.80}, expected a text."
        for name, value in env_vars.items()
        if not isinstance(value, str)
    ]
    if "JAX_PLATFORMS" in env_vars:
        found.append("env_vars: found JAX_PLATFORMS, which jax_platform sets. Use that argument.")
    return found
