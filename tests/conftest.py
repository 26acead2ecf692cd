"""One fresh seed a test, printed so that a failure can be replayed with RESCLIP_TEST_SEED."""

from __future__ import annotations

import pytest

from resclip_kernels.testing import fresh_seed


@pytest.fixture
def seed() -> int:
    value = fresh_seed()
    print(f"replay with RESCLIP_TEST_SEED={value}")
    return value
