"""Folders of latent-prefix models, by the conventions of `save_pretrained`.

The base and its tokenizer lie in the folder itself, as transformers writes them, so
``AutoModelForCausalLM.from_pretrained`` reads it too; peft's adapter lies in `adapter`,
the perturbation in `perturbation.safetensors` and `latent_prefix.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from eestim.errors import DataError
from eestim.llm import baselines, perturbations

__all__ = ["load_base", "load_reference", "load_settings", "save", "save_reference"]

_SETTINGS = "latent_prefix.json"
_WEIGHTS = "perturbation.safetensors"
_ADAPTER = "adapter"
_REFERENCE = "reference"
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
_FORMAT = 2  # 1 had neither site nor latent


def save(
    folder: str | Path,
    base: Any,
    tokenizer: Any,
    perturbation: Any,
    settings: dict[str, Any],
) -> None:
    """Write a base, its adapter and its perturbation into a folder."""
    folder = Path(folder)
    _save_base(base, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    content: dict[str, Any] = {"format": _FORMAT, "perturbation": None, **settings}
    if perturbation is not None:
        content["perturbation"] = type(perturbation).__name__
        content["arguments"] = perturbation.config()
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in perturbation.state_dict().items()
        }
        if state:
            save_file(state, folder / _WEIGHTS)
    (folder / _SETTINGS).write_text(json.dumps(content, indent=2) + "\n")


def save_reference(folder: str | Path, reference: Any) -> None:
    """Write the frozen model that reads clean prefixes, beside the base."""
    _save_base(reference, Path(folder) / _REFERENCE)


def load_reference(folder_or_id: str | Path, arguments: dict[str, Any]) -> Any:
    """Return the saved reference, or None where the folder has none."""
    place = Path(folder_or_id) / _REFERENCE
    if not place.is_dir():
        return None
    rest = {k: v for k, v in arguments.items() if k != "gguf_file"}
    return load_base(place, False, rest)[0]


def _save_base(base: Any, folder: Path) -> None:
    """Write the base without, and beside it, its adapter."""
    if not hasattr(base, "peft_config"):
        base.save_pretrained(folder)
        return
    inner = base.get_base_model()
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in inner.state_dict().items()
        if not any(part.startswith("lora_") for part in name.split("."))
    }
    had = inner.__dict__.pop("_hf_peft_config_loaded", None)
    inner.save_pretrained(folder, state_dict=state)
    if had is not None:
        inner._hf_peft_config_loaded = had
    base.save_pretrained(folder / _ADAPTER)


def load_base(
    folder_or_id: str | Path, trainable: bool, arguments: dict[str, Any]
) -> tuple[Any, Any]:
    """Return (base with its adapter, tokenizer or None).

    Raises
    ------
    DataError
        If a folder lacks a configuration or weights.
    """
    place = Path(folder_or_id)
    if place.exists():
        _check_folder(place)
    elif (
        isinstance(folder_or_id, Path)
        or place.is_absolute()
        or place.parts[:1] == (".",)
    ):
        raise DataError(
            f"`folder_or_id` is {folder_or_id}, which does not exist; check the path."
        )
    base: Any = AutoModelForCausalLM.from_pretrained(folder_or_id, **arguments)
    if (place / _ADAPTER).is_dir():
        base = _with_adapter(base, place / _ADAPTER, trainable)
    return base, _tokenizer(folder_or_id, arguments.get("gguf_file"))


def _with_adapter(base: Any, folder: Path, trainable: bool) -> Any:
    """Return the base with a saved adapter, whose parameters train where wanted."""
    from peft import PeftConfig, PeftModel

    if not PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
        return PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    model: Any = PeftModel.from_pretrained(base, folder)  # refuses to train prompts
    model.prompt_encoder.requires_grad_(trainable)
    return model


def load_settings(folder_or_id: str | Path) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return (perturbation or None, site and latent) of a saved folder."""
    path = Path(folder_or_id) / _SETTINGS
    if not path.is_file():
        return None, {}
    saved = json.loads(path.read_text())
    if saved["format"] > _FORMAT:
        raise DataError(
            f"`folder_or_id` is {folder_or_id}, written in format {saved['format']} by "
            f"a newer eestim; this one reads up to {_FORMAT}. Upgrade eestim."
        )
    settings = {name: saved[name] for name in ("site", "latent") if name in saved}
    if saved["perturbation"] is None:
        return None, settings
    kind = saved["perturbation"]
    source: Any = baselines if kind in baselines.KINDS else perturbations
    found: nn.Module = source.from_config(kind, saved["arguments"])
    weights = path.parent / _WEIGHTS
    if weights.is_file():
        found.load_state_dict(load_file(weights))
    elif found.state_dict():
        raise DataError(f"`folder_or_id` is {folder_or_id}, which lacks {_WEIGHTS}.")
    return found, settings


def _check_folder(folder: Path) -> None:
    """Refuse a model folder without a configuration or weights."""
    if not folder.is_dir():
        raise DataError(f"`folder_or_id` is {folder}, a file; give the model's folder.")
    is_gguf = any(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file() and not is_gguf:
        raise DataError(
            f"`folder_or_id` is {folder}, which holds no config.json; give a folder "
            "that save_pretrained wrote."
        )
    found = {path.name for kind in _WEIGHT_FILES for path in folder.glob(kind)}
    if not found - {_WEIGHTS}:
        raise DataError(
            f"`folder_or_id` is {folder}, which holds no weights (*.safetensors, "
            "*.bin or *.gguf); copy them there, or save the model again."
        )


def _tokenizer(folder_or_id: str | Path, gguf_file: str | None) -> Any:
    """Return the tokenizer that lies beside a model, or None."""
    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        return AutoTokenizer.from_pretrained(folder_or_id, **extra)
    except (OSError, ValueError, KeyError):
        return None
