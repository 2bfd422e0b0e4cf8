"""A network of many contrasts: `BridgeUNet` where nothing is switched on, and absent contrasts that change nothing."""

from functools import partial

import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from scripts.codec import LatentCodec
from scripts.errors import CaseError
from scripts.inferers import ISTAInferer
from scripts.networks import BridgeUNet, LatentUNet, MultiContrastUNet, VolumetricUNet
from scripts.schedulers import BrownianBridgeScheduler, GaussianDiffusionScheduler
from scripts.weights import load_start, load_weights

OFF = {"auto_weight": None, "cooperative_filtering": False, "downsampling": "convolution"}
ON = {"num_contrasts": 5, "bottleneck_residuals": True}
SIZES = {"channels": (8, 16), "norm_num_groups": 4, "num_head_channels": 8, "style_embedding": True}
C, FRACTIONS = 2, 4  # channels of a contrast, tissue fractions


def filled(network: nn.Module, std: float = 0.2) -> nn.Module:
    """Fill what starts at zero and hides something, gains of the filters and weights of the conditions among them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data = std * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def network_of(number: int = 3, **options: object) -> MultiContrastUNet:
    torch.manual_seed(0)
    sizes = {"target_channels": C, "source_channels": number * C, "condition_channels": FRACTIONS}
    return MultiContrastUNet(**{**sizes, **SIZES, **options})


def slabs(batch: int = 2, k: int = 1, contrasts: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    channels = {"x": C, "source": C * contrasts, "fractions": FRACTIONS}
    given = {name: torch.randn((batch, count * k, 8, 12), generator=generator) for name, count in channels.items()}
    given["timesteps"] = torch.randint(1000, (batch,), generator=generator)
    return given | {"context": torch.rand((batch, 3, 128), generator=generator)}


def without(batch: dict[str, Tensor], contrast: int, value: float = 0.0) -> dict[str, Tensor]:
    """The same with another content of a contrast."""
    source = batch["source"].clone()
    source[:, contrast * C : (contrast + 1) * C] = value
    return {**batch, "source": source}


@pytest.mark.parametrize("slab_size", [1, 3])
def test_without_its_parts_it_is_a_bridge_unet(slab_size):
    network = filled(network_of(slab_size=slab_size, **OFF))
    plain = BridgeUNet(
        **{"slab_size": slab_size, "target_channels": C, "source_channels": 3 * C, "condition_channels": FRACTIONS},
        **{**SIZES, "num_res_blocks": 1, "resblock_updown": False, "attention_levels": (True, True)},
    )
    plain.load_state_dict(network.state_dict())
    batch = slabs(k=slab_size)
    assert torch.equal(network(**batch), plain.eval()(**batch))
    assert torch.equal(network(**batch, presence=torch.ones(2, 3)), plain(**batch))


def test_weights_and_filters_change_nothing_until_they_are_trained():
    network, plain = network_of(downsampling="convolution"), filled(network_of(**OFF))
    weights = {name.replace(".block.", "."): name for name in network.state_dict()}
    for name, value in plain.state_dict().items():
        network.state_dict()[weights[name]].copy_(value)
    batch = slabs()
    expected = plain(**batch)
    assert torch.equal(network.eval()(**batch), expected)
    assert expected.std() > 0.01
    assert (filled(network)(**batch) - expected).abs().max() > 0.01


@pytest.mark.parametrize("latent", [False, True])
def test_filters_come_to_a_network_that_was_trained_without_them(latent, codec, tmp_path):
    plain, network, trained = filled(network_of(cooperative_filtering=False)), network_of(), filled(network_of())
    batch = slabs()
    assert (trained(**batch) - plain(**batch)).abs().max() > 0.01
    for weights in (plain, trained):
        nets = (weights, filled(network))
        saved, loaded = (LatentUNet(codec, net, BrownianBridgeScheduler()) if latent else net for net in nets)
        torch.save(saved.state_dict(), tmp_path / "model.pt")
        load_weights(loaded, tmp_path / "model.pt")
        assert torch.equal(network(**batch), weights(**batch))


def test_a_network_in_a_latent_starts_as_any_other_does(codec, tmp_path):
    """Of a simpler network and another scheduler, with the codec of those weights; only as a start."""
    plain, network = filled(network_of(**OFF)), network_of(**{**OFF, "auto_weight": "tanh"})
    saved = LatentUNet(codec, plain, BrownianBridgeScheduler(prediction_type="sample"))
    loaded = LatentUNet(codec, network, BrownianBridgeScheduler(prediction_type="gradient"))
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    load_start(loaded, tmp_path / "model.pt")
    batch = slabs()
    torch.testing.assert_close(network(**batch), plain(**batch))
    with pytest.raises(CaseError, match="do not fit the network"):
        load_weights(loaded, tmp_path / "model.pt")


@pytest.mark.parametrize("given", [0, 1])
@pytest.mark.parametrize("options", [OFF, {**OFF, "auto_weight": "tanh", "num_contrasts": 5}])
def test_it_starts_as_a_network_of_one_source_whatever_the_contrast(options, given, tmp_path):
    sizes = {**SIZES, "num_res_blocks": 1, "resblock_updown": False, "space_to_depth": 2, "slab_size": 3}
    plain = filled(BridgeUNet(**sizes, condition_channels=given))
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    many = network_of(4, **{**sizes, "target_channels": 1, "source_channels": 4}, **options)
    load_start(many, tmp_path / "model.pt")
    one, sources = slabs(k=3), torch.randn(2, 12, 8, 12)
    x, rest = torch.randn(2, 3, 8, 12), {name: one[name] for name in ("timesteps", "context")}
    for contrast in range(4):
        presence, fractions = torch.eye(4)[[contrast] * 2], torch.randn(2, 3 * FRACTIONS, 8, 12)
        expected = plain(x, source=sources[:, 3 * contrast : 3 * contrast + 3], **rest)
        made = many.eval()(x, source=sources, presence=presence, fractions=fractions, **rest)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.01
    torch.save(filled(many).state_dict(), tmp_path / "trained.pt")
    again = network_of(4, **{**sizes, "target_channels": 1, "source_channels": 4}, **options)
    load_start(again, tmp_path / "trained.pt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in many.state_dict().items())
    with pytest.raises(CaseError, match="do not fit"):
        load_weights(again, tmp_path / "model.pt")


NAMES = ("T1", "T2", "FLAIR")


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize(
    ("other", "told"),
    [({"contrasts": ("T2", "T1", "FLAIR")}, "contrasts_T2_T1_FLAIR"), ({"structure": "labels"}, "structure_labels")],
)
def test_weights_of_another_order_or_structure_are_refused(other, told, latent, codec, tmp_path):
    names = {"contrasts": NAMES, "structure": "fractions"}
    nets = network_of(**names), network_of(**names), network_of(**{**names, **other})
    if latent:
        nets = [LatentUNet(codec, net, BrownianBridgeScheduler()) for net in nets]
    trained, same, another = nets
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    torch.save(another.state_dict(), tmp_path / "another.pt")
    for load in (load_weights, load_start):
        load(same, tmp_path / "model.pt")
        with pytest.raises(CaseError, match=rf"do not fit the network \(.*1 not in the network: \S*{told}\)"):
            load(same, tmp_path / "another.pt")


def test_weights_without_a_structure_are_a_start_for_a_network_with_one_but_no_weights_of_it(tmp_path):
    plain = network_of(contrasts=NAMES, condition_channels=0, num_contrasts=3, **OFF)
    network = network_of(contrasts=NAMES, structure="fractions", num_contrasts=3, **OFF)
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    load_start(network, tmp_path / "model.pt")
    with pytest.raises(CaseError, match=r"\(1 missing: trained_with\.structure_fractions\)"):
        load_weights(network, tmp_path / "model.pt")


def test_the_names_are_empty_tensors_under_keys_that_can_be_added_to_older_weights(tmp_path):
    older, network = network_of(), network_of(contrasts=NAMES, structure="fractions")
    torch.save(older.state_dict(), tmp_path / "older.pt")
    with pytest.raises(CaseError, match=r"2 missing: trained_with\.contrasts_T1_T2_FLAIR, trained_with\.structure_fra"):
        load_weights(network, tmp_path / "older.pt")
    keys = "trained_with.contrasts_T1_T2_FLAIR", "trained_with.structure_fractions"
    torch.save({**older.state_dict(), **{key: torch.zeros(1) for key in keys}}, tmp_path / "mended.pt")
    load_weights(network, tmp_path / "mended.pt")
    load_start(network, tmp_path / "older.pt")  # a start need not tell
    assert torch.equal(network.conv_in.conv.weight, older.conv_in.conv.weight)
    with pytest.raises(ValueError, match=r"2 contrasts are named, but the source has 3\."):
        network_of(contrasts=NAMES[:2])


def test_attention_is_at_the_two_lower_levels():
    network = network_of(channels=(8, 8, 16))
    assert list(network.attention_levels) == [False, True, True]
    assert list(network_of(channels=(8, 8), attention_levels=(False, False)).attention_levels) == [False, False]


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("slab_size", [1, 3])
@pytest.mark.parametrize("options", [OFF, {}, {"auto_weight": "sigmoid"}, ON])
def test_what_an_absent_contrast_holds_has_no_part_in_the_result(absent, slab_size, options):
    network, batch = filled(network_of(slab_size=slab_size, **options)), slabs(k=slab_size)
    presence = torch.ones(2, 3)
    presence[:, absent] = 0
    expected = network(**batch, presence=presence)
    source = batch["source"].clone().unflatten(1, (3, -1))
    for value in (0.0, 1e4, torch.nan):
        source[:, absent] = value
        assert torch.equal(network(**{**batch, "source": source.flatten(1, 2)}, presence=presence), expected)
    assert (network(**batch) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("slab_size", [1, 3])
@pytest.mark.parametrize("options", [OFF, {}, ON])
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_an_absent_contrast_is_one_that_never_was(absent, options, slab_size):
    """The network without its channels, of the same weights otherwise."""
    network = filled(network_of(slab_size=slab_size, **options)).double()
    smaller = network_of(2, slab_size=slab_size, **options).double()
    kept = torch.ones(C * 4 + FRACTIONS, dtype=torch.bool)
    kept[C * (1 + absent) : C * (2 + absent)] = False
    weights = network.state_dict()
    weights["conv_in.conv.weight"] = weights["conv_in.conv.weight"][:, kept.repeat_interleave(slab_size)]
    weights |= {name: value[kept[C:]] for name, value in weights.items() if name.startswith("auto_weight.")}
    smaller.load_state_dict(weights)
    batch = {name: value if name == "timesteps" else value.double() for name, value in slabs(k=slab_size).items()}
    presence = torch.ones(2, 3)
    presence[:, absent] = 0
    source = batch["source"].unflatten(1, (3, -1))[:, [i for i in range(3) if i != absent]].flatten(1, 2)
    with torch.no_grad():
        found, expected = network(**batch, presence=presence), smaller.eval()(**{**batch, "source": source})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_absent_contrasts_of_each_volume_are_its_own():
    network, batch = filled(network_of()), slabs()
    presence = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    both = network(**batch, presence=presence)
    for n in range(2):
        one = {name: value[n : n + 1] for name, value in batch.items()}
        torch.testing.assert_close(both[n : n + 1], network(**one, presence=presence[n : n + 1]), rtol=0, atol=1e-5)


def test_all_slices_of_a_slab_have_one_weight():
    """Slices in another order are weighed as they were."""
    network = filled(network_of(slab_size=3))
    x = torch.randn(1, (4 * C + FRACTIONS) * 3, 4, 4)
    turned = x.unflatten(1, (-1, 3)).flip(2).flatten(1, 2)
    weighed = network._weighed(x, None)
    torch.testing.assert_close(network._weighed(turned, None), weighed.unflatten(1, (-1, 3)).flip(2).flatten(1, 2))
    assert torch.equal(weighed[:, : 3 * C], x[:, : 3 * C])  # the state is none of the conditions
    gains = (weighed / x).unflatten(1, (-1, 3)).flatten(2)
    torch.testing.assert_close(gains, gains[:, :, :1].expand_as(gains))
    assert gains[:, :, 0].std() > 0.01


def test_all_channels_in_one_tensor_are_source_and_conditions_by_name():
    network, batch = filled(network_of()), slabs()
    one = torch.cat([batch[name] for name in ("x", "source", "fractions")], dim=1)
    assert torch.equal(network(one, batch["timesteps"], batch["context"]), network(**batch))
    assert network(one).shape == (2, C, 8, 12)


@pytest.mark.parametrize("options", [{}, ON])
def test_autocast_and_channels_last_give_nearly_the_same(options):
    network, batch = filled(network_of(**options), std=0.05), slabs()
    expected = network(**batch)
    last = {name: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for name, t in batch.items()}
    torch.testing.assert_close(network(**last), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(**last)
    assert (found - expected).abs().max() < 0.1 * expected.std()


def test_every_part_learns():
    network, batch = network_of(**ON), slabs()
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    first = None
    for _ in range(10):
        prediction = network(**batch, target_contrast=torch.tensor([0, 3]))
        loss = (prediction - 0.5 * batch["source"][:, :C]).square().mean()
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * first
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not still


@pytest.mark.parametrize("style", [True, False])
def test_the_target_contrast_is_chosen_by_an_index(style):
    network, batch = network_of(num_contrasts=5, style_embedding=style), slabs()
    embedding = network.class_embedding.target.weight
    assert embedding.shape == (5, 32)
    network = filled(network)
    plain = network(**batch)
    found = network(**batch, target_contrast=torch.tensor([3.0, 1.0]))  # inferers hand on floating tensors
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(found[:1], network(**batch, target_contrast=3)[:1])
    chosen = network_of(num_contrasts=5, style_embedding=style, target_contrast=3)
    chosen.load_state_dict(network.state_dict())
    assert torch.equal(chosen.eval()(**batch), network(**batch, target_contrast=3))
    assert torch.equal(chosen(**batch, target_contrast=1), network(**batch, target_contrast=1))
    embedding.data[3] = 0
    torch.testing.assert_close(network(**batch, target_contrast=torch.tensor([3])), plain)
    assert ((network(**{**batch, "context": batch["context"] + 1}) - plain).abs().max() > 1e-3) or not style


def test_an_index_of_the_target_changes_nothing_before_it_is_trained():
    network, plain = network_of(num_contrasts=5, **OFF), filled(network_of(**OFF))
    names = {"class_embedding.": "class_embedding.style."}
    for name, value in plain.state_dict().items():
        for before, behind in names.items():
            name = name.replace(before, behind)
        network.state_dict()[name].copy_(value)
    batch = slabs()
    assert torch.equal(network.eval()(**batch, target_contrast=4), plain(**batch))


def test_what_it_cannot_take_is_refused():
    network, batch = network_of(), slabs()
    with pytest.raises(ValueError, match="takes no target_contrast: build it with num_contrasts"):
        network(**batch, target_contrast=1)
    with pytest.raises(ValueError, match=r"presence has shape \(2, 2\); it must be \(n, 3\)"):
        network(**batch, presence=torch.ones(2, 2))
    with pytest.raises(ValueError, match="target_contrast is 3; it must be below num_contrasts, which is 3"):
        network_of(num_contrasts=3, target_contrast=3)
    with pytest.raises(
        ValueError, match="source_channels is 5; it must be a multiple of the channels of a contrast, 2"
    ):
        network_of(source_channels=5)
    with pytest.raises(ValueError, match="The network got 8 channels; it takes 12"):
        network(x=batch["x"], source=batch["source"])
    with pytest.raises(ValueError, match="'huge' is not a valid Downsampling"):
        network_of(downsampling="huge")
    with pytest.raises(ValueError, match="can be exported"):
        torch.jit.script(network)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [(OFF, 11.44e6), ({}, 11.29e6), ({**OFF, "attention_levels": (False, False, True)}, 10.35e6)],
)
def test_compact_sizes(options, parameters):
    network = MultiContrastUNet(norm_num_groups=16, style_embedding=True, **options)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=1e-3)


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    torch.manual_seed(4)
    options = {"channels": (4, 4, 4), "latent_channels": C, "norm_num_groups": 2, "attention_levels": (False,) * 3}
    attention = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    codec = LatentCodec(AutoencoderKL(2, 1, 1, num_res_blocks=1, **options, **attention)).eval()
    codec.measure(torch.rand(8, 1, 32, 32))
    return codec


def inferer(codec: LatentCodec, slab_size: int = 1, scheduler: object = None) -> ISTAInferer:
    return ISTAInferer(
        scheduler or GaussianDiffusionScheduler(prediction_type="sample"),
        **{"num_inference_steps": 3, "sampler": "implicit", "slab_size": slab_size, "codec": codec},
        **{"channels": {"source": 3, "fractions": FRACTIONS}, "encoded": ("source",), "endpoint": "mean_present"},
    )


@pytest.mark.parametrize("slab_size", [1, 3])
def test_any_subset_of_contrasts_goes_through_a_latent_network_to_a_volume(codec, slab_size):
    network = filled(network_of(slab_size=slab_size, num_contrasts=3))
    latent = LatentUNet(codec, network, BrownianBridgeScheduler(prediction_type="sample"))
    volumes = torch.rand(1, 3 + FRACTIONS, 32, 32, 4, generator=torch.Generator().manual_seed(5))
    sample = partial(inferer(codec, slab_size), network=partial(latent, target_contrast=2))
    whole = sample(volumes)
    assert whole.shape == (1, 1, 32, 32, 4)
    found = {}
    for absent in range(3):
        given = volumes.clone()
        given[:, absent] = 0
        found[absent] = sample(given)
        # what the first layer makes of an absent contrast counts no more
        weight = network.conv_in.conv.weight.data
        before = weight.clone()
        weight[:, C * (1 + absent) * slab_size : C * (2 + absent) * slab_size] = 1e3
        assert torch.equal(sample(given), found[absent])
        weight.copy_(before)
        assert (found[absent] - whole).abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_layers_along_z_take_presence_and_fractions(codec):
    """A bridge from the mean of the contrasts that are there; before tuning, slabs are slices."""
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    network = LatentUNet(codec, VolumetricUNet(filled(network_of()), 3), scheduler)
    slices = LatentUNet(codec, filled(network_of()), scheduler)
    volumes = torch.rand(1, 3 + FRACTIONS, 32, 32, 4, generator=torch.Generator().manual_seed(5))
    volumes[:, 1] = 0
    found, expected = inferer(codec, 3, scheduler)(volumes, network), inferer(codec, 1, scheduler)(volumes, slices)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01


def test_its_weights_start_a_network_with_layers_along_z(tmp_path):
    trained = filled(network_of(num_contrasts=2))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    network = VolumetricUNet(network_of(num_contrasts=2), 3).eval()
    load_weights(network, tmp_path / "model.pt")
    batch = slabs(k=3)
    one = {name: t.unflatten(1, (-1, 3))[:, :, 1] if t.ndim == 4 else t for name, t in batch.items()}
    presence = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    of_slabs = {"presence": presence, "target_contrast": torch.tensor([1, 0])}
    found = network(**batch, **of_slabs).unflatten(1, (-1, 3))[:, :, 1]
    torch.testing.assert_close(found, trained(**one, **of_slabs), rtol=0, atol=1e-5)
