"""One site of a federated training: NVFlare's client of the bundle's own training, which MONAI's `MonaiAlgo` drives."""

from __future__ import annotations

import json
from urllib.parse import unquote

from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from ..workflow import bundle_root
from .sharing import contribution


def take_part(argument: str) -> None:
    """Train round after round on a site's own data, from the weights that arrive to those that are sent.

    What is sent are the entries of `contribution` and, as their weight in the mean (McMahan et al. 2017), the
    number of people that were trained on.

    Args:
        argument: what `site_training` takes, as JSON that is quoted as in a URL, since NVFlare splits at spaces.
    """
    import nvflare.client as flare  # here, because the rules of this room are tested without NVFlare

    flare.init()
    trained = site_training(**json.loads(unquote(argument)))
    trained.initialize({ExtraItems.CLIENT_NAME: flare.get_site_name()})
    workflow = trained.train_workflow
    keys = {}  # one of each person: the renderings and further scans of one do not make it several
    for name, key in workflow.parser.get_parsed_content("training_keys").items():
        keys.setdefault(name.split("#")[0], key)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        trained.train(ExchangeObject(weights=received.params))
        sent = contribution(trained.get_weights().weights, keys.values())
        flare.send(flare.FLModel(params=sent, meta={"NUM_STEPS_CURRENT_ROUND": len(keys)}))
    workflow.parser.get_parsed_content("write_keys")


def site_training(config_files: list[str], dataset_dir: str, output_dir: str) -> MonaiAlgo:
    """MONAI's client of a training that is not initialised yet; checkpoints, curves and keys stay in output_dir."""
    parser = ConfigParser()
    parser.read_config(config_files)
    return MonaiAlgo(
        bundle_root=bundle_root(),
        local_epochs=parser.get_parsed_content("local_epochs"),
        send_weight_diff=False,
        config_train_filename=config_files,
        train_kwargs={"dataset_dir": dataset_dir, "output_dir": output_dir},
        config_evaluate_filename=None,
    )
