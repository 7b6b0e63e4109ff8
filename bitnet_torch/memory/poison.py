"""Debug mode: released bytes are filled with a pattern, and must still have it at their reuse.

The pattern is 0xFF: a NaN in every float type and -1 in every signed integer, so that a late read
shows as well. The check reads the whole block: this is for looking for a bug, not for work.
"""

from __future__ import annotations

from bitnet_torch.errors import LeaseError
from bitnet_torch.memory.blocks import Block

_BYTE = 0xFF


def apply(block: Block, tag: str) -> None:
    """Fill a block that has just been released."""
    block.storage.fill_(_BYTE)
    block.poisoned_by = tag


def check(block: Block) -> None:
    """Raise LeaseError if the block was written since; it is not poisoned any more after this."""
    tag, block.poisoned_by = block.poisoned_by, None
    changed = block.storage != _BYTE
    if bool(changed.any()):
        where = int(changed.nonzero()[0])
        raise LeaseError(
            f"byte {where} of a block of {block.key[1]} bytes on {block.key[0]} was written after "
            f"the release of its lease {tag or 'without a tag'!r}",
            tag=tag,
            byte=where,
        )
