"""A contrast whose field of view ends inside the head: where it is counted, and where it is absent."""

import pytest
import torch

from scripts.codec import PixelCodec
from scripts.inferers import ISTAInferer
from scripts.inferers.states import presence_in_slices, slab_inputs
from scripts.schedulers import BrownianBridgeScheduler

CHANNELS = {"source": 3, "tissue": 1, "shown": 3}


@pytest.fixture
def head() -> torch.Tensor:
    """(1, 7, 8, 8, 10): a head of values 0.4 and 0.8 in two of three contrasts, tissue, and where they show it."""
    brain = torch.zeros(8, 8, 10)
    brain[1:7, 1:7, 1:9] = 1
    contrasts, shown = [0.4 * brain, 0 * brain, 0.8 * brain], [torch.full_like(brain, there) for there in (1, 0, 1)]
    return torch.stack([*contrasts, 0.1 * brain, *shown])[None]


def cut(head: torch.Tensor, *where: slice) -> torch.Tensor:
    """The same with the last contrast not shown there."""
    made = head.clone()
    for channel in (2, 6):
        made[(0, channel, *where)] = 0
    return made


def inputs_of(volumes: torch.Tensor, channels=CHANNELS, share: range | None = None):
    return slab_inputs(volumes, 3, PixelCodec(), channels, ("source",), "mean_present", None, share or range(10))


def started(volumes: torch.Tensor) -> torch.Tensor:
    """Where the bridge starts, as an image (H, W, Z)."""
    return (inputs_of(volumes).endpoint[0, 1:-1, 0].movedim(0, -1) + 1) / 2


def given_to(volumes: torch.Tensor) -> list:
    """Presence in the slab about each slice."""
    return inputs_of(volumes).slabs(0, torch.arange(10), 3)[2]["presence"].tolist()


def test_where_nothing_is_cut_all_is_as_without_it_to_the_bit(head):
    with_it, without = inputs_of(head), inputs_of(head[:, :4], {"source": 3, "tissue": 1})
    assert torch.equal(with_it.endpoint, without.endpoint)
    assert with_it.conditions.keys() == without.conditions.keys() == {"tissue"}
    assert given_to(head) == without.slabs(0, torch.arange(10), 3)[2]["presence"].tolist()


@pytest.mark.parametrize("share", [range(4), range(4, 10)])
def test_a_share_of_the_slices_is_given_what_the_whole_is(head, share):
    volumes = cut(head, slice(None), slice(None), slice(5, None))
    whole, part = inputs_of(volumes), inputs_of(volumes, share=share)
    padded = slice(share.start, share.stop + 2)
    for name in ("source", "endpoint", "presence"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:, padded])


def test_slices_that_a_contrast_does_not_show_are_without_it(head):
    """They start from the mean of the others, not from half of it; a slab has what the slice in its middle has."""
    volumes = cut(head, slice(None), slice(None), slice(5, None))
    assert given_to(volumes) == [[1, 0, 1]] * 5 + [[1, 0, 0]] * 4 + [[1, 0, 1]]  # the last has no brain
    made, whole = started(volumes), started(head)
    torch.testing.assert_close(made[1:7, 1:7, 5:9], torch.full((6, 6, 4), 0.4))
    torch.testing.assert_close(whole[1:7, 1:7, 5:9], torch.full((6, 6, 4), 0.6))
    assert torch.equal(made[..., :5], whole[..., :5])


@pytest.mark.parametrize(("size", "there"), [(20, 1), (10, 0)])
def test_a_slice_keeps_a_contrast_that_lacks_little_of_it(size, there):
    """A row of twenty is a twentieth of the slice; nine pixels of a hundred are more."""
    source, shown = torch.ones(1, 1, 2, size, size), torch.ones(1, 1, 2, size, size)
    shown[0, 0, 1, 0, : size - 1 if size == 10 else size] = 0
    assert presence_in_slices(source, shown, torch.ones(1, 2)).tolist() == [[[1, there]]]


def test_where_no_contrast_shows_a_slice_all_are_there():
    source = torch.ones(1, 2, 2, 4, 4)
    shown = torch.zeros_like(source)
    shown[0, 0, 0, :1], shown[0, 1, 1] = 1, 1
    assert presence_in_slices(source, shown, torch.ones(1, 2)).tolist() == [[[1, 1], [0, 1]]]


def test_the_sampler_gives_a_constant_head_back_where_a_contrast_is_cut(head):
    """A network that says the mean of the contrasts present: outside the field of view it is the other one, whole."""

    def network(x, timesteps, context=None, source=None, presence=None, tissue=None):
        contrasts = source.unflatten(1, (3, 3)) * presence[:, :, None, None, None]
        return contrasts.sum(1) / presence.sum(1)[:, None, None, None]

    inferer = ISTAInferer(
        BrownianBridgeScheduler(prediction_type="sample"), num_inference_steps=2, slab_size=3, channels=CHANNELS,
        endpoint="mean_present",
    )  # fmt: skip
    volumes = cut(head, slice(None), slice(None), slice(5, None))
    made = inferer(volumes, network)[0, 0, 1:7, 1:7]
    torch.testing.assert_close(made[..., 1:3], torch.full((6, 6, 2), 0.6), atol=1e-5, rtol=0)
    torch.testing.assert_close(made[..., 6:8], torch.full((6, 6, 2), 0.4), atol=1e-5, rtol=0)
