"""One layer's all-gather of codes: what a process sends, and what becomes of all that was sent.

A process sends the codes of its P = ceil(N / processes) rows one after the other, four to a
byte, padded with code 0 where it holds fewer; where each row has a scale, P scales follow.
``pack_codes`` on four equal parts of the flat codes makes the bytes, so none is lost to rows
that are no multiple of 4::

    ceil(P*K/4) bytes of codes [, 4*P bytes of float32 scales]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import BitLinear
from bitnet_torch.nn.gathered_weight import GatheredWeight
from bitnet_torch.ops.pack_codes import pack_codes, unpack_codes
from bitnet_torch.train.distributed.shard_scale import RowShard, shard_codes, shard_scales

_CODES_PER_BYTE = 4
_SCALE_BYTES = 4


class LayerCodes:
    """The all-gather of one layer's weight, hung on its local shard.

    Attributes:
        name: Of the layer.
        current: Whether the codes are those of the forward pass that is running.
    """

    def __init__(self, name: str, layer: BitLinear) -> None:
        """Take over the gathering of ``layer``, whose weight is sharded by rows."""
        self.name, self.current = name, False
        self._layer = layer
        weight = self._weight()
        self._shape, self._by_row = weight.shape, layer.granularity == "row"
        dim = next(i for i, p in enumerate(weight.placements) if not isinstance(p, Replicate))
        self._world = weight.device_mesh.size(dim)
        self._group = weight.device_mesh.get_group(dim)
        # FSDP cuts as torch.chunk does: the last processes may hold fewer rows, or none.
        self._rows = -(-self._shape[0] // self._world)
        self._first_row = min(weight.device_mesh.get_local_rank(dim) * self._rows, self._shape[0])
        self._code_bytes = -(-self._rows * self._shape[1] // _CODES_PER_BYTE)
        self._latent_bytes = self._rows * self._shape[1] * weight.element_size()
        self._sent: tuple[Tensor, Tensor] | None = None
        self.attach()

    @property
    def sent_bytes(self) -> int:
        """Bytes that each process sends, the same on all."""
        return self._code_bytes + (_SCALE_BYTES * self._rows if self._by_row else 0)

    @property
    def latent_bytes(self) -> int:
        """Bytes that each process would send of the latent weights."""
        return self._latent_bytes

    @property
    def is_sharded(self) -> bool:
        """Whether the layer holds its shard just now, and will gather before it runs."""
        return isinstance(self._layer.weight, DTensor)

    def attach(self) -> None:
        """Hang the hooks on the local tensor, which load_state_dict may have replaced."""
        local: Any = self._weight()._local_tensor  # FSDP looks at this very object
        local.fsdp_pre_all_gather = self.fsdp_pre_all_gather
        local.fsdp_post_all_gather = self.fsdp_post_all_gather

    # One parameter: of a hook that also asks for sizes and module, FSDP expects as many elements
    # as the padded shard has.
    def fsdp_pre_all_gather(self, mesh: DeviceMesh) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what this process sends, and the scale of the matrix."""
        backward = torch._C._current_graph_task_id() != -1
        if self._sent is None or not (self.current or backward):
            ternarise([self])
        sent, w_scale = self._made()
        return (sent,), w_scale

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: Tensor,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """Return the weight made of what all processes sent, or renew ``out``."""
        packed, w_scale = self._joined(all_gather_outputs[0], metadata)
        if out is None:
            return GatheredWeight(packed, w_scale, self._shape, param_dtype), (packed,)
        if not isinstance(out, GatheredWeight):
            raise ConfigurationError(f"{self.name}.weight was gathered as {type(out).__name__}")
        # Backward reads these very tensors, whose memory FSDP had taken away in between.
        with _unsafe_preserve_version_counter((out.packed, out.w_scale)):
            out.packed.copy_(packed)
            out.w_scale.copy_(w_scale)
        return None

    def _weight(self) -> DTensor:
        weight = self._layer.weight
        if not isinstance(weight, DTensor):
            raise ConfigurationError(f"{self.name}.weight is gathered; expected it to be sharded")
        return weight

    def _shard(self) -> RowShard:
        n, k = self._shape
        rows = self._weight()._local_tensor.detach()
        return RowShard(self.name, rows, self._first_row, (n, k), self._layer.granularity)

    def _keep(self, shard: RowShard, scale: Tensor) -> None:
        t = shard_codes(shard, scale)
        flat = t.new_zeros(self._code_bytes * _CODES_PER_BYTE)
        flat[: t.numel()] = t.flatten()
        sent = pack_codes(flat.view(_CODES_PER_BYTE, self._code_bytes)).flatten()
        if self._by_row:
            scales = scale.new_zeros(self._rows)
            scales[: len(scale)] = scale
            sent = torch.cat([sent, scales.view(torch.uint8)])
        self._sent = sent, scale

    def _made(self) -> tuple[Tensor, Tensor]:
        if self._sent is None:
            raise ConfigurationError(f"{self.name}.weight has not been ternarised")
        return self._sent

    def _joined(self, gathered: Tensor, w_scale: Tensor) -> tuple[Tensor, Tensor]:
        n, k = self._shape
        sent = gathered.view(self._world, -1)
        blocks = [
            unpack_codes(part[None, : self._code_bytes], _CODES_PER_BYTE).flatten() for part in sent
        ]
        rows = torch.cat([block[: self._rows * k] for block in blocks]).view(-1, k)
        if self._by_row:
            # A copy starts where float32 may start.
            w_scale = sent[:, self._code_bytes :].flatten().clone().view(torch.float32)[:n]
        return pack_codes(rows[:n]), w_scale


@torch.no_grad()
def ternarise(layers: Sequence[LayerCodes]) -> None:
    """Make what this process sends of each layer. Collective: two all-reduces a group."""
    groups: dict[int, list[LayerCodes]] = {}
    for layer in layers:
        groups.setdefault(id(layer._group), []).append(layer)
    for members in groups.values():
        shards = [layer._shard() for layer in members]
        scales = shard_scales(shards, members[0]._group)
        for layer, shard, scale in zip(members, shards, scales, strict=True):
            layer._keep(shard, scale)
