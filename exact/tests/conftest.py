"""What tests of `exact` share; they need nothing of the project around it."""

import pytest


@pytest.fixture
def run_all(request: pytest.FixtureRequest) -> bool:
    """Whether to try all cases, as by `make test-all`."""
    return bool(request.config.getoption("--all", default=False))
