"""The bridge U-Net: its sizes, what reaches its output, and the parts it shares with MONAI's ControlNet."""

import io
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import ControlNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks import BridgeUNet, FiLMResnetBlock, StyleEmbedding, space_to_depth_stem, use_film

PAPER_PARAMETERS = 254_149_507
SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "inference.json"
COMPACT = {key: value for key, value in json.loads(SHIPPED.read_text())["network_def"].items() if key != "_target_"}
TINY = {"channels": (16, 32), "num_res_blocks": 1, "norm_num_groups": 8, "num_head_channels": 16}


def as_if_trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the layers that start at zero and hide everything before them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def tiny(**options: object) -> BridgeUNet:
    torch.manual_seed(0)
    return as_if_trained(BridgeUNet(**{**TINY, **options}))


def slabs(batch: int = 2, slab_size: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "x": draw(batch, slab_size, 16, 24),
        "timesteps": torch.randint(1000, (batch,), generator=generator),
        "context": draw(batch, 3, 128),
        "source": draw(batch, slab_size, 16, 24),
    }


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestSizes:
    def test_defaults_are_the_papers_network(self) -> None:
        with torch.device("meta"):
            assert count(BridgeUNet()) == PAPER_PARAMETERS

    def test_paper_overlay_turns_the_compact_network_into_the_papers(self, bundle_root: Path) -> None:
        parser = ConfigParser({"network_def": {"_target_": "scripts.networks.BridgeUNet", **COMPACT}})
        parser.update(ConfigParser.load_config_file(bundle_root / "configs" / "network_paper.json"))
        with torch.device("meta"):
            network = parser.get_parsed_content("network_def")
        assert count(network) == PAPER_PARAMETERS

    def test_work_of_both_networks(self) -> None:
        paper = self._gigaflop(BridgeUNet, 160, 160)
        assert paper == pytest.approx(1611.2, abs=0.1)
        assert self._gigaflop(lambda: BridgeUNet(**COMPACT), 160, 192) == pytest.approx(18.8, abs=0.1)

    def test_compact_weights_in_half_precision_stay_under_25_megabytes(self) -> None:
        with torch.device("meta"):
            assert 2 * count(BridgeUNet(**COMPACT)) < 25e6

    @staticmethod
    def _gigaflop(build: type[BridgeUNet], height: int, width: int) -> float:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network = build()
            network(torch.zeros(1, network.slab_size * sum(network.slice_channels), height, width))
        return counter.get_total_flops() / 1e9

    @pytest.mark.parametrize("slab_size", [1, 3, 5])
    @pytest.mark.parametrize("space_to_depth", [1, 2, 4])
    def test_output_is_a_slab_of_the_inputs_size(self, slab_size: int, space_to_depth: int) -> None:
        network = tiny(slab_size=slab_size, space_to_depth=space_to_depth)
        assert network(**slabs(slab_size=slab_size)).shape == (2, slab_size, 16, 24)
        assert network.size_multiple == 2 * space_to_depth

    def test_a_size_it_cannot_take_is_refused_with_the_multiple(self) -> None:
        with pytest.raises(ValueError, match="16 x 26, but this network needs multiples of 4"):
            tiny(space_to_depth=2)(torch.zeros(1, 6, 16, 26))

    def test_other_channels_and_tokens_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got 3 channels; it takes 6"):
            tiny()(torch.zeros(1, 3, 16, 16))
        with pytest.raises(ValueError, match=r"\(2, 3, 64\) were given; the network takes \(3, 128\)"):
            tiny()(torch.zeros(2, 6, 16, 16), context=torch.zeros(2, 3, 64))
        with pytest.raises(ValueError, match="num_head_channels"):
            BridgeUNet(channels=(16, 32), norm_num_groups=8, num_head_channels=24)


class TestInputs:
    def test_one_tensor_holds_the_noisy_slab_then_the_source(self) -> None:
        network, batch = tiny(), slabs()
        both = torch.cat([batch.pop("x"), batch.pop("source")], dim=1)
        torch.testing.assert_close(network(both, **batch), network(**slabs()), rtol=0, atol=0)

    def test_every_input_reaches_the_output(self) -> None:
        network, batch = tiny(), slabs()
        with torch.no_grad():
            output = network(**batch)
            for name, value in slabs(seed=2).items():
                assert (network(**{**batch, name: value}) - output).abs().max() > 1e-4, name

    def test_no_timesteps_is_index_zero(self) -> None:
        network, batch = tiny(), slabs()
        batch["timesteps"] = torch.zeros(2, dtype=torch.long)
        torch.testing.assert_close(network(**{**batch, "timesteps": None}), network(**batch), rtol=0, atol=0)

    @pytest.mark.parametrize("style_embedding", [False, True])
    def test_no_style_is_tokens_of_zeros(self, style_embedding: bool) -> None:
        network, batch = tiny(style_embedding=style_embedding), slabs()
        batch["context"] = torch.zeros(2, 3, 128)
        torch.testing.assert_close(network(**{**batch, "context": None}), network(**batch), rtol=0, atol=0)

    def test_one_style_and_one_timestep_serve_the_whole_batch(self) -> None:
        network, batch = tiny(style_embedding=True), slabs(dtype=torch.float64)
        network.double()
        style, time = batch["context"][0], torch.tensor(500)
        shared = network(batch["x"], time, style, batch["source"])
        repeated = network(batch["x"], time.repeat(2), style.repeat(2, 1, 1), batch["source"])
        torch.testing.assert_close(shared, repeated)

    def test_tokens_act_only_in_the_middle_block_unless_embedded_too(self) -> None:
        batch = slabs()
        for style_embedding in (False, True):
            network = tiny(style_embedding=style_embedding)
            nn.init.zeros_(network.middle_block.attention.proj_out.conv.weight)
            change = network(**batch) - network(**{**batch, "context": batch["context"] + 1})
            assert bool(change.any()) is style_embedding

    def test_slabs_of_a_batch_do_not_see_each_other(self) -> None:
        network, batch = tiny(space_to_depth=2, style_embedding=True).double(), slabs(3, dtype=torch.float64)
        together = network(**batch)
        alone = [network(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


class TestFiLM:
    @pytest.mark.parametrize("resample", [{}, {"up": True}, {"down": True}])
    def test_zero_projection_is_the_block_without_time(self, resample: dict[str, bool]) -> None:
        torch.manual_seed(0)
        film = as_if_trained(FiLMResnetBlock(2, 8, 6, norm_num_groups=4, **resample))
        plain = DiffusionUNetResnetBlock(2, 8, 6, norm_num_groups=4, **resample)
        for block in (film, plain):
            nn.init.zeros_(block.time_emb_proj.weight)
            nn.init.zeros_(block.time_emb_proj.bias)
        keys = plain.load_state_dict({k: v for k, v in film.state_dict().items() if "time" not in k}, strict=False)
        assert set(keys.missing_keys) == {"time_emb_proj.weight", "time_emb_proj.bias"}
        x, emb = torch.randn(2, 8, 6, 6), torch.randn(2, 6)
        torch.testing.assert_close(film(x, emb), plain(x, emb))

    def test_scale_then_shift_of_the_normalised_features(self) -> None:
        """A projection that ignores the embedding: the same as new affine weights of the second norm."""
        torch.manual_seed(0)
        block = as_if_trained(FiLMResnetBlock(2, 8, 6, norm_num_groups=4))
        scale, shift = torch.randn(8), torch.randn(8)
        nn.init.zeros_(block.time_emb_proj.weight)
        block.time_emb_proj.bias.data = torch.cat([scale, shift])
        x = torch.randn(2, 8, 6, 6)
        hidden = block.conv1(F.silu(block.norm1(x)))
        hidden = F.group_norm(hidden, 4, weight=1 + scale, bias=shift, eps=1e-6)
        torch.testing.assert_close(block(x, torch.randn(2, 6)), x + block.conv2(F.silu(hidden)))

    def test_every_block_of_the_papers_network_is_one(self) -> None:
        with torch.device("meta"):
            network = BridgeUNet()
        blocks = [m for m in network.modules() if isinstance(m, DiffusionUNetResnetBlock)]
        assert len(blocks) == 21
        assert all(isinstance(block, FiLMResnetBlock) for block in blocks)


class TestSpaceToDepth:
    def test_stem_keeps_every_pixel(self) -> None:
        image = torch.randn(2, 3, 8, 12)
        folded = space_to_depth_stem(nn.Identity(), 4)(image)
        assert folded.shape == (2, 48, 2, 3)
        torch.testing.assert_close(F.pixel_shuffle(folded, 4), image, rtol=0, atol=0)

    def test_factor_one_is_the_layer_itself(self) -> None:
        layer = nn.Conv2d(3, 4, 3)
        assert space_to_depth_stem(layer, 1) is layer

    def test_output_undoes_what_the_input_did(self) -> None:
        network, image = tiny(space_to_depth=2), torch.randn(2, 6, 8, 12)
        torch.testing.assert_close(network.out[-1](network.conv_in[0](image)), image, rtol=0, atol=0)


class TestControlNet:
    """MONAI's ControlNet takes the same FiLM blocks, stem and style embedding, and the network takes its residuals."""

    @staticmethod
    def _pair() -> tuple[BridgeUNet, ControlNet]:
        network = tiny(space_to_depth=2, style_embedding=True)
        control = ControlNet(
            spatial_dims=2,
            in_channels=2 * 3 * 2**2,
            attention_levels=(False, False),
            norm_eps=1e-5,
            resblock_updown=True,
            with_conditioning=True,
            cross_attention_dim=128,
            num_class_embeds=3 * 128,
            conditioning_embedding_in_channels=2**2,
            conditioning_embedding_num_channels=(16,),
            use_flash_attention=True,
            **TINY,
        )
        use_film(control)
        control.conv_in = space_to_depth_stem(control.conv_in, 2)
        control.controlnet_cond_embedding = space_to_depth_stem(control.controlnet_cond_embedding, 2)
        control.class_embedding = StyleEmbedding(3, 128, 4 * TINY["channels"][0])
        return network, control

    def test_starts_from_the_networks_encoder(self) -> None:
        network, control = self._pair()
        keys = control.load_state_dict(network.state_dict(), strict=False)
        assert all(key.startswith("controlnet_") for key in keys.missing_keys)
        assert all(key.startswith(("up_blocks.", "out.")) for key in keys.unexpected_keys)

    def test_residuals_pass_through(self) -> None:
        network, control = self._pair()
        batch, hint = slabs(), torch.randn(2, 1, 16, 24)

        def controlled() -> Tensor:
            both = torch.cat([batch["x"], batch["source"]], dim=1)
            style = batch["context"]
            down, mid = control(both, batch["timesteps"], hint, context=style, class_labels=style)
            return network(**batch, down_block_additional_residuals=down, mid_block_additional_residual=mid)

        plain = network(**batch)
        torch.testing.assert_close(controlled(), plain, rtol=0, atol=0)
        nn.init.ones_(control.controlnet_mid_block.conv.bias)
        by_middle = controlled()
        assert (by_middle - plain).abs().max() > 1e-4
        as_if_trained(control)
        assert (controlled() - by_middle).abs().max() > 1e-4


class TestFormats:
    def test_traced_network_runs_at_another_batch_and_image_size(self) -> None:
        network = tiny(space_to_depth=2, style_embedding=True)
        traced = torch.jit.trace(network, torch.randn(1, 6, 16, 16))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        other = torch.randn(3, 6, 24, 8)
        torch.testing.assert_close(torch.jit.load(file)(other), network(other))

    def test_channels_last_changes_nothing(self) -> None:
        network, batch = tiny(space_to_depth=2).double(), slabs(dtype=torch.float64)
        expected = network(**batch)
        network.to(memory_format=torch.channels_last)
        batch["x"] = batch["x"].to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(**batch), expected)

    @pytest.mark.parametrize("pure", [False, True])
    def test_bfloat16_is_close_to_float32(self, pure: bool) -> None:
        network = tiny(space_to_depth=2, style_embedding=True).to(memory_format=torch.channels_last)
        batch = slabs()
        expected = network(**batch)
        if pure:
            network.bfloat16()
            batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not pure):
            output = network(**batch)
        assert output.dtype == torch.bfloat16
        assert (output.float() - expected).norm() < 0.02 * expected.norm()

    def test_flash_attention_is_the_same_function(self) -> None:
        fused, plain = tiny(use_flash_attention=True).double(), tiny(use_flash_attention=False).double()
        plain.load_state_dict(fused.state_dict())
        batch = slabs(dtype=torch.float64)
        torch.testing.assert_close(fused(**batch), plain(**batch))


def test_contrasts_and_conditions_widen_the_first_layer_and_the_last():
    network = BridgeUNet(
        **{"slab_size": 3, "channels": (8, 8), "norm_num_groups": 4, "num_head_channels": 8, "num_res_blocks": 1},
        **{"target_channels": 2, "source_channels": 4, "condition_channels": 1},
    ).eval()
    x, source, tissue = torch.rand(2, 6, 8, 8), torch.rand(2, 12, 8, 8), torch.rand(2, 3, 8, 8)
    prediction = network(x, torch.tensor([1, 2]), source=source, presence=torch.ones(2, 2), tissue=tissue)
    assert prediction.shape == (2, 6, 8, 8)
    with pytest.raises(ValueError, match="Only a network of one contrast"):
        torch.jit.script(network)


def test_missing_is_the_last_part_of_the_one_tensor_and_zeros_where_it_is_not_given():
    network, batch = tiny(condition_channels=1, space_to_depth=2), slabs()
    missing = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        given, dense = network(**batch, missing=missing), network(**batch)
        assert (given - dense).abs().max() > 1e-3
        assert torch.equal(network(**batch, missing=torch.zeros_like(missing)), dense)
        x = torch.cat([batch["x"], batch["source"], missing], dim=1)
        assert torch.equal(network(x, batch["timesteps"], batch["context"]), given)
    with pytest.raises(ValueError, match=r"got 6 channels; it takes 9: .* then 3 of the conditions"):
        network(torch.zeros(1, 6, 16, 24))


def test_weights_without_the_condition_load_as_they_are() -> None:
    """By PyTorch's own function, as a server loads them, also as a part of another module."""
    sizes = {**COMPACT, "channels": [32, 32], "norm_num_groups": 8, "num_head_channels": 8}
    narrow, wide = (BridgeUNet(**{**sizes, "condition_channels": count}).eval() for count in (0, 1))
    for parameter in narrow.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    state = {f"bridge.{name}": value for name, value in narrow.state_dict().items()}
    torch.nn.ModuleDict({"bridge": wide}).load_state_dict(state)
    x, source, time = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([5, 900])
    with torch.no_grad():
        torch.testing.assert_close(wide(x, time, source=source), narrow(x, time, source=source))
