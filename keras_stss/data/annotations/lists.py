"""The entries of one list, each id once."""

import logging

from keras_stss.data.annotations.data_set import DataError

logger = logging.getLogger(__name__)


class IdList:
    """Entries of a list in order, and the faults of those that it does not take.

    Args:
        path: the list's file.
        faults: where faults are noted.
        what: what an id is called.
    """

    def __init__(self, path, faults, what="id"):
        self.path, self.faults, self.what = path, faults, what
        self.entries, self._seen = {}, {}

    def add(self, line, clip_id, value):
        """Takes an entry, where its id is new."""
        if clip_id in self._seen:
            first = self._seen[clip_id]
            self.faults.add(self.path, line, f"duplicate {self.what} {clip_id!r}, first at {self.path}:{first}")
        else:
            self._seen[clip_id] = line
            self.entries[clip_id] = value

    def refuse(self, line, clip_id, text):
        """Notes a fault of an entry; its id counts as seen."""
        self._seen.setdefault(clip_id, line)
        self.faults.add(self.path, line, text)

    def checked(self):
        """{id: value}; raises :class:`DataError` where there is none."""
        if not self.entries:
            raise DataError(f"{self.path} lists no clip")
        return self.entries


def warn_of_both(train, validation):
    """Tells how many ids are in both lists."""
    if both := train.keys() & validation.keys():
        logger.warning("%d clips are both in training and in validation: its figures will flatter", len(both))
