"""The byte orders in which backends hold packed codes.

``exchange`` (see :mod:`bitnet_torch.ops.pack_codes`) is what files, ``state_dict`` and the
public ops speak. A backend that reads another order faster registers a layout for its
device; a module repacks into it once, at load, and back whenever its codes are asked for.
Both directions keep every code of the N rows; padding past them comes back as code 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.ops import _registry
from bitnet_torch.ops._checks import check_dtype
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt


@dataclass(frozen=True)
class Layout:
    """One byte order of packed codes.

    Attributes:
        name: What the prepacked op's ``layout`` argument says.
        prepack: ``(packed, N) -> buffer`` from the exchange layout; refuses code 3.
        unpack: ``(buffer, N, K) -> packed`` back to the exchange layout.
        nbytes: ``(N, K) ->`` size of the buffer in bytes.
    """

    name: str
    prepack: Callable[[Tensor, int], Tensor]
    unpack: Callable[[Tensor, int, int], Tensor]
    nbytes: Callable[[int, int], int]


def _exchange(packed: Tensor, N: int) -> Tensor:
    if not packed.is_meta:
        raise_if_corrupt(packed, has_corrupt_code(packed))
    return packed.contiguous()


EXCHANGE = Layout(
    name="exchange",
    prepack=_exchange,
    unpack=lambda buffer, N, K: buffer.reshape(-(-N // 4), K),
    nbytes=lambda N, K: -(-N // 4) * K,
)
LAYOUTS: dict[str, Layout] = {EXCHANGE.name: EXCHANGE}
_PREFERRED: dict[str, Layout] = {}
_DIRECT: dict[tuple[str, str], Callable[[Tensor, int, int], Tensor]] = {}


def register_layout(layout: Layout, *, device: str | None) -> None:
    """Make ``layout`` known, and the one that modules on ``device`` hold; None for no device."""
    LAYOUTS[layout.name] = layout
    if device is not None:
        _PREFERRED[device] = layout


def register_conversion(
    source: str, target: str, convert: Callable[[Tensor, int, int], Tensor]
) -> None:
    """Let ``(buffer, N, K) -> buffer`` lead from one layout to another without the exchange one."""
    _DIRECT[source, target] = convert


def convert(buffer: Tensor, N: int, K: int, source: str, target: str) -> Tensor:
    """Return the codes of ``buffer``, in layout ``source``, in layout ``target``.

    Raises:
        ConfigurationError: A layout is unknown.
    """
    if source == target:
        return buffer
    if (direct := _DIRECT.get((source, target))) is not None:
        return direct(buffer, N, K)
    return layout_named(target).prepack(layout_named(source).unpack(buffer, N, K), N)


def layout_named(name: str) -> Layout:
    """Return the layout called ``name``.

    Raises:
        ConfigurationError: No backend that is loaded here has registered it.
    """
    if name not in LAYOUTS:
        raise ConfigurationError(
            f"layout must be one of {', '.join(sorted(LAYOUTS))}, got {name!r}", layout=name
        )
    return LAYOUTS[name]


def check_prepacked(
    prepacked: Tensor, layout: str, N: int, K: int, name: str = "prepacked"
) -> None:
    """Raise unless ``prepacked`` is a uint8 buffer of N rows of K codes in ``layout``."""
    check_dtype(name, prepacked, torch.uint8)
    if N < 0:
        raise ConfigurationError(f"N must not be negative, got {N}", N=N)
    expected = layout_named(layout).nbytes(N, K)
    if prepacked.numel() != expected:
        raise ShapeError(
            f"{name} must hold {expected} bytes for N={N}, K={K} in layout {layout!r}, "
            f"got {prepacked.numel()}",
            N=N,
            K=K,
            layout=layout,
        )


def preferred_layout(device_type: str) -> Layout:
    """Return the layout in which a module on ``device_type`` should hold its codes now."""
    if _registry.forced_backend() == "reference":
        return EXCHANGE
    return _PREFERRED.get(device_type, EXCHANGE)
