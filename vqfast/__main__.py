"""``python -m vqfast`` is the command ``vqfast``."""

import sys

from vqfast.cli import main

sys.exit(main())
