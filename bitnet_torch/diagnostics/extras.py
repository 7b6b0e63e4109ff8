"""Optional libraries: imported where they are used, with an error that says what to install.

The package itself needs only what ``pyproject.toml`` lists as dependencies. Everything else
belongs to an extra. A library that is absent is a fact about the installation and gets a
message with the command that cures it; one that is present and fails to import is broken,
and its own error is the best message there is.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from bitnet_torch.errors import MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return an optional library.

    Example::

        tqdm = require("tqdm", extra="train")

    Args:
        module: Import name, dotted if it is a submodule.
        extra: The extra of ``bitnet-torch`` that installs it.

    Raises:
        MissingDependencyError: The library is not installed. An error inside an installed
            library is passed on as it is.
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"this needs the library {package!r}, which is not installed: "
            f"pip install 'bitnet-torch[{extra}]'",
            module=module,
            extra=extra,
        )
    return importlib.import_module(module)
