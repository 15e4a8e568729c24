"""cells: see that cells.yaml says what params.yaml and the code ask for, before DVC runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.graph.build import graph_of
from kdci.graph.cells import RENEWED, renew_cells


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if the file is current; renew it and return the code of a user error if not."""
    parser = argparse.ArgumentParser(prog="python -m stages.cells", allow_abbrev=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file")
    arguments = parser.parse_args(argv)
    try:
        params = load_params(arguments.params, methods=False)
        if renew_cells(graph_of(params, arguments.params.resolve().parent)):
            raise RENEWED
    except KdciError as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
