"""``python -m autocompress`` is the command ``autocompress``."""

import sys

from autocompress.cli import main

sys.exit(main())
