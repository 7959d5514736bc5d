"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data() -> Path:
    """The folder of measuring data: `COTERIE_DATA`, else `../shared/data`; skips where it is absent."""
    folder = Path(os.environ.get("COTERIE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no measuring data at {folder}; set COTERIE_DATA")
    return folder
