"""`make licences`: fill docs/licences.md: the packages of the lock files with the licences that they say they have.

The words are the packages' own: the field License-Expression of the installed metadata, else License, else the
classifiers, else the beginning of the licence file. Nothing is looked up elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from email.message import Message
from typing import cast

from packaging.utils import canonicalize_name

from tools.locked import REPOSITORY, locked_versions, needed, requirements

PAGE = REPOSITORY / "docs" / "licences.md"
COPYLEFT = re.compile(r"\b[AL]?GPL|\bMPL|\bEPL|\bEUPL|\bCDDL|\bOSL-|\bCC-BY-SA|Mozilla|General Public", re.IGNORECASE)
HEAD = "| package | version | for | licence |\n|---|---|---|---|"


def stated_licence(metadata: Message) -> str:
    """The licence in the package's own words, in one line; "" if it has none."""
    expression, licence = metadata.get("License-Expression"), (metadata.get("License") or "").strip()
    if expression:
        return str(expression)
    classifiers = [
        value.rpartition(" :: ")[2] for value in metadata.get_all("Classifier") or [] if value.startswith("License ::")
    ]
    if licence and len(licence) <= 100:  # some put the whole text there
        return licence
    if classifiers:
        return ", ".join(classifiers)
    return licence.splitlines()[0].strip() if licence else ""


def licence_from_file(distribution: importlib.metadata.Distribution) -> str:
    """For a package that states none: the first line of its licence file, saying so."""
    for file in distribution.files or []:
        if re.match(r"licen[cs]e|copying", file.name, re.IGNORECASE):
            first = next((line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()), "")
            return f"not stated; its file {file.name} begins “{first}”"
    return ""


def licence_of(name: str) -> str:
    """Raises `LookupError` if neither metadata nor a file says anything."""
    distribution = importlib.metadata.distribution(name)
    licence = stated_licence(cast(Message, distribution.metadata)) or licence_from_file(distribution)
    if not licence:
        raise LookupError(f"{name}: states no licence and has no licence file; look it up and say it here")
    return licence


def purposes() -> dict[str, str]:
    """What each package is there for, by its canonical name: the first of run, ray, tests that needs it."""
    run, ray = needed(requirements()), needed(requirements("ray"))
    return {**dict.fromkeys(ray, "ray, S3"), **dict.fromkeys(run, "run")}


def lists() -> dict[str, str]:
    """The page's two lists. Raises `LookupError` where an installed package isn't the locked one."""
    rows, copyleft, what_for = [HEAD], [], purposes()
    for name, version in sorted(locked_versions().items(), key=lambda item: canonicalize_name(item[0])):
        installed = importlib.metadata.version(name)
        if installed.partition("+")[0] != version:
            raise LookupError(f"{name}: {version} is locked, {installed} is installed; run `make setup`")
        licence, purpose = licence_of(name), what_for.get(canonicalize_name(name), "tests")
        rows.append(f"| {name} | {version} | {purpose} | {licence} |")
        if COPYLEFT.search(licence):
            copyleft.append(f"- `{name}` ({purpose}): {licence}")
    return {"copyleft": "\n".join(copyleft), "list": "\n".join(rows)}


def filled(page: str, contents: dict[str, str]) -> str:
    """The page with each list between its marks `<!-- NAME -->` and `<!-- end -->`."""
    for name, content in contents.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        page = f"{before}{mark}{content}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


def main() -> int:
    try:
        contents = lists()
    except LookupError as error:  # a package that isn't installed is one, too
        sys.stderr.write(f"error: {error}\n")
        return 2
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), contents), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
