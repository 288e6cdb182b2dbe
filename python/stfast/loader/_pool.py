"""Memory that is used again once nobody holds it."""

import weakref

import numpy as np
from numpy.typing import NDArray


class Pool:
    """Memory that comes back when the last array or tensor made of it is gone.

    Fresh memory costs a page fault every 4 KiB, as much as a tenth of the decoding.
    """

    def __init__(self, most: int) -> None:
        self._most, self._free = most, list[NDArray[np.uint8]]()

    def array(self, n: int) -> NDArray[np.uint8]:
        """An array of n bytes, its contents whatever was there."""
        fitting = [block for block in self._free if len(block) >= n]
        block = min(fitting, key=len) if fitting else np.empty(n, np.uint8)
        self._free = [other for other in self._free if other is not block]
        view = np.frombuffer(block.data, np.uint8, n)
        weakref.finalize(view, self._back, block).atexit = False
        return view

    def _back(self, block: NDArray[np.uint8]) -> None:
        if len(self._free) < self._most:
            self._free.append(block)
