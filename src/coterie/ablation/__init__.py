"""What each part of the method contributes: controls over several seeds, every shared training done once."""

from coterie.ablation.report import Ablation
from coterie.ablation.rows import Row, read_rows
from coterie.ablation.running import ablate

__all__ = ["Ablation", "Row", "ablate", "read_rows"]
