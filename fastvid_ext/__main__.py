"""``python -m fastvid_ext COMMAND``: a command is a module with ``add_arguments(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "info": ("fastvid_ext.info", "versions, what was built, what is loaded, and why CUDA is off if it is"),
    "demo": ("fastvid_ext.demo", "prune a clip and draw what was kept; needs pip install fastvid_ext[demo]"),
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m fastvid_ext", description="FastVID: token pruning for video.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:  # only then: the demo's packages are an extra
            try:
                chosen = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or error.name.split(".")[0] == "fastvid_ext":
                    raise
                parser.error(f"{name} needs {error.name}: pip install 'fastvid_ext[demo]'")
            chosen.add_arguments(command)
    args = parser.parse_args(argv)
    return chosen.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
