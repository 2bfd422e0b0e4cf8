"""What a training and its validation write to the terminal and to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ignite.engine import Engine
from ignite.handlers import ProgressBar
from ignite.metrics import Average
from monai.handlers import StatsHandler, TensorBoardStatsHandler

from .monitoring import Throughput, ValidationPicture

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TrainingLogs", "ValidationLogs", "average_loss"]


def average_loss() -> Average:
    """Metric of a trainer: the mean loss of an epoch's iterations."""
    return Average(lambda output: output["loss"].detach())


def _loss(output: dict) -> float:
    return output["loss"].item()


class _Stats(StatsHandler):
    """MONAI's, which would log the traceback of what ends a training; the program's last words tell it."""

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        """Let it end the program."""
        raise e


class TrainingLogs:
    """Handler of a trainer: its loss in the terminal and in TensorBoard, a progress bar, and slabs per second.

    Attach it last, so that `Throughput` counts the time of the other handlers.

    Args:
        summary_writer: of TensorBoard.
        log_interval: iterations from one logged loss to the next.
        slabs_per_iteration: of all processes.
        validator: the evaluator that runs within the trainer's epochs.
    """

    def __init__(
        self, summary_writer: SummaryWriter, log_interval: int, slabs_per_iteration: int, validator: Engine
    ) -> None:
        def every(engine: Engine, iteration: int) -> bool:
            return iteration % log_interval == 0

        logged = {"tag_name": "loss", "output_transform": _loss, "iteration_log": every}
        self.handlers = [
            _Stats(**logged),
            TensorBoardStatsHandler(summary_writer, epoch_log=False, **logged),
            ProgressBar(disable=None),  # none where the output is no terminal
            Throughput(slabs_per_iteration, validator, summary_writer),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        for handler in self.handlers:
            handler.attach(engine)


class ValidationLogs:
    """Handler of an evaluator: its metrics in the terminal and in TensorBoard, and a picture there.

    Args:
        summary_writer: of TensorBoard.
        draw: of `ValidationPicture`.
    """

    def __init__(self, summary_writer: SummaryWriter, draw: Callable[..., Image]) -> None:
        self.handlers = [
            _Stats(iteration_log=False),
            TensorBoardStatsHandler(summary_writer, iteration_log=False),
            ValidationPicture(summary_writer, draw),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        for handler in self.handlers:
            handler.attach(engine)
