"""Say what pip-audit's report means: `make audit` looks up the locked packages and calls this.

    python -m tools.known_vulnerabilities report.json

pip-audit ends with "No known vulnerabilities found" also where it could look up nothing, behind a
mirror for one. Here packages that were not looked up count as such. Exit code 1 for a known
vulnerability, and where any package was not looked up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from petface.errors import SettingsError, UserError, run_script
from petface.settings import read_settings


def main() -> int:
    settings = read_settings(
        sys.modules[__name__], positional=("REPORT", "what pip-audit --format json wrote")
    )
    if len(settings.positional) != 1:
        raise SettingsError("give the one report that pip-audit --format json wrote")
    path = Path(settings.positional[0])
    if not path.is_file():
        raise UserError(f"{path}: pip-audit wrote no report: nothing was looked up")
    try:
        packages: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["dependencies"]
        asked = [package for package in packages if "skip_reason" not in package]
        known = [(package, found) for package in asked for found in package["vulns"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of pip-audit ({error!r})") from error
    if not asked:
        raise UserError(
            f"none of {len(packages)} packages could be looked up, so nothing is known about "
            "their vulnerabilities: run this where a network reaches the service"
        )
    for package, found in known:
        fixes = ", ".join(found["fix_versions"]) or "none yet"
        print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixes}")
    print(f"packages: {len(packages)}\nlooked_up: {len(asked)}\nvulnerabilities: {len(known)}")
    return int(bool(known) or len(asked) < len(packages))


if __name__ == "__main__":
    run_script(main)
