"""Datalists, training volumes and slabs."""

from .packed_volume import PackedVolume, build_volumes, training_style_keys
from .slab_dataset import SlabDataset
from .training import keys_by_person, listed_ct_window, part_of, prepare_pairs, training_datalist

__all__ = [
    "PackedVolume",
    "SlabDataset",
    "build_volumes",
    "keys_by_person",
    "listed_ct_window",
    "part_of",
    "prepare_pairs",
    "training_datalist",
    "training_style_keys",
]
