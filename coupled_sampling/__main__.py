"""``python -m coupled_sampling``: the command line."""

import sys

from coupled_sampling.cli import main

sys.exit(main())
