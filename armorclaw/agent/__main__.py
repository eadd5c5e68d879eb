"""`python -m armorclaw.agent exec -- CMD`."""

from __future__ import annotations

import sys

from armorclaw.agent.exec import main

if __name__ == "__main__":
    sys.exit(main())
