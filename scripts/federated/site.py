"""One site of a federated training: NVFlare's client of the bundle's own training, which MONAI's `MonaiAlgo` drives."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor, nn

from ..errors import CaseError, reason
from ..files import check_folder, write_whole
from ..weights import misfits
from ..workflow import bundle_root
from .sharing import LEAST_PEOPLE, STYLE_KEY, check_finite, contribution, people_and_keys

logger = logging.getLogger(__name__)

FAILURE = "failure.txt"
"""File in a site's folder that says why the site ended the training."""
# of a training's identity: people, who stay at their site, and what is told by the weights that arrive
_OWN = ("subjects", "network", "codec", "init_weights")


def take_part(config_files: list[str], dataset_dir: str, output_dir: str, identity: Mapping[str, Any]) -> None:
    """Train round after round on a site's own data, from the weights that arrive to those that are sent.

    What is sent are the entries of `contribution` and, as their weight in the mean (McMahan et al. 2017), the number
    of people that were trained on. Where the site cannot go on, the reason stays in its folder: NVFlare tells the
    server only that it ended.

    Args:
        config_files: of the training, below the bundle's folder or absolute.
        dataset_dir: the site's data set.
        output_dir: the site's folder, where checkpoints, curves and keys stay.
        identity: `shared_identity` of the training that the server starts.

    Raises:
        CaseError: the site's log would leave it, its training is another, it holds a training already, or weights are
            NaN.
    """
    import nvflare.client as flare  # here, because the rules of this room are tested without NVFlare

    flare.init()
    with _reason_in(output_dir):
        check_log_stays(flare.get_job_id())
        trained = started_training(config_files, dataset_dir, output_dir, identity, flare.get_site_name())
        parser = trained.train_workflow.parser
        people = people_and_keys(parser.get_parsed_content("training_keys"))
        # with several target contrasts the keys are of different ones, and such a training tells the target by its name
        keys = [] if parser.get("target_contrasts") else people.values()
        if len(keys) < LEAST_PEOPLE:
            logger.info(f"No style key leaves this site; it takes {LEAST_PEOPLE} people, with one target contrast.")
    while flare.is_running() and (received := flare.receive()) is not None:
        with _reason_in(output_dir):
            sent = contribution(trained_round(trained, received.params), keys)
        flare.send(flare.FLModel(params=sent, meta={"NUM_STEPS_CURRENT_ROUND": len(people)}))
    parser.get_parsed_content("write_keys")


def check_log_stays(job: str) -> None:
    """Refuse a site of which NVFlare streams the log to the server, as it does unless the site forbids it.

    Args:
        job: its name; in a simulation all logs are on one machine.

    Raises:
        CaseError: the log, with losses and names of files, would leave the site.
    """
    from nvflare.app_common.logging.constants import is_log_streaming_allowed

    if job != "simulate_job" and is_log_streaming_allowed():
        raise CaseError(
            "NVFlare would send this site's log, with losses and names of files, to the server; set allow_log_streaming"
            " to false in local/resources.json of the startup kit, and start the site again."
        )


def started_training(
    config_files: list[str], dataset_dir: str, output_dir: str, identity: Mapping[str, Any], name: str
) -> MonaiAlgo:
    """MONAI's client of a training, ready for the first round.

    Args:
        config_files, dataset_dir, output_dir, identity: see `take_part`.
        name: of the site.

    Raises:
        CaseError: see `take_part`.
    """
    if any(check_folder(output_dir).glob("checkpoint_epoch=*.pt")):  # a training would go on from them in each round
        raise CaseError(f"{output_dir} holds a training already; move it away, and start the job again.")
    parser = ConfigParser()
    parser.read_config([str(Path(bundle_root(), file)) for file in config_files])
    trained = MonaiAlgo(
        bundle_root=bundle_root(),
        local_epochs=parser.get_parsed_content("local_epochs"),
        send_weight_diff=False,
        config_train_filename=config_files,
        # the server has loaded init_weights, and sends them
        train_kwargs={"dataset_dir": dataset_dir, "output_dir": output_dir, "init_weights": None},
        config_evaluate_filename=None,
    )
    trained.initialize({ExtraItems.CLIENT_NAME: name})
    check_identity(shared_identity(trained.train_workflow.parser), identity)
    return trained


def trained_round(trained: MonaiAlgo, received: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a site's network after a round that starts from those received.

    Raises:
        CaseError: those received do not fit or are NaN.
    """
    check_received(received, trained.trainer.network)
    trained.train(ExchangeObject(weights=dict(received)))
    return trained.get_weights().weights


def check_received(received: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refuse weights that a site's network would take only in part, as MONAI's client does without a word.

    Raises:
        CaseError: they are of another network, NaN or infinite.
    """
    weights = {name: value for name, value in received.items() if name != STYLE_KEY}
    if what := misfits(network.state_dict(), weights):
        raise CaseError(
            f"The server's network is another than this site's ({'; '.join(what)}); give all sites the version of the"
            " bundle and the config files that the job was made with."
        )
    check_finite(weights, "The server sent")


def shared_identity(parser: ConfigParser) -> dict[str, Any]:
    """What a training is of, as far as it has to be the same at all sites, as plain values of JSON."""
    identity = {name: parser.get_parsed_content(f"identity#{name}") for name in parser["identity"] if name not in _OWN}
    return json.loads(json.dumps(identity))


def check_identity(own: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to take part in another training.

    Args:
        own: `shared_identity` of the site's training.
        asked: that of the job.

    Raises:
        CaseError: a setting differs.
    """
    for name in asked:
        if own.get(name) != asked[name]:
            raise CaseError(
                f"The training of this site is another than the job's (its {name} is {own.get(name)}, not"
                f" {asked[name]}); give all sites the version of the bundle and the config files that the job was made"
                " with."
            )


@contextmanager
def _reason_in(folder: str) -> Iterator[None]:
    """Write the reason of an error in the block to a file of the site's folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception as error:
        write_whole(Path(folder, FAILURE), f"{reason(error)}\n")
        raise
