"""Checkpoints of CT2MRI's public code: their network, as mathematics, predicts what ours does with imported weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.errors import CaseError
from scripts.import_weights import IMAGE_AXES, import_weights, public_name
from scripts.networks import BridgeUNet
from scripts.schedulers import BrownianBridgeScheduler
from scripts.weights import load_weights

PAPER_PARAMETERS = 254_149_507
TINY = {"channels": (32, 64, 64), "num_res_blocks": 2, "num_head_channels": 32}


def conv(size: int, channels_in: int, channels_out: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (channels_out, channels_in, size, size), "bias": (channels_out,)}


def linear(channels_in: int, channels_out: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"weight": (channels_out, channels_in), **({"bias": (channels_out,)} if bias else {})}


def norm(channels: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (channels,), "bias": (channels,)}


def block(before: int, after: int, embedding: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layers of a residual block (guided diffusion's ResBlock, scale and shift)."""
    layers = {
        "in_layers.0": norm(before),
        "in_layers.2": conv(3, before, after),
        "emb_layers.1": linear(embedding, 2 * after),
        "out_layers.0": norm(after),
        "out_layers.3": conv(3, after, after),
    }
    return layers if before == after else {**layers, "skip_connection": conv(1, before, after)}


def transformer(width: int, context: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layers of a spatial transformer of one block (latent diffusion's)."""
    inner = {f"norm{i}": norm(width) for i in (1, 2, 3)}
    for name, keys in (("attn1", width), ("attn2", context)):
        inner |= {f"{name}.to_q": linear(width, width, False), f"{name}.to_out.0": linear(width, width)}
        inner |= {f"{name}.to_{kv}": linear(keys, width, False) for kv in "kv"}
    inner |= {"ff.net.0.proj": linear(width, 8 * width), "ff.net.2": linear(4 * width, width)}
    inner = {f"transformer_blocks.0.{name}": shapes for name, shapes in inner.items()}
    return {"norm": norm(width), "proj_in": conv(1, width, width), "proj_out": conv(1, width, width), **inner}


def public_shapes(channels=(128, 512, 1024), num_res_blocks=2, context=128, **_) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public code's `UNetModel` with a spatial transformer in its middle block alone."""
    base, embedding = channels[0], 4 * channels[0]
    blocks = {"input_blocks.0.0": {"": conv(3, 6, base)}}
    now, skips, number = base, [base], 1
    for level, width in enumerate(channels):
        for _ in range(num_res_blocks):
            blocks[f"input_blocks.{number}.0"], now, number = block(now, width, embedding), width, number + 1
            skips.append(now)
        if level < len(channels) - 1:
            blocks[f"input_blocks.{number}.0"], number = block(now, now, embedding), number + 1
            skips.append(now)
    blocks |= {"middle_block.0": block(now, now, embedding), "middle_block.1": transformer(now, context)}
    blocks["middle_block.2"] = block(now, now, embedding)
    number = 0
    for level, width in reversed(list(enumerate(channels))):
        for i in range(num_res_blocks + 1):
            blocks[f"output_blocks.{number}.0"], now = block(now + skips.pop(), width, embedding), width
            if level and i == num_res_blocks:
                blocks[f"output_blocks.{number}.1"] = block(now, now, embedding)
            number += 1
    blocks["time_embed"] = {"0": linear(base, embedding), "2": linear(embedding, embedding)}
    blocks["out"] = {"0": norm(now), "2": conv(3, now, 3)}
    return {
        ".".join(filter(None, (place, layer, kind))): shape
        for place, layers in blocks.items()
        for layer, kinds in layers.items()
        for kind, shape in kinds.items()
    }


def public_weights(seed: int = 0, **sizes) -> dict[str, Tensor]:
    """A state dict of their names, far from symmetric."""
    generator = torch.Generator().manual_seed(seed)
    shapes = public_shapes(**{**TINY, **sizes})
    draws = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value * (0.3 if value.ndim == 1 else value[0].numel() ** -0.5) for name, value in draws.items()}


class PublicNetwork:
    """Their network from the published definitions: Dhariwal and Nichol (2021), Rombach et al. (2022)."""

    def __init__(self, weights: dict[str, Tensor], num_head_channels: int, num_res_blocks: int, **_) -> None:
        self.w, self.width, self.blocks = weights, num_head_channels, num_res_blocks + 1

    def apply(self, function, name: str, x: Tensor, **more) -> Tensor:
        return function(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **more)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def block(self, name: str, x: Tensor, time: Tensor, resample=lambda x: x) -> Tensor:
        h = self.apply(
            F.conv2d, f"{name}.in_layers.2", resample(F.silu(self.norm(f"{name}.in_layers.0", x))), padding=1
        )
        scale, shift = self.apply(F.linear, f"{name}.emb_layers.1", F.silu(time))[..., None, None].chunk(2, 1)
        h = F.silu(self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        x = resample(x)
        if f"{name}.skip_connection.weight" in self.w:
            x = self.apply(F.conv2d, f"{name}.skip_connection", x)
        return x + self.apply(F.conv2d, f"{name}.out_layers.3", h, padding=1)

    def attention(self, name: str, x: Tensor, keys: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v for each head of d consecutive channels."""
        q, k, v = (self.apply(F.linear, f"{name}.to_{which}", t) for which, t in (("q", x), ("k", keys), ("v", keys)))
        heads = []
        for start in range(0, q.shape[-1], self.width):
            q_h, k_h, v_h = (t[..., start : start + self.width] for t in (q, k, v))
            heads.append(torch.softmax(q_h @ k_h.mT / self.width**0.5, -1) @ v_h)
        return self.apply(F.linear, f"{name}.to_out.0", torch.cat(heads, -1))

    def transformer(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        h = self.apply(F.conv2d, f"{name}.proj_in", self.norm(f"{name}.norm", x, 1e-6)).flatten(2).mT
        inner = f"{name}.transformer_blocks.0"

        def normed(number: int) -> Tensor:
            which = f"{inner}.norm{number}"
            return F.layer_norm(h, h.shape[-1:], self.w[f"{which}.weight"], self.w[f"{which}.bias"])

        h = h + self.attention(f"{inner}.attn1", normed(1), normed(1))
        h = h + self.attention(f"{inner}.attn2", normed(2), context)
        value, gate = self.apply(F.linear, f"{inner}.ff.net.0.proj", normed(3)).chunk(2, -1)
        h = h + self.apply(F.linear, f"{inner}.ff.net.2", value * F.gelu(gate))
        return x + self.apply(F.conv2d, f"{name}.proj_out", h.mT.reshape(x.shape))

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, source: Tensor) -> Tensor:
        half = self.w["time_embed.0.weight"].shape[1] // 2
        angles = t[:, None].double() * torch.exp(-math.log(10_000) * torch.arange(half).float() / half)
        time = self.apply(F.linear, "time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        time = self.apply(F.linear, "time_embed.2", F.silu(time))
        h = self.apply(F.conv2d, "input_blocks.0.0", torch.cat([x, source], 1), padding=1)
        skips, number = [h], 1
        while f"input_blocks.{number}.0.in_layers.0.weight" in self.w:
            down = {} if number % self.blocks else {"resample": lambda x: F.avg_pool2d(x, 2)}
            h = self.block(f"input_blocks.{number}.0", h, time, **down)
            skips.append(h)
            number += 1
        h = self.transformer("middle_block.1", self.block("middle_block.0", h, time), context)
        h = self.block("middle_block.2", h, time)
        for number in range(len(skips)):
            h = self.block(f"output_blocks.{number}.0", torch.cat([h, skips.pop()], 1), time)
            if f"output_blocks.{number}.1.in_layers.0.weight" in self.w:
                h = self.block(f"output_blocks.{number}.1", h, time, lambda x: F.interpolate(x, scale_factor=2))
        return self.apply(F.conv2d, "out.2", F.silu(self.norm("out.0", h)), padding=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps({"network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY}}))
    return str(path)


@pytest.fixture
def checkpoint(tmp_path: Path):
    """Write a checkpoint as their trainer does, and give its path."""

    def write(model: dict[str, Tensor], name: str = "latest_model_34.pth", prefix: str = "", **more) -> str:
        scheduler = BrownianBridgeScheduler()
        buffers = {"m_t": scheduler.source_weights, "variance_t": scheduler.variances, "m_tminus": torch.zeros(1000)}
        model = {f"{prefix}denoise_fn.{key}": value for key, value in model.items()} | buffers
        torch.save({"step": 98_000, "epoch": 34, "model": model, **more}, tmp_path / name)
        return str(tmp_path / name)

    return write


def imported(path: str, config: str, tmp_path: Path, **options) -> BridgeUNet:
    output = tmp_path / "out.pt"
    import_weights(path, str(output), config_file=config, **options)
    network = BridgeUNet(**TINY).double().eval()
    load_weights(network, output)
    return network


def flipped(axes: str) -> list[int]:
    return [axis for axis, code, ours in ((-2, axes[0], "R"), (-1, axes[1], "A")) if code != ours]


def to_their_axes(image: Tensor, axes: str) -> Tensor:
    """Images whose rows go right and columns forward, as from an array of these axes, which they transpose."""
    return image.flip(flipped(axes)).transpose(-1, -2)


def from_their_axes(image: Tensor, axes: str) -> Tensor:
    return image.transpose(-1, -2).flip(flipped(axes))


@pytest.fixture(scope="module")
def slabs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    draw = {"x": (2, 3, 16, 24), "source": (2, 3, 16, 24), "context": (2, 3, 128)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in draw.items()}
    return {**drawn, "timesteps": torch.tensor([999, 37])}


@pytest.mark.parametrize("axes", IMAGE_AXES)
@torch.no_grad()
def test_the_imported_network_predicts_what_theirs_does(axes, checkpoint, config, slabs, tmp_path):
    weights = public_weights()
    ours = imported(checkpoint(weights), config, tmp_path, axes=axes)
    theirs = PublicNetwork(weights, **TINY)
    x, source = (to_their_axes(slabs[name], axes) for name in ("x", "source"))
    expected = from_their_axes(theirs(x, slabs["timesteps"], slabs["context"], source), axes)
    predicted = ours(slabs["x"], slabs["timesteps"], slabs["context"], slabs["source"])
    assert expected.std() > 0.1
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-6)  # both embed the timestep in single precision


def test_names_and_shapes_of_all_parameters_of_the_papers_network():
    with torch.device("meta"):
        network = BridgeUNet()
    ours = {public_name(name, network): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(ours) == len(network.state_dict())
    assert ours == public_shapes()
    assert sum(math.prod(shape) for shape in ours.values()) == PAPER_PARAMETERS


def test_averaged_weights_are_taken_where_there_are_some(checkpoint, config, tmp_path):
    first, second = public_weights(1), public_weights(2)
    path = checkpoint(first, ema={f"denoise_fn.{key}": value for key, value in second.items()}, prefix="module.")
    for ema, weights in ((True, second), (False, first)):
        network = imported(path, config, tmp_path, ema=ema)
        torch.testing.assert_close(network.time_embed[0].weight, weights["time_embed.0.weight"])
    said = import_weights(path, str(tmp_path / "out.pt"), config_file=config)
    assert "averaged (ema), of step 98,000" in said


def without_style_key(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: value for name, value in weights.items() if not name.startswith("middle_block.1")}
    return {**kept, "middle_block.1.qkv.weight": torch.zeros(192, 64, 1)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_style_key, r"1 not in the network: middle_block\.1\.qkv\.weight\): give a checkpoint"),
        (lambda w: {**w, "out.2.bias": torch.zeros(5)}, r"1 of another shape: out\.2\.bias \(5,\) for \(3,\)"),
        (lambda w: {**w, "time_embed.0.bias": "text"}, r"holds denoise_fn\.\S+, .*, and no network"),
    ],
    ids=["without style key", "other shape", "no tensors"],
)
def test_what_does_not_fit_is_refused_by_name(change, sentence, checkpoint, config, tmp_path):
    with pytest.raises(CaseError, match=sentence):
        import_weights(checkpoint(change(public_weights())), str(tmp_path / "out.pt"), config_file=config)
    assert not (tmp_path / "out.pt").exists()


def test_other_files_are_refused_in_a_sentence(checkpoint, config, tmp_path):
    def refused(path, **options) -> str:
        with pytest.raises(CaseError) as error:
            import_weights(str(path), str(tmp_path / "out.pt"), config_file=config, **options)
        return str(error.value)

    torch.save({"optimizer": [], "scheduler": []}, tmp_path / "latest_optim_sche_34.pth")
    assert "their file of the optimizer" in refused(tmp_path / "latest_optim_sche_34.pth")
    torch.save({"model": {}, "config": Path("x")}, tmp_path / "objects.pth")
    assert "could run a program" in refused(tmp_path / "objects.pth")
    whole = (tmp_path / "objects.pth").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-100], b"subject,T2\nanna,x\n", b"a", b""):
        (tmp_path / "cut.pth").write_bytes(content)
        assert "cut.pth is damaged" in refused(tmp_path / "cut.pth")
    assert "There is no checkpoint" in refused(tmp_path / "nothing.pth")
    path = checkpoint(public_weights())
    assert "axes is SAR" in refused(path, axes="SAR")
    content = torch.load(path)
    content["model"]["m_t"] = torch.linspace(0.001, 0.999, 1000).mul(math.pi / 2).sin()  # their mt_type "control"
    torch.save(content, tmp_path / "control.pth")
    assert "another schedule (m_t)" in refused(tmp_path / "control.pth")
