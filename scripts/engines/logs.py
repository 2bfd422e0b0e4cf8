"""What a training and its validation write to the terminal and to TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.handlers import StatsHandler, TensorBoardStatsHandler

from .monitoring import Throughput

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TrainingLogs", "ValidationLogs"]


def _loss(output: dict) -> float:
    return output["loss"].item()


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
            StatsHandler(**logged),
            TensorBoardStatsHandler(summary_writer, epoch_log=False, **logged),
            ProgressBar(disable=None),  # none where the output is no terminal
            Throughput(slabs_per_iteration, validator, summary_writer),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        for handler in self.handlers:
            handler.attach(engine)


class ValidationLogs:
    """Handler of an evaluator: its metrics in the terminal and in TensorBoard.

    Args:
        summary_writer: of TensorBoard.
    """

    def __init__(self, summary_writer: SummaryWriter) -> None:
        self.handlers = [
            StatsHandler(iteration_log=False),
            TensorBoardStatsHandler(summary_writer, iteration_log=False),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        for handler in self.handlers:
            handler.attach(engine)
