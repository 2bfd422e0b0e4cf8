"""Datalists, training volumes and slabs, and simulated CT."""

from .slab_dataset import SlabDataset, build_volumes
from .training import keys_by_person, listed_ct_window, part_of, prepare_pairs, training_datalist, training_style_keys

__all__ = [
    "SlabDataset",
    "build_volumes",
    "keys_by_person",
    "listed_ct_window",
    "part_of",
    "prepare_pairs",
    "training_datalist",
    "training_style_keys",
]
