"""Networks, and the parts that MONAI's own networks can take from them."""

from .bridge_unet import BridgeUNet, FiLMResnetBlock, StyleEmbedding, space_to_depth_stem, use_film
from .control import BridgeControlNet, ControlledBridgeUNet, controlled_bridge
from .cooperative_filtering import BlockMatching, CooperativeFilter, use_cooperative_filtering
from .fusion import (
    AttentionalFeatureFusion,
    AutoWeight,
    BottleneckResidual,
    WideDownsample,
    parameter_groups,
    use_bottleneck_residuals,
    use_wide_downsampling,
)
from .latent import LatentUNet
from .multi_contrast import MultiContrastUNet
from .slice_encoder import PixelEncoder, SliceEncoder
from .volumetric import VolumetricLayer, VolumetricUNet, use_volumetric_layers, volumetric_bridge
from .wavelets import a_trous, haar, inverse_haar

__all__ = ["BridgeControlNet", "BridgeUNet", "ControlledBridgeUNet", "FiLMResnetBlock", "PixelEncoder", "SliceEncoder"]
__all__ += [
    "AttentionalFeatureFusion",
    "AutoWeight",
    "BlockMatching",
    "BottleneckResidual",
    "CooperativeFilter",
    "LatentUNet",
    "MultiContrastUNet",
    "StyleEmbedding",
    "VolumetricLayer",
    "VolumetricUNet",
    "WideDownsample",
    "a_trous",
    "controlled_bridge",
    "haar",
    "inverse_haar",
    "parameter_groups",
    "space_to_depth_stem",
]
__all__ += ["use_bottleneck_residuals", "use_cooperative_filtering", "use_film", "use_volumetric_layers"]
__all__ += ["use_wide_downsampling", "volumetric_bridge"]
