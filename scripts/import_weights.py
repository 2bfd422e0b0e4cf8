"""Weights that were trained with CT2MRI's public code, as weights of the paper-size network here.

Both networks are one function: residual blocks that are normalised, activated, resampled and convolved in this order,
scale and shift of the second norm by the time, cosines before sines in the embedding of the timestep, queries, keys and
values by layers of their own that have their heads one after another, x_t before the CT, [h, c, d] as the style key's
tokens. Names differ, and the axes of the images: see `IMAGE_AXES`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from .errors import CaseError
from .files import written_whole
from .options import config_files, one_of, true_or_false
from .schedulers import BrownianBridgeScheduler
from .weights import misfits, read_tensors, some
from .workflow import bundle_root

IMAGE_AXES = ("LPS", "LAS", "RPS", "RAS")
"""Where the axes of the arrays point that their code is given (nibabel's `aff2axcodes`); BraTS is LPS. It takes the
second as the rows of an image, the first as its columns. Here images are RAS, rows first."""

_SCHEDULE = {"m_t": "source_weights", "variance_t": "variances"}  # their buffers -> those of the scheduler here
_BUFFERS = (*_SCHEDULE, "m_tminus", "variance_tminus", "variance_t_tminus", "posterior_variance_t")
_RENAMED = {  # pattern here -> name there
    r"^conv_in\.conv\.": "input_blocks.0.0.",
    r"^out\.2\.conv\.": "out.2.",
    r"^middle_block\.resnet_1\.": "middle_block.0.",
    r"^middle_block\.attention\.": "middle_block.1.",
    r"^middle_block\.resnet_2\.": "middle_block.2.",
    r"(?<!transformer_blocks\.0)\.norm1\.": ".in_layers.0.",
    r"\.conv1\.conv\.": ".in_layers.2.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"(?<!transformer_blocks\.0)\.norm2\.": ".out_layers.0.",
    r"\.conv2\.conv\.": ".out_layers.3.",
    r"\.(skip_connection|proj_in|proj_out)\.conv\.": r".\1.",
    r"\.out_proj\.": ".to_out.0.",
    r"\.ff\.linear1\.": ".ff.net.0.proj.",
    r"\.ff\.linear2\.": ".ff.net.2.",
}


def import_weights(
    theirs: str,
    output: str,
    config_file: str | Sequence[str] | None = None,
    ema: bool = True,
    axes: str = IMAGE_AXES[0],
) -> str:
    """Make weights of the paper-size network from a checkpoint of CT2MRI's public code.

    Args:
        theirs: their checkpoint, such as latest_model_34.pth.
        output: weights file to write.
        config_file: configs whose network_def takes them; configs/inference.json with configs/network_paper.json if
            none is given.
        ema: the averaged weights, with which their code tests, where the checkpoint has them; False takes the others.
        axes: where the axes of the NIfTI arrays pointed that it was trained on: LPS (as BraTS), LAS, RPS or RAS.
    """
    one_of("axes", axes, IMAGE_AXES)
    path = Path(theirs)
    given, schedule, which = _chosen(_read(path), true_or_false("ema", ema), path.name)
    _check_schedule(schedule, path.name)
    network = _network(config_file)
    state = network.state_dict()
    names = {name: public_name(name, network) for name in state}
    wrong = misfits({names[name]: tensor for name, tensor in state.items()}, given)
    if wrong:
        raise CaseError(
            f"The weights in {path.name} do not fit the network ({'; '.join(wrong)}): give a checkpoint of CT2MRI's "
            "network with style key (BBDM_base.yaml or BBDM_base_BraTS.yaml), or the network_def of these weights."
        )
    made = {name: _oriented(given[theirs_name], axes) for name, theirs_name in names.items()}
    with written_whole(output) as temporary:
        torch.save(made, temporary)
    count = sum(tensor.numel() for tensor in made.values())
    return f"{output}: {count:,} parameters, {which}; translate with --scheduler#prediction_type gradient"


def public_name(name: str, network: nn.Module) -> str:
    """The name in CT2MRI's public code of a parameter of a `BridgeUNet` without attention but in the middle block.

    There, the blocks of all levels stand in one list: `input_blocks` with the first convolution at 0, `output_blocks`
    with the resampling block beside the last block of its level.
    """
    for pattern, there in _RENAMED.items():
        name = re.sub(pattern, there, name)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|\w+sampler)\.", name)
    if found is None:
        return name
    side, level, block = found.groups()
    in_a_level = network.num_res_blocks[0] + 1  # the last of them resamples, or is followed by one that does
    number = int(level) * in_a_level + (in_a_level - 1 if block is None else int(block))
    place = f"input_blocks.{1 + number}.0" if side == "down" else f"output_blocks.{number}.{0 if block else 1}"
    return f"{place}.{name[found.end() :]}"


def _network(config_file: str | Sequence[str] | None) -> nn.Module:
    """The network of some configs, without memory for its weights."""
    usual = [str(Path(bundle_root(), "configs", name)) for name in ("inference.json", "network_paper.json")]
    parser = ConfigParser()
    parser.read_config(config_files(config_file or usual))
    with torch.device("meta"):
        return parser.get_parsed_content("network_def")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CaseError(f"There is no checkpoint {path}: check the path.")
    content = read_tensors(
        path,
        f"The checkpoint {path.name} is damaged, or holds objects that could run a program when they are loaded: "
        "in the environment that wrote it, load it and torch.save its 'ema' (or 'model') alone, then import that.",
        mmap=zipfile.is_zipfile(path),
    )
    if not isinstance(content, Mapping):
        raise CaseError(f"{path.name} holds {type(content).__name__}, no checkpoint of CT2MRI's code.")
    return content


def _chosen(content: Mapping[str, Any], ema: bool, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """The network's weights by their names in `UNetModel`, the schedule they were trained with, and which they are."""
    if "optimizer" in content and "model" not in content:
        raise CaseError(
            f"{name} is their file of the optimizer: give that of the network, such as latest_model_34.pth beside it."
        )
    model = content.get("model", {} if "ema" in content else content)
    averaged = bool(ema and content.get("ema"))
    weights = content["ema"] if averaged else model
    tensors = [key for key, value in weights.items() if isinstance(value, Tensor)]
    if not tensors or len(tensors) < len(weights):
        raise CaseError(
            f"{name} holds {some(map(str, weights or content))}, and no network: give their latest_model_N.pth."
        )
    plain, trained = ({key.removeprefix("module."): value for key, value in part.items()} for part in (weights, model))
    network = {key.removeprefix("denoise_fn."): value for key, value in plain.items() if key not in _BUFFERS}
    which = "averaged (ema)" if averaged else "not averaged" if "ema" in content else "as they were"
    if isinstance(content.get("step"), int):
        which += f", of step {content['step']:,}"
    return network, {key: trained[key] for key in _SCHEDULE if key in trained}, which


def _check_schedule(schedule: Mapping[str, Tensor], name: str) -> None:
    scheduler = BrownianBridgeScheduler(prediction_type="gradient")
    for key, ours in _SCHEDULE.items():
        wanted = getattr(scheduler, ours)
        given = schedule.get(key, wanted)
        if given.shape != wanted.shape or not torch.allclose(given.to(wanted), wanted, rtol=0, atol=1e-5):
            raise CaseError(
                f"{name} was trained with another schedule ({key}): only mt_type linear, 1000 timesteps and max_var 1 "
                "are the bridge here; train again with these."
            )


def _oriented(weight: Tensor, axes: str) -> Tensor:
    """A weight for images whose rows go to the right and whose columns go forward; only convolutions see axes.

    With T from our images to theirs, T^-1 net(T x) is the network whose kernels are T^-1 of theirs: all other layers do
    alike at each pixel, or look at all of them.
    """
    if weight.ndim != 4:
        return weight
    weight = weight.transpose(-1, -2)
    flipped = [axis for axis, code, ours in ((-2, axes[0], "R"), (-1, axes[1], "A")) if code != ours]
    return weight.flip(flipped).contiguous()
