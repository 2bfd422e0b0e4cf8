"""Noise schedules and sampling steps."""

from .affine import SAMPLERS, AffineScheduler, NamedChoice, Sampler, StepCoefficients, TimestepSpacing, sampler_named
from .brownian_bridge import BridgePredictionType, BrownianBridgeScheduler
from .gaussian_diffusion import DiffusionPredictionType, GaussianDiffusionScheduler

__all__ = [
    "SAMPLERS",
    "AffineScheduler",
    "BridgePredictionType",
    "BrownianBridgeScheduler",
    "DiffusionPredictionType",
    "GaussianDiffusionScheduler",
    "NamedChoice",
    "Sampler",
    "StepCoefficients",
    "TimestepSpacing",
    "sampler_named",
]
