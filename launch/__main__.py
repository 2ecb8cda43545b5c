"""`python -m launch`: the same as the console script."""

import sys

from launch.cli import main

sys.exit(main())
