"""Datalists, training volumes and slabs."""

from .held_out import HoldOutContrastd
from .packed_volume import PackedVolume, build_volumes, contrast_source_keys, contrast_style_keys, training_style_keys
from .slab_dataset import SlabDataset
from .training import keys_by_person, listed_ct_window, part_of, prepare_pairs, training_datalist

__all__ = [
    "HoldOutContrastd",
    "PackedVolume",
    "SlabDataset",
    "build_volumes",
    "contrast_source_keys",
    "contrast_style_keys",
    "keys_by_person",
    "listed_ct_window",
    "part_of",
    "prepare_pairs",
    "training_datalist",
    "training_style_keys",
]
