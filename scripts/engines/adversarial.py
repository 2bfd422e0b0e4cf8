"""Training against a discriminator, by MONAI's `AdversarialTrainer`, with the handlers of any other training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import AdversarialTrainer
from monai.engines.utils import IterationEvents
from monai.losses import PatchAdversarialLoss
from monai.utils import AdversarialIterationEvents, AdversarialKeys, CommonKeys
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import CaseError


def adversarial_trainer(
    network: nn.Module,
    optimizer: Optimizer,
    loss_function: Callable[..., Tensor],
    inferer: Callable[..., Any],
    discriminator: nn.Module,
    discriminator_optimizer: Optimizer,
    adversarial_loss: PatchAdversarialLoss,
    adversarial_weight: float = 0.05,
    discriminator_sees_source: bool = False,
    **arguments: Any,
) -> AdversarialTrainer:
    """A trainer whose loss is loss_function + adversarial_weight x what the discriminator says of the prediction.

    The discriminator sees what the network should have predicted, and what it has, both in the network's range: slabs
    of the target, or reconstructed images. MONAI's trainer would show it the inputs as real. It gives the events,
    output and state of a `SupervisedTrainer`, so that the same handlers can be attached; discriminator and its
    optimizer have to be saved beside the network, as `ResumableTraining`'s objects.

    Args:
        network, optimizer, loss_function, inferer: as of a `SupervisedTrainer`. Of what a codec gives, several tensors,
            the loss gets all, and the discriminator the reconstruction, brought from [-1, 1] to its label's [0, 1].
        discriminator: (B, `discriminator_channels`, H, W) -> list of features, the last of them logits, such as MONAI's
            `PatchDiscriminator`.
        discriminator_optimizer: of its parameters.
        adversarial_loss: of logits.
        adversarial_weight: of the generator's adversarial loss.
        discriminator_sees_source: whether the slabs of the source are concatenated to those of the target (pix2pix).
        arguments: further ones of `AdversarialTrainer`.

    Raises:
        CaseError: the network predicts no images, or there are several processes.
    """
    _check(inferer)
    generator = _Generator(inferer, loss_function)

    def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
        return (adversarial_loss(real, True, True) + adversarial_loss(fake, False, True)) / 2

    trainer = AdversarialTrainer(
        g_network=network,
        g_optimizer=optimizer,
        g_inferer=generator.infer,
        recon_loss_function=generator.loss,
        g_loss_function=lambda fake: adversarial_weight * adversarial_loss(fake, True, False),
        d_network=discriminator,
        d_optimizer=discriminator_optimizer,
        d_inferer=_logits_with_source if discriminator_sees_source else _logits,
        d_loss_function=discriminator_loss,
        **arguments,
    )
    # MONAI's would pickle networks and optimizers whole, and a resumed training would go on with copies of them
    trainer.state_dict_user_keys.clear()
    events = AdversarialIterationEvents
    trainer.add_event_handler(events.GENERATOR_FORWARD_COMPLETED, _show_target)
    trainer.add_event_handler(events.GENERATOR_LOSS_COMPLETED, _add_losses)
    trainer.add_event_handler(
        events.GENERATOR_BACKWARD_COMPLETED, lambda: trainer.fire_event(IterationEvents.BACKWARD_COMPLETED)
    )
    return trainer


def discriminator_channels(network: nn.Module, sees_source: bool = False) -> int:
    """Channels of what the discriminator of `adversarial_trainer` sees; 1 of a network that is none of slabs."""
    if not hasattr(network, "slice_channels"):
        return 1
    target, source, _ = network.slice_channels
    return network.slab_size * (target + source * sees_source)


class _Generator:
    """The inferer and the loss of the trained network; the trainer hands the one's tensor to the other."""

    def __init__(self, inferer: Callable[..., Any], loss_function: Callable[..., Tensor]) -> None:
        self.inferer = inferer
        self.loss_function = loss_function
        self.prediction: Any = None

    def infer(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the discriminator sees of the prediction."""
        self.prediction = self.inferer(*args, **kwargs)
        return self.prediction if isinstance(self.prediction, Tensor) else (self.prediction[0] + 1) / 2

    def loss(self, _seen: Tensor, label: Any) -> Tensor:
        """The loss of the whole prediction."""
        return self.loss_function(self.prediction, label)


def _logits_with_source(images: Tensor, network: nn.Module, *_: Any, source: Tensor, **__: Any) -> Tensor:
    return network(torch.cat([images, source.to(images)], dim=1))[-1]


def _logits(images: Tensor, network: nn.Module, *_: Any, **__: Any) -> Tensor:
    return network(images)[-1]


def _show_target(engine: Engine) -> None:
    label = engine.state.output[CommonKeys.LABEL]
    # losses that weight by timestep get a pair
    engine.state.output[AdversarialKeys.REALS] = label if isinstance(label, Tensor) else label[0]


def _add_losses(engine: Engine) -> None:
    output = engine.state.output
    output[CommonKeys.LOSS] = output[AdversarialKeys.RECONSTRUCTION_LOSS] + output[AdversarialKeys.GENERATOR_LOSS]


def _check(inferer: Any) -> None:
    prediction_type = getattr(getattr(inferer, "scheduler", None), "prediction_type", "sample")
    if prediction_type != "sample":
        raise CaseError(
            f"The scheduler's prediction_type is {prediction_type}, and a discriminator looks at images; use sample, "
            "or train without configs/adversarial.json."
        )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise CaseError("Training against a discriminator runs in one process; leave out configs/multi_gpu_train.json.")
