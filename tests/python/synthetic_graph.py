"""Attribution graphs made up for tests, as circuit-tracer's JSON: links lead from lower layers to higher ones."""

import json
import random
from pathlib import Path


def graph(*, n_features: int = 60, n_tokens: int = 6, n_layers: int = 4, links_each: int = 8, seed: int = 0) -> dict:
    """A graph with features, an error at each layer and position, tokens and three outputs.

    Links into a feature or output come from lower layers at positions not after its own.
    """
    rng = random.Random(seed)
    words = ["The", " capital", " of", " the", " state", " is", " Dallas", " in", " Texas", ","]
    tokens = [words[i % len(words)] for i in range(n_tokens)]
    nodes = [
        {"node_id": f"E_{i}_{i}", "feature": i, "layer": "E", "ctx_idx": i, "feature_type": "embedding", "clerp": ""}
        for i in range(n_tokens)
    ]
    used = set()
    while len(used) < n_features:
        used.add((rng.randrange(n_layers), rng.randrange(4096), rng.randrange(n_tokens)))
    for layer, number, at in sorted(used):
        nodes.append(
            {
                "node_id": f"{layer}_{number}_{at}",
                "feature": (layer + number) * (layer + number + 1) // 2 + number,
                "layer": str(layer),
                "ctx_idx": at,
                "feature_type": "cross layer transcoder",
                "clerp": f"feature about {words[number % len(words)].strip()}" if number % 3 == 0 else "",
                "activation": rng.uniform(0.5, 20),
            }
        )
    nodes += [
        {"node_id": f"{layer}_-1_{at}", "feature": -1, "layer": str(layer), "ctx_idx": at, "clerp": "",
         "feature_type": "mlp reconstruction error"}
        for layer in range(n_layers) for at in range(n_tokens)
    ]  # fmt: skip
    for k, (word, p) in enumerate((("Austin", 0.5), ("Texas", 0.2), ("Dallas", 0.1))):
        nodes.append(
            {
                "node_id": f"{n_layers}_{k}_{n_tokens - 1}",
                "feature": k,
                "layer": str(n_layers),
                "ctx_idx": n_tokens - 1,
                "feature_type": "logit",
                "clerp": f'Output " {word}" (p={p:.3f})',
                "token_prob": p,
                "is_target_logit": k == 0,
            }
        )
    for node in nodes:
        node["jsNodeId"] = f"{node['layer']}_{node['feature']}-{node['ctx_idx']}"
    return {
        "metadata": {
            "slug": "made-up", "scan": "none", "prompt": "".join(tokens), "prompt_tokens": tokens, "schema_version": 1,
            "node_threshold": 0.8,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": _links(nodes, links_each, rng),
    }  # fmt: skip


def _links(nodes: list[dict], links_each: int, rng: random.Random) -> list[dict]:
    level = {node["node_id"]: -1 if node["layer"] == "E" else int(node["layer"]) for node in nodes}
    ordered = sorted(nodes, key=lambda node: level[node["node_id"]])
    below: dict[int, int] = {}
    for place, node in enumerate(ordered):
        below.setdefault(level[node["node_id"]], place)
    links = []
    for node in ordered:
        if node["feature_type"] not in ("cross layer transcoder", "logit"):
            continue
        end = below[level[node["node_id"]]]
        for other in {rng.randrange(end) for _ in range(links_each * 3)}:
            source = ordered[other]
            if source["ctx_idx"] <= node["ctx_idx"] and source["feature_type"] != "logit":
                weight = rng.gauss(0.3, 1)
                links.append({"source": source["node_id"], "target": node["node_id"], "weight": weight})
                if len(links) % links_each == 0:
                    break
    return links


def write(path: Path, **options) -> Path:
    path.write_text(json.dumps(graph(**options)), encoding="utf-8")
    return path
