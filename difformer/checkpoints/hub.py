"""Files in Hugging Face repositories, by addresses `hf://owner/name[/file][@revision]`."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from difformer._optional import require

HUB = "hf://"
_FILE = "model.safetensors"


def locate_on_hub(
    address: str,
    *,
    download: bool,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The file behind a hub address, downloaded or from the hub's cache; `model.safetensors` where it names none.

    Args:
        address: `hf://owner/name[/file][@revision]`.
        download: whether it may be fetched when it is not on this machine.
        revision: branch, tag or commit, where the address names none.
        token: of an account that may read the repository; the token of the last login when left out.
        cache_dir: in place of the hub's own cache.

    Raises:
        FileNotFoundError: it is not there, and may not be or cannot be fetched.
        ValueError: no such address, or two revisions.
    """
    hub = require("huggingface_hub", f"reading {address}")
    place, _, named = address.removeprefix(HUB).partition("@")
    owner, name, file = (*place.split("/", 2), "", "")[:3]
    if not owner or not name:
        raise ValueError(f"{address!r} is not a hub address; write hf://owner/name, hf://owner/name/file or …@revision")
    if named and revision and named != revision:
        raise ValueError(f"{address} names the revision {named}, which revision={revision!r} contradicts; give one")
    wanted = {"revision": named or revision or None, "cache_dir": cache_dir}
    try:
        if not download:
            # The other function contacts the hub even with local_files_only.
            cached = hub.try_to_load_from_cache(f"{owner}/{name}", file or _FILE, **wanted)
            if isinstance(cached, str):
                return Path(cached)
            raise FileNotFoundError(
                f"{address} is not on this machine; allow the download with download=True (--download; in a recipe, "
                "backbone.download: true)"
            )
        found: str = hub.hf_hub_download(f"{owner}/{name}", file or _FILE, token=token, **wanted)
    except hub.errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{address} is not on this machine; the hub did not answer") from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise FileNotFoundError(f"{address} cannot be fetched: {str(error).splitlines()[0]}") from error
    return Path(found)


def hub_version(address: str, path: Path) -> str:
    """A hub address that says which commit was read; the hub's cache keeps it in the path."""
    commit = dict(itertools.pairwise(path.parts)).get("snapshots")
    return f"{address.partition('@')[0]}@{commit}" if commit else address


def push_folder(
    write: Callable[[Path, str], object],
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool,
    commit_message: str,
) -> str:
    """Uploads files to a repository of the hub, which is created when needed.

    Args:
        write: puts the files into a folder; it receives the folder and the repository's whole name.
        repo_id: `owner/name`, or `name` for your own repository.
        private: whether a new repository is private; the account's default when None.
        token: of an account that may write there; the token of the last login when None.
        branch: where the commit goes, made when needed; the main branch when None.
        create_pr: propose the commit as a pull request.
        commit_message: first line of the commit.

    Returns:
        The address of the commit.
    """
    api = require("huggingface_hub", "pushing to the hub").HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # The author of a pull request may not be allowed to create branches.
    if branch is not None and not create_pr:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=branch,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    return str(commit)
