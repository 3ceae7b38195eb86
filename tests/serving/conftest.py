"""What tests of the server share."""

from __future__ import annotations

import json
import logging

import pytest


@pytest.fixture
def lines(caplog):
    """Return what was logged, one dictionary a request."""
    caplog.set_level(logging.INFO, "petface.serving")
    return lambda: [json.loads(record.message) for record in caplog.records if record.message]
