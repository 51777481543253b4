"""Files on Hugging Face, or on the mirror that `HF_ENDPOINT` names, by the package huggingface_hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.hub.remote import (
    ANSWER_SECONDS,
    CannotResume,
    ConnectionFailed,
    NoSuchFile,
    RemoteFile,
    RepositoryType,
    Stream,
    check_status,
    parse_digest,
    range_headers,
    reason,
    stream_of,
    within,
)

_READ_SECONDS = 30.0  # without a byte, then the connection counts as broken


def endpoint() -> str:
    """The address of the hub: `HF_ENDPOINT`, or Hugging Face's own. Raises `InputError` if it is no address."""
    from huggingface_hub import constants

    address: str = constants.ENDPOINT
    if not address.startswith(("http://", "https://")):
        raise InputError(f"HF_ENDPOINT: expected an address such as https://hf-mirror.com, found {address!r}")
    return address


def check_online(address: str, what: str = "fetch it") -> None:
    """Raise `InputError` if `HF_HUB_OFFLINE=1` (or `TRANSFORMERS_OFFLINE=1`) forbids to ask the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{address}: HF_HUB_OFFLINE=1 forbids to {what}; unset it (`env -u HF_HUB_OFFLINE …`)")


def find_file(
    repository: str,
    path: str,
    *,
    revision: str | None = None,
    repository_type: RepositoryType = "model",
    seconds: float = ANSWER_SECONDS,
) -> RemoteFile:
    """The file `path` in `repository`. Raises `InputError`, or `ConnectionFailed` if there is no answer in `seconds`."""
    import huggingface_hub

    address = _address(repository, path, repository_type)
    check_online(address)
    url = huggingface_hub.hf_hub_url(
        repository, path, revision=revision, repo_type=repository_type, endpoint=endpoint()
    )

    def ask() -> Any:
        with translated_errors(address):
            return huggingface_hub.get_hf_file_metadata(url, timeout=seconds, endpoint=endpoint())

    found = within(seconds, ask)
    if found.commit_hash is None or found.etag is None:
        raise InputError(
            f"{address}: the server doesn't answer as Hugging Face's does (no commit or no ETag); is HF_ENDPOINT right, "
            "or a proxy in between?"
        )
    # The commit, not the branch: what is fetched in several attempts is one version of the file.
    fixed_url = huggingface_hub.hf_hub_url(
        repository, path, revision=found.commit_hash, repo_type=repository_type, endpoint=endpoint()
    )

    @contextlib.contextmanager
    def open_at(offset: int) -> Iterator[Stream]:
        utils: Any = huggingface_hub.utils
        headers = {**utils.build_hf_headers(), **range_headers(offset)}
        with (
            translated_errors(address),
            huggingface_hub.get_session().stream(
                "GET", fixed_url, headers=headers, timeout=_READ_SECONDS, follow_redirects=True
            ) as response,
        ):
            yield stream_of(
                response.status_code,
                response.headers,
                response.iter_bytes(),
                offset=offset,
                num_bytes=found.size,
                address=address,
            )

    return RemoteFile(
        address=address,
        num_bytes=found.size,
        digest=parse_digest(found.etag),
        version=f"{found.etag} {found.size}",
        open=open_at,
    )


def check_data_set(name: str) -> None:
    """Raise `InputError`, within ten seconds, unless the hub can be reached and has the data set `name`.

    The package datasets itself tries for a minute.
    """
    import huggingface_hub

    address = f"{endpoint()}/datasets/{name}"
    check_online(address)

    def ask() -> None:
        with translated_errors(address):
            huggingface_hub.HfApi(endpoint=endpoint()).dataset_info(name, timeout=ANSWER_SECONDS)

    try:
        within(ANSWER_SECONDS, ask)
    except ConnectionFailed as error:
        raise InputError(
            f"{address}: can't be reached ({error}); try a mirror (HF_ENDPOINT=https://hf-mirror.com), or fetch the files "
            "by hand and name them"
        ) from None


@contextlib.contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Turn the client's exceptions into ours. Those of our own code inside are left as they are."""
    from huggingface_hub import errors

    try:
        yield
    except (InputError, ConnectionFailed, CannotResume):
        raise
    except errors.OfflineModeIsEnabled:
        raise InputError(f"{address}: HF_HUB_OFFLINE=1 forbids to fetch it; unset it") from None
    except errors.GatedRepoError:
        raise InputError(
            f"{address}: needs permission: ask for it on that page, then log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{address}: no such repository there, or a private one (then `hf auth login`)") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{address}: no such revision in this repository") from None
    except errors.EntryNotFoundError:
        raise NoSuchFile(f"{address}: no such file in this repository") from None
    except errors.HfHubHTTPError as error:
        check_status(error.response.status_code, address)
        raise ConnectionFailed(reason(error)) from None
    except errors.HFValidationError as error:
        raise InputError(f"{address}: {reason(error)}") from None
    except Exception as error:
        # The client's network exceptions have a class tree that differs between its versions (requests, httpx, httpx2).
        if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "ssl"):
            raise ConnectionFailed(reason(error)) from None
        raise


def cached_file(repository: str, path: str, *, revision: str | None = None) -> Path | None:
    """The file `path` of a model's repository in the client's cache (`HF_HOME`), or None."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, path, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch_to_cache(repository: str, path: str, *, revision: str | None = None) -> Path:
    """Fetch the small file `path` of a model's repository into the client's cache (`HF_HOME`), and check its digest.

    Raises `InputError`, `ConnectionFailed`.
    """
    import huggingface_hub

    utils: Any = huggingface_hub.utils
    remote = find_file(repository, path, revision=revision)
    were_disabled = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        with translated_errors(remote.address):
            found = Path(huggingface_hub.hf_hub_download(repository, path, revision=revision, endpoint=endpoint()))
    except OSError as error:
        if error.errno is not None:
            raise  # a disk that is full, a directory that may not be written
        raise ConnectionFailed(reason(error)) from None  # fewer or more bytes than the hub lists
    finally:
        if not were_disabled:
            utils.enable_progress_bars()
    if remote.digest is not None and not remote.digest.matches(found.read_bytes()):
        found.resolve().unlink()
        found.unlink(missing_ok=True)
        raise InputError(
            f"{remote.address}: the bytes that came aren't those that the hub lists ({remote.digest.kind} "
            f"{remote.digest.value}); try again, or another mirror"
        )
    return found


def _address(repository: str, path: str, repository_type: RepositoryType) -> str:
    prefix = "datasets/" if repository_type == "dataset" else ""
    return f"{endpoint()}/{prefix}{repository}, {path}"
