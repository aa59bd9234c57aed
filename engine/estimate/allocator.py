"""torch's caching allocator without a device: which memory it takes from the driver for given requests, in order.

Owns the rules of segments and blocks of the native allocator (not those of expandable segments). Must not know who
asks. Source: torch `c10/cuda/CUDACachingAllocator.cpp`: sizes are rounded up to 512 B; requests up to 1 MiB come from
segments of 2 MiB, those below 10 MiB from segments of 20 MiB, larger ones get their own, rounded up to 2 MiB; the
smallest free block that is large enough is taken, and split when 512 B (small) or more than 1 MiB (large) remain;
free neighbours merge.
"""

from __future__ import annotations

from bisect import bisect_left, insort

MIB = 1 << 20
_ROUND = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT_FROM = 10 * MIB


class Block:
    """A piece of a segment, in use or free, with its neighbours."""

    __slots__ = ("after", "before", "order", "size", "small", "used")

    def __init__(self, size: int, before: Block | None, after: Block | None, *, small: bool) -> None:
        self.size, self.before, self.after, self.small = size, before, after, small
        self.used, self.order = False, 0


class CachingAllocator:
    """What is reserved and what is in use, in bytes, now and at most."""

    def __init__(self) -> None:
        self.reserved = 0
        """Segments are kept for the next request until the cache is emptied."""
        self.peak_reserved = 0
        self.allocated = 0
        self.peak_allocated = 0
        self.recent_peak_allocated = 0
        """Since it was last set back."""
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._count = 0

    def request(self, size_bytes: float) -> Block:
        """A block of at least `size_bytes`."""
        size = max(_ROUND, -(-int(size_bytes) // _ROUND) * _ROUND)
        small = size <= _SMALL
        pool = self._free[small]
        index = bisect_left(pool, size, key=lambda entry: entry[0])
        block = pool.pop(index)[2] if index < len(pool) else self._segment(size, small=small)
        rest = block.size - size
        if rest >= _ROUND if small else rest > MIB:
            remainder = Block(rest, block, block.after, small=small)
            if block.after is not None:
                block.after.before = remainder
            block.after, block.size = remainder, size
            self._put(remainder)
        block.used = True
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.recent_peak_allocated = max(self.recent_peak_allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        """The block is free again and joins free neighbours."""
        block.used = False
        self.allocated -= block.size
        before, after = block.before, block.after
        if before is not None and not before.used:
            self._take(before)
            block = self._joined(before, block)
        if after is not None and not after.used:
            self._take(after)
            block = self._joined(block, after)
        self._put(block)

    def empty_cache(self) -> None:
        """Segments of which nothing is in use go back to the driver."""
        for pool in self._free.values():
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            pool[:] = [entry for entry in pool if entry not in whole]
            self.reserved -= sum(size for size, _, _ in whole)

    def _segment(self, size: int, *, small: bool) -> Block:
        if small:
            segment = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT_FROM:
            segment = _LARGE_SEGMENT
        else:
            segment = -(-size // _SMALL_SEGMENT) * _SMALL_SEGMENT
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(segment, None, None, small=small)

    @staticmethod
    def _joined(left: Block, right: Block) -> Block:
        left.size += right.size
        left.after = right.after
        if right.after is not None:
            right.after.before = left
        return left

    def _put(self, block: Block) -> None:
        self._count += 1
        block.order = self._count
        insort(self._free[block.small], (block.size, block.order, block))

    def _take(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.order))]
