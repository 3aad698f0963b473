"""``introspect info``: what a model is."""

from __future__ import annotations

from typing import Any

from .common import DeviceOption, Dtype, DtypeOption, Json, Model, guarded, load_model, print_json


@guarded
def command(model: Model, dtype: DtypeOption = Dtype.float32, device: DeviceOption = "cpu", json: Json = False) -> None:
    """Show architecture, parameters, memory, tokenizer and chat format of a model."""
    facts = _facts(load_model(model, dtype, device), dtype.value)
    if json:
        print_json(facts)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in _lines(facts):
        table.add_row(f"[dim]{name}[/dim]", escape(text))
    Console().print(table, highlight=False)


def _facts(model: Any, dtype: str) -> dict[str, Any]:
    c = model.cfg
    tokenizer = model.tokenizer
    element = 4 if dtype == "float32" else 2
    return {
        "name": model.name,
        "hash": model.hash,
        "architecture": c.original_architecture,
        "parameters": model.native.n_params,
        "dtype": model.native.precision,
        "weight_bytes": model.native.nbytes,
        "kv_bytes_per_token": 2 * c.n_layers * c.n_key_value_heads * c.d_head * element,
        "n_layers": c.n_layers,
        "d_model": c.d_model,
        "n_heads": c.n_heads,
        "n_key_value_heads": c.n_key_value_heads,
        "d_head": c.d_head,
        "d_mlp": c.d_mlp,
        "d_vocab": c.d_vocab,
        "n_ctx": c.n_ctx,
        "rotary_base": c.rotary_base,
        "tie_word_embeddings": c.tie_word_embeddings,
        "tokenizer": tokenizer.kind if tokenizer else None,
        "vocab_size": tokenizer.vocab_size if tokenizer else None,
        "chat_format": model.native.chat_template.name if model.native.has_chat_template else None,
    }


def _lines(f: dict[str, Any]) -> list[tuple[str, str]]:
    heads = f"{f['n_heads']} heads of {f['d_head']}, {f['n_key_value_heads']} for keys and values"
    tied = "tied to the embedding" if f["tie_word_embeddings"] else "separate"
    tokenizer = f"{f['tokenizer']}, {f['vocab_size']:,} tokens" if f["tokenizer"] else "none in the model's files"
    return [
        ("model", f["name"]),
        (
            "architecture",
            f"{f['architecture']}, {f['n_layers']} blocks, d_model {f['d_model']:,}, d_mlp {f['d_mlp']:,}",
        ),
        ("attention", f"{heads}, rotary base {f['rotary_base']:,.0f}, up to {f['n_ctx']:,} tokens"),
        ("vocabulary", f"{f['d_vocab']:,} rows, unembedding {tied}"),
        ("parameters", f"{f['parameters'] / 1e6:,.1f} million"),
        (
            "memory",
            f"{f['weight_bytes'] / 1e6:,.0f} MB in {f['dtype']}, {f['kv_bytes_per_token'] / 1e3:,.1f} kB a token",
        ),
        ("tokenizer", tokenizer),
        ("chat format", f["chat_format"] or "none"),
        ("hash", f["hash"]),
    ]
