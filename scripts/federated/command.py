"""The commands that train one network on the data of several sites: the job, which NVFlare can simulate, its result."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import

from ..conditioning.style_key import save_style_keys
from ..errors import CaseError
from ..files import check_folder, written_whole
from ..options import config_files, true_or_false
from ..weights import read_tensors
from ..workflow import bundle_root
from .sharing import STYLE_KEY
from .site import FAILURE, shared_identity

if TYPE_CHECKING:
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe

_JOB = "brain_ct_to_mri"
_GLOBAL = Path("server", "simulate_job", "app_server", "FL_global_model.pt")
"""Where NVFlare's simulator keeps the latest mean, below its workspace."""


def federate(
    *dataset_dirs: str, output_dir: str, config_file: str | Sequence[str] | None = None, simulate: bool = True
) -> str:
    """Train one network on several sites' data, of which only weights leave a site: DATASET_DIR... --output_dir OUT

    NVFlare simulates the sites on this machine, each in a process of its own. After each round the network is the mean
    of the sites' networks, weighted by their numbers of people. model.pt, and style_keys.json where a site has more
    than 5 people, are written to output_dir; what stays at a site is in its folder site-1, site-2 and so on.

    Args:
        dataset_dirs: a folder with a datalist.json for each site.
        output_dir: folder to write to.
        config_file: a config, or a list of configs that are merged; configs/train.json and configs/federated.json if
            none is given. num_rounds and local_epochs are theirs.
        simulate: False writes the job alone, to the folder job in output_dir, for `nvflare simulator` or for sites on
            machines of their own. dataset_dirs and output_dir are then folders of the sites' machines as well.

    Raises:
        CaseError: fewer than two sites, an output_dir that is not empty or whose name the simulator does not take, no
            NVFlare, a training that cannot be federated, or a site that ended it.
    """
    true_or_false("simulate", simulate)
    if len(dataset_dirs) < 2:
        raise CaseError("A federated training needs the folders of two sites or more.")
    output = _empty_folder(output_dir)
    _, found = optional_import("nvflare.recipe")
    if not found:
        raise CaseError(
            "NVFlare is not installed; pip install -r requirements-federated.txt, and type the command again."
        )
    defaults = [str(Path(bundle_root(), "configs", name)) for name in ("train.json", "federated.json")]
    files = config_files(config_file or defaults)
    sites = {f"site-{number}": str(Path(folder).resolve()) for number, folder in enumerate(dataset_dirs, 1)}
    parser = ConfigParser()
    parser.read_config(files)
    check_federable(parser)
    torch.save(first_weights(parser), output / "start.pt")
    shutil.copy(Path(__file__).with_name("client.py"), output)
    with _working_in(output):  # NVFlare keeps relative paths in the job, and makes others such of this machine
        recipe = _recipe(parser, files, sites, output)
        if not simulate:
            recipe.export(str(output / "job"))
            return str(output / "job" / _JOB)
        _simulate(recipe, list(sites), output)
    return federated_model(str(output / "nvflare" / _JOB / _GLOBAL), output_dir=str(output))


def federated_model(result: str, *, output_dir: str) -> str:
    """Write model.pt and style_keys.json from NVFlare's own file of a federated training: FILE --output_dir OUT

    Args:
        result: FL_global_model.pt, which NVFlare's server writes after each round.
        output_dir: folder to write to.

    Raises:
        CaseError: it is no such file.
    """
    path, output = Path(result), check_folder(output_dir)
    no_result = f"{path} is no result of a federated training; give the FL_global_model.pt of NVFlare's server."
    if not path.is_file():
        raise CaseError(no_result)
    kept = read_tensors(path, no_result)
    if not isinstance(kept, Mapping) or STYLE_KEY not in kept.get("model", {}):
        raise CaseError(no_result)
    weights = {name: value for name, value in kept["model"].items() if name != STYLE_KEY}
    with written_whole(output / "model.pt") as temporary:
        torch.save(weights, temporary)
    key = np.asarray(kept["model"][STYLE_KEY])
    if np.isnan(key).any():
        (output / "style_keys.json").unlink(missing_ok=True)  # of another result
        return (
            f"{output / 'model.pt'}; no site has people enough to share a style key: translate with the style_keys.json"
            " in your own site's folder (style_keys_file)"
        )
    with written_whole(output / "style_keys.json") as temporary:
        save_style_keys({"average": key}, temporary)
    return f"{output / 'model.pt'} and {output / 'style_keys.json'}"


def _empty_folder(output_dir: str) -> Path:
    output = check_folder(Path(output_dir).resolve())
    if any(output.iterdir()):
        raise CaseError(f"{output} is not empty; give another output_dir.")
    if shlex.split(str(output), comments=True) != [str(output)]:
        raise CaseError(f"NVFlare's simulator takes no folder like {output}; give an output_dir without spaces.")
    return output


def check_federable(parser: ConfigParser) -> None:
    """Refuse a training whose sites need more than the network that the server sends.

    Args:
        parser: of the training.

    Raises:
        CaseError: federated.json is missing; the training starts from a codec or a bridge of its own, or measures at
            its end what it made, as a codec's latent, which has no mean over sites.
    """
    if "num_rounds" not in parser:
        raise CaseError("The config files name no num_rounds; add configs/federated.json to the list.")
    if any(name in parser for name in ("codec", "bridge_weights")) or "@write_keys" not in parser["run"]:
        raise CaseError(
            "This training cannot be federated: it needs more than the network that the sites share, such as a codec;"
            " federate one of a network on pixels, as train.json, flair_to_t1.json or many_to_one_train.json."
        )


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 does not have."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _recipe(parser: ConfigParser, files: list[str], sites: Mapping[str, str], output: Path) -> FedAvgRecipe:
    """NVFlare's job of federated averaging, in which each site runs `take_part`.

    Args:
        parser: of the training.
        files: absolute paths of its config files.
        sites: name -> data set.
        output: the working folder, with start.pt and client.py; what stays at each site is written below it.
    """
    from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import set_per_site_config

    recipe = FedAvgRecipe(
        name=_JOB,
        min_clients=len(sites),  # one that is lost ends the job: the mean of the others would be of other people
        num_rounds=parser.get_parsed_content("num_rounds"),
        train_script="client.py",
        model_persistor=PTFileModelPersistor(source_ckpt_file_full_name="start.pt", load_device="cpu"),
        key_metric="",
    )
    recipe.add_server_file("start.pt")
    training = {
        "bundle_root": bundle_root(),
        "config_files": [_below_bundle(file) for file in files],
        "identity": shared_identity(parser),
    }
    arguments = {
        name: quote(json.dumps({**training, "dataset_dir": folder, "output_dir": str(output / name)}))
        for name, folder in sites.items()
    }
    set_per_site_config(recipe, {name: {"train_args": argument} for name, argument in arguments.items()})
    return recipe


def _below_bundle(file: str) -> str:
    """A config file as a site with the bundle in another place finds it too, where it is one of the bundle's."""
    root = Path(bundle_root())
    return str(Path(file).relative_to(root)) if Path(file).is_relative_to(root) else file


def first_weights(parser: ConfigParser) -> dict[str, torch.Tensor]:
    """What all sites start from: the network's weights, and a style key (3, 128) of NaN for none yet.

    Args:
        parser: of a training with federated.json.
    """
    torch.manual_seed(parser.get_parsed_content("seed"))
    network = parser.get_parsed_content("network_def")
    parser.get_parsed_content("initialize#2")  # loads init_weights, if given, in the training's own way
    return {**network.state_dict(), STYLE_KEY: torch.full((3, 128), torch.nan)}


def _simulate(recipe: FedAvgRecipe, sites: Sequence[str], output: Path) -> None:
    from nvflare.recipe import SimEnv

    try:
        recipe.execute(SimEnv(clients=list(sites), num_threads=len(sites), workspace_root=str(output / "nvflare")))
    except RuntimeError as error:  # NVFlare's, with a return code alone
        files = {name: output / name / FAILURE for name in sites}
        told = [f"{name}: {file.read_text(encoding='utf-8').strip()}" for name, file in files.items() if file.is_file()]
        raise CaseError(
            "The federated training ended before its last round"
            f" ({' '.join(told) or 'a site or the server was lost'}); NVFlare's logs are in {output / 'nvflare'}, and"
            f" {_GLOBAL.name} there, if a round was finished, holds its mean."
        ) from error
