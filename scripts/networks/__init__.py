"""Networks, and the parts that MONAI's own networks can take from them."""

from .bridge_unet import BridgeUNet, FiLMResnetBlock, StyleEmbedding, space_to_depth_stem, use_film
from .control import BridgeControlNet, ControlledBridgeUNet, controlled_bridge
from .latent import LatentUNet
from .slice_encoder import PixelEncoder, SliceEncoder
from .volumetric import VolumetricLayer, VolumetricUNet, use_volumetric_layers, volumetric_bridge

__all__ = ["BridgeControlNet", "BridgeUNet", "ControlledBridgeUNet", "FiLMResnetBlock", "PixelEncoder", "SliceEncoder"]
__all__ += [
    "LatentUNet",
    "StyleEmbedding",
    "VolumetricLayer",
    "VolumetricUNet",
    "controlled_bridge",
    "space_to_depth_stem",
]
__all__ += ["use_film", "use_volumetric_layers", "volumetric_bridge"]
