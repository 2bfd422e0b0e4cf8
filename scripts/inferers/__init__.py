"""How a network is called: once for training, many times for sampling."""

from .autoencoder import AutoencoderInferer, CodecInferer
from .bridge import BridgeInferer
from .ista import MEAN_FROM, SETTINGS, CorrectionNorm, ISTAInferer
from .slab_predictor import SlabInputs, SlabPredictor, call_network
from .states import Endpoint
from .uncertainty import UncertaintyInferer

__all__ = [
    "MEAN_FROM",
    "SETTINGS",
    "AutoencoderInferer",
    "BridgeInferer",
    "CodecInferer",
    "CorrectionNorm",
    "Endpoint",
    "ISTAInferer",
    "SlabInputs",
    "SlabPredictor",
    "UncertaintyInferer",
    "call_network",
]
