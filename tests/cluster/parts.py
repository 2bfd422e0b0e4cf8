"""What the workers of a test are made of."""

import os
import signal
from pathlib import Path

from scripts.volumes.load import LoadVolumed


class WatchedLoad(LoadVolumed):
    """Leaves the number of its process as a file's name in a folder.

    One case kills its process, as running out of memory does.
    """

    def __init__(self, keys, folder, deadly=None):
        super().__init__(keys)
        self.folder = Path(folder)
        self.deadly = deadly

    def __call__(self, data):
        """Load a case."""
        (self.folder / str(os.getpid())).touch()
        if data["case"] == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(data)
