"""Noise schedules and sampling steps."""

from .brownian_bridge import (
    BridgePredictionType,
    BridgeSampler,
    BridgeSpacing,
    BrownianBridgeScheduler,
    StepCoefficients,
)

__all__ = ["BridgePredictionType", "BridgeSampler", "BridgeSpacing", "BrownianBridgeScheduler", "StepCoefficients"]
