"""How a network is called: once for training, many times for sampling."""

from .bridge import BridgeInferer, to_image_range, to_network_range

__all__ = ["BridgeInferer", "to_image_range", "to_network_range"]
