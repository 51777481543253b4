"""Every package that is needed is pinned, its licence is listed, and an audit that could not look says so."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY
from tools.audit import audit, summary
from tools.licences import COPYLEFT, PAGE, licence_of
from tools.locked import LOCKS, locked_versions, needed, read_lock, requirements

GROUPS = (None, "dev", "ray")
# A CUDA build of torch asks for these, at the versions that it was built with.
OF_CUDA = ("nvidia-", "cuda-", "triton")


def listed_licences() -> dict[str, tuple[str, str]]:
    """Version and licence of each row of docs/licences.md."""
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| [^|]+ \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: (version, licence) for name, version, licence in rows}


# ---- pinned ----


def test_no_package_is_in_two_lock_files() -> None:
    first, second = (set(map(canonicalize_name, read_lock(lock))) for lock in LOCKS)
    assert not first & second


def test_what_is_needed_is_pinned() -> None:
    # moto's extra asks for much that its S3 server does without.
    asked = [
        Requirement(re.sub(r"moto\[server\]", "moto", str(one))) for group in GROUPS for one in requirements(group)
    ]
    missing = needed(asked) - set(map(canonicalize_name, locked_versions()))
    assert not {name for name in missing if not name.startswith(OF_CUDA)}


def test_pins_satisfy_the_lower_bounds() -> None:
    pinned = {canonicalize_name(name): version for name, version in locked_versions().items()}
    for requirement in (one for group in GROUPS for one in requirements(group)):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


# ---- licences ----


def test_licences_of_all_locked_packages_are_listed() -> None:
    listed = {name: version for name, (version, _) in listed_licences().items()}
    assert listed == locked_versions(), "docs/licences.md is out of date: run `make setup` and `make licences`"


def test_listed_licences_are_the_packages_own_words() -> None:
    compared = 0
    for name, (version, licence) in listed_licences().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed == version:  # not so for a build such as 2.13.0+cpu, whose metadata may differ
            assert licence == licence_of(name), name
            compared += 1
    assert compared > 50


def test_a_licence_that_the_page_denies_is_noticed() -> None:
    """The page says in words that no package states one of the GNU licences, and lists those under the MPL."""
    page = PAGE.read_text(encoding="utf-8")
    copyleft = set(
        re.findall(r"^- `(\S+)` \(", page.partition("<!-- copyleft -->")[2].partition("<!-- end -->")[0], re.M)
    )
    for name, (_, licence) in listed_licences().items():
        assert not re.search(r"GPL|General Public", licence), f"{name}: {licence}: mend what docs/licences.md says"
        assert bool(COPYLEFT.search(licence)) == (name in copyleft), name


# ---- the audit ----


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HOLED = {
    "name": "holed",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"], "description": ""}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([SOUND], 0, "1 packages audited by pypi, 0 known holes"),
        ([SOUND, HOLED], 1, "holed 2.0: PYSEC-1 (CVE-1), mended in 2.1"),
        ([SOUND, UNKNOWN], 2, "error: pypi has no advisories here for 1 of 2 packages: unknown"),
        ([HOLED, UNKNOWN], 1, "error: pypi has no advisories here for 1 of 2 packages: unknown"),
        ([], 2, "0 packages audited"),
    ],
)
def test_an_audit_is_clean_only_if_all_was_looked_up(packages: list[dict[str, Any]], status: int, line: str) -> None:
    found, lines = summary(report(*packages), "pypi")
    assert found == status
    assert line in "\n".join(lines)


def fake_pip_audit(directory: Path, program: str) -> str:
    path = directory / "pip-audit"
    path.write_text(f"#!{sys.executable}\nimport sys\n{program}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_service_out_of_reach_is_reported(tmp_path: Path) -> None:
    program = fake_pip_audit(tmp_path, "sys.stderr.write('Traceback\\nConnectionError: no such host\\n'); sys.exit(1)")
    status, lines = audit(program, "osv")
    assert status == 2
    assert lines == [
        "error: nothing was audited: the advisories of osv can't be reached, or gave no answer: "
        "ConnectionError: no such host"
    ]


def test_the_audit_is_given_all_lock_files(tmp_path: Path) -> None:
    packages = json.dumps(report(SOUND))
    program = f"open({str(tmp_path / 'words')!r}, 'w').write(' '.join(sys.argv)); print({packages!r})"
    assert audit(fake_pip_audit(tmp_path, program), "pypi")[0] == 0
    words = (tmp_path / "words").read_text(encoding="utf-8")
    assert all(f"--requirement {lock}" in words and (REPOSITORY / lock).is_file() for lock in LOCKS)
