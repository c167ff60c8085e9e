"""Bases and adapters on the Hugging Face hub: ``org/name``, ``org/name@revision``, ``hf://name``.

A folder of a repository is its subfolder; records name it behind the commit
(``hf://org/name@COMMIT/folder``), and it can be given so.

A path that exists is always taken as a path. Downloads go to the hub's own cache, by commit; with
``HF_HUB_OFFLINE=1`` only what is there is used. Only configs, tokenizers and weights are fetched,
no code, and pickles only where there are no safetensors.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lora_export.core.errors import HubError, StorageError, UsageError
from lora_export.core.files import is_relative_inside, user_path
from lora_export.ondevice.file_opening import read_file, reason_of
from lora_export.ondevice.printable import shell_command

__all__ = ["hub_id_of", "is_hub_id", "local_path"]

_OTHER_CACHE: Final = "Free some space, or name another folder for the cache: HF_HOME=FOLDER."
_DISK: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENAMETOOLONG}
)
_SCHEME: Final = "hf://"
_ID: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[\w][\w./-]*))?"
)
_REF_LIMIT_BYTES: Final = 1 << 10
_COMMIT: Final = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_COMMIT_FOLDER: Final = re.compile(r"(?P<commit>[0-9a-f]{40})/(?P<folder>.+)")
_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.gguf", "*.npz")
_PICKLES: Final = ("pytorch_model*.bin", "adapter_model.bin", "adapter*.pt")
_MODULES: Final = ("[0-9]*_*/pytorch_model.bin",)
_BELOW: Final = ("[!0-9]*/*", "[0-9][!_]*/*", "[0-9]*/*/*")
"""What lies in folders of a repository: other formats, checkpoints of the training. Those of
sentence-transformers' modules (``1_Pooling``) begin with a digit and an underscore."""


def is_hub_id(spec: str) -> bool:
    """Whether `spec`, where no such path exists, means a repository on the hub."""
    match = _ID.fullmatch(spec.removeprefix(_SCHEME))
    return spec.startswith(_SCHEME) or (match is not None and "/" in match["repo"])


def local_path(spec: str, folder: Path = Path(), *, subfolder: str | None = None) -> Path:
    """Return the local path that `spec` means, fetched from the hub where it is an id.

    Args:
        spec: A path, or an id with an optional ``@revision`` (branch, tag or commit). An id without
            a slash needs ``hf://`` before it.
        folder: Where relative paths start.
        subfolder: A folder below that path, or in that repository.

    Raises:
        UsageError: The subfolder leads elsewhere.
        HubError: The id is neither cached nor to be had: no network, no such repository or
            revision, no permission.
        StorageError: The disk of the hub's cache refuses.
    """
    below = _checked_subfolder(subfolder)
    path = folder / user_path(spec)
    if not is_hub_id(spec) or (not spec.startswith(_SCHEME) and path.exists()):
        return path / below if below else path
    match = _ID.fullmatch(spec.removeprefix(_SCHEME))
    if match is None:
        msg = f"{spec!r} is not an id of the hub"
        raise HubError(msg, hint="Write hf://ORGANISATION/NAME, with @REVISION where it matters.")
    revision = match["revision"]
    if revision is not None and (recorded := _COMMIT_FOLDER.fullmatch(revision)):
        revision = recorded["commit"]
        below = "/".join(part for part in (recorded["folder"], below) if part)
    found = _fetch(spec, match["repo"], revision, below)
    return found / below if below else found


def _checked_subfolder(subfolder: str | None) -> str:
    """Return a subfolder as a plain relative path; ``""`` for none."""
    if not subfolder:
        return ""
    if not is_relative_inside(subfolder):
        msg = f"--subfolder {subfolder!r} leads out of the folder"
        raise UsageError(msg, hint="Give the name of a folder below it: --subfolder NAME")
    path = PurePosixPath(subfolder)
    return "" if path == PurePosixPath() else path.as_posix()


def hub_id_of(path: Path) -> str | None:
    """Return ``hf://repo@commit[/subfolder]`` for a folder in the hub's cache, else None."""
    found = re.search(
        r"/models--([^/]+)/snapshots/([0-9a-f]{40})(/.+?)?/?$", path.absolute().as_posix()
    )
    if found is None:
        return None
    return f"{_SCHEME}{found[1].replace('--', '/')}@{found[2]}{found[3] or ''}"


def _fetch(spec: str, repo: str, revision: str | None, below: str) -> Path:
    """Download what is missing in the cache; return the snapshot's folder."""
    from huggingface_hub import snapshot_download

    def download(patterns: tuple[str, ...]) -> Path:
        allowed = [f"{below}/{each}" if below else each for each in patterns]
        ignored = [f"{below}/*/*"] if below else list(_BELOW)
        found = snapshot_download(
            repo, revision=revision, allow_patterns=allowed, ignore_patterns=ignored
        )
        return Path(found)

    _require_sane_ref(repo, revision)
    try:
        folder = download((*_FILES, *_MODULES))
        if not any((folder / below).glob("*.safetensors")):
            folder = download((*_FILES, *_MODULES, *_PICKLES))
    except Exception as error:
        if refused := _refused_by_disk(error):
            msg = f"cannot write the hub's cache: {reason_of(refused)}"
            raise StorageError(msg, hint=_OTHER_CACHE) from error
        raise _explained(spec, error) from error
    return folder


def _require_sane_ref(repo: str, revision: str | None) -> None:
    """Require of the file that names a revision's commit that it does; it may be absent.

    The hub's library reads whatever is there, and opens the folder of that name.

    Raises:
        HubError: It is something else.
    """
    from huggingface_hub import constants

    name = "models--" + repo.replace("/", "--")
    path = Path(constants.HF_HUB_CACHE) / name / "refs" / (revision or constants.DEFAULT_REVISION)
    try:
        commit = read_file(path, _REF_LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        msg = f"the hub's cache is damaged: {str(path)!r} cannot be read: {reason_of(error)}"
        hint = f"Remove it, and download again: hf download {repo}"
        raise HubError(msg, hint=hint) from error
    if _COMMIT.fullmatch(commit) is None:
        msg = f"the hub's cache is damaged: {str(path)!r} names no commit"
        raise HubError(msg, hint=f"Remove it, and download again: hf download {repo}")


def _refused_by_disk(error: BaseException | None) -> OSError | None:
    """Return the error of the file system that an error of the hub's library is or comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


def _explained(spec: str, error: Exception) -> HubError:
    """Translate an error of the hub's library."""
    from huggingface_hub import constants, errors

    reasons: tuple[tuple[Any, str, str], ...] = (
        (errors.GatedRepoError, "its owner must grant access",
         "Ask for access on its page, then: hf auth login"),
        (errors.RepositoryNotFoundError, "the hub has no such repository, or it is private",
         "Check the spelling; for a private one: hf auth login"),
        (errors.RevisionNotFoundError, "the repository has no such revision",
         "Give a branch, a tag or a commit after the @."),
        (errors.HFValidationError, "it is not a hub id", "Write ORGANISATION/NAME."),
    )  # fmt: skip
    for kind, reason, hint in reasons:
        if isinstance(error, kind):
            return HubError(f"{spec!r} is not a local directory, and {reason}", hint=hint)
    name, _, revision = spec.removeprefix(_SCHEME).partition("@")
    download = shell_command(
        ["hf", "download", name, *(["--revision", revision] if revision else [])]
    )
    missing = isinstance(error, errors.LocalEntryNotFoundError)
    if missing and constants.HF_HUB_OFFLINE:
        why = "the hub's cache does not have all of it (HF_HUB_OFFLINE forbids downloads)"
        hint = f"Check the path; or download it once: HF_HUB_OFFLINE=0 {download}"
    else:
        cause = (error.__cause__ if missing else None) or error
        why = f"the hub cannot be reached: {_first_sentence(str(cause)) or type(cause).__name__}"
        hint = f"Check the path and the network; to download it: {download}"
    return HubError(f"{spec!r} is not a local directory, and {why}", hint=hint)


def _first_sentence(text: str) -> str:
    """Return the first sentence of a message, whole; a line that ends in a colon goes on."""
    found = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        found = f"{found} {line}".lstrip()
        if not found.endswith(":"):
            break
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", found, maxsplit=1)[0].rstrip(".:")
