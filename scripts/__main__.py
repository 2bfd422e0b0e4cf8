"""The commands that are no MONAI workflow; each is a function of a room, and `COMMANDS` is the only list of them."""

import fire

from .benchmark import benchmark
from .data.prepare import prepare
from .data.prepare_t1 import prepare_listed
from .dicom.node.serve import serve_dicom
from .evaluation.compare import as_markdown, compare_volumes
from .evaluation.curves import learning_curves
from .evaluation.evaluate import evaluate
from .exports.export import export
from .packaging import package
from .report import report
from .workflow import shorten_errors


def compare(
    synthetic: str, real: str, source: str | None = None, erode_mm: float = 0.0, percentile: float = 99.9
) -> str:
    """Compare a synthetic MRI with the real one of the same person: a table of figures inside the brain.

    Args:
        synthetic: the bundle's CASE_t1.nii.gz.
        real: skull-stripped T1 in the same space (above 0 in the brain alone), any unit.
        source: the CT; adds a row for the best that a map of single grey levels of the CT could do.
        erode_mm: how far inside the brain's edge to compare.
        percentile: of the real volume's brain that becomes 1.
    """
    return as_markdown(compare_volumes(synthetic, real, source, erode_mm, percentile))


COMMANDS = {
    "prepare": prepare,
    "prepare_t1": prepare_listed,
    "compare": compare,
    "evaluate": evaluate,
    "learning_curves": learning_curves,
    "report": report,
    "benchmark": benchmark,
    "export": export,
    "serve_dicom": serve_dicom,
    "package": package,
}


if __name__ == "__main__":
    shorten_errors()
    fire.Fire(COMMANDS, name="scripts")
