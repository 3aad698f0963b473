"""What TransformerLens 2 and 3 have and this library does not, and what to use instead.

``MODEL`` has attributes of a model, ``UTILS`` functions of ``utils``, ``PACKAGE`` names of the package. Whoever asks
for one of them gets an AttributeError with its sentence. What is not listed and not here is an oversight: say so.
"""

from __future__ import annotations

import difflib
import dis
import sys
from collections.abc import Iterable, Mapping

MODEL: dict[str, str] = {
    "mps": "models run on the CPU or CUDA: load the model with device=",
    "move_model_modules_to_device": "weights do not move: load the model with device=",
    "half": "weights do not change their dtype: load the model with dtype='float16'",
    "bfloat16": "weights do not change their dtype: load the model with dtype='bfloat16'",
    "float": "weights do not change their dtype: load the model with dtype='float32'",
    "double": "weights do not change their dtype: load the model with dtype='float64'",
    "setup": "hook points are there from the start; HookedRootModule.setup is for modules of your own",
    "check_hooks_to_add": "add_hook itself checks what is hooked in",
    "check_and_add_hook": "add_hook checks what is hooked in",
    "cache_all": "use run_with_cache, or add_caching_hooks",
    "cache_some": "use run_with_cache(names_filter=...), or add_caching_hooks(names_filter)",
    "get_pos_offset": "a cache knows its own length: len(cache.native)",
    "get_residual": "use input_to_embed, or run_with_cache and 'hook_embed'",
    "fill_missing_keys": "use load_state_dict(state_dict, strict=False)",
    "fold_layer_norms": "use fold_layer_norm",
    "is_caching": "run_with_cache leaves nothing behind, and add_caching_hooks shows in hook_dict",
    "register_forward_hook": "use add_hook or hooks(), which take the name of a point",
    "register_full_backward_hook": "use add_hook(name, hook, 'bwd')",
    "register_forward_pre_hook": "use add_hook at 'hook_embed' or at a block's 'hook_resid_pre'",
    "register_buffer": "a model here holds the weights of its checkpoint only",
    "register_parameter": "a model here holds the weights of its checkpoint only",
    "apply": "a model here is no torch.nn.Module; state_dict and load_state_dict read and change its weights",
    "share_memory": "a model can be used from several threads as it is",
    "compile": "the engine is compiled already",
    "boot_transformers": "use HookedTransformer.from_pretrained",
    "enable_compatibility_mode": "this is the compatible face: from_pretrained(fold_ln=True, ...) processes weights",
    "original_model": "weights were read into the engine; state_dict() has them",
    "tokens_to_train": "introspect.finetune trains a model",
}

UTILS: dict[str, str] = {
    "clear_huggingface_cache": "it deletes every model and data set on the machine; `hf cache` asks first",
    "get_rotary_pct_from_config": "model.cfg.rotary_dim has the number of dimensions that are rotated",
    "get_device_for_block_index": "a model lives on one device: model.cfg.device",
    "get_best_available_device": "use get_device()",
    "get_best_available_cuda_device": "use get_device()",
    "move_to_and_update_config": "weights do not move: load the model with device=",
    "sort_devices_based_on_available_memory": "a model lives on one device",
    "calculate_available_device_cuda_memory": "torch.cuda.mem_get_info tells it",
    "resolve_device_map": "a model lives on one device: load it with device=",
    "warn_if_mps": "models run on the CPU or CUDA",
    "TypedModuleList": "torch.nn.ModuleList does, in modules of your own",
    "logits_to_df": "logits.softmax(-1).topk(k) and model.to_str_tokens make the columns",
    "temporarily_swap_parameter": "model.native.with_weights gives a second model that shares all other weights",
    "addmm": "torch.addmm does",
    "vanilla_addmm": "torch.addmm does",
    "batch_addmm": "torch.addmm does",
}

PACKAGE: dict[str, str] = {
    "HookedEncoder": "encoders such as BERT are not run: models here read from left to right",
    "HookedEncoderDecoder": "encoder-decoders such as T5 are not run: models here read from left to right",
    "HookedAudioEncoder": "models of sound are not run",
    "HookedVisualEncoder": "models of images are not run",
    "BertNextSentencePrediction": "encoders such as BERT are not run: models here read from left to right",
    "TransformerBridge": "use introspect.HookedTransformer, which has the methods of TransformerLens 2 and 3",
    "ActivationCacheBridge": "use introspect.ActivationCache",
    "train": "a torch optimiser on model.parameters() trains a model of your own, introspect.finetune a checkpoint",
    "components": "model.blocks[i] and its parts can be called; nn.Modules of your own go into a HookedRootModule",
    "factories": "model.blocks[i] has the parts of a block",
    "HookedSAE": "use introspect.SAE",
    "benchmarks": "tests/benchmarks of the repository measures this library",
    "model_bridge": "use introspect.HookedTransformer",
    "supported_models": "introspect.transformer_lens.loading.OFFICIAL_MODEL_NAMES lists the names",
}


def missing(owner: str, name: str, table: Mapping[str, str], known: Iterable[str] = ()) -> str:
    """What to say of an attribute that is not there: what to use instead, or the names that are near it."""
    message = f"{owner} has no attribute {name!r}"
    if name in table:
        return f"{message}: {table[name]}"
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.75)
    return f"{message}; near it: {', '.join(near)}" if near else message


def raise_missing(owner: str, name: str, table: Mapping[str, str], known: Iterable[str] = ()) -> None:
    """Raises an AttributeError for a module's name, or an ImportError where ``from owner import name`` asks for it.

    Python answers an AttributeError of such a statement with one of its own, which says nothing of what to do instead.
    """
    message = missing(f"module {owner!r}", name, table, known)
    asking = sys._getframe(2)  # of whoever asked the module's __getattr__
    code = asking.f_code.co_code
    if name in table and asking.f_lasti >= 0 and dis.opname[code[asking.f_lasti]] == "IMPORT_FROM":
        raise ImportError(f"cannot import {name!r} from {owner!r}: {table[name]}", name=name)
    raise AttributeError(message)
