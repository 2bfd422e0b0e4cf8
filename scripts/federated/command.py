"""The command that trains one network on the data of several sites, which NVFlare simulates on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import

from ..conditioning.style_key import save_style_keys
from ..errors import CaseError
from ..files import check_folder
from ..options import config_files
from ..weights import load_weights
from ..workflow import bundle_root
from .sharing import STYLE_KEY

_JOB = "brain_ct_to_mri"


def federate(*dataset_dirs: str, output_dir: str, config_file: str | Sequence[str] | None = None) -> str:
    """Train one network on several sites' data, of which only weights leave a site: DATASET_DIR... --output_dir OUT

    NVFlare simulates the sites on this machine, each in a process of its own. After each round the network is the mean
    of the sites' networks, weighted by their numbers of people. model.pt, and style_keys.json where a site has more
    than 5 people, are written to output_dir; what stays at a site is in its folder site-1, site-2 and so on.

    Args:
        dataset_dirs: a folder with a datalist.json for each site.
        output_dir: folder to write to.
        config_file: a config, or a list of configs that are merged; configs/train.json and configs/federated.json if
            none is given. num_rounds and local_epochs are theirs.

    Raises:
        CaseError: fewer than two sites, a training that is in output_dir already, or no NVFlare.
    """
    if len(dataset_dirs) < 2:
        raise CaseError("A federated training needs the folders of two sites or more.")
    _, found = optional_import("nvflare.recipe")
    if not found:
        raise CaseError(
            "NVFlare is not installed; pip install -r requirements-federated.txt, and type the command again."
        )
    output = check_folder(Path(output_dir).resolve())
    if any(output.iterdir()):
        raise CaseError(f"{output} is not empty; give another output_dir.")
    defaults = [str(Path(bundle_root(), "configs", name)) for name in ("train.json", "federated.json")]
    files = [str(Path(name).resolve()) for name in config_files(config_file or defaults)]
    _simulate(files, [str(Path(folder).resolve()) for folder in dataset_dirs], output)
    trained = torch.load(
        output / "nvflare" / _JOB / "server/simulate_job/app_server/FL_global_model.pt", weights_only=True
    )
    return _write(trained["model"], output)


def _simulate(files: list[str], dataset_dirs: list[str], output: Path) -> None:
    from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv, set_per_site_config

    parser = ConfigParser()
    parser.read_config(files)
    start = output / "start.pt"
    torch.save(first_weights(parser), start)
    sites = {f"site-{number}": folder for number, folder in enumerate(dataset_dirs, 1)}
    recipe = FedAvgRecipe(
        name=_JOB,
        min_clients=len(sites),
        num_rounds=parser.get_parsed_content("num_rounds"),
        train_script=str(Path(__file__).with_name("client.py")),
        model_persistor=PTFileModelPersistor(source_ckpt_file_full_name=str(start), load_device="cpu"),
        key_metric="",
    )
    trainings = {
        name: {"config_files": files, "dataset_dir": folder, "output_dir": str(output / name)}
        for name, folder in sites.items()
    }
    set_per_site_config(recipe, {name: {"train_args": quote(json.dumps(of))} for name, of in trainings.items()})
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [bundle_root(), os.environ.get("PYTHONPATH")]))
    recipe.execute(SimEnv(clients=list(sites), num_threads=len(sites), workspace_root=str(output / "nvflare")))


def first_weights(parser: ConfigParser) -> dict[str, torch.Tensor]:
    """What all sites start from: the network's weights, and a style key (3, 128) of NaN for none yet.

    Args:
        parser: of a training with federated.json.
    """
    torch.manual_seed(parser.get_parsed_content("seed"))
    network = parser.get_parsed_content("network_def")
    if init_weights := parser.get_parsed_content("init_weights"):
        load_weights(network, init_weights)
    return {**network.state_dict(), STYLE_KEY: torch.full((3, 128), torch.nan)}


def _write(trained: Mapping[str, torch.Tensor], output: Path) -> str:
    """model.pt as a plain state dict, and style_keys.json where a site gave a key."""
    weights = {name: value for name, value in trained.items() if name != STYLE_KEY}
    torch.save(weights, output / "model.pt")
    key = np.asarray(trained[STYLE_KEY])
    if np.isnan(key).any():
        return f"{output / 'model.pt'}; no site has people enough to share a style key"
    save_style_keys({"average": key}, output / "style_keys.json")
    return f"{output / 'model.pt'} and {output / 'style_keys.json'}"
