"""The command line: `main` runs one command and returns its exit status."""

from __future__ import annotations

from resclip.cli.commands import main

__all__ = ["main"]
