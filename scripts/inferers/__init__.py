"""How a network is called: once for training, many times for sampling."""

from .bridge import BridgeInferer, to_image_range, to_network_range
from .ista import CorrectionNorm, ISTAInferer

__all__ = ["BridgeInferer", "CorrectionNorm", "ISTAInferer", "to_image_range", "to_network_range"]
