"""A model's configuration and tokenizer files by the name of its repository: fetched once, then always from the cache.

Only the named JSON files are asked for: no weights, no code, nothing that is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from shards.common.errors import InputError
from shards.hub.reference import HUB_TITLES, HubReference
from shards.hub.remote import ConnectionFailed, NoSuchFile

FileName = Literal["config.json", "tokenizer.json", "tokenizer_config.json"]


def small_file(reference: HubReference, name: FileName) -> Path:
    """The file `name` of the repository: from the hub's cache, else from the hub, whose cache then has it.

    Raises `InputError`: no such repository or file, no network, no permission; `NoSuchFile` if only the file is missing.
    """
    from shards.hub import hugging_face, model_scope

    hub: Any = hugging_face if reference.hub == "hf" else model_scope
    repository, revision = reference.repository, reference.revision
    try:
        found: Path | None = hub.cached_file(repository, name, revision=revision)
        return Path(found or hub.fetch_to_cache(repository, name, revision=revision))
    except ConnectionFailed as error:
        if reference.hub == "hf":
            instead = f"a mirror (HF_ENDPOINT=https://hf-mirror.com), ms:{repository}"
        else:
            instead = f"hf:{repository}"
        raise InputError(
            f"{reference}: {name} isn't in the cache, and {HUB_TITLES[reference.hub]} ({hub.endpoint()}) can't be reached "
            f"({error}); use {instead}, or a local directory with {name}"
        ) from None
    except NoSuchFile as error:
        raise NoSuchFile(f"{reference}: {error}") from None
    except InputError as error:
        raise InputError(f"{reference}: {error}") from None
