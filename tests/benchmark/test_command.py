"""The command: three files that agree, and a sentence for what cannot be."""

import json
import re

import pytest
from PIL import Image

from scripts.benchmark.bundle import Bundle
from scripts.benchmark.command import _command, benchmark, write_results
from scripts.benchmark.volumes import measure_volumes
from scripts.errors import CaseError

POINTS = [{"slices": n, "cases": n, "seconds": float(n), "peak_bytes": 2**20 * n} for n in (1, 2)]
CURVE = {"points": POINTS, **{k: {"slope": 1.0, "intercept": 0.0, "deviation": 0.0} for k in ("seconds", "peak_bytes")}}
MEASURED = {
    "command": "python",
    "machine": {"gpu": None, "processor": "a processor", "threads": 2},
    "versions": {"torch": "2"},
    "settings": {},
}


@pytest.mark.slow
def test_files_of_a_run(overlay, tmp_path):
    text = benchmark(
        parts="limit,network",
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
    assert set(written["results"]) == {"limit", "network"}
    rows = written["results"]["network"]["rows"]
    assert [row["name"] for row in rows] == ["plain float32", "main job (bfloat16)"]
    assert rows[0]["psnr_db"] is None
    for row in rows:
        assert re.search(
            rf"^\| {re.escape(row['name'])} \| .* \| {row['seconds_per_volume']:.1f} \|", text, re.MULTILINE
        )
    assert str(overlay.parent) not in json.dumps(written["results"])
    assert Image.open(tmp_path / "benchmark.png").size[0] > 600


def test_the_command_is_written_without_paths():
    """A folder may be called after a patient."""
    typed = ["benchmark", "--parts", "volume", "--dataset_dir", "/data/DOE_JOHN", "--output-dir=/home/jane/out"]
    assert _command([*typed, "--config_file", "['/home/jane/a.json']", "--cases", "3"]) == (
        "python -m scripts benchmark --parts volume --dataset_dir DATASET_DIR --output-dir=OUTPUT-DIR "
        "--config_file CONFIG_FILE --cases 3"
    )


@pytest.mark.slow
def test_a_volume_is_measured_as_a_user_runs_it(config_files, tmp_path):
    """Wall time is the sum of what it is spent on."""
    (volume,) = measure_volumes(Bundle(config_files, "cpu"), spacing=12.0)
    assert sum(volume["phases"].values()) == pytest.approx(volume["seconds"])
    assert volume["phases"]["sampling"] > 0
    assert volume["peak_bytes"] > 2**26
    text = write_results({**MEASURED, "results": {"volume": [volume]}}, tmp_path)
    assert re.search(r"^\| sample \| [x\d ]+ \| 12 x 12 x 12 \| ", text, re.MULTILINE)


@pytest.mark.slow
def test_volumes_of_ones_own_are_not_named(config_files, overlay):
    volumes = measure_volumes(Bundle(config_files, "cpu"), str(overlay.parent / "heads"), spacing=12.0)
    assert [(volume["name"], volume["spacing_mm"][0]) for volume in volumes] == [("sample", 12.0), ("volume 1", 6.0)]
    assert "head" not in json.dumps(volumes)


def test_every_part_has_its_table_and_its_panel(tmp_path):
    """The two that take minutes, from made-up figures."""
    phases = {"loading": 1.0, "preprocessing": 9.0, "sampling": 90.0, "postprocessing": 4.0}
    cohort = {"cases": 20, "seconds": 100.0, "peak_bytes": 2**30, "computing": 99.0, "overhead": 1.01, "phases": phases}
    results = {"growth": {"slices": {**CURVE, "arrays": 4.5}, "cases": CURVE}, "cohort": cohort}
    text = write_results({**MEASURED, "results": results}, tmp_path)
    assert "| 2 | 2.0 | 2 MiB |" in text
    assert "4.5 times a float32 slice" in text
    assert "| 20 | 1,024 MiB | 1.0 s | 9.0 s | 90.0 s | 4.0 s | 100.0 s | 1.010 |" in text
    whole = Image.open(tmp_path / "benchmark.png").size
    write_results({**MEASURED, "results": {"growth": results["growth"]}}, tmp_path)
    assert whole[0] == Image.open(tmp_path / "benchmark.png").size[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "huge"}, "network is huge; use one of compact, paper."),
        ({"parts": "limit,speed"}, "parts names speed, which is not there; use some of limit, network,"),
        ({"rows": "tpu"}, "rows names tpu, which is not there; use some of plain, channels_last,"),
        ({"rounds": -1}, "rounds is -1; use a whole number of at least 1."),
        ({"batch_size": 0}, "batch_size is 0; use a whole number of at least 1."),
        ({"slab_shape": (160,)}, "slab_shape is [160]; use 2 numbers with a comma between them."),
        ({"slices": 20}, "slices is [20]; use two numbers or more, with commas between them."),
        ({"device": "cuda:99"}, "The device cuda:99 is not here; use cpu, or cuda:0 where there is a GPU."),
        ({"config_file": "absent.json"}, "There is no config file absent.json; check config_file."),
        (
            {"network": "paper", "parts": "volume"},
            "The part volume needs weights, and the network paper has none; leave it out.",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_sentence(options, sentence, tmp_path):
    with pytest.raises(CaseError, match=f"^{re.escape(sentence)}"):
        benchmark(**{"parts": "limit", "rounds": 1, **options}, output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
