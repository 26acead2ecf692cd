"""`python -m resclip`, the same as `resclip`."""

from __future__ import annotations

import sys

from resclip.cli.commands import main

sys.exit(main())
