"""Learning curves from the events of trainings."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from scripts.errors import CaseError
from scripts.evaluation.curves import draw_curves, learning_curves, read_curves


def log_run(folder, first, last, loss, start=1_000_000.0):
    """A start of a training: a second an iteration, a loss every 10, a validation after each 100."""
    with SummaryWriter(folder, filename_suffix=f".{first}") as writer:
        for iteration in range(first + 10, last + 1, 10):
            writer.add_scalar("loss", loss, iteration, walltime=start + iteration - first)
            if iteration % 100 == 0:
                at = start + iteration - first + 0.5
                writer.add_scalar("psnr_brain", 15 + iteration / 100, iteration // 100, walltime=at)
                writer.add_scalar("ssim_brain", iteration / 1000, iteration // 100, walltime=at)


def test_validation_lies_at_its_iteration(tmp_path):
    log_run(tmp_path / "run", 0, 300, loss=0.5)
    curves = read_curves(tmp_path / "run")
    assert curves.name == "run"
    assert curves.minutes == pytest.approx(290.5 / 60, abs=0.01)
    iterations, values = curves.points["psnr_brain"]
    np.testing.assert_allclose(iterations, [100, 200, 300], atol=1)
    np.testing.assert_allclose(values, [16, 17, 18])
    np.testing.assert_array_equal(curves.points["loss"][0], np.arange(10, 301, 10))


def test_a_resumed_training_is_one_curve_and_its_pause_no_time(tmp_path):
    log_run(tmp_path, 0, 200, loss=0.5)
    log_run(tmp_path, 100, 300, loss=0.25, start=2_000_000.0)  # killed after 200, its last checkpoint was at 100
    curves = read_curves(tmp_path)
    iterations, losses = curves.points["loss"]
    np.testing.assert_array_equal(iterations, np.arange(10, 301, 10))
    assert (losses[iterations <= 100] == 0.5).all()
    assert (losses[iterations > 100] == 0.25).all()
    assert curves.minutes == pytest.approx((190.5 + 190.5) / 60, abs=0.02)


def test_files_of_one_start_are_one_time(tmp_path):
    log_run(tmp_path, 0, 200, loss=0.5)
    with SummaryWriter(tmp_path, filename_suffix=".other") as writer:
        for epoch in (1, 2):
            writer.add_scalar("psnr_brain", 20.0, epoch, walltime=1_000_000.0 + 100 * epoch)
    assert read_curves(tmp_path).minutes == pytest.approx(190.5 / 60, abs=0.01)


def test_what_was_not_logged_has_no_panel(tmp_path):
    log_run(tmp_path / "short", 0, 90, loss=0.5)
    log_run(tmp_path / "long", 0, 200, loss=0.5)
    runs = [read_curves(tmp_path / name) for name in ("short", "long")]
    assert [len(draw_curves(chosen).axes) for chosen in (runs[:1], runs)] == [1, 3]


def test_the_picture_is_written(tmp_path):
    log_run(tmp_path / "a", 0, 200, loss=0.5)
    log_run(tmp_path / "b", 0, 100, loss=0.4)
    learning_curves(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out" / "curves.png"))
    picture = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB")).reshape(-1, 3)
    for colour in ([31, 119, 180], [255, 127, 14]):  # both runs are drawn
        assert (np.abs(picture.astype(int) - colour).sum(axis=1) < 6).sum() > 100


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ((), "need one or more folders"),
        (("run",), "need one or more"),
        (("run", "curves.png"), "no events with a loss"),
    ],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, paths, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaseError, match=sentence):
        learning_curves(*paths)
