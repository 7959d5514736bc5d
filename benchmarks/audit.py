"""Known weaknesses of the versions in constraints.txt, by pip-audit: `make audit`.

Needs the network: where no advisories can be had, it says so and is content, since nothing is known then.
Runs in an environment of its own, so it imports nothing of Coterie's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SECONDS = 600  # for all lookups


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit status, and what to print, from the dependencies in pip-audit's JSON."""
    weak = [one for one in dependencies if one.get("vulns")]
    unknown = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(unknown) == len(dependencies):
        return 0, ["note: skipped, since no advisories can be reached: nothing is known of any version"]
    lines = [
        f"{one['name']} {one['version']}: {weakness['id']}, mended in "
        f"{', '.join(weakness['fix_versions']) or 'no version yet'}"
        for one in weak
        for weakness in one["vulns"]
    ]
    if unknown:
        lines.append(f"note: nothing is known of {', '.join(unknown)}")
    known = len(dependencies) - len(unknown)
    lines.append(f"{known} versions looked up, {len(weak)} with a known weakness")
    return int(bool(weak)), lines


def main() -> int:
    command = ["pip_audit", "-r", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--timeout", "10"]
    options = ["--format", "json", "--progress-spinner", "off"]
    try:
        result = subprocess.run(
            [sys.executable, "-m", *command, *options], capture_output=True, text=True, timeout=SECONDS
        )
        dependencies = json.loads(result.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        dependencies = []
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"pip-audit says: {last}")
        dependencies = []
    status, lines = verdict(dependencies)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
