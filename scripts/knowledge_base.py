"""The command that makes a knowledge base of a training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from .data import build_volumes, training_datalist
from .data.references import build_base
from .errors import CaseError
from .files import check_folder, sha256_of_file, write_whole
from .networks import PixelEncoder, SliceEncoder
from .options import number, one_of
from .retrieval import ENCODER_NAME, FILE_NAME
from .weights import load_weights
from .workflow import bundle_root

__all__ = ["knowledge_base"]


def knowledge_base(
    action: str = "build",
    dataset_dir: str = "",
    output: str = "",
    encoder: str = "pixels",
    share: float = 1.0,
    config_file: str | Sequence[str] | None = None,
) -> str:
    """Make a knowledge base of the slices of a training set, for sparse scans.

    It holds patients' images. Its folder can be read by you alone, and no names stand in it; keep it as you keep the
    scans themselves, and give it to nobody.

    Args:
        action: build.
        dataset_dir: what `prepare` wrote: a folder with datalist.json; the list "training" is taken.
        output: folder of the base; new, empty, or an older base, which is replaced.
        encoder: pixels, which needs no training, or the weights of a trained one (configs/rebrain_retrieval.json).
        share: of the people, above 0 and at most 1.
        config_file: a training config, or a list of configs that are merged, as the training has it; it tells the
            contrasts, the voxels, how images are scaled, and whether the source is simulated. configs/train.json if
            none is given.
    """
    one_of("action", action, ["build"])
    number("share", share, least=0, most=1)
    for name, value in {"dataset_dir": dataset_dir, "output": output}.items():
        if not value:
            raise CaseError(f"--{name} is missing; type --dataset_dir MY_PAIRS --output kb.")
    config = _config(config_file, dataset_dir)
    items = training_datalist(dataset_dir, "training", config["needed"], config["contrasts"], may_be_empty=False)
    network, digest = _encoder(encoder, config["slab_shape"])
    folder = _own_folder(output)
    volumes = build_volumes(
        *(items, config["load"], config["render"]),
        size=config["slab_shape"],
        progress=_bar("subjects"),
        num_workers=None,
    )
    people = [str(item.get("person", item["subject"])) for item in items]
    record = {"encoder": "pixels" if digest is None else "vit", "encoder_sha256": digest}
    record |= {name: config[name] for name in ("source_contrast", "target_contrast")}
    base = build_base(volumes, people, network, config["spacing"], record, _bar("slices")).shared(share)
    weights = None if digest is None else Path(encoder).read_bytes()  # it may be that of the folder itself
    path = base.save(folder)
    (folder / ENCODER_NAME).unlink(missing_ok=True)
    if weights is not None:
        write_whole(folder / ENCODER_NAME, weights)
        (folder / ENCODER_NAME).chmod(0o600)
    return (
        f"{path}: {len(base)} slices of {len(base.person.unique())} people. They are patients' images: the folder can "
        "be read by you alone; keep it so."
    )


def _config(config_file: str | Sequence[str] | None, dataset_dir: str) -> dict[str, Any]:
    """What the training would read the set with."""
    parser = ConfigParser()
    parser.read_config(config_file or str(Path(bundle_root()) / "configs" / "train.json"))
    parser["dataset_dir"] = dataset_dir
    names = ("load", "render", "needed", "spacing", "slab_shape", "contrasts", "source_contrast", "target_contrast")
    return {name: parser.get_parsed_content(name) for name in names}


def _encoder(name: str, slab_shape: Sequence[int]) -> tuple[PixelEncoder | SliceEncoder, str | None]:
    """The encoder, and the SHA-256 of its weights."""
    if name == "pixels":
        return PixelEncoder(), None
    if not Path(name).is_file():
        raise CaseError(f"encoder is {name}, which is no file; give pixels, or the weights of a trained encoder.")
    network = SliceEncoder(slab_shape).eval()
    load_weights(network, name)
    return network, sha256_of_file(name)


def _own_folder(output: str) -> Path:
    """The folder, which will be closed to others: one that holds other things is refused."""
    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE_NAME).is_file():
        raise CaseError(f"{output} holds other files; give a folder of its own to a knowledge base.")
    return check_folder(folder)


def _bar(called: str) -> Any:
    return lambda things: tqdm(things, desc=called, disable=None)
