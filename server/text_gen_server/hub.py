"""From what a user calls a model to a checked folder on this machine: a local folder as it is, or a snapshot of the hub.

Fetches safetensors, configuration and tokenizer only. Must not import torch, and for a local folder not huggingface_hub either.
Everything a user can get wrong is a ValueError that says what is missing and what to do.
"""

import io
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_gen_server.config import load_model_config

log = logging.getLogger("text_gen_server")

ALLOWED_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template*",
]
# Folders hold other exports of the same weights, and so do the files some publishers call consolidated.
IGNORED_FILES = ["*/*", "consolidated*"]
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_ATTEMPTS = 4
FIRST_WAIT_SECS = 1.0
SECS_BETWEEN_PROGRESS_LINES = 5.0


@dataclass(frozen=True)
class ResolvedModel:
    """A model folder that passed `check_model_folder`."""

    model_dir: Path  # absolute
    model_id: str  # as the user called it
    revision: str | None  # commit of the hub snapshot

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"model_dir": str(self.model_dir), "model_id": self.model_id, "revision": self.revision})


def resolve_model(model_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> ResolvedModel:
    """The checked folder of `model_id`, downloaded where it is not a folder. ValueError for what a user can cause."""
    if Path(model_id).is_dir():
        model_dir, commit = Path(model_id).resolve(), None
    elif model_id.startswith(("/", "./", "../", "~")):
        raise ValueError(f"there is no model folder {model_id}")
    else:
        model_dir = _download(model_id, revision, cache_dir)
        commit = model_dir.name if model_dir.parent.name == "snapshots" else None
    check_model_folder(model_dir)
    return ResolvedModel(model_dir, model_id, commit)


def check_model_folder(folder: Path) -> None:
    """ValueError where it is plain without reading weights that `folder` cannot be served."""
    config = load_model_config(folder)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED_SUFFIXES)
        found = f" (it has {pickled[0]})" if pickled else ""
        raise ValueError(f"{folder} has no *.safetensors file{found}; only safetensors are accepted, convert the weights")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    highest_id = _highest_token_id(folder / "tokenizer.json")
    if highest_id >= config.vocab_size:
        raise ValueError(
            f"{folder}/tokenizer.json is larger than the embedding: its highest token id is {highest_id}, "
            f"vocab_size in config.json is {config.vocab_size}"
        )


def _highest_token_id(file: Path) -> int:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        vocabulary = content["model"]["vocab"]
        # A unigram vocabulary is a list, in which the place is the id.
        highest = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        return max(highest, *(int(token["id"]) for token in content.get("added_tokens") or ()), -1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a tokenizer of the tokenizers library: {error!r}") from error


def _download(model_id: str, revision: str | None, cache_dir: Path | None) -> Path:
    """The snapshot folder. What was fetched stays in the cache, so the next attempt goes on where this one ended."""
    from huggingface_hub import errors

    refusals = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
        errors.OfflineModeIsEnabled,
    )
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return _snapshot(model_id, revision, cache_dir)
        except refusals as error:
            raise ValueError(_explain(model_id, revision, error)) from error
        except (OSError, errors.HfHubHTTPError) as error:
            if attempt == MAX_ATTEMPTS or _is_final(error):
                raise ValueError(_explain(model_id, revision, error)) from error
            wait_secs = FIRST_WAIT_SECS * 2 ** (attempt - 1)
            log.warning("download of %s failed (%s), again in %.0f s", model_id, _first_line(error), wait_secs)
            time.sleep(wait_secs)
    raise AssertionError("the last attempt returns or raises")


def _snapshot(model_id: str, revision: str | None, cache_dir: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined, unused-ignore]

    class ProgressLines(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        """A progress bar that writes a log line now and then."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.next_line = time.monotonic() + SECS_BETWEEN_PROGRESS_LINES
            kwargs.update(disable=False, file=io.StringIO())
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call, unused-ignore]

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002
            if self.unit == "B" and time.monotonic() >= self.next_line:
                self.next_line = time.monotonic() + SECS_BETWEEN_PROGRESS_LINES
                log.info("downloading %s: %.0f of %.0f MB", model_id, self.n / 1e6, (self.total or 0) / 1e6)
            return True

    folder = snapshot_download(
        model_id,
        revision=revision,
        cache_dir=cache_dir,
        allow_patterns=ALLOWED_FILES,
        ignore_patterns=IGNORED_FILES,
        tqdm_class=ProgressLines,
    )
    return Path(folder)


def _is_final(error: Exception) -> bool:
    """Whether trying again is of no use: nothing cached while offline, no permission, no space, a request that is refused."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", 500)
        return status < 500 and status not in (408, 429)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return bool(constants.HF_HUB_OFFLINE)
    return isinstance(error, OSError) and error.errno is not None


def _explain(model_id: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    name = model_id if revision is None else f"{model_id} at revision {revision}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on the hub and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name} is neither a local folder nor a model on the hub (if it is private, set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} does not exist on the hub"
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not in the local cache as a whole, and HF_HUB_OFFLINE is set"
    problem = _first_line(error)
    return f"{name} is not a local folder, and cannot be downloaded: {problem}; check the network, or give the path of a folder"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
