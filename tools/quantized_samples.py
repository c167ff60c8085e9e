"""Golden files of quantized checkpoints, written by the libraries that write such checkpoints.

    python3.11 -m venv VENV
    VENV/bin/pip install -c constraints.txt torch transformers peft accelerate
    VENV/bin/pip install bitsandbytes==0.50.0 compressed-tensors==0.20.0
    VENV/bin/python -m tools.quantized_samples

GPTQModel (7.7, installed with ``--no-deps``) compiles kernels while it quantizes, so that its
weights are made apart: ``… -m tools.quantized_samples gptqmodel FOLDER``, which writes
``grouped.safetensors``.

``tests/data/quantized/weights.safetensors`` holds small weights of odd shapes, each as its library
stores it and, under ``expected.``, as the library's own dequantization returns it. The folder
``llama-nf4`` is a checkpoint of two layers that transformers quantized with bitsandbytes,
``llama-nf4-adapter`` an adapter that PEFT trained on it, and ``llama-nf4-outputs.safetensors`` what
PEFT computes with it over the checkpoint that bitsandbytes dequantized, in float32.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

_FOLDER: Final = Path("tests/data/quantized")
_WORDS: Final = ("in", "summer", "the", "sun", "rises", "early", "and", "in", "winter", "late")
_MODULE: Final = "model.layers.0.self_attn.q_proj."
_STEPS: Final = 60
_WIDE: Final = 100
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)


def _bitsandbytes() -> Tensors:
    """Return weights that bitsandbytes stored, and what it makes of them."""
    from bitsandbytes import functional

    found: Tensors = {}
    shapes = ((130, 129), (5, 33), (33, 128))
    kinds = itertools.product(("nf4", "fp4"), (False, True))
    for at, ((kind, nested), shape) in enumerate(itertools.product(kinds, shapes)):
        weight = torch.randn(shape).to(_DTYPES[(at + at // 3) % 2 if shape[0] > _WIDE else 2])
        size = 64 if at % 2 else 128
        packed, state = functional.quantize_4bit(
            weight, blocksize=size, compress_statistics=nested, quant_type=kind
        )
        name = f"{kind}{'-nested' if nested else ''}-{shape[0]}.weight"
        found[name] = packed
        found |= {f"{name}.{key}": each for key, each in state.as_dict(packed=True).items()}
        found[f"expected.{name}"] = functional.dequantize_4bit(packed, state)
    codes, largest, _ = functional.int8_vectorwise_quant(torch.randn(7, 40).half())
    values = functional.int8_vectorwise_dequant(codes, largest).to(torch.float16)
    found |= {"int8.weight": codes, "int8.SCB": largest, "expected.int8.weight": values}
    found["int8.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return found


def _compressed_tensors() -> Tensors:
    """Return weights that compressed-tensors stored, and what it makes of them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    found: Tensors = {}
    rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("int4-group", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
        ("int4-asymmetric", "pack-quantized",
         {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}),
        ("int8-packed", "pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int3-channel", "pack-quantized", {"num_bits": 3, "strategy": "channel"}),
        ("int8-dense", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("fp8-channel", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("fp8-tensor", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    )  # fmt: skip
    for name, kind, settings in rows:
        args = QuantizationArgs(**settings)
        weight = torch.randn(44, 96).to(torch.bfloat16)
        groups = weight.reshape(44, -1, settings.get("group_size") or 96)
        axes = (0, 1, 2) if settings["strategy"] == "tensor" else (2,)
        scale, zero = calculate_qparams(groups.amin(axes), groups.amax(axes), args)
        if settings["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        compressor = BaseCompressor.get_value_from_registry(kind)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        stored = compressor.compress(state, scheme)
        values = compressor.decompress(stored, scheme)["weight"]
        found |= {f"{name}.{key}": each.contiguous() for key, each in stored.items()}
        found[f"expected.{name}.weight"] = values
    return found


def _gptqmodel(folder: Path) -> Tensors:
    """Return a weight of each method that GPTQModel stored, and what it makes of it.

    Args:
        folder: A small checkpoint in float with its tokenizer, which is quantized.
    """
    import tempfile

    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    found: Tensors = {}
    rows: dict[str, dict[str, Any]] = {
        "gptq": {"bits": 4, "group_size": 32, "desc_act": True, "sym": False},
        "awq": {"bits": 4, "group_size": 32, "quant_method": "awq", "format": "gemm"},
    }
    for name, settings in rows.items():
        model = GPTQModel.load(str(folder), QuantizeConfig(**settings))
        model.quantize([" ".join(_WORDS * 8)] * 16, batch_size=1)
        with tempfile.TemporaryDirectory() as saved:
            model.save(saved)
            tensors = load_file(Path(saved) / "model.safetensors")
            loaded = (
                GPTQModel.load(saved, device="cpu", backend="torch") if name == "gptq" else None
            )
        parts = {key.removeprefix(_MODULE): each for key, each in tensors.items() if _MODULE in key}
        found |= {f"{name}.{key}": each for key, each in parts.items()}
        if loaded is not None:
            values = loaded.model.get_submodule(_MODULE[:-1]).dequantize_weight().T
        else:
            values = dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, 32).T
        found[f"expected.{name}.weight"] = values.contiguous()
    return found


def _tokenizer(folder: Path) -> Any:
    """Save a tokenizer of the few words that the adapter learns; return it."""
    import tokenizers
    import transformers

    special = ("<unk>", "<s>", "</s>")
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys((*special, *_WORDS)))}
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106  (a word)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **names)
    made.save_pretrained(folder)
    return made


def _checkpoint(folder: Path, scratch: Path) -> None:
    """Save a tiny Llama that transformers quantized with bitsandbytes while it loaded it."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.float16).save_pretrained(scratch)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        scratch, quantization_config=settings, dtype=torch.float16, device_map="cpu"
    )
    model.save_pretrained(folder)


def _adapter(base: Path, folder: Path, tokenizer: Any) -> None:
    """Train an adapter on the quantized checkpoint, as QLoRA does, until it knows one sentence."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    settings = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer([" ".join(_WORDS)], return_tensors="pt")["input_ids"]
    for _ in range(_STEPS):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    table = {**json.loads(path.read_text()), "base_model_name_or_path": base.name}
    path.write_text(json.dumps(table, indent=2) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    print(f"loss of {folder.name}: {loss.item():.4f}")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, device_map="cpu").dequantize()
    reference = peft.PeftModel.from_pretrained(plain.float(), folder).eval()
    with torch.no_grad():
        outputs = {"input_ids": batch, "logits": reference(input_ids=batch).logits}
    save_file(outputs, folder.parent / "llama-nf4-outputs.safetensors")


def main() -> None:
    """Write all of them, or those of GPTQModel alone: ``gptqmodel FOLDER``."""
    import sys
    import tempfile

    if sys.argv[1:2] == ["gptqmodel"]:
        save_file(_gptqmodel(Path(sys.argv[2])), _FOLDER / "grouped.safetensors")
        return
    torch.manual_seed(0)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    weights = {**_bitsandbytes(), **_compressed_tensors()}
    save_file({name: each.contiguous() for name, each in weights.items()},
              _FOLDER / "weights.safetensors")  # fmt: skip
    base = _FOLDER / "llama-nf4"
    with tempfile.TemporaryDirectory() as scratch:
        _checkpoint(base, Path(scratch))
    _adapter(base, _FOLDER / "llama-nf4-adapter", _tokenizer(base))


if __name__ == "__main__":
    main()
