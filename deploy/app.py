"""Brain CT to MRI as an application of MONAI Deploy: DICOM studies in, synthetic MR series out.

`python deploy/app.py -i DICOM -o OUT` runs it as a plain Python program; docs/deploy.md. It makes operators of the main
job and adds nothing to it. For research and demonstration, not for diagnosis.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def load_cuda_runtime() -> None:
    """Load CUDA's runtime library as pip installs it, which Holoscan needs even without a GPU.

    Holoscan looks for it only where the system does, and the smaller PyTorch, without CUDA, does not load it.
    """
    package = find_spec("nvidia")
    for folder in (package and package.submodule_search_locations) or ():
        for library in Path(folder).glob("cu13/lib/libcudart.so.13"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


load_cuda_runtime()  # before the next lines, which import Holoscan

from monai.deploy.conditions import CountCondition  # noqa: E402
from monai.deploy.core import AppContext, Application, Operator, OperatorSpec, parse_args  # noqa: E402
from monai.deploy.logger import LogLevel, set_log_level  # noqa: E402

CASES = "cases"
"""Port with the cases, a list of `{"case": CASE, "image": paths of a series' slices}`."""


@contextmanager
def failures_noted(app: BrainCTToMRIApp) -> Iterator[None]:
    """What goes wrong in the block becomes a sentence among the application's `failures`.

    An exception would end the graph too, but in the midst of the runtime's own messages.
    """
    from scripts.errors import reason

    try:
        yield
    except Exception as error:
        app.failures.append(reason(error))


class SelectSeriesOperator(Operator):
    """Chooses the CT series of each study below the input folder, as the main job does (`scripts.data.studies`).

    Named output:
        cases: see `CASES`; a study without a CT series has the reason as `failure`.
    """

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.output(CASES)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Find the cases."""
        with failures_noted(self.fragment):
            op_output.emit(self.fragment.main_job(CASES), CASES)


class TranslateOperator(Operator):
    """Reads each series, translates it and writes the main job's files, the DICOM series among them.

    Named input:
        cases: see `CASES`.
    """

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.input(CASES)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Translate one case after the other; one that fails is noted, and the others go on."""
        with failures_noted(self.fragment):
            cases = op_input.receive(CASES)
            for step in ("initialize", "load_weights"):
                self.fragment.main_job(step)
            evaluator = self.fragment.main_job("evaluator")
            for case in cases:
                told = evaluator.translate_case(case)
                if "failure" in told:
                    self.fragment.failures.append(told["failure"])


class BrainCTToMRIApp(Application):
    """The main job in two operators.

    Settings of the main job may stand in the application's config file (app.yaml) as `main_job`, and there as
    `overlays` config files that change it, by their names in the bundle or their paths, without `.json`.

    Args:
        args: of `Application`.
        kwargs: of `Application`.

    Attributes:
        failures: why what could not be translated was not, a sentence each.
        main_job: name of a part of the main job's config -> what it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failures: list[str] = []
        typed = parse_args(self.argv)
        context = AppContext({name: value for name, value in vars(typed).items() if value})
        bundle = bundle_folder(Path(context.model_path), given=typed.model is not None)
        settings = self.kwargs("main_job")
        names = ("inference", *(settings.pop("overlays", None) or ()), "dicom")
        settings = {**settings, "dataset_dir": context.input_path, "output_dir": context.output_path}
        sys.path.insert(0, str(bundle))
        from scripts.workflow import started_workflow

        files = [str(bundle / "configs" / f"{name}.json") for name in names]
        words = [f"--{name}={value}" for name, value in settings.items()]
        workflow = started_workflow(["--config_file", str(files), *words])
        self.main_job = workflow.parser.get_parsed_content
        logging.getLogger().setLevel(typed.log_level or "INFO")

    def compose(self) -> None:
        """Chain the operators up."""
        select = SelectSeriesOperator(self, CountCondition(self, 1), name="select_series")
        translate = TranslateOperator(self, name="translate")
        self.add_flow(select, translate, {(CASES, CASES)})


def bundle_folder(models: Path, given: bool) -> Path:
    """The folder of the MONAI Bundle: the models' folder or one in it, else the clone that this file lies in.

    Args:
        models: what `-m` or HOLOSCAN_MODEL_PATH names, or the default of MONAI Deploy.
        given: whether it was typed, and the clone is no choice.
    """
    inside = sorted(models.iterdir()) if models.is_dir() else []
    clone = [] if given else [Path(__file__).resolve().parents[1]]
    for folder in (models, *inside, *clone):
        if (folder / "configs" / "inference.json").is_file():
            return folder
    sys.exit(f"There is no bundle in {models} (configs/inference.json); give the folder that holds it with -m.")


def main() -> None:
    """Run the application; where something was not translated, end with status 1 and a sentence for each."""
    set_log_level(LogLevel.WARN)  # HOLOSCAN_LOG_LEVEL comes before it
    app = BrainCTToMRIApp()
    app.run()
    if app.failures:
        sys.exit("\n".join(app.failures))


if __name__ == "__main__":
    main()
