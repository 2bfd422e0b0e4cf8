"""The ablation table: each variant on each pair, flicker seen, means over pairs."""

import json

import numpy as np
import pytest
import torch

from scripts.evaluation.ablation import adjacent_difference, mean_table, sample_variants, write_table


@pytest.fixture
def pairs() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(2, 1, 16, 16, 1, generator=generator).expand(2, 1, 16, 16, 12) * 0.5 + 0.2
    return [{"source": 1 - v, "target": v.clone(), "mask": torch.ones_like(v)} for v in smooth]


def test_flicker_between_slices_is_what_the_difference_measures():
    mask = np.ones((4, 4, 6), dtype=bool)
    flicker = np.broadcast_to(0.5 + 0.1 * (-1.0) ** np.arange(6), (4, 4, 6))
    assert adjacent_difference(flicker, mask) == pytest.approx(0.2)
    mask[..., 1::2] = False  # no two adjacent slices are left but for the slice pairs that the mask still joins
    mask[..., 1] = True
    assert adjacent_difference(flicker, mask) == pytest.approx(0.2)
    assert adjacent_difference(np.full((4, 4, 6), 0.3), np.ones((4, 4, 6), dtype=bool)) == 0


def test_every_variant_meets_every_pair_and_the_better_one_wins(pairs: list[dict], tmp_path):
    def inverse(source: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        return network(1 - source)

    def flickering(source: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        return inverse(source, network) + 0.05 * (-1.0) ** torch.arange(source.shape[-1])

    rows = sample_variants(
        pairs, torch.nn.Identity(), {"exact": inverse, "flicker": flickering}, report=lambda line: None
    )
    assert {name: len(row) for name, row in rows.items()} == {"real": 2, "exact": 2, "flicker": 2}
    table = mean_table(rows)
    assert table["exact"]["pearson"] == pytest.approx(1)
    assert table["flicker"]["psnr"] == pytest.approx(-20 * np.log10(0.05), abs=1e-3)
    assert table["flicker"]["adjacent_difference"] == pytest.approx(0.1, abs=1e-6)
    assert table["flicker"]["i_ssim"] < table["real"]["i_ssim"]
    write_table({name: row for name, row in rows.items() if name != "exact"}, tmp_path / "out" / "ablation.md")
    assert "| flicker |" in (tmp_path / "out" / "ablation.md").read_text()
    written = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert len(written["flicker"]) == 2
    assert written["real"][0]["psnr"] is None


def test_what_lies_outside_the_mask_has_no_say(pairs: list[dict]):
    for pair in pairs:
        pair["mask"][:, 8:] = 0
        pair["target"] = pair["target"] * pair["mask"]
    rows = sample_variants(
        pairs, torch.nn.Identity(), {"all": lambda y, network: network(1 - y)}, report=lambda line: None
    )
    assert [row["ssim"] for row in rows["all"]] == pytest.approx([1, 1], abs=1e-5)
