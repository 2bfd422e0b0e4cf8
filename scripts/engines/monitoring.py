"""What a training tells about itself: slabs per second, where the time goes, pictures of a validation volume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from ignite.engine import Engine, Events

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_DATA, _STEP, _VALIDATION, _SAVING = "waiting for data", "computing", "validation", "saving"


class Throughput:
    """Handler that says after each epoch, and at the end, how many slabs a second were trained on and what took time.

    The wall time of an epoch is divided into waiting for the data loader (the start of its workers included), computing
    (transfer to the device, forward, backward, optimizer and what the handlers do at each iteration), validation, and
    saving (weights, checkpoint, what else happens at the epoch's end). The slabs per second are those of the first two.
    On a GPU the division is right as long as an iteration waits for its gradients, as `GradientClipper` does.

    Attach it after the handlers whose time it should count.

    Args:
        slabs_per_iteration: of all processes.
        validator: the evaluator that runs within the trainer's epochs; None for none.
        summary_writer: gets the scalars "throughput/..." at each epoch; None for none.
        clock: gives seconds.
    """

    def __init__(
        self,
        slabs_per_iteration: int,
        validator: Engine | None = None,
        summary_writer: SummaryWriter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slabs_per_iteration = slabs_per_iteration
        self.validator = validator
        self.summary_writer = summary_writer
        self.clock = clock
        self.seconds = dict.fromkeys((_DATA, _STEP, _VALIDATION, _SAVING), 0.0)
        self.iterations = 0
        self._totals = dict(self.seconds)
        self._total_iterations = 0
        self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, and to the validator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._lap, _STEP)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._lap, _DATA)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._summarize)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._lap, _SAVING)
            self.validator.add_event_handler(Events.COMPLETED, self._lap, _VALIDATION)

    def _lap(self, spent_on: str) -> None:
        now = self.clock()
        self.seconds[spent_on] += now - self._last
        self._last = now

    def _start_epoch(self) -> None:
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.iterations = 0
        self._last = self.clock()

    def _end_iteration(self) -> None:
        self._lap(_STEP)
        self.iterations += 1

    def _end_epoch(self, engine: Engine) -> None:
        self._lap(_SAVING)
        self._total_iterations += self.iterations
        for name, seconds in self.seconds.items():
            self._totals[name] += seconds
        logger.info(f"Epoch {engine.state.epoch}: {self._sentence(self.seconds, self.iterations)}")
        if self.summary_writer is not None:
            self._write(engine.state.epoch)

    def _write(self, epoch: int) -> None:
        rate, total = self._rate(self.seconds, self.iterations), sum(self.seconds.values())
        self.summary_writer.add_scalar("throughput/slabs_per_second", rate, epoch)
        for name, seconds in self.seconds.items():
            self.summary_writer.add_scalar(f"throughput/share {name}".replace(" ", "_"), seconds / total, epoch)
        self.summary_writer.flush()

    def _summarize(self) -> None:
        if self._total_iterations:
            slabs = self._total_iterations * self.slabs_per_iteration
            minutes = sum(self._totals.values()) / 60
            summary = self._sentence(self._totals, self._total_iterations)
            logger.info(f"Trained on {slabs} slabs in {minutes:.1f} minutes: {summary}")

    def _rate(self, seconds: Mapping[str, float], iterations: int) -> float:
        return iterations * self.slabs_per_iteration / max(seconds[_DATA] + seconds[_STEP], 1e-9)

    def _sentence(self, seconds: Mapping[str, float], iterations: int) -> str:
        total = max(sum(seconds.values()), 1e-9)
        shares = ", ".join(f"{name} {100 * spent / total:.1f} %" for name, spent in seconds.items())
        return f"{self._rate(seconds, iterations):.1f} slabs/s; {shares}"


class ValidationPicture:
    """Handler of an evaluator that shows the first volume of each validation: source, synthetic, real, three planes.

    Of a source of several contrasts the first one that is there is shown.

    Args:
        summary_writer: gets the picture under "validation", at the evaluator's epoch.
        draw: called with the three volumes (H, W, Z) in [0, 1] and their affine; gives a picture.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        draw: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray], Image],
    ) -> None:
        self.summary_writer = summary_writer
        self.draw = draw

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, whose output is decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        """Draw the first volume of the batch."""
        output = engine.state.output[0]
        contrasts = [one for one in output["image"] if one.any()] or output["image"]
        source, synthetic, real = (
            i.detach().float().cpu() for i in (contrasts[0], output["pred"][0], output["label"][0])
        )
        affine = np.asarray(getattr(output["image"], "affine", np.eye(4)))
        picture = np.asarray(self.draw(source, synthetic, real, affine))
        layout = "HW" if picture.ndim == 2 else "HWC"
        self.summary_writer.add_image("validation", picture, engine.state.epoch, dataformats=layout)
        self.summary_writer.flush()
