"""What is asked of detect_head, TransformerLens's or ours; slow/test_head_detector.py runs it on both."""

import importlib

import torch


def detections(model, tokens):
    """Scores for every pattern, measure and exclusion, of one text, of several, and of a cache that is used twice."""
    theirs = type(model).__module__.startswith("transformer_lens")
    package = "transformer_lens" if theirs else "introspect"
    detector = importlib.import_module(f"{package}.head_detector")
    tokens = torch.tensor(tokens)
    text, texts = tokens[:1], tokens
    if theirs:  # which takes text; these models have no tokenizer
        model.to_tokens = lambda seq: torch.cat(seq) if isinstance(seq, list) else seq
        texts = list(tokens[:, None])
    _, cache = model.run_with_cache(text, remove_batch_dim=True)
    own = torch.zeros(tokens.shape[1], tokens.shape[1])
    own[3, 1] = own[5, 5] = own[6, 0] = 1
    results = {}
    for name in ("previous_token_head", "duplicate_token_head", "induction_head"):
        results[f"pattern of {name}"] = getattr(detector, f"get_{name}_detection_pattern")(text)
        for measure in ("mul", "abs"):
            for bos in (False, True):
                for current in (False, True):
                    how = {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
                    results[f"{name} {how}"] = detector.detect_head(model, text, name, **how)
                    results[f"{name} {how}, from a cache"] = detector.detect_head(model, text, name, cache=cache, **how)
                    results[f"{name} {how}, several"] = detector.detect_head(model, texts, name, **how)
    results["a pattern of one's own"] = detector.detect_head(model, text, own)
    results["some heads"] = detector.detect_head(model, text, "previous_token_head", heads=[(0, 1), (2, 3)])
    results["some heads by layer"] = detector.detect_head(model, text, "induction_head", heads={1: [0, 2]})
    results["the cache afterwards"] = cache["pattern", 1]
    return results
