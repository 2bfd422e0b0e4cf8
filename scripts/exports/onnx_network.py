"""An exported network, called as the network is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor, nn

from ..errors import CaseError
from ..files import sha256_of_file

INPUTS = ("x", "timesteps", "context", "source", "missing")
"""Names of the inputs of an exported network, in the order of `BridgeUNet.forward`; not all networks have the last."""

REQUIREMENTS = "python -m pip install -r requirements-export.txt"


class OnnxNetwork(nn.Module):
    """A file of `python -m scripts export onnx` in place of its network, run by ONNX Runtime on the CPU in float32.

    It uses as many threads as PyTorch did when it was made.

    Args:
        path: the ONNX file.
        weights: the weights file that it has to be exported from; None takes any.

    Raises:
        CaseError: ONNX Runtime or the file is missing, the file is damaged, or it is of other weights.
    """

    def __init__(self, path: str | os.PathLike, weights: str | os.PathLike | None = None) -> None:
        super().__init__()
        path = Path(path)
        onnxruntime, found = optional_import("onnxruntime")
        if not found:
            raise CaseError(f"ONNX Runtime, which {path.name} needs, is not installed: {REQUIREMENTS}")
        command = f"`python -m scripts export onnx{f' --weights {weights}' if weights else ''} --output {path}`"
        if not path.is_file():
            raise CaseError(f"There is no ONNX file {path}: write it with {command}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # between two calls PyTorch has the cores: threads that spin while they wait would take them from it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CaseError(f"The ONNX file {path} cannot be read: write it again with {command}.") from error
        notes = self._session.get_modelmeta().custom_metadata_map
        if weights is not None and notes.get("weights_sha256") != sha256_of_file(weights):
            raise CaseError(f"The ONNX file {path} is not of the weights {weights}: write it again with {command}.")
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        source: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """One evaluation; shapes, ranges and defaults are those of `BridgeUNet.forward`, floating types float32."""
        inputs = self._session.get_inputs()
        has_missing = len(inputs) == len(INPUTS)
        if source is None:
            x, source, *given = x.chunk(2 + has_missing, dim=1)
            missing = given[0] if has_missing else None
        if has_missing and missing is None:
            missing = torch.zeros_like(source)
        slabs = len(x)
        style_shape = inputs[INPUTS.index("context")].shape[1:]
        timesteps = torch.zeros(1, dtype=torch.long) if timesteps is None else timesteps
        context = x.new_zeros(style_shape) if context is None else context
        given = (x, timesteps.expand(slabs), context.expand(slabs, *style_shape), source, missing)
        arrays = (np.ascontiguousarray(tensor.cpu().numpy()) for tensor in given if tensor is not None)
        (prediction,) = self._session.run(None, dict(zip(INPUTS, arrays, strict=False)))
        return torch.from_numpy(prediction).to(x)
