"""A folder as a model repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from rlhf_env.errors import ConfigError
from rlhf_env.shown_text import without_secrets


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Make the repository `name` ("owner/model" or "model") if need be, and upload what is in the folder; its address.

    The token is the one that the hub's own tools use: `hf auth login`, or HF_TOKEN. Raises ConfigError, in one line.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=str(folder), commit_message="A model trained with rlhf-env"
        )
    except Exception as error:  # the library and the network raise many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--push {name}: {without_secrets(why)} ({type(error).__name__}): log in with `hf auth login`, or set "
            f"HF_TOKEN to a token that may write; the folder {folder} is whole"
        ) from error
    return str(repository)
