"""Find and load the kernel backends, and keep the reason of each that did not load.

Only an absent dependency or an unbuilt library is passed over, and its reason is recorded
for ``bitnet doctor``. A backend that is present and broken raises: a fast path that
silently turns slow is worse than a crash.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from importlib.util import find_spec

from bitnet_torch.errors import BackendUnavailableError

logger = logging.getLogger(__name__)

_MODULES = {
    "cpu": "bitnet_torch.cpu",
    "triton": "bitnet_torch_triton",
    "metal": "bitnet_torch_mps",
}
_loaded: dict[str, Backend] = {}


@dataclass(frozen=True)
class Backend:
    """One backend and, if it did not load, why.

    Attributes:
        name: What :func:`~bitnet_torch.use_backend` takes.
        reason: Empty if its kernels are registered.
    """

    name: str
    reason: str = ""

    @property
    def loaded(self) -> bool:
        """Whether its kernels are registered."""
        return not self.reason


def load_backends() -> tuple[Backend, ...]:
    """Load every backend once, which registers its kernels; later calls report."""
    for name, module in _MODULES.items():
        if name not in _loaded:
            _loaded[name] = _load(name, module)
    return tuple(_loaded.values())


def _load(name: str, module: str) -> Backend:
    if find_spec(module) is None:
        return Backend(name, f"package {module} is not installed")
    try:
        importlib.import_module(module).load()
    except BackendUnavailableError as error:
        # A fact about this installation: said once, at the level of facts.
        logger.info("backend %s not loaded: %s", name, error)
        return Backend(name, str(error))
    return Backend(name)
