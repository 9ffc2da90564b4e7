"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, as people know them from the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from vqfast.saving.models import read_model, write_model

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_CARD = """---
library_name: vqfast
---

```python
import vqfast

model = vqfast.{kind}.from_pretrained("{repo_id}")
```
"""


class Pretrained:
    """A model that a folder or the Hub keeps as ``model.safetensors`` and ``config.json``.

    Nothing in the files is run: the config names a class of vqfast and its arguments.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vqfast.VQVAE(hidden_channels=8, num_embeddings=16).save_pretrained(folder)
        ...     vqfast.VQVAE.from_pretrained(folder).codebook_sizes
        (16,)
    """

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the model to a folder, which is made if it isn't there.

        Args:
            folder: where.
            overwrite: replaces a model that is in the folder.

        Raises:
            FileExistsError: the folder has a model, and ``overwrite`` is false.
            ValueError: a weight is NaN or infinite, or the model has a module that isn't vqfast's; nothing is
                written.
        """
        folder = Path(folder)
        taken = [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]
        if taken and not overwrite:
            raise FileExistsError(
                f"{folder} has {' and '.join(taken)}; want another folder, or overwrite=True"
            )
        write_model(folder / WEIGHTS, folder / CONFIG, cast(nn.Module, self))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model, in eval mode.

        Args:
            name: a folder of ``save_pretrained``, or the name of a repository on the Hub.
            device: where the model is to be.
            revision, token, cache_dir, local_files_only: of the Hub, see ``huggingface_hub``.

        Raises:
            FileNotFoundError: there is no such folder and huggingface_hub isn't installed; or a file is
                missing.
            ValueError: a file is damaged, weights and config don't fit each other, a weight isn't finite, or
                the model is of another class.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                from huggingface_hub import snapshot_download
            except ImportError:
                raise FileNotFoundError(
                    f"{name} is no folder; want one, or huggingface_hub installed"
                ) from None
            folder = Path(
                snapshot_download(
                    str(name),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=[WEIGHTS, CONFIG],
                )
            )
        for file in (WEIGHTS, CONFIG):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file} is missing; want a folder of save_pretrained")
        return cast("Self", read_model(folder / WEIGHTS, folder / CONFIG, cls, cls.__name__, device))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Model of vqfast",
    ) -> str:
        """Writes the model to a repository on the Hub, which is made if it isn't there.

        Args:
            repo_id: the repository's name, ``"user/name"``.
            private, token, revision, commit_message: see ``huggingface_hub``.

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub isn't installed.
            ValueError: as in ``save_pretrained``.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if not api.file_exists(repo_id, CARD, revision=revision):
                card = _CARD.format(kind=type(self).__name__, repo_id=repo_id)
                Path(folder, CARD).write_text(card, encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        return str(commit.commit_url)
