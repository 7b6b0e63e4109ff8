"""Compile one variant of a kernel for one target, without a device."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import triton
from triton.compiler import ASTSource

import bitnet_torch_triton
from bitnet_torch_triton.aot.targets import target_of
from bitnet_torch_triton.aot.variant import Signature, Variant, typed

Path = tuple[int, ...]


def kernels() -> dict[str, Any]:
    """Return every kernel of the package by name: what launchers start, not what kernels call."""
    found = {}
    for module in pkgutil.iter_modules(bitnet_torch_triton.__path__):
        loaded = importlib.import_module(f"bitnet_torch_triton.{module.name}")
        for name, value in vars(loaded).items():
            if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
                found[name] = value
    return found


def build(kernel: Any, variant: Variant, f: str, arch: str) -> Any:
    """Return the compiled kernel.

    Pointers are promised to be multiples of 16, as Triton promises for itself at a launch when
    they are, and integers where the variant says so.
    """
    names = [name for name in kernel.arg_names if name not in variant.constants]
    types = dict(zip(names, typed(variant.signature, f), strict=True))
    full = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants: dict[Any, Any] = dict(variant.constants)
    attributes = {}
    for i, name in enumerate(kernel.arg_names):
        for path, kind in _leaves(full[name], (i,)):
            if kind == "None":
                constants[path] = None
            elif kind.startswith("*") or (kind.startswith("i") and variant.is_round(name)):
                attributes[path] = [["tt.divisibility", 16]]
    source = _source_class(kernel)(
        fn=kernel,
        signature={name: _without_none(kind) for name, kind in full.items()},
        constexprs=constants,
        attrs=attributes,
    )
    return triton.compile(source, target=target_of(arch), options=variant.config.options())


def _source_class(kernel: Any) -> Any:
    if not getattr(kernel, "is_gluon", bool)():
        return ASTSource
    # Where Triton has no Gluon, there is no Gluon kernel either.
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def _leaves(kind: str | Signature, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(kind, str):
        yield path, kind
        return
    for i, inner in enumerate(kind):
        yield from _leaves(inner, (*path, i))


def _without_none(kind: str | Signature) -> str | Signature:
    if isinstance(kind, str):
        return "constexpr" if kind == "None" else kind
    return tuple(_without_none(inner) for inner in kind)
