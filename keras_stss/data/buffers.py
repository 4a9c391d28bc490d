"""Memory for decoded frames that is used again: fresh memory costs more time than copying the frames into it."""

import mmap
import threading
import weakref

import numpy as np

_LEAST = 2**17  # bytes; smaller arrays come from NumPy
_KEPT = 2**26  # bytes of free memory that are kept


class Buffers:
    """Arrays whose memory comes back here when nothing refers to them any more. Safe to use from many threads.

    They begin at a page, so that TensorFlow takes them over without a copy.
    """

    def __init__(self):
        self._free = []
        self._lock = threading.RLock()  # an array may die anywhere, in here as well

    def empty(self, shape, dtype=np.uint8):
        """An array with any content."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size < _LEAST:
            return np.empty(shape, dtype)
        block = self._taken(size) or mmap.mmap(-1, size)
        whole = np.frombuffer(block, np.uint8)  # all views of it refer to it
        weakref.finalize(whole, self._give_back, block).atexit = False
        return whole[:size].view(dtype).reshape(shape)

    @property
    def kept(self):
        """Bytes of free memory."""
        with self._lock:
            return sum(map(len, self._free))

    def _taken(self, size):
        """The last free block of the size, or up to twice as large; None where there is none."""
        with self._lock:
            for place in reversed(range(len(self._free))):
                if size <= len(self._free[place]) <= 2 * size:
                    return self._free.pop(place)
        return None

    def _give_back(self, block):
        with self._lock:
            self._free.append(block)
            # What was given back first has fitted nothing for the longest time.
            while self.kept > _KEPT:
                self._free.pop(0)


buffers = Buffers()
