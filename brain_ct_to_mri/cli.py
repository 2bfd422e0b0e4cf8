"""The command `brain-ct-to-mri`: the bundle's main job in few words.

Nothing heavy is imported before it is known what is wanted.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .info import TASKS, bundle_root, info, version
from .job import command_line, config_files, put_bundle_first

__all__ = ["main", "translate_parser"]

_SHELLS = ("bash", "zsh", "fish")
_EPILOG = """also:
  brain-ct-to-mri info [--json|--path]          version, tasks, weights and their checksums; the bundle's folder
  brain-ct-to-mri completion bash|zsh|fish      completion for a shell

For research and demonstration, not for diagnosis. What is written, and more on all options: {docs}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was typed after `brain-ct-to-mri`; `sys.argv` if None."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"info": _info, "completion": _completion}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
    else:
        _translate(words)


def translate_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line of a translation.

    Args:
        words: what was typed; an option among them that nobody knows goes to the main job, which refuses it by name.
    """
    parser = argparse.ArgumentParser(
        prog="brain-ct-to-mri",
        description="Translate brain CT into synthetic T1 MRI.",
        epilog=_EPILOG.format(docs=bundle_root() / "docs" / "inference.md"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_own(parser)
    group = parser.add_argument_group("options of the main job")
    for name, default, meaning in _documented():
        _add_passed(group, name, f"{meaning} (default: {default})".replace("%", "%%"))
    typed = {word.partition("=")[0] for word in words if re.match("--|-[a-zA-Z]", word)}
    for name in sorted(typed - parser._option_string_actions.keys()):
        _add_passed(group, name, argparse.SUPPRESS)
    return parser


def _add_own(parser: argparse.ArgumentParser) -> None:
    """What the main job does not have as an option."""
    parser.add_argument("source", metavar="CT_OR_FOLDER", help="a file, a folder of them, or DICOM")
    parser.add_argument("output", metavar="OUT", help="folder for the results")
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument("--fast", action="store_true", help="one evaluation of the network: softer")
    quality.add_argument("--best", action="store_true", help="mirror images averaged: twice the time")
    parser.add_argument("--report", action="store_true", help="write pages to look at the results in a browser")
    parser.add_argument("--dicom", action="store_true", help="of DICOM: also write the results as DICOM series")
    parser.add_argument("--bids", action="store_true", help="also write a BIDS derivative, OUT/derivatives")
    parser.add_argument("--task", choices=TASKS, default="ct_to_t1", help="what is translated (default: %(default)s)")
    parser.add_argument(
        "--config_file", metavar="NAME", action="append", default=[], help="a further config file, such as sparse"
    )
    parser.add_argument(
        "--cluster", metavar="WHERE", help="share the cases among workers of Ray: auto, HOST:PORT, or how many here"
    )
    parser.add_argument("--version", action="version", version=version())


def _add_passed(group: Any, name: str, what: str) -> None:
    group.add_argument(name, nargs="?", metavar="VALUE", action=_Pass, default=argparse.SUPPRESS, help=what)


class _Pass(argparse.Action):
    """Keeps an option, with its value where one follows, for the main job."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        passed = {**getattr(namespace, "passed", {}), str(option_string).lstrip("-"): values}
        namespace.passed = passed


def _documented() -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each option in the table of docs/inference.md."""
    page = (bundle_root() / "docs" / "inference.md").read_text(encoding="utf-8")
    table = page.partition("## Options")[2].partition("\n## ")[0]
    for names, default, meaning in re.findall(r"^\| (`--.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE):
        for name in re.findall(r"--\w+", names):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", f"{default}|{meaning}").replace("`", "")
            yield name, *plain.split("|", 1)


def _translate(words: Sequence[str]) -> None:
    """The main job, and the report where it is asked for, also where cases failed."""
    typed = translate_parser(words).parse_args(words)
    files = config_files(typed.task, typed.fast, typed.best, typed.bids, typed.dicom, typed.config_file)
    options = {"dataset_dir": typed.source, "output_dir": typed.output, **getattr(typed, "passed", {})}
    put_bundle_first()
    sys.argv = command_line(files, options, typed.cluster)
    failed = None
    try:
        runpy.run_module("scripts" if typed.cluster else "monai.bundle", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not typed.report or not isinstance(end.code, str):  # a sentence is of cases that failed
            raise
        failed = end
    if typed.report:
        from scripts.report import report

        report(typed.output, typed.source)
    if failed is not None:
        raise failed


def _info(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="brain-ct-to-mri info", description="What is installed.")
    parser.add_argument("--json", action="store_true", help="all of it, for programs")
    parser.add_argument("--path", action="store_true", help="only the folder of the MONAI Bundle")
    typed = parser.parse_args(words)
    if typed.path:
        print(bundle_root())
    elif typed.json:
        print(json.dumps(info(), indent=2))
    else:
        told = info()
        print(f"brain-ct-to-mri {told['version']} in {told['path']}")
        for name, task in told["tasks"].items():
            sources, targets = (", ".join(task[key]) for key in ("sources", "targets"))
            print(f"{name}: {sources} to {targets}; {task['weights']}, SHA-256 {told['sha256'][task['weights']]}")
        print(f"{told['intended_use']}.")


def _completion(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="brain-ct-to-mri completion",
        description="Print the completion for a shell; where it goes: docs/installing.md.",
    )
    parser.add_argument("shell", choices=_SHELLS)
    shell = parser.parse_args(words).shell
    try:
        import shtab
    except ModuleNotFoundError:
        sys.exit("Completion needs the package shtab; type pip install 'brain-ct-to-mri[completion]'.")
    completed = translate_parser()
    for action in completed._actions:
        if action.dest in ("source", "output") or re.search("_(dir|file)$|^weights$", action.dest):
            action.complete = shtab.DIRECTORY if action.dest == "output" else shtab.FILE
    print(shtab.complete(completed, shell=shell))
