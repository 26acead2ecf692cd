"""Errors that a caller may want to tell apart; everything else is a ValueError or TypeError."""

from __future__ import annotations


class WeightsUnavailable(RuntimeError):
    """A model's weights cannot be fetched or read; the message says why and what to do."""
