"""`python -m equicat`: the command line."""

import sys

from equicat.cli.main import main

sys.exit(main())
