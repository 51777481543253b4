"""A directory to a folder of a data set on Hugging Face, as one commit, by the package huggingface_hub.

A reader sees all files of the commit or none. It counts as done only when the hub lists each file with the digest that it
has here. What another attempt may mend is a `ConnectionFailed`; what it won't is an `InputError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from shards.common.errors import InputError
from shards.common.text import printable
from shards.hub.hugging_face import check_online, endpoint
from shards.hub.remote import ANSWER_SECONDS, ConnectionFailed, Digest, parse_digest, reason, within

_URL = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>refs/pr/\d+|[^/@]+))?(/(?P<folder>.+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORM = "hf://datasets/USER/NAME[@BRANCH]/FOLDER"
# Given in place of the repository's own .gitignore, which would leave files out of the commit without a word.
_IGNORE_NOTHING = "# nothing\n"


@dataclasses.dataclass(frozen=True)
class HubFolder:
    """A folder of a data set's repository; an empty `path` is all of it."""

    repository: str
    revision: str
    path: str

    @property
    def address(self) -> str:
        """For people."""
        return f"{endpoint()}/datasets/{self.repository}"

    def at(self, commit: str) -> str:
        """The URL of the folder as it was with `commit`, or is in the branch of that name."""
        folder = f"/{self.path}" if self.path else ""
        return f"hf://datasets/{self.repository}@{quote(commit, safe='')}{folder}"

    def file(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


@dataclasses.dataclass(frozen=True)
class HubState:
    """What is in a folder: the branch's newest commit, and the digests of all files by their names below the folder."""

    commit: str
    files: dict[str, Digest | None]


def parse_folder(url: str) -> HubFolder:
    """Raises `InputError`."""
    match = _URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise InputError(f"{url}: a set on Hugging Face goes to a data set: expected {_FORM}")
    folder, revision = match["folder"] or "", unquote(match["revision"] or "main")
    if "@" in folder:
        raise InputError(f"{url}: the branch is written behind the repository: expected {_FORM}")
    if any(part in ("", ".", "..", ".git") for part in folder.split("/")) and folder:
        raise InputError(f"{url}: {folder!r} is no folder of a repository: expected {_FORM}")
    if _COMMIT.fullmatch(revision):
        raise InputError(f"{url}: a commit can't be changed; name a branch, or none for main: expected {_FORM}")
    return HubFolder(match["repository"], revision, folder)


def find_token(folder: HubFolder) -> str:
    """The token of this machine's user. Raises `InputError` if there is none, or if nothing may be asked."""
    import huggingface_hub

    check_online(folder.address, "upload")
    token = huggingface_hub.get_token()
    if not token:
        raise InputError(
            f"{folder.address}: no token to upload with; set HF_TOKEN, or log in with `hf auth login` (tokens that may "
            f"write are made at {endpoint()}/settings/tokens)"
        )
    return token


def look(folder: HubFolder, token: str) -> HubState:
    """What is there now. Raises `InputError`, `ConnectionFailed`."""
    with quiet_client(), upload_errors(folder):
        commit = within(ANSWER_SECONDS, lambda: _newest_commit(folder, token))
        return HubState(commit, _files(folder, token, commit))


def check_may_write(folder: HubFolder, token: str) -> None:
    """Raise `InputError` if the hub says that this token may not write there. `ConnectionFailed` if it says nothing."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    url = f"{endpoint()}/api/datasets/{folder.repository}/auth-check/write"

    def ask() -> None:
        response = huggingface_hub.get_session().get(url, headers=utils.build_hf_headers(token=token))
        if response.status_code != 404 or "X-Error-Code" in response.headers:  # a hub that doesn't know the question
            utils.hf_raise_for_status(response)

    with quiet_client(), upload_errors(folder):
        within(ANSWER_SECONDS, ask)


def upload(
    directory: Path,
    folder: HubFolder,
    token: str,
    *,
    before: HubState,
    is_ours: Callable[[str], bool],
    mark: str,
    title: str,
    shows_bars: bool = False,
) -> str:
    """Make the folder's files those of `directory` by one commit; its number.

    Files there that `is_ours` and that aren't in `directory` go with the same commit, others stay. `before` is what the
    folder was when this was decided: if the file `mark` is another now, nothing is committed. Raises `InputError`,
    `ConnectionFailed`.
    """
    import huggingface_hub

    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    with quiet_client(shows_bars=shows_bars), upload_errors(folder):
        api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
        additions = [
            huggingface_hub.CommitOperationAdd(path_in_repo=folder.file(name), path_or_fileobj=directory / name)
            for name in names
        ]
        where: Any = {"repo_id": folder.repository, "repo_type": "dataset"}
        api.preupload_lfs_files(
            **where,
            additions=additions,
            revision=folder.revision,
            free_memory=False,
            gitignore_content=_IGNORE_NOTHING,
        )
        # Only now, when all content is there: little time is left in which others may commit.
        commit = _newest_commit(folder, token)
        there = _files(folder, token, commit)
        if there.get(mark) != before.files.get(mark):
            raise InputError(
                f"{folder.address}: another set was put there meanwhile; look at it, then repeat the command"
            )
        deletions = [
            huggingface_hub.CommitOperationDelete(path_in_repo=folder.file(name), is_folder=False)
            for name in sorted(there.keys() - set(names))
            if is_ours(name)
        ]
        made = api.create_commit(
            **where,
            operations=[*deletions, *additions],
            commit_message=title,
            revision=folder.revision,
            parent_commit=commit or None,
        )
        _check_commit(directory, folder, token, made.oid, names)
        return str(made.oid)


def _newest_commit(folder: HubFolder, token: str) -> str:
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    info = api.repo_info(folder.repository, repo_type="dataset", revision=folder.revision, timeout=ANSWER_SECONDS)
    return str(info.sha or "")


def _files(folder: HubFolder, token: str, commit: str) -> dict[str, Digest | None]:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    entries = api.list_repo_tree(
        folder.repository,
        path_in_repo=folder.path or None,
        recursive=True,
        revision=commit or folder.revision,
        repo_type="dataset",
    )
    prefix = f"{folder.path}/" if folder.path else ""
    try:
        return {
            entry.path.removeprefix(prefix): parse_digest(entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        }
    except EntryNotFoundError:
        return {}


def _check_commit(directory: Path, folder: HubFolder, token: str, commit: str, names: list[str]) -> None:
    """Raise `ConnectionFailed` unless the hub lists all files with their digests."""
    there = _files(folder, token, commit)
    for name in names:
        found = there.get(name)
        with (directory / name).open("rb") as file:
            if found is None or not found.matches_file(file):
                raise ConnectionFailed(f"after commit {commit} the hub lists {folder.file(name)} not as it is here")


@contextlib.contextmanager
def quiet_client(*, shows_bars: bool = False) -> Iterator[None]:
    """Have the client say nothing but, where wanted, how far an upload is."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    verbosity, had_bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if not shows_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if had_bars and not shows_bars:
            utils.enable_progress_bars()


@contextlib.contextmanager
def upload_errors(folder: HubFolder) -> Iterator[None]:
    """What the client raises as one line: `InputError`, or `ConnectionFailed` where the same may work later."""
    from huggingface_hub import errors

    where, tokens = folder.address, f"{endpoint()}/settings/tokens"
    try:
        yield
    except (InputError, ConnectionFailed, AssertionError, AttributeError, LookupError, NameError, TypeError):
        raise  # ours, or a fault of ours
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise  # a file of this machine
        status, said, is_hub = _answer(error)
        if status == 401 and is_hub:
            raise InputError(
                f"{where}: the hub doesn't know this token (HTTP 401); make another at {tokens}, then set HF_TOKEN or log "
                "in with `hf auth login`"
            ) from None
        if status == 403 and is_hub:
            raise InputError(
                f"{where}: this token may not write there (HTTP 403); take one that may, from {tokens}"
            ) from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise InputError(
                f"{where}: no branch {folder.revision!r} there; make it with `hf repos branch create {folder.repository} "
                f"{folder.revision} --repo-type dataset`"
            ) from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise InputError(
                f"{where}: no such repository, or none that this token may see; make it with `hf repos create "
                f"{folder.repository} --repo-type dataset`"
            ) from None
        if status == 412 and is_hub:
            raise ConnectionFailed("something else was committed at the same time (HTTP 412)") from None
        raise ConnectionFailed(f"HTTP {status}{said}" if status else reason(error)) from None


def _answer(error: BaseException | None) -> tuple[int, str, bool]:
    """The HTTP status behind a client's exception, 0 if there is none; what the server said; whether it was the hub itself,
    and not where it has contents put."""
    for _ in range(10):
        if error is None:
            break
        response: Any = getattr(error, "response", None)
        if getattr(response, "status_code", None) is not None:
            said = printable(" ".join(str(getattr(error, "server_message", None) or "").split()))[:200]
            is_hub = str(response.request.url).startswith(endpoint())
            return int(response.status_code), f": {said}" if said else "", is_hub
        error = error.__cause__
    return 0, "", True
