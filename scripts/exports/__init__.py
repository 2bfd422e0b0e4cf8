"""The network for other runtimes: files of it, and what runs them."""

from .onnx_network import OnnxNetwork
from .tensorrt import contiguous_inputs

__all__ = ["OnnxNetwork", "contiguous_inputs"]
