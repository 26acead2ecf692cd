"""Two threads, as on the machine whose figures are published."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    torch.set_num_threads(2)
