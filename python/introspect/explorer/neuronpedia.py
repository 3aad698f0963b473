"""Neuronpedia's inference routes, as far as this library answers them, so that its clients can use us as a back end.

Field names, shapes and the meaning of "model", "source" and "index" are those of its server 1.9; requests in snake_case
are read too. A source is the name of an opened dictionary. Everything needs the token, as x-secret-key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .dictionaries import Dictionaries
from .fields import Fields, Refused
from .json_text import Json, dumps
from .model_views import body, needed
from .session import MOST_TOKENS, Session
from .worker import Worker

MOST_PROMPTS = 64
MOST_NEW_TOKENS = 1_000
NOT_SERVED = {
    "/activation/single-batch": "send /v1/activation/single once for each prompt",
    "/activation/all-batch": "send /v1/activation/all once for each prompt",
    "/activation/topk-by-token-batch": "send /v1/activation/topk-by-token once for each prompt",
    "/util/similarity-matrix-pred": "it is not part of this library",
    "/persona/monitor": "it is not part of this library",
}


class Backend:
    """The answers, one method a route; each gets the request's fields and runs in the worker's thread."""

    def __init__(self, session: Session, dictionaries: Dictionaries | None) -> None:
        self.session, self._dictionaries = session, dictionaries

    @property
    def dictionaries(self) -> Dictionaries:
        if self._dictionaries is None:
            raise Refused("no dictionary (source) is open here: introspect explore MODEL --sae DIR")
        return self._dictionaries

    def _special(self, ids: list[int]) -> list[bool]:
        tokenizer = self.session.model.tokenizer
        return [bool(tokenizer and tokenizer.is_special(one)) for one in ids]

    def tokenize(self, fields: Fields) -> dict[str, Any]:
        tokenizer, text = self.session.model.tokenizer, fields.text("text")
        adds = self.session.encode(text)[0].tolist()
        plain = tokenizer.encode(text, add_special_tokens=False) if tokenizer else adds
        wanted = fields.flag("prepend_bos", adds != plain)
        bos = getattr(tokenizer, "bos_token_id", None)
        ids = plain if not wanted or bos is None else [bos, *plain]
        return {"tokens": ids, "tokenStrings": self.session.shown(ids), "prependBos": wanted and bos is not None}

    def single(self, fields: Fields) -> dict[str, Any]:
        tokens = self.session.encode(fields.text("prompt"))
        ids = tokens[0].tolist()
        by_feature = fields.has("source") and fields.has("index")
        if by_feature == (fields.has("vector") and fields.has("hook")):
            raise Refused("exactly one of source and index, or vector and hook, is needed")
        if by_feature:
            values = self.dictionaries.values(fields.text("source"), tokens, fields.integer("index", 0, 1 << 40))
        else:
            values = self._project(tokens, fields.text("hook", most=200), fields.numbers("vector", 1 << 20))
        special = self._special(ids)
        if by_feature:
            values = [0.0 if is_special else value for value, is_special in zip(values, special, strict=True)]
        bos = getattr(self.session.model.tokenizer, "bos_token_id", None)
        start = 1 if by_feature and bos is not None and ids[0] == bos and len(ids) > 1 else 0
        values = values[start:]
        most = max(values)
        return {
            "activation": {"values": values, "maxValue": most, "maxValueIndex": values.index(most)},
            "tokens": self.session.shown(ids[start:]),
            "tokensIsSpecial": special[start:],
        }

    def _project(self, tokens: Any, hook: str, vector: list[float]) -> list[float]:
        import torch

        model = self.session.model
        model.native.check_hook_name(hook)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, [hook], logits_at="none")
        x = cache[hook][0].float().flatten(1)
        if len(vector) != x.shape[1]:
            raise Refused(f"vector must have {x.shape[1]} numbers at {hook}, got {len(vector)}")
        return (x @ torch.tensor(vector)).tolist()

    def all(self, fields: Fields) -> dict[str, Any]:
        tokens = self.session.encode(fields.text("prompt"))
        ids = tokens[0].tolist()
        names = self.dictionaries.names
        of_set = [name for name in names if name.endswith(fields.text("source_set", ""))]
        chosen = fields.texts("selected_sources", 256, []) or of_set
        if not chosen:
            raise Refused(f"no opened dictionary is of the source set; there are {', '.join(names)}")
        at = fields.integers("sort_by_token_indexes", 0, len(ids) - 1, len(ids), [])
        most = fields.integer("num_results", 1, 1_000, 25)
        found = []
        for name in chosen:
            values = self.dictionaries.encode(name, tokens)
            if fields.flag("ignore_bos", True):
                values[[i for i, special in enumerate(self._special(ids)) if special and i == 0]] = 0
            sums = values[at].sum(0) if at else values.max(0).values * 0
            key = sums if at else values.max(0).values
            for one in key.topk(min(most, key.numel())).indices.tolist():
                column = values[:, one]
                found.append(
                    {
                        "source": name,
                        "index": one,
                        "values": column.tolist(),
                        "sumValues": float(sums[one]),
                        "maxValue": float(column.max()),
                        "maxValueIndex": int(column.argmax()),
                    }
                )
        found.sort(key=lambda row: -(row["sumValues"] if at else row["maxValue"]))
        return {"activations": found[:most], "tokens": self.session.shown(ids)}

    def topk_by_token(self, fields: Fields) -> dict[str, Any]:
        tokens = self.session.encode(fields.text("prompt"))
        ids = tokens[0].tolist()
        values = self.dictionaries.encode(fields.text("source"), tokens)
        special, shown = self._special(ids), self.session.shown(ids)
        if fields.flag("ignore_bos", True) and special[0]:
            values[0] = 0
        top, which = values.topk(min(fields.integer("top_k", 1, 100, 5), values.shape[1]))
        results = [
            {
                "tokenPosition": i,
                "token": shown[i],
                "isSpecial": special[i],
                "topFeatures": [
                    {"featureIndex": one, "activationValue": value}
                    for one, value in zip(which[i].tolist(), top[i].tolist(), strict=True)
                ],
            }
            for i in range(len(ids))
        ]
        return {"results": results, "tokens": shown}

    def source(self, fields: Fields) -> dict[str, Any]:
        name, results = fields.text("source"), []
        for prompt in fields.texts("prompts", MOST_PROMPTS):
            tokens = self.session.encode(prompt)
            values = self.dictionaries.encode(name, tokens)
            active: dict[str, list[list[float]]] = {}
            for position, one in values.nonzero().tolist():
                active.setdefault(str(one), []).append([position, float(values[position, one])])
            results.append({"tokens": self.session.shown(tokens[0]), "activeFeatures": active})
        return {"results": results}

    def raw(self, fields: Fields) -> dict[str, Any]:
        import torch

        model = self.session.model
        n_layers = model.cfg.n_layers
        layers = fields.integers("layers", 0, n_layers - 1, n_layers, []) or list(range(n_layers))
        fields.choice("hook_point", ("residual_stream",), "residual_stream")
        fields.choice("type", ("final_output_token",), "final_output_token")
        names, results = [f"blocks.{layer}.hook_resid_post" for layer in layers], []
        for prompt in fields.texts("prompts", MOST_PROMPTS):
            tokens = self.session.encode(prompt)
            with torch.no_grad():
                _, cache = model.run_with_cache(tokens, names, logits_at="none")
            last = tokens.shape[1] - 1
            results.append(
                {
                    "tokenStrings": self.session.shown(tokens[0]),
                    "tokenIds": tokens[0].tolist(),
                    "activations": [
                        {"layer": layer, "tokenIndices": [last], "values": [cache[name][0, last].float().tolist()]}
                        for layer, name in zip(layers, names, strict=True)
                    ],
                }
            )
        about = {"hookPoint": "residual_stream", "type": "final_output_token"}
        return {**about, "dtype": model.native.precision, "device": str(model.device), "results": results}

    def attention(self, fields: Fields) -> dict[str, Any]:
        """Of each query the keys that hold most of its attention, as flat numbers q n + k."""
        import torch

        model = self.session.model
        tokens = self.session.encode(fields.text("prompt"))
        n, keys = tokens.shape[1], 16
        layer = fields.integer("layer", 0, model.cfg.n_layers - 1)
        head = fields.integer("head", 0, model.cfg.n_heads - 1)
        name = f"blocks.{layer}.attn.hook_pattern"
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, [name], logits_at="none")
        pattern = cache[name][0, head].float()
        values, which = pattern.topk(min(keys, n))
        kept = values > 1e-4
        flat = which + torch.arange(n)[:, None] * n
        inner = pattern[1:, 1:]
        return {
            "seqLen": n,
            "attentionIndices": flat[kept].tolist(),
            "attentionValues": values[kept].tolist(),
            "maxActivation": float(inner.max()) if inner.numel() else 0.0,
            "tokens": self.session.shown(tokens[0]),
        }

    def sae_vector(self, fields: Fields) -> dict[str, Any]:
        name, index = fields.text("source"), fields.integer("index", 0, 1 << 40)
        self.dictionaries.check_feature(name, index)
        return {"vector": self.dictionaries.decoder(name)[index].tolist(), "hookName": self.dictionaries.hook(name)}

    def decoder_cossim(self, fields: Fields) -> dict[str, Any]:
        import torch

        name = fields.text("source")
        most = min(fields.integer("num_results", 1, 1 << 20), 128)
        feature = fields.object("feature", None)
        if (feature is None) == (not fields.has("vector")):
            raise Refused("exactly one of feature and vector is needed")
        asked = None
        if feature is not None:
            of, index = feature.text("source"), feature.integer("index", 0, 1 << 40)
            self.dictionaries.check_feature(of, index)
            direction = self.dictionaries.decoder(of)[index]
            asked = {"model": self.session.name, "source": of, "index": index}
        else:
            direction = torch.tensor(fields.numbers("vector", 1 << 20))
        nearest = self.dictionaries.nearest(name, direction, most)
        listed = [
            {"feature": {"model": self.session.name, "source": name, "index": one}, "cosineSimilarity": value}
            for one, value in nearest
        ]
        return {"feature": asked, "topkDecoderCossimFeatures": listed}

    def lens(self, fields: Fields) -> list[dict[str, Any]]:
        """The messages of /lens/prompt: meta, prompt, a token each, done."""
        from ..analysis import logit_lens

        kinds = fields.texts("type", 2)
        if kinds != ["LOGIT_LENS"]:
            raise Refused(f"the logit lens is served (type: [LOGIT_LENS]), got {', '.join(kinds)[:80]}")
        for name in ("steer_tokens", "input_token_ids", "cached_token_ids"):
            if fields.sequence(name, 1 << 20, []):
                raise Refused(f"{name} is not served")
        if fields.integer("num_completion_tokens", 0, 1 << 20, 0):
            raise Refused("num_completion_tokens is not served: generate with /v1/steer/completion, then read the text")
        chat = fields.objects("chat", 200, [])
        text = fields.text("prompt", "")
        if chat:
            messages = [{"role": one.text("role"), "content": one.text("content")} for one in chat]
            text = self.session.model.apply_chat_template(messages, add_generation_prompt=True)
        tokens = self.session.encode(text)
        n_layers = self.session.model.cfg.n_layers
        layers = sorted({*(fields.integers("layers", 0, n_layers - 1, n_layers, []) or range(n_layers)), n_layers - 1})
        top = min(fields.integer("top_n", 1, 100, 10), self.session.model.cfg.d_vocab)
        table = logit_lens(self.session.model, tokens, top_k=top, layers=layers)
        shown, ids = self.session.shown(tokens[0]), tokens[0].tolist()
        probabilities = table.top_log_probs.exp()
        meta = {
            "kind": "meta",
            "model": self.session.name,
            "types": kinds,
            "layers_by_type": {"LOGIT_LENS": layers},
            "top_n": top,
            "prompt_len": len(ids),
            "num_completion_tokens": 0,
            "temperature": 0.0,
            "prepend_bos": True,
            "reuse_len": 0,
        }
        listed = [{"position": i, "token": shown[i], "id": ids[i], "is_generated": False} for i in range(len(ids))]
        read = [
            {
                "kind": "token",
                **listed[i],
                "results": [
                    {
                        "type": "LOGIT_LENS",
                        "top_tokens": [row[i] for row in table.top_tokens],
                        "top_probs": probabilities[:, i].tolist(),
                    }
                ],
            }
            for i in range(len(ids))
        ]
        done = {"kind": "done", "seq_len": len(ids), "prompt_len": len(ids), "completion": ""}
        done |= {"vocab_size": self.session.model.cfg.d_vocab}
        return [meta, {"kind": "prompt", "tokens": listed}, *read, done]

    # Steering

    @contextlib.contextmanager
    def _steered(self, fields: Fields, rows: list[int]) -> Iterator[None]:
        import torch

        from .. import Intervention
        from ..analysis import intervened

        fields.choice("steer_method", ("SIMPLE_ADDITIVE",))
        times = fields.number("strength_multiplier", -1e6, 1e6)
        unit = fields.flag("normalize_steering")
        changes = []
        for one in (*fields.objects("features", 64, []), *fields.objects("vectors", 64, [])):
            strength = times * one.number("strength", -1e6, 1e6)
            if one.has("source"):
                name, index = one.text("source"), one.integer("index", 0, 1 << 40)
                self.dictionaries.check_feature(name, index)
                vector, hook = self.dictionaries.decoder(name)[index], self.dictionaries.hook(name, output=True)
            else:
                vector, hook = torch.tensor(one.numbers("steering_vector", 1 << 20)), one.text("hook", most=200)
            self.session.model.native.check_hook_name(hook)
            if unit:
                vector = vector / vector.norm().clamp_min(1e-30)
            _, layer, point = hook.split(".", 2) if hook.startswith("blocks.") else ("", "-1", hook)
            if point in ("attn.hook_z", "attn.hook_q"):
                vector = vector.reshape(self.session.model.cfg.n_heads, -1)
            values: Any = {int(layer): vector.to(self.session.model.dtype)}
            changes.append(Intervention(values, point=point, strength=strength, rows=rows))
        with intervened(self.session.model, changes):
            yield

    def complete(self, fields: Fields, emit: Callable[[Any], None]) -> dict[str, Any]:
        """Emits {"outputs": [...]} as the texts grow, and gives the last one."""
        if bool(fields.objects("features", 64, [])) == bool(fields.objects("vectors", 64, [])):
            raise Refused("exactly one of features and vectors is needed")
        kinds = fields.texts("types", 2)
        if not kinds or any(kind not in ("STEERED", "DEFAULT") for kind in kinds):
            raise Refused("types must be STEERED, DEFAULT or both")
        if fields.integer("n_logprobs", 0, 10, 0):
            raise Refused("n_logprobs is not served")
        if fields.number("freq_penalty", -100, 100, 0.0):
            raise Refused("freq_penalty must be 0 here")
        tokens = self.session.encode(fields.text("prompt"))
        texts = [""] * len(kinds)

        def outputs() -> dict[str, Any]:
            return {"outputs": [{"type": kind, "output": text} for kind, text in zip(kinds, texts, strict=True)]}

        def grown(row: int, text: str) -> None:
            texts[row] += text
            emit(outputs())

        rows = [i for i, kind in enumerate(kinds) if kind == "STEERED"]
        with self._steered(fields, rows) if rows else contextlib.nullcontext():
            new = self.session.model.generate(
                tokens.expand(len(kinds), -1),
                max_new_tokens=fields.integer("n_completion_tokens", 1, MOST_NEW_TOKENS),
                temperature=fields.number("temperature", 0, 100),
                seed=int(fields.number("seed", 0, 2**53, 0)),
                on_text=grown,
            )
        texts[:] = new
        return outputs()


def routes(session: Session | None, dictionaries: Dictionaries | None, worker: Worker) -> list[Route]:
    def backend() -> Backend:
        return Backend(needed(session), dictionaries)

    def answering(read: Callable[[Backend, Fields], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Json:
            fields, serving = await body(request), backend()
            return Json(await worker.run(request, lambda job: read(serving, fields)))

        return answer

    async def completion(request: Request) -> Any:
        fields, serving = await body(request), backend()
        if fields.flag("stream"):
            return worker.stream(request, lambda job: serving.complete(fields, job.emit))
        return Json(await worker.run(request, lambda job: serving.complete(fields, job.check)))

    async def lens(request: Request) -> Response:
        fields, serving = await body(request), backend()
        messages = await worker.run(request, lambda job: serving.lens(fields))
        if fields.flag("stream", True):
            return Response("".join(dumps(one) + "\n" for one in messages), media_type="application/x-ndjson")
        return Json({"messages": messages})

    async def capabilities(request: Request) -> Json:
        serving = backend()
        has = bool(dictionaries and dictionaries.names)
        model = serving.session.model
        return Json(
            {
                "model": serving.session.name,
                "backend": "introspect",
                "device": str(model.device),
                "max_concurrent_requests": 1,
                "token_limit": min(MOST_TOKENS, model.cfg.n_ctx),
                "num_layers": model.cfg.n_layers,
                "sae_sets": dictionaries.names if dictionaries else [],
                "endpoints": {
                    "tokenize": True,
                    **dict.fromkeys(("activation_single", "activation_raw", "activation_attention"), True),
                    **dict.fromkeys(("activation_all", "activation_source", "activation_topk_by_token"), has),
                    **dict.fromkeys(("steer_completion", "lens_logit"), True),
                    **dict.fromkeys(("steer_completion_chat", "lens_jacobian", "dfa", "neurons"), False),
                },
            }
        )

    async def not_served(request: Request) -> Json:
        path = request.url.path.removeprefix("/v1")
        why = NOT_SERVED.get(path, "this server answers the routes of GET /v1/capabilities")
        return Json({"error": f"{request.url.path} is not served by introspect explore: {why}"}, 501)

    served: dict[str, Callable[[Backend, Fields], Any]] = {
        "/tokenize": Backend.tokenize,
        "/activation/single": Backend.single,
        "/activation/all": Backend.all,
        "/activation/topk-by-token": Backend.topk_by_token,
        "/activation/source": Backend.source,
        "/activation/raw": Backend.raw,
        "/activation/attention": Backend.attention,
        "/util/sae-vector": Backend.sae_vector,
        "/util/sae-topk-by-decoder-cossim": Backend.decoder_cossim,
    }
    return [
        *(Route("/v1" + path, answering(read), methods=["POST"]) for path, read in served.items()),
        Route("/v1/steer/completion", completion, methods=["POST"]),
        Route("/v1/lens/prompt", lens, methods=["POST"]),
        Route("/v1/capabilities", capabilities),
        Route("/v1/{rest:path}", not_served, methods=["GET", "POST"]),
    ]
