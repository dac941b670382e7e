"""Every test sees eight virtual CPU devices; the settings are made before JAX is imported."""

import os

_FLAG = "--xla_force_host_platform_device_count"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
os.environ.setdefault("WANDB_MODE", "offline")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Doctests are collected from every file; several of this name would be one module to pytest.
collect_ignore_glob = ["*conftest.py"]
