"""Noise schedules and sampling steps."""

from .brownian_bridge import BridgePredictionType, BrownianBridgeScheduler

__all__ = ["BridgePredictionType", "BrownianBridgeScheduler"]
