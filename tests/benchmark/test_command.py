"""The command: three files that agree, and a sentence for what cannot be."""

import json
import re

import pytest
from PIL import Image

from scripts.benchmark import benchmark
from scripts.benchmark.command import write_results
from scripts.files import CaseError

POINTS = [{"slices": n, "cases": n, "seconds": float(n), "peak_bytes": 2**20 * n} for n in (1, 2)]
CURVE = {"points": POINTS, **{k: {"slope": 1.0, "intercept": 0.0, "deviation": 0.0} for k in ("seconds", "peak_bytes")}}


def test_files_of_a_run(overlay, tmp_path):
    text = benchmark(
        parts="limit,network,volume",
        rows=("main_job",),
        device="cpu",
        output_dir=str(tmp_path),
        config_file=str(overlay),
        slab_shape=(16, 24),
        batch_size=2,
        rounds=1,
    )
    assert text == (tmp_path / "benchmark.md").read_text()
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert set(written) == {"command", "machine", "versions", "settings", "results"}
    assert set(written["results"]) == {"limit", "network", "volume"}
    rows = written["results"]["network"]["rows"]
    assert [row["name"] for row in rows] == ["plain float32", "main job (bfloat16)"]
    assert rows[0]["psnr_db"] is None
    for row in rows:
        assert re.search(
            rf"^\| {re.escape(row['name'])} \| .* \| {row['seconds_per_volume']:.1f} \|", text, re.MULTILINE
        )
    (volume,) = written["results"]["volume"]
    assert volume["phases"]["sampling"] > 0
    assert sum(volume["phases"].values()) == pytest.approx(volume["seconds"])
    assert volume["spacing_mm"] == [1.0, 1.0, 1.0]
    assert str(overlay.parent) not in json.dumps(written["results"])
    assert Image.open(tmp_path / "benchmark.png").size[0] > 800


def test_every_part_has_its_table_and_its_panel(tmp_path):
    """The two that take minutes, from made-up figures."""
    cohort = {"cases": 20, "seconds": 104.0, "peak_bytes": 2**30, "once": 4.0, "computing": 99.0, "overhead": 1.01}
    machine = {"gpu": None, "processor": "a processor", "threads": 2}
    measured = {"command": "python", "machine": machine, "versions": {"torch": "2"}, "settings": {}}
    results = {"growth": {"slices": {**CURVE, "arrays": 4.5}, "cases": CURVE}, "cohort": cohort}
    text = write_results({**measured, "results": results}, tmp_path)
    assert "| 2 | 2.0 | 2 MiB |" in text
    assert "4.5 times a float32 slice" in text
    assert "| 20 | 104.0 s | 1,024 MiB | 4.0 s | 99.0 s | 1.010 |" in text
    whole = Image.open(tmp_path / "benchmark.png").size
    write_results({**measured, "results": {"growth": results["growth"]}}, tmp_path)
    assert whole[0] == Image.open(tmp_path / "benchmark.png").size[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "huge"}, "There is no network 'huge'; use one of compact, paper."),
        ({"parts": "limit,speed"}, "There is no part 'speed'; use some of limit, network, volume, growth, cohort."),
        ({"rows": "tpu"}, "There is no row 'tpu'; use some of plain, channels_last, main_job, compile, onnx."),
        ({"rounds": -1}, "rounds is -1; it has to be a whole number of at least 1."),
        ({"batch_size": 0}, "batch_size is 0; it has to be a whole number of at least 1."),
        ({"slab_shape": (160,)}, "slab_shape is [160]; give 2 numbers with a comma between them."),
        ({"slices": 20}, "slices is [20]; give two numbers or more, with commas between them."),
        ({"device": "cuda:99"}, "The device cuda:99 is not here; use cpu, or cuda:0 where there is a GPU."),
        ({"config_file": "absent.json"}, "There is no config file absent.json; check config_file."),
        (
            {"network": "paper", "parts": "volume"},
            "The part volume needs weights, and the network paper has none; leave it out.",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(options, sentence, tmp_path):
    with pytest.raises(CaseError, match=f"^{re.escape(sentence)}$"):
        benchmark(**{"parts": "limit", "rounds": 1, **options}, output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
