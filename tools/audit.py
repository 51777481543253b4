"""`make audit`: are there published security holes in the packages of the lock files?

pip-audit asks the advisories of PyPI, or of OSV with `--service osv`, about each package and version. Exit statuses: 0 none
known; 1 some, listed; 2 not all packages could be looked up, and what wasn't is told. (pip-audit by itself ends with 0
where a mirror of the index knows no advisories at all.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from tools.locked import LOCKS, REPOSITORY

OPTIONS = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]


def summary(report: dict[str, Any], service: str) -> tuple[int, list[str]]:
    """The exit status and the lines to print for pip-audit's JSON report."""
    packages = report["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}"
        f" ({', '.join(hole['aliases']) or 'no other name'}), mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in packages
        for hole in package.get("vulns", [])
    ]
    lines = list(holes)
    if skipped:
        some = ", ".join(package["name"] for package in skipped[:5]) + (", …" if len(skipped) > 5 else "")
        lines.append(f"error: {service} has no advisories here for {len(skipped)} of {len(packages)} packages: {some}")
        lines.append("They were not audited: ask from a machine that reaches the service itself, not a mirror")
    lines.append(f"{len(packages) - len(skipped)} packages audited by {service}, {len(holes)} known holes")
    return 1 if holes else 2 if skipped or not packages else 0, lines


def audit(pip_audit: str, service: str) -> tuple[int, list[str]]:
    """Run pip-audit and read its report."""
    locks = [word for lock in LOCKS for word in ("--requirement", lock)]
    command = [pip_audit, *OPTIONS, "--vulnerability-service", service, *locks]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    try:
        report = json.loads(finished.stdout)
    except ValueError:
        reason = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
        return 2, [
            f"error: nothing was audited: the advisories of {service} can't be reached, or gave no answer: {reason}",
        ]
    return summary(report, service)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("pip_audit", help="the program")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="whose advisories (pypi)")
    options = parser.parse_args(arguments)
    status, lines = audit(options.pip_audit, options.service)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
