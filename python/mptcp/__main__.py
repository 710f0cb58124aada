"""``python -m mptcp``: the command line, where the ``mptcp`` program is not on the path."""

import sys

from mptcp.cli import main

sys.exit(main())
