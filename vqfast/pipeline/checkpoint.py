"""Models and run folders on disk: safetensors and JSON only, nothing pickled."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook as on_buffers
from torch.nn.modules.module import register_module_parameter_registration_hook as on_parameters

from vqfast.files import check_folder, open_file, read_file, remove_leftovers, take_lock, write_file
from vqfast.models import VQVAE
from vqfast.pipeline.ranks import Ranks
from vqfast.priors import PixelCNN, ResidualPixelCNN, WaveNet
from vqfast.priors.base import CausalPrior

JSON_BYTES = 32 << 20  # as Python objects less than 1 GB
JSON_DEPTH = 16
SLACK = 4 << 20  # numbers that a config's model may have beyond its weights until its making is stopped
HEADER_BYTES = 8 << 20  # of a safetensors file, with some 100,000 tensors

MODELS = {cls.__name__: cls for cls in (VQVAE, PixelCNN, ResidualPixelCNN, WaveNet)}
KINDS = {"vqvae": VQVAE, "prior": CausalPrior}  # what the models of a run are, by name


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote.

    Raises:
        ValueError: the file isn't JSON, is larger than ``JSON_BYTES``, or has a key twice.
    """
    data = read_file(path, JSON_BYTES)
    try:
        value = json.loads(data, object_pairs_hook=_with_each_key_once)
        _check_depth([value], JSON_DEPTH)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file of ours: {error}") from error
    return value


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("it has a key twice")
    return value


def _check_depth(value: Any, most: int) -> None:
    if most < 0:
        raise ValueError(f"it is nested more than {JSON_DEPTH} deep")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            _check_depth(inner, most - 1)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file."""
    from safetensors.torch import save

    write_file(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What ``write_tensors`` wrote.

    Raises:
        ValueError: the file is no safetensors file, or truncated, or its header is larger than
            ``HEADER_BYTES``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open_file(path) as file:
        header = int.from_bytes(file.read(8), "little")
        # by its descriptor, as safetensors takes no name that isn't UTF-8
        name = f"/dev/fd/{file.fileno()}" if Path("/dev/fd").exists() else path
        try:
            if header > HEADER_BYTES:
                raise ValueError(f"its header has {header} bytes; want {HEADER_BYTES} at most")
            return load_file(name, device=str(device))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def save_model(folder: Path, name: str, model: VQVAE | CausalPrior) -> None:
    """``name.safetensors``, and its config beside it in ``name.config.json``.

    Raises:
        ValueError: a weight is NaN or infinite; nothing is written.
    """
    weights = folder / f"{name}.safetensors"
    _check_finite(weights, model)
    write_json(folder / f"{name}.config.json", {"class": type(model).__name__, **model.config})
    write_tensors(weights, model.state_dict())


@overload
def load_model(folder: str | Path, name: Literal["vqvae"], device: torch.device | str = "cpu") -> VQVAE: ...


@overload
def load_model(
    folder: str | Path, name: Literal["prior"], device: torch.device | str = "cpu"
) -> CausalPrior: ...


@overload
def load_model(folder: str | Path, name: str, device: torch.device | str = "cpu") -> nn.Module: ...


def load_model(folder: str | Path, name: str, device: torch.device | str = "cpu") -> nn.Module:
    """The model that ``save_model`` wrote, in eval mode.

    Args:
        folder: a run's.
        name: ``"vqvae"`` or ``"prior"``.

    Raises:
        FileNotFoundError: it isn't there.
        ValueError: a file is damaged, weights and config don't fit each other, a weight isn't finite, or the
            model is of another kind.
    """
    weights, beside = Path(folder, f"{name}.safetensors"), Path(folder, f"{name}.config.json")
    for path in (weights, beside):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train the {name} first")
    tensors, config = read_tensors(weights), read_json(beside)
    try:
        kind = MODELS[config.pop("class")]
        if not issubclass(kind, KINDS.get(name, nn.Module)):
            raise ValueError(f"a {kind.__name__} is no {name}")
        with _not_much_larger(tensors.values()):
            model = kind(**config)
    except Exception as error:  # values of any kind and size raise nearly anything
        raise ValueError(f"{beside} is no config of a model of ours: {_line(error)}") from error
    for key, wanted in model.state_dict().items():  # torch would convert them without a word
        if key in tensors and tensors[key].is_floating_point() != wanted.is_floating_point():
            raise ValueError(f"{weights} has {tensors[key].dtype} in {key}; want {wanted.dtype}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{weights} doesn't fit {beside.name}: {_line(error)}") from error
    _check_finite(weights, model)
    return model.to(device).eval()


def _line(error: Exception) -> str:
    text = str(error) if isinstance(error, (TypeError, ValueError)) else repr(error)
    return " ".join(text.split())[:200]


@contextmanager
def _not_much_larger(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Stops the making of a module that has far more parameters and buffers, before their memory is used."""
    left = SLACK + 4 * sum(map(_size, tensors))  # a file may lack statistics as large as the codebook

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 0 if tensor is None else _size(tensor)
        if left < 0:
            raise ValueError("its model is larger than the weights")

    hooks = [hook(count) for hook in (on_parameters, on_buffers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _size(tensor: Tensor) -> int:
    return max(1024, tensor.numel())  # a small one takes as long as so many numbers


def _check_finite(path: Path, model: nn.Module) -> None:
    """Raises ValueError, with the name of the tensor, where a weight is NaN or infinite."""
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            value = tensor[~tensor.isfinite()][0].item()
            raise ValueError(f"{path} has {value} in {key}; want finite numbers")


class Run:
    """A run's folder. Each stage notes its settings there; only the same settings may go on in it.

    Raises:
        FileNotFoundError: the folder isn't there and ``create`` is false.
        ValueError: the folder belongs to something else, or another process works in it, or its lock is a
            link or no regular file.
    """

    def __init__(self, folder: str | Path, create: bool = False, lock: bool = True) -> None:
        self.folder = Path(folder)
        self._marker = self.folder / "run.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; want a run folder")
        if not self._marker.is_file():
            if self.folder.is_dir() and any(p for p in self.folder.iterdir() if p.name[0] != "."):
                raise ValueError(f"{self.folder} holds something else, not a vqfast run; use another folder")
            if not create:
                raise FileNotFoundError(f"{self.folder} holds no vqfast run: train one first")
            self.folder.mkdir(parents=True, exist_ok=True)
        self._stages()  # refuses what is no run's
        if lock:
            file = take_lock(self.folder / ".lock")
            if file is None:
                raise ValueError(f"{self.folder} is in use by another vqfast process")
            weakref.finalize(self, _release, file, self.folder, self._marker)
            remove_leftovers(self.folder)

    @classmethod
    def shared(cls, folder: str | Path, ranks: Ranks, create: bool = False, lock: bool = True) -> Run:
        """The same from several processes: the first one creates and locks."""
        run = cls(folder, create, lock) if ranks.first else None
        ranks.barrier()
        return run or cls(folder, create, lock=False)

    def stage(self, name: str, settings: dict[str, Any]) -> None:
        """Notes a stage's settings, in place of others as long as no file ``<name>*`` came of those.

        Raises:
            ValueError: there are files of the stage with other settings, run.json is no run's, or a folder is
                a link of another user's.
        """
        for place in (self.folder / name, *(self.folder / parent for parent in Path(name).parents)):
            check_folder(place)
        remove_leftovers(self.folder / name)
        stages = self._stages()
        settings = json.loads(json.dumps(settings))
        if stages.get(name) == settings:
            return
        if name in stages and any(self.folder.glob(f"{name}*")):
            before, now = _flat(stages[name]), _flat(settings)
            changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
            list_ = ", ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed)
            raise ValueError(f"{self.folder} holds another {name}: {list_}; use another folder")
        write_json(self._marker, {"format": 1, "stages": {**stages, name: settings}})

    def settings(self, name: str) -> dict[str, Any] | None:
        """The settings of a stage, if it was begun."""
        return self._stages().get(name)

    def _stages(self) -> dict[str, dict[str, Any]]:
        run = read_json(self._marker) if self._marker.is_file() else {"stages": {}}
        stages = run.get("stages") if isinstance(run, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            raise ValueError(f"{self._marker} is no vqfast run's")
        return stages


def _release(held: BinaryIO, folder: Path, marker: Path) -> None:
    """Gives a run's folder back; one that nothing was begun in goes."""
    if not marker.is_file():
        (folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something there
            folder.rmdir()
    held.close()


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without nesting: ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = {f".{k}": v for k, v in _flat(value).items()} if isinstance(value, dict) else {"": value}
        flat |= {f"{name}{k}": v for k, v in inner.items()}
    return flat
