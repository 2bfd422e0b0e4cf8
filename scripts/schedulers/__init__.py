"""Noise schedules and sampling steps."""

from .affine import AffineScheduler, NamedChoice
from .brownian_bridge import BridgePredictionType, BridgeSpacing, BrownianBridgeScheduler
from .gaussian_diffusion import DiffusionPredictionType, DiffusionSpacing, GaussianDiffusionScheduler
from .samplers import SAMPLERS, Node, Sampler, StepCoefficients, sampler_named

__all__ = [
    "SAMPLERS",
    "AffineScheduler",
    "BridgePredictionType",
    "BridgeSpacing",
    "BrownianBridgeScheduler",
    "DiffusionPredictionType",
    "DiffusionSpacing",
    "GaussianDiffusionScheduler",
    "NamedChoice",
    "Node",
    "Sampler",
    "StepCoefficients",
    "sampler_named",
]
