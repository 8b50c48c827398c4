"""``python -m lluda``: the ``lluda`` command."""

import sys

from lluda.cli.main import main

sys.exit(main())
