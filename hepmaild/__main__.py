# SPDX-License-Identifier: Apache-2.0
"""`python -m hepmaild`, and the console script `hepmaild`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its status."""
    from hepmaild.cli.app import log_crash, run
    from hepmaild.cli.output import mend_streams

    mend_streams()
    sys.excepthook = log_crash
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
