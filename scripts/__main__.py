"""The commands that are no MONAI workflow; each is a function of a room, and `COMMANDS` is the only list of them."""

import ast
import sys
from pathlib import Path
from pkgutil import resolve_name

COMMANDS = {
    "prepare": "scripts.prepare.command:prepare",
    "evaluate": "scripts.evaluation.evaluate:evaluate",
    "cluster": "scripts.cluster.command:cluster",
    "knowledge_base": "scripts.knowledge_base:knowledge_base",
    "learning_curves": "scripts.evaluation.curves:learning_curves",
    "federate": "scripts.federated.command:federate",
    "federated_model": "scripts.federated.command:federated_model",
    "report": "scripts.report.report:report",
    "benchmark": "scripts.benchmark.command:benchmark",
    "export": "scripts.exports.export:export",
    "import_weights": "scripts.import_weights:import_weights",
    "serve_dicom": "scripts.dicom_node.serve:serve_dicom",
    "package": "scripts.packaging:package",
}


def overview() -> str:
    """Every command with the first sentence of its docstring, without loading the libraries of any."""
    lines = [f"    {name}\n      {_sentence(*target.split(':'))}" for name, target in COMMANDS.items()]
    return "\n".join(["usage: python -m scripts COMMAND ...", "", *lines, "", "COMMAND --help tells its options."])


def _sentence(module: str, function: str) -> str:
    """First line of a function's docstring, read from the source."""
    source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    defined = next(node for node in ast.parse(source).body if getattr(node, "name", None) == function)
    return ast.get_docstring(defined).splitlines()[0]


def run(name: str) -> None:
    """One command, with the options typed after it."""
    import fire  # here, since these libraries take seconds to load

    from .errors import shorten_errors
    from .options import check_arguments, taking_text

    shorten_errors()
    function = resolve_name(COMMANDS[name])
    check_arguments(function, sys.argv[2:])
    fire.Fire({name: taking_text(function)}, name="scripts")


if __name__ == "__main__":
    typed = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if typed in COMMANDS:
        run(typed)
    elif typed in ("--help", "-h", "help"):
        print(overview())
    else:
        sys.exit(f"There is no command {typed}. The commands are {', '.join(COMMANDS)}.")
