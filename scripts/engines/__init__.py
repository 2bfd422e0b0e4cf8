"""What the training configs hang on MONAI's engines: batches, averaged weights, seeds, checkpoints, what is logged."""

from .adversarial import adversarial_trainer, discriminator_channels
from .batches import (
    AutoencoderPrepareBatch,
    BridgePrepareBatch,
    DiffusionPrepareBatch,
    OneStepPrepareBatch,
    prepare_reconstructions,
    prepare_slices,
    prepare_volumes,
)
from .latents import MeasureLatents, decoder_sensitivity
from .logs import TrainingLogs, ValidationLogs, average_loss
from .monitoring import Throughput, ValidationPicture
from .optimization import GradientClipper, check_training_dtype, cosine_decay, warmup
from .processes import run_together
from .state import (
    AverageWeights,
    KeepBest,
    ResumableTraining,
    SameTraining,
    SeedEpochs,
    averaged_model,
    checkpoints,
    digest,
    latest_checkpoint,
    save_keys,
    save_weights,
)
from .tissue_batches import TissuePrepareBatch

__all__ = [
    "AutoencoderPrepareBatch",
    "AverageWeights",
    "BridgePrepareBatch",
    "DiffusionPrepareBatch",
    "GradientClipper",
    "KeepBest",
    "MeasureLatents",
    "OneStepPrepareBatch",
    "ResumableTraining",
    "SameTraining",
    "SeedEpochs",
    "Throughput",
    "TissuePrepareBatch",
    "TrainingLogs",
    "ValidationLogs",
    "ValidationPicture",
    "adversarial_trainer",
    "average_loss",
    "averaged_model",
    "check_training_dtype",
    "checkpoints",
    "cosine_decay",
    "decoder_sensitivity",
    "digest",
    "discriminator_channels",
    "latest_checkpoint",
    "prepare_reconstructions",
    "prepare_slices",
    "prepare_volumes",
    "run_together",
    "save_keys",
    "save_weights",
    "warmup",
]
