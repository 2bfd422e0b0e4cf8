"""The learning curve of a training, on disks that may refuse to take it."""

from __future__ import annotations

import os
import threading
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..errors import machine_reason
from ..files import writing_into


class CurveWriter(SummaryWriter):
    """TensorBoard's writer of scalars and images; what the disk refuses is one sentence.

    Args:
        folder: where the curve goes.

    Raises:
        RefusedError: see `writing_into`; at any call.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        _silence_refused_threads()
        with writing_into(folder):
            super().__init__(str(folder))

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoard's."""
        with writing_into(self.log_dir):
            super().add_scalar(*args, **kwargs)

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoard's."""
        with writing_into(self.log_dir):
            super().add_image(*args, **kwargs)

    def flush(self) -> None:
        """As TensorBoard's."""
        with writing_into(self.log_dir):
            super().flush()


def _silence_refused_threads() -> None:
    """TensorBoard writes in a thread, and the next call raises what ended it: nothing is lost where that says nothing.

    What the machine did not refuse is told by the hook that was there.
    """
    previous = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(ended.thread).__module__.startswith("tensorboard.")
        if not of_tensorboard or machine_reason(ended.exc_value) is None:
            previous(ended)

    threading.excepthook = hook
