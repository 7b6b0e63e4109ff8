"""Training on several processes, with the bits of one."""

from bitnet_torch.train.distributed.checkpoint import (
    list_sharded,
    load_sharded,
    load_weights,
    read_facts,
    save_sharded,
)
from bitnet_torch.train.distributed.code_gather import CodeGather, CodeGatherReport, gather_codes
from bitnet_torch.train.distributed.processes import Processes, on_first, process_group
from bitnet_torch.train.distributed.shard_scale import RowShard, shard_codes, shard_scales

__all__ = [
    "CodeGather",
    "CodeGatherReport",
    "Processes",
    "RowShard",
    "gather_codes",
    "list_sharded",
    "load_sharded",
    "load_weights",
    "on_first",
    "process_group",
    "read_facts",
    "save_sharded",
    "shard_codes",
    "shard_scales",
]
