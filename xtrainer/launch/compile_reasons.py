"""Why was a program not among those compiled before? Told by what is remembered of them."""

import functools
import hashlib
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jaxlib

# Flags that are no part of JAX's keys.
_IDLE_FLAGS = (
    "--xla_dump",
    "--xla_force_host_platform_device_count",
    "--xla_gpu_cuda_data_dir",
    "--xla_gpu_experimental_autotune_cache_mode",
    "--xla_tpu_sdc_checker",
)
GONE = "there is no entry for it (removed, unreadable, or other options of the compiler)"


@dataclass(frozen=True)
class KnownProgram:
    """A program that was compiled before.

    Attributes:
        program: Hash of its text.
        facts: Versions, devices and flags it was compiled for, by name.
        seconds: How long that took; None: not known.
    """

    program: str
    facts: Mapping[str, str]
    seconds: float | None


def miss_reason(name: str, now: KnownProgram, known: Sequence[KnownProgram]) -> str:
    """Returns why a program was not in the cache.

    Args:
        name: The function's.
        now: What was asked for.
        known: What was compiled before under this name, the newest last.

    Example:
        >>> before = KnownProgram("12ab", {"jaxlib": "0.10.1"}, 2.0)
        >>> miss_reason("train_step", KnownProgram("12ab", {"jaxlib": "0.10.2"}, 2.0), [before])
        'jaxlib 0.10.1 -> 0.10.2'
        >>> miss_reason("train_step", KnownProgram("34cd", {"jaxlib": "0.10.1"}, 2.0), [before])
        'the program of train_step has changed'
    """
    if not known:
        return "never compiled before"
    same = [k for k in known if k.program == now.program]
    if any(k.facts == now.facts for k in same):
        return GONE
    old = (same or known)[-1].facts
    changes = [] if same else [f"the program of {name} has changed"]
    for fact in sorted(old.keys() | now.facts.keys()):
        was, is_now = old.get(fact, ""), now.facts.get(fact, "")
        if was != is_now:
            changes.append(f"{fact} {was or '(none)'} -> {is_now or '(none)'}")
    return "; ".join(changes)


def program_hash(lowered: jax.stages.Lowered) -> str:
    """Returns a hash of a program's text, which has no line numbers in it."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def module_name(lowered: jax.stages.Lowered) -> str:
    """Returns the name by which JAX calls a program's entries."""
    found = re.search(r"module @([\w.$-]+)", lowered.as_text()[:1000])
    return found.group(1) if found else ""


def compile_facts() -> dict[str, str]:
    """Returns what a compiled program depends on besides itself."""
    device = jax.devices()[0]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('LIBTPU_INIT_ARGS', '')}".split()
    facts = {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "platform": " ".join(str(device.client.platform_version).split()),
        "XLA_FLAGS": " ".join(sorted(f for f in flags if not f.startswith(_IDLE_FLAGS))),
    }
    return facts | {"CPU": _host_cpu()} if device.platform == "cpu" else facts


@functools.cache
def _host_cpu() -> str:
    """Returns model and instruction sets of this machine, as far as it tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    lines = dict(re.findall(r"^([^\t:]+?)\s*: *(.*)$", text, flags=re.MULTILINE))
    sets = lines.get("flags", lines.get("Features", ""))
    return f"{lines.get('model name', 'unknown')} ({zlib.crc32(sets.encode()):08x})"
