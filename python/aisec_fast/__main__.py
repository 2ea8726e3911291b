"""``python -m aisec_fast`` is the command ``aisec-fast``."""

import sys

from aisec_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
