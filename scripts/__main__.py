"""The commands that are no MONAI workflow; each is a function of a room, and `COMMANDS` is the only list of them."""

import sys
from pkgutil import resolve_name

import fire

from .errors import shorten_errors
from .options import check_arguments, taking_text

COMMANDS = {
    "prepare": "scripts.prepare.command:prepare",
    "evaluate": "scripts.evaluation.evaluate:evaluate",
    "cluster": "scripts.cluster.command:cluster",
    "knowledge_base": "scripts.knowledge_base:knowledge_base",
    "learning_curves": "scripts.evaluation.curves:learning_curves",
    "report": "scripts.report:report",
    "benchmark": "scripts.benchmark.command:benchmark",
    "export": "scripts.exports.export:export",
    "serve_dicom": "scripts.dicom_node.serve:serve_dicom",
    "package": "scripts.packaging:package",
}


if __name__ == "__main__":
    shorten_errors()
    # the libraries of all commands together take ten seconds to load
    names = [name for name in sys.argv[1:2] if name in COMMANDS] or COMMANDS
    functions = {name: resolve_name(COMMANDS[name]) for name in names}
    if len(functions) == 1:
        check_arguments(*functions.values(), sys.argv[2:])
    fire.Fire({name: taking_text(function) for name, function in functions.items()}, name="scripts")
