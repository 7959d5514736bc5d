"""The formats that predictions are written in, by name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"

    @classmethod
    def of(cls, path: Path | None) -> Format:
        """The format that the name of a file asks for, a table where it asks for none."""
        known = {".csv": cls.CSV, ".jsonl": cls.JSONL, ".parquet": cls.PARQUET}
        return known.get(path.suffix.lower(), cls.TABLE) if path else cls.TABLE
