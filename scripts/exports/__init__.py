"""The network for other runtimes: files of it, and what runs them."""

from scripts.exports.onnx_network import OnnxNetwork
from scripts.exports.tensorrt import contiguous_inputs

__all__ = ["OnnxNetwork", "contiguous_inputs"]
