"""`python -m fitact_fx` is `fitact-fx`."""

import sys

from fitact_fx.cli import main

if __name__ == "__main__":
    sys.exit(main())
