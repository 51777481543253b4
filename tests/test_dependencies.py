"""Every package that is needed is pinned, its licence is listed, and an audit that could not look says so."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY
from tools.audit import audit
from tools.licences import PAGE, filled, lists
from tools.locked import LOCKS, locked_versions, needed, read_lock, requirements

REQUIREMENTS = [one for group in (None, "dev", "ray") for one in requirements(group)]
# A CUDA build of torch asks for these, at the versions that it was built with.
OF_CUDA = ("nvidia-", "cuda-", "triton")


# ---- pinned ----


def test_no_package_is_in_two_lock_files() -> None:
    first, second = (set(map(canonicalize_name, read_lock(lock))) for lock in LOCKS)
    assert not first & second


def test_what_is_needed_is_pinned() -> None:
    # moto's extra asks for much that its S3 server does without.
    asked = [Requirement(re.sub(r"moto\[server\]", "moto", str(one))) for one in REQUIREMENTS]
    missing = needed(asked) - set(map(canonicalize_name, locked_versions()))
    assert not {name for name in missing if not name.startswith(OF_CUDA)}


def test_pins_satisfy_the_lower_bounds() -> None:
    pinned = {canonicalize_name(name): version for name, version in locked_versions().items()}
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


# ---- licences ----


def test_the_licences_of_all_locked_packages_are_listed() -> None:
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| [^|]+ \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    listed = {name: version for name, version, _ in rows}
    assert listed == locked_versions(), "docs/licences.md is out of date: run `make setup` and `make licences`"
    # The page says so in words.
    assert not [row for row in rows if re.search(r"GPL|General Public", row[2])]


def test_listed_licences_are_the_packages_own_words() -> None:
    page = PAGE.read_text(encoding="utf-8")
    try:
        assert filled(page, lists()) == page
    except LookupError as error:
        pytest.skip(f"not the locked packages: {error}")


# ---- the audit ----

HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"], "description": ""}
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HOLED = {"name": "holed", "version": "2.0", "vulns": [HOLE]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}
OUT_OF_REACH = "error: nothing was audited: the advisories of pypi can't be reached, or gave no answer: no such host"


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([SOUND], 0, "1 packages audited by pypi, 0 known holes"),
        ([SOUND, HOLED], 1, "holed 2.0: PYSEC-1 (CVE-1), mended in 2.1"),
        ([SOUND, UNKNOWN], 2, "error: pypi has no advisories here for 1 of 2 packages: unknown"),
        ([HOLED, UNKNOWN], 1, "error: pypi has no advisories here for 1 of 2 packages: unknown"),
        ([], 2, "0 packages audited by pypi, 0 known holes"),
        (None, 2, OUT_OF_REACH),
    ],
)
def test_an_audit_is_clean_only_if_all_was_looked_up(
    packages: list[dict[str, Any]] | None, status: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})

    def pip_audit(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        assert all(f"--requirement {lock}" in " ".join(command) and (REPOSITORY / lock).is_file() for lock in LOCKS)
        return subprocess.CompletedProcess(command, 1, answer, "Traceback\nno such host\n")

    monkeypatch.setattr(subprocess, "run", pip_audit)
    found, lines = audit("pip-audit", "pypi")
    assert found == status
    assert line in lines
