"""``python -m aisec_fast`` is the command ``aisec-fast``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
