"""Noise schedules and sampling steps."""

from .brownian_bridge import (
    BridgePredictionType,
    BridgeSampler,
    BridgeSpacing,
    BrownianBridgeScheduler,
    NamedChoice,
    StepCoefficients,
)

__all__ = [
    "BridgePredictionType",
    "BridgeSampler",
    "BridgeSpacing",
    "BrownianBridgeScheduler",
    "NamedChoice",
    "StepCoefficients",
]
