"""
Files from and to a Hugging Face Hub, by its own library (extra `hub`): its cache, its tokens, its offline mode.
"""

import re
from pathlib import Path
from types import ModuleType

from semid_dataset.errors import TableError
from semid_dataset.objects import as_path

__all__ = ["fetch", "push"]

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name


def fetch(source: str | Path, names: tuple[str, ...], revision: str | None = None) -> Path:
    """
    Return the file of a folder of this machine, or of a repository where no such folder is.

    Args:
        source: a folder, a file, or "owner/name".
        names: of the file, the first that is there.
        revision: of the repository: a branch, a tag, a commit.

    Raises:
        TableError: it is neither folder nor file, and no name of a repository; a revision of a folder; the extra `hub`
            is not installed; the folder or the repository has none of these files.
        OSError: the hub cannot be reached, or knows no such repository or revision.
    """
    given = as_path(source, TableError)
    if given.exists():
        if revision is not None:
            raise TableError(f"'{given}' is on this machine and has no revision {revision!r}. Leave revision out.")
        if not given.is_dir():
            return given
        for name in names:
            if (given / name).is_file():
                return given / name
        raise TableError(f"The folder '{given}' holds no {' and no '.join(names)}.")
    if not REPOSITORY.fullmatch(str(source)):
        raise FileNotFoundError(f"'{source}' is not there, and no name of a repository on a hub (owner/name).")
    hub = _library(str(source))
    unreached: OSError | None = None
    for name in names:
        try:
            return Path(hub.hf_hub_download(str(source), name, revision=revision))
        except hub.errors.LocalEntryNotFoundError as error:  # offline: another of the names may have been kept
            unreached = error
        except hub.errors.EntryNotFoundError:
            continue
    raise unreached or TableError(f"The repository {source} holds no {' and no '.join(names)}.")


def push(
    folder: Path, repository: str, *, private: bool | None, token: str | bool | None, revision: str | None, message: str
) -> str:
    """
    Put the files of a folder into a repository, made if it is not there; return the address of the commit.

    Raises:
        TableError: no name of a repository; the extra `hub` is not installed.
        OSError: the hub cannot be reached or refuses.
    """
    if not REPOSITORY.fullmatch(repository):
        raise TableError(f"{repository!r} is no name of a repository on a hub: give owner/name.")
    api = _library(repository).HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    done = api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, commit_message=message)
    return str(done.commit_url)


def _library(repository: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise TableError(
            f"'{repository}' is no folder here; to look for it on a hub, install the extra: "
            'pip install "semid_dataset[hub]".'
        ) from error
    return huggingface_hub
