"""Training on several processes, with the bits of one."""

from bitnet_torch.train.distributed.code_gather import CodeGather, CodeGatherReport, gather_codes
from bitnet_torch.train.distributed.shard_scale import RowShard, shard_codes, shard_scales

__all__ = [
    "CodeGather",
    "CodeGatherReport",
    "RowShard",
    "gather_codes",
    "shard_codes",
    "shard_scales",
]
