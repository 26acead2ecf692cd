"""Errors and warnings that a caller may want to tell apart; everything else is a ValueError or TypeError."""

from __future__ import annotations


class WeightsUnavailable(RuntimeError):
    """A model's weights cannot be fetched or read; the message says why and what to do."""


class UnknownWordsWarning(UserWarning):
    """The model in the box was asked for words that it has never read; the message names them."""
