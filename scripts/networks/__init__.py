"""Networks, and the parts that MONAI's own networks can take from them."""

from .bridge_unet import BridgeUNet, FiLMResnetBlock, StyleEmbedding, space_to_depth_stem, use_film
from .slice_encoder import PixelEncoder, SliceEncoder

__all__ = ["BridgeUNet", "FiLMResnetBlock", "PixelEncoder", "SliceEncoder", "StyleEmbedding"]
__all__ += ["space_to_depth_stem", "use_film"]
