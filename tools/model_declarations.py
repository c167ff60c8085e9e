"""Write ``lora_export/core/data/declarations.json``: what transformers declares for its models.

    python -m tools.model_declarations          write the file
    python -m tools.model_declarations --check  compare it with the installed transformers

See `lora_export.core.declarations`. Every class is built on the meta device from its default config
(with few layers), because ties and the models inside a model may depend on it; of a class that
cannot be built so, the class attributes count. A minute for 1,900 classes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping, models
from transformers.models.auto import configuration_auto, modeling_auto

from lora_export.core.declarations import DECLARATIONS, OWN_CONFIG
from lora_export.graph.trace.conversion_rules import read_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["build", "declared", "model_classes"]

_TASKS: Final = {
    "FEATURE_EXTRACTION": modeling_auto.MODEL_MAPPING_NAMES,
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
_DEPTHS: Final = frozenset(
    {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
     "num_encoder_layers", "num_decoder_layers", "depth", "num_blocks"}
)  # fmt: skip
_NEEDED: Final[dict[str, dict[str, Any]]] = {
    "autoformer": {"prediction_length": 4},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "informer": {"prediction_length": 4},
    "ministral": {"head_dim": 128},
    "reformer": {"is_decoder": True},
    "time_series_transformer": {"prediction_length": 4},
}
"""Settings that the default config of a model type needs to be built."""

_VARIANTS: Final[dict[str, tuple[str, object]]] = {
    "DebertaForMaskedLM": ("legacy", False),
    "DebertaV2ForMaskedLM": ("legacy", False),
    "IdeficsForVisionText2Text": ("additional_vocab_size", 0),
    "MarianMTModel": ("share_encoder_decoder_embeddings", False),
    "MarianModel": ("share_encoder_decoder_embeddings", False),
}
"""A key of the config, by class, that changes its ties, with the value that is not the default."""


def model_classes() -> dict[str, type[Any]]:
    """Return every model class of transformers by name, those that it cannot import left out."""
    found: dict[str, type[Any]] = {}
    for family in pkgutil.iter_modules(models.__path__):
        package = importlib.import_module(f"{models.__name__}.{family.name}")
        for each in pkgutil.iter_modules(getattr(package, "__path__", [])):
            if not each.name.startswith("modeling_"):
                continue
            try:
                module = importlib.import_module(f"{package.__name__}.{each.name}")
            except ImportError:
                continue
            found |= dict(_own_models(module))
    return dict(sorted(found.items()))


def _own_models(module: Any) -> Iterator[tuple[str, type[Any]]]:
    for name, member in vars(module).items():
        if not inspect.isclass(member) or member.__module__ != module.__name__:
            continue
        if issubclass(member, PreTrainedModel) and not name.endswith("PreTrainedModel"):
            cls: Any = member
            if getattr(cls.config_class, "model_type", ""):
                yield name, cls


def build(cls: Any, settings: Mapping[str, Any] | None = None, *, whole: bool = False) -> Any:
    """Return a model of default sizes on the meta device; None where it cannot be built so.

    Args:
        cls: Its class.
        settings: What differs from the default config.
        whole: Whether it has all layers of the default config; a few otherwise.
    """
    for shrunk in (False,) if whole else (True, False):
        if (model := _built(cls, settings or {}, shrunk=shrunk)) is not None:
            return model
    return None


def _built(cls: Any, settings: Mapping[str, Any], *, shrunk: bool) -> Any:
    try:
        config = cls.config_class(**{**_NEEDED.get(cls.config_class.model_type, {}), **settings})
        if shrunk:
            _shrink(config, set())
        with ExitStack() as stack:
            for each in cls.get_init_context(torch.float32, False, False, None):  # noqa: FBT003
                stack.enter_context(each)
            return cls(config)
    except Exception:  # noqa: BLE001  (whatever a class raises for such a config)
        return None


def _shrink(config: Any, seen: set[int]) -> None:
    """Give a config, and those inside it, two layers."""
    seen.add(id(config))
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            if id(value) not in seen:
                _shrink(value, seen)
        elif key in _DEPTHS and isinstance(value, int) and value > 2:  # noqa: PLR2004
            setattr(config, key, 2)


def declared(names: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """Return the content of the file, as read from the installed transformers.

    Args:
        names: Of which classes and model types; all of them take a minute.
    """
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    conversions: list[Any] = []
    rules = {key: _indices(value, conversions) for key, value in _rules().items()}
    ties: list[Any] = []
    parts: list[Any] = []
    classes: dict[str, Any] = {}
    for name, cls in model_classes().items():
        if names(name):
            row = _class_row(name, cls, frozenset(rules))
            for key, table in (("ties", ties), ("parts", parts)):
                if row[key]:
                    row[key] = _indices([row[key]], table)[0]
            classes[name] = {key: value for key, value in row.items() if value not in ("", {}, [])}
    return {
        "transformers": transformers.__version__,
        "aliases": _aliases(),
        "types": _types(names),
        "classes": classes,
        "ties": ties,
        "parts": parts,
        "rules": rules,
        "conversions": conversions,
    }


def _indices(rows: list[Any], table: list[Any]) -> list[int]:
    """Return where each of `rows` stands in `table`; append those that do not."""
    table.extend(row for row in rows if row not in table)
    return [table.index(row) for row in rows]


def _rules() -> dict[str, list[Any]]:
    found = {}
    for key in conversion_mapping._build_checkpoint_conversion_mapping():  # noqa: SLF001
        read = map(read_rule, conversion_mapping.get_checkpoint_conversion_mapping(key) or ())
        found[key] = [[each.pattern, list(each.targets), list(each.operations)] for each in read]
    return dict(sorted(found.items()))


def _class_row(name: str, cls: Any, ruled: frozenset[str]) -> dict[str, Any]:
    model = build(cls)
    ties = _ties(model, cls)
    varying = model is not None and ties != _ties(None, cls) and name not in _VARIANTS
    if varying:
        ties = _ties(build(cls, whole=True), cls)
    parts = list(_parts(model, ruled)) if model is not None else []
    row: dict[str, Any] = {
        "type": cls.config_class.model_type,
        "prefix": cls.base_model_prefix or "",
        "ties": ties,
        "parts": parts,
        "input": _input_embedding(model) if ties or parts else "",
    }
    if name in _VARIANTS:
        key, value = _VARIANTS[name]
        row["variants"] = [[key, value, _ties(build(cls, {key: value}), cls)]]
    if varying:
        row["varying"] = True
    return row


def _input_embedding(model: Any) -> str:
    """Return the path of the module of a model's token embeddings; ``""`` where it has none."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return ""
    modules = model.named_modules(remove_duplicate=False) if found is not None else ()
    return next((path for path, module in modules if module is found), "")


def _ties(model: Any, cls: Any) -> dict[str, str]:
    ties = getattr(cls if model is None else model, "_tied_weights_keys", None)
    return dict(ties) if isinstance(ties, dict) else {}


def _parts(model: Any, ruled: frozenset[str]) -> Iterator[list[str]]:
    sections = {**dict(_sections(model.config, "")), id(model.config): ""}
    for path, each in model.named_modules():
        if not path or not isinstance(each, PreTrainedModel):
            continue
        section = sections.get(id(each.config), OWN_CONFIG)
        keys = {type(each).__name__, each.config.model_type}
        if section not in ("", OWN_CONFIG) or keys & ruled or _ties(each, type(each)):
            yield [path, type(each).__name__, section]


def _sections(config: Any, path: str) -> Iterator[tuple[int, str]]:
    """Yield the identity and the path of each config inside `config`."""
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig) and value is not config:
            inner = f"{path}.{key}" if path else key
            yield id(value), inner
            yield from _sections(value, inner)


def _aliases() -> dict[str, str]:
    found = {}
    for model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        own = configuration_auto.CONFIG_MAPPING[model_type].model_type
        if own != model_type:
            found[model_type] = own
    return found


def _types(names: Callable[[str], bool]) -> dict[str, Any]:
    config_classes = {
        cls.config_class.model_type: cls.config_class for cls in model_classes().values()
    }
    for model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        config_classes[model_type] = configuration_auto.CONFIG_MAPPING[model_type]
    found = {}
    for model_type, config_class in sorted(config_classes.items()):
        if not names(model_type):
            continue
        row: dict[str, Any] = _tied(config_class)
        tasks = {task: _first(names.get(model_type)) for task, names in _TASKS.items()}
        row["tasks"] = {task: name for task, name in tasks.items() if name}
        found[model_type] = {key: value for key, value in row.items() if value}
    return found


def _first(name: Any) -> str | None:
    first: str | None = name[0] if isinstance(name, tuple) else name
    return first


def _tied(config_class: Any) -> dict[str, str]:
    """Return what ``tie_word_embeddings`` becomes, for each value in the file: T, F, or ``?``.

    Three letters: the key is missing, false, true. Where the config has a section of a text model
    there are six: the section has it false, then true.
    """
    try:
        default = config_class()
    except Exception:  # noqa: BLE001
        return {}
    text = dict(_sections(default, "")).get(id(_text(default)), "")
    values: tuple[bool | None, ...] = (None, False, True)
    if not text:
        return {"tied": "".join(_letter(config_class, _given(value)) for value in values)}
    text_type = _text(default).model_type
    letters = ""
    for inner in (False, True):
        section: Mapping[str, Any] = {"model_type": text_type, "tie_word_embeddings": inner}
        for key in reversed(text.split(".")):
            section = {key: section}
        letters += "".join(_letter(config_class, {**_given(value), **section}) for value in values)
    return {"tied": letters, "text": text, "text_type": text_type}


def _given(value: bool | None) -> dict[str, Any]:  # noqa: FBT001
    return {} if value is None else {"tie_word_embeddings": value}


def _text(config: Any) -> Any:
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        return config


def _letter(config_class: Any, settings: Mapping[str, Any]) -> str:
    try:
        config = config_class(**settings)
    except Exception:  # noqa: BLE001
        return "?"
    return "T" if getattr(config, "tie_word_embeddings", False) else "F"


def _encoded(table: dict[str, Any]) -> str:
    """Return the file's text: one line for each entry, so that a new version's changes show."""
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f'"{key}": {{\n{rows}\n}}')
        elif isinstance(value, list):
            rows = ",\n".join(f" {json.dumps(row)}" for row in value)
            lines.append(f'"{key}": [\n{rows}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    """Write the file, or compare it; return 1 where it differs."""
    text = _encoded(declared())
    if "--check" in sys.argv[1:]:
        same = DECLARATIONS.read_text("utf-8") == text
        print(f"{DECLARATIONS}: {'' if same else 'not '}as transformers {transformers.__version__}")
        return 0 if same else 1
    DECLARATIONS.write_text(text, "utf-8")
    print(f"{DECLARATIONS}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
