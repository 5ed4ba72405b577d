"""Make a tiny model that SGLang serves in seconds: `python -m tests.serving.model FOLDER`.

Two layers of Qwen3 with random weights and a tokenizer of single bytes. The weights are drawn wide
enough that the logits lie far apart: a wrong byte of KV changes the tokens, which the weights of
`--load-format dummy` would hide.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "models"
CONTEXT_LENGTH = 8192
TEXT_TOKEN_COUNT = 256
"""Token ids below this are bytes of text; any of them may stand in a prompt."""
WEIGHT_DEVIATION = 0.3
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "vocab_size": 512,
    "max_position_embeddings": CONTEXT_LENGTH,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": TEXT_TOKEN_COUNT,
    "eos_token_id": TEXT_TOKEN_COUNT,
    "torch_dtype": "bfloat16",
}


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary["<|end|>"], vocabulary["<|pad|>"] = TEXT_TOKEN_COUNT, TEXT_TOKEN_COUNT + 1
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": CONTEXT_LENGTH,
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "assistant:",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _save_weights(folder: Path) -> None:
    # Written by hand and not by transformers, whose import needs torchvision's compiled half.
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * WEIGHT_DEVIATION).to(torch.bfloat16)

    def ones(count: int) -> torch.Tensor:
        return torch.ones(count, dtype=torch.bfloat16)

    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    query = CONFIG["num_attention_heads"] * head
    key = CONFIG["num_key_value_heads"] * head
    weights = {
        "model.embed_tokens.weight": random(CONFIG["vocab_size"], hidden),
        "model.norm.weight": ones(hidden),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        weights |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": ones(hidden),
                "self_attn.q_proj": random(query, hidden),
                "self_attn.k_proj": random(key, hidden),
                "self_attn.v_proj": random(key, hidden),
                "self_attn.o_proj": random(hidden, query),
                "self_attn.q_norm": ones(head),
                "self_attn.k_norm": ones(head),
                "post_attention_layernorm": ones(hidden),
                "mlp.gate_proj": random(inner, hidden),
                "mlp.up_proj": random(inner, hidden),
                "mlp.down_proj": random(hidden, inner),
            }.items()
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
    generation = {"bos_token_id": TEXT_TOKEN_COUNT, "eos_token_id": TEXT_TOKEN_COUNT}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def make_model(folder: Path) -> None:
    """Write the model into `folder`, which is whole or not there at all. Takes some seconds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "model"
        unfinished.mkdir()
        _save_tokenizer(unfinished)
        _save_weights(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # Another process was faster; its model is the same.
            if not (folder / "config.json").exists():
                raise


def tiny_model() -> Path:
    """Return the folder of the tiny model, made on first use and kept until this file changes."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / f"tiny-qwen3-{version}"
    if not (folder / "config.json").exists():
        # A process of its own: transformers and its imports stay out of the caller.
        command = [sys.executable, "-m", "tests.serving.model", str(folder)]
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2])
    return folder


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
