"""Introspection experiments and sweeps against the article's own program, on transformers and repeng, in one run.

    python tests/benchmarks/peers/environment.py repeng     # once
    python tests/benchmarks/experiments.py [GGUF] [--workloads sweep suite grid planner] [--full] [--json FILE]

The article's program (peers/article.py) prefills the base and the injected conversation anew for every experiment. Both
sides run the same tokens with the same vectors at float32 and as many threads, in turns. Ours runs every cell of a
workload; the peer, whose full sweeps take minutes to an hour, a random sample of cells from each stratum (a starting
layer, or a kind of question), and its time for the workload is each stratum's mean times its cells: both numbers are
printed. --full measures every cell of the peer. The log-odds of each cell that the peer ran are compared with ours.

    sweep   no_info, all ranges [i, j] with 0 < i <= j < n_layers
    suite   experiments 1 to 5 for "cat" and "bread": detection without and with the info prompt, 16 controls, wrong
            location, lorem ipsum, and the lens of four of these; and by itself the text of top of mind
    grid    layer x strength x 20 questions on the info prompt
    planner its share of a run, and how far memory rises in sweeps of 1, 10 and 100 times some ranges, under one
            budget; the time to plan 100,000 nodes
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

import introspect

sys.path.insert(0, str(Path(__file__).parent))
from measure import SMOLLM2, peak_bytes
from peers.repeng_client import Repeng

STRENGTH = 20.0
GRID_STRENGTHS = (5.0, 10.0, 20.0, 40.0)
MORE_QUESTIONS = ["Is ice hotter than steam?", "Do spiders have two legs?", "Was the moon painted by people?"]
MIDDLE = (0.33, 0.66)  # the article's layers, as fractions of the depth
PAUSE = 0.05  # seconds between the sides: OpenMP's threads spin for some 20 ms after their work


class Cell(NamedTuple):
    """One experiment: what both sides run, and by what their numbers find each other."""

    protocol: str
    question: str | None  # None: the protocol's own
    concept: str
    strength: float
    first: int
    last: int

    @property
    def lens(self) -> bool:
        """Whether the log-odds after every block are read."""
        return self.protocol.startswith("lens_")


@dataclass
class Workload:
    """Calls of run_experiment, and the cells that they are to the peer, in strata of equal cost."""

    title: str
    calls: list[dict]
    strata: dict[str, list[Cell]] = field(default_factory=lambda: defaultdict(list))

    def cells(self) -> list[Cell]:
        return [cell for stratum in self.strata.values() for cell in stratum]

    def sample(self, per_stratum: int, draw: random.Random) -> dict[str, list[Cell]]:
        return {name: draw.sample(cells, min(per_stratum, len(cells))) for name, cells in self.strata.items()}


def middle(n_layers: int) -> tuple[int, int]:
    return tuple(round(f * n_layers) for f in MIDDLE)


def all_ranges(n_layers: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(1, n_layers) for j in range(i, n_layers)]


def ranges_call(ranges: list[tuple[int, int]]) -> dict:
    return {"protocol": "no_info", "concepts": ["cat"], "strengths": [STRENGTH], "layers": ranges, "questions": []}


def range_sweep(n_layers: int, small: bool, n_strata: int = 8) -> Workload:
    """The strata are runs of starting layers with about equally many ranges."""
    ranges = all_ranges(n_layers)[:: 80 if small else 1]
    work = Workload("range sweep", [ranges_call(ranges)])
    for number, (first, last) in enumerate(ranges):
        stratum = f"part {number * n_strata // len(ranges) + 1}"
        work.strata[stratum].append(Cell("no_info", None, "cat", STRENGTH, first, last))
    return work


def suite(n_layers: int, small: bool) -> Workload:
    """Experiments 1 to 5 without top of mind, whose text `Peer.texts` times by itself."""
    layers, work, shared = middle(n_layers), Workload("experiments 1 to 5", []), {"concepts": ["cat", "bread"]}
    shared["layers"] = [layers]
    lenses = ("no_info", "with_info", "inaccurate_location")
    for name in (*lenses, "lorem_ipsum"):
        questions = introspect.load_protocol(name).control_questions if name == "with_info" else []
        questions = questions[: 2 if small else None]
        # The lens is read in the same run: where the article runs a conversation again, ours has it already.
        read = {"protocol": f"lens_{name}", "also": name} if name in lenses else {"protocol": name}
        work.calls.append({**read, "strengths": [STRENGTH], "questions": questions, **shared})
        for concept in shared["concepts"]:
            work.strata[name].append(Cell(name, None, concept, STRENGTH, *layers))
            work.strata["controls"] += [Cell(name, q, concept, STRENGTH, *layers) for q in questions]
    quarter = {"protocol": "lens_with_info", "strengths": [0.25 * STRENGTH], "questions": []}
    work.calls.append({**quarter, **shared})
    for name, strength in (*((name, 1) for name in lenses), ("with_info", 0.25)):
        for concept in shared["concepts"]:
            work.strata[f"lens, {name}"].append(Cell(f"lens_{name}", None, concept, strength * STRENGTH, *layers))
    return work


def grid(n_layers: int, small: bool) -> Workload:
    questions = [*introspect.load_protocol("with_info").control_questions, *MORE_QUESTIONS][: 2 if small else None]
    n_layers_asked, strengths = (2, GRID_STRENGTHS[:1]) if small else (10, GRID_STRENGTHS)
    layers = sorted({1 + round(i * (n_layers - 2) / (n_layers_asked - 1)) for i in range(n_layers_asked)})
    call = {"protocol": "with_info", "concepts": ["cat"], "strengths": list(strengths), "questions": questions}
    work = Workload("grid", [{**call, "layers": [(layer, layer) for layer in layers]}])
    for layer in layers:
        for strength in strengths:
            for question in [None, *questions]:
                work.strata["own" if question is None else "controls"].append(
                    Cell("with_info", question, "cat", strength, layer, layer)
                )
    return work


Vectors = dict[str, introspect.ControlVector]


class Ours:
    """This library as a side."""

    def __init__(self, gguf: Path, dtype: str, vectors: Vectors, device: str = "cpu") -> None:
        self.model, self.vectors = introspect.load_model(gguf, dtype=dtype, device=device), vectors

    def run(self, work: Workload, **options) -> tuple[float, dict[Cell, dict]]:
        """Seconds, and the readings by cell."""
        start, readings = time.perf_counter(), {}
        for call in work.calls:
            protocol = introspect.load_protocol(call["protocol"])
            result = introspect.run_experiment(
                self.model,
                protocol,
                vectors={concept: self.vectors[concept] for concept in call["concepts"]},
                strengths=call["strengths"],
                layers=call["layers"],
                questions=call["questions"],
                **{"controls": "with_info", "nulls": 0, **options},  # as the article asks its controls
            )
            for row in result.rows:
                question = None if row["question_kind"] == "introspection" else row["question"]
                place = (row["concept"], row["strength"], row["first_layer"], row["last_layer"])
                for name in (call["protocol"], call.get("also")):
                    readings[Cell(name, question, *place)] = row
        return time.perf_counter() - start, readings

    def texts(self, concepts: Iterable[str]) -> tuple[float, dict[str, dict[str, str]]]:
        """Seconds, and {concept: {"base": text, "injected": text}} of the top-of-mind experiment."""
        start = time.perf_counter()
        result = introspect.run_experiment(
            self.model,
            introspect.load_protocol("top_of_mind"),
            vectors={concept: self.vectors[concept] for concept in concepts},
            strengths=[STRENGTH],
            layers=[middle(self.model.cfg.n_layers)],
            questions=[],
            nulls=0,
        )
        seconds = time.perf_counter() - start
        return seconds, {row["concept"]: {s: row[s]["text"] for s in ("base", "injected")} for row in result.rows}


def steps(model: introspect.Model, cell: Cell) -> list[tuple[list[int], bool]]:
    """The conversation's tokens, cut where its messages end."""
    protocol = json.loads(introspect.load_protocol(cell.protocol).to_json())
    scene = protocol if cell.question is None else protocol["controls"]
    turns = [
        {**turn, "content": turn["content"].replace("$QUESTION", cell.question or "$QUESTION")}
        for turn in scene["turns"]
    ]
    parts, before = [], []
    for index, turn in enumerate(turns):
        open_end = index == len(turns) - 1 and turn["role"] == "assistant"
        text = model.apply_chat_template(turns[: index + 1], continue_final_message=open_end)
        ids = model.to_tokens(text)[0].tolist()
        if ids[: len(before)] != before:
            raise ValueError(f"{cell.protocol}: turn {index} changes the tokens before it")
        parts.append((ids[len(before) :], index in scene["injected"]))
        before = ids
    return parts


class Peer:
    """The article's program in repeng's process, on the tokens that our model makes of the turns."""

    def __init__(self, gguf: Path, model: introspect.Model, vectors: Vectors, folder: Path) -> None:
        self.model, self.worker = model, Repeng(gguf, torch.get_num_threads())
        self.vectors = {concept: folder / f"{concept}.gguf" for concept in vectors}
        for concept, vector in vectors.items():
            vector.export_gguf(self.vectors[concept])

    def n_tokens(self, cell: Cell) -> int:
        return sum(len(ids) for ids, _ in steps(self.model, cell))

    def _call(self, cells: list[Cell], **options) -> list[dict]:
        (yes,), (no,) = (self.model.tokenizer.encode(t, add_special_tokens=False) for t in (" yes", " no"))
        asked = [
            {
                "steps": steps(self.model, cell),
                "concept": cell.concept,
                "strength": cell.strength,
                "layers": list(range(cell.first, cell.last + 1)),
                "lens": cell.lens,
                **options,
            }
            for cell in cells
        ]
        end = self.model.tokenizer.eos_token_id
        return self.worker.article(asked, self.vectors, yes=yes, no=no, end=end)

    def run(self, cells: list[Cell]) -> list[dict]:
        return self._call(cells)

    def texts(self, concepts: Iterable[str]) -> list[dict]:
        layers, n_new = middle(self.model.cfg.n_layers), 40
        cells = [Cell("top_of_mind", None, concept, STRENGTH, *layers) for concept in concepts]
        return self._call(cells, new_tokens=n_new)


@dataclass
class Figures:
    """What was measured of one workload; seconds."""

    cells: int
    tokens: int
    ours: list[float]
    half: list[float]
    measured: dict[str, list[float]]  # the peer's, by stratum
    strata: dict[str, int]
    difference: float  # of log-odds
    half_difference: float

    @property
    def peer(self) -> float:
        """The peer's time for all cells."""
        return sum(statistics.fmean(times) * self.strata[name] for name, times in self.measured.items())

    def as_dict(self) -> dict:
        times = [t for stratum in self.measured.values() for t in stratum]
        return {
            "cells": self.cells,
            "tokens": self.tokens,
            "ours_s": statistics.median(self.ours),
            "bf16_s": statistics.median(self.half),
            "peer_cells_measured": len(times),
            "peer_measured_s": sum(times),
            "peer_scaled_s": self.peer,
            "max_log_odds_difference": self.difference,
            "max_log_odds_difference_bf16": self.half_difference,
        }


def largest_difference(mine: dict[Cell, dict], theirs: dict[Cell, dict]) -> float:
    """Of the log-odds at the end, and where there is a lens after every block."""

    def log_odds(cell: Cell, side: str) -> torch.Tensor:
        reading = mine[cell][side]
        return torch.tensor(reading["lens"]["log_odds"] if cell.lens else reading["log_odds"])

    sides = ("base", "injected")
    return max(
        (log_odds(cell, side) - torch.tensor(other[side])).abs().max().item()
        for cell, other in theirs.items()
        for side in sides
    )


def chunks(cells: list[tuple[str, Cell]], n: int) -> Iterator[list[tuple[str, Cell]]]:
    for i in range(n):
        yield cells[i::n]


def compare(work: Workload, ours: Ours, half: Ours, peer: Peer, args: argparse.Namespace) -> Figures:
    """The sides in turns: all of ours, a share of the peer's cells, and again."""
    share = max(1, round(args.sample / len(work.strata)))
    sample = dict(work.strata) if args.full else work.sample(share, random.Random(args.seed))
    order = [(name, cell) for name, cells in sample.items() for cell in cells]
    random.Random(args.seed).shuffle(order)
    peer.run([order[0][1]])  # the first call of a process is slower, and is not counted
    for side in (ours, half):
        side.run(Workload("", [ranges_call([(1, 1)])]))
    figures = Figures(
        cells=len(work.cells()),
        tokens=peer.n_tokens(work.cells()[0]),
        ours=[],
        half=[],
        measured=defaultdict(list),
        strata={name: len(cells) for name, cells in work.strata.items()},
        difference=0.0,
        half_difference=0.0,
    )
    theirs: dict[Cell, dict] = {}
    for chunk in chunks(order, args.turns):
        time.sleep(PAUSE)
        seconds, mine = ours.run(work)
        figures.ours.append(seconds)
        time.sleep(PAUSE)
        for (name, cell), answer in zip(chunk, peer.run([cell for _, cell in chunk]), strict=True):
            figures.measured[name].append(answer["seconds"])
            theirs[cell] = answer
        time.sleep(PAUSE)
        seconds, rounded = half.run(work)
        figures.half.append(seconds)
    figures.difference = largest_difference(mine, theirs)
    figures.half_difference = largest_difference(rounded, theirs)
    return figures


def show(work: Workload, figures: Figures) -> None:
    f = figures.as_dict()
    few = f["peer_cells_measured"] < f["cells"]
    print(f"\n{work.title}: {f['cells']} cells, the first of {f['tokens']} tokens")
    how = f"scaled from {f['peer_cells_measured']} cells in {f['peer_measured_s']:.1f} s" if few else "measured in full"
    print(f"  {'transformers + repeng':24}{f['peer_scaled_s']:9.1f} s   {how}")
    for name, key in (("introspect, float32", "ours_s"), ("introspect, bfloat16", "bf16_s")):
        ratio = f["peer_scaled_s"] / f[key]
        print(f"  {name:24}{f[key]:9.2f} s   {ratio:6.1f} times faster, median of {len(figures.ours)}")
    print(
        f"  log-odds: at most {f['max_log_odds_difference']:.1e} nats from the peer's in float32, "
        f"{f['max_log_odds_difference_bf16']:.1e} in bfloat16",
        flush=True,
    )


def top_of_mind(ours: Ours, peer: Peer, concepts: list[str]) -> dict:
    """Experiment 1's text: greedy, 40 tokens, the base and each concept."""
    seconds, texts = ours.texts(concepts)
    answers = peer.texts(concepts)
    theirs = sum(answer["seconds"] for answer in answers)
    decode = peer.model.tokenizer.decode
    same = [
        texts[concept][side] == decode(answer[side], skip_special_tokens=True)
        for concept, answer in zip(concepts, answers, strict=True)
        for side in ("base", "injected")
    ]
    print(f"\ntop of mind, greedy text of 40 tokens: {len(concepts)} concepts, base and injected")
    print(f"  {'transformers + repeng':24}{theirs:9.1f} s")
    print(f"  {'introspect, float32':24}{seconds:9.2f} s   {theirs / seconds:6.1f} times faster")
    print(f"  {sum(same)} of {len(same)} texts are the same", flush=True)
    return {"ours_s": seconds, "peer_s": theirs, "same_texts": sum(same), "texts": len(same)}


def sweep_graph(
    ours: Ours, ranges: list[tuple[int, int]], questions: list[list[int]] | None = None
) -> introspect.Graph:
    """The range sweep as a graph of segments; with other questions (token ids) after each range instead of its own."""
    model, graph = ours.model, introspect.Graph()
    before, *injected, after, prefix = steps(model, Cell("no_info", None, "cat", STRENGTH, 1, 1))
    turn = [i for ids, _ in injected for i in ids]
    root = graph.segment(model, before[0])
    for first, last in ranges:
        directions = {layer: ours.vectors["cat"].directions[layer] for layer in range(first, last + 1)}
        node = graph.segment(model, turn, root, [introspect.Intervention(directions, strength=STRENGTH)])
        for ids in questions or [after[0] + prefix[0]]:
            graph.read(graph.segment(model, ids, node), layers=[model.cfg.n_layers - 1])
    return graph


def planner(ours: Ours, budget: int) -> dict:
    """What planning costs beside running, what it saves, and how far memory rises in sweeps of 1, 10 and 100 times."""
    ranges, report = all_ranges(ours.model.cfg.n_layers), {}
    for size in [max(1, len(ranges) // 100), max(1, len(ranges) // 10), len(ranges)]:
        graph = sweep_graph(ours, random.Random(0).sample(ranges, size))
        start = time.perf_counter()
        plan = graph.plan(memory_budget=budget)
        planned = time.perf_counter()
        rise, _ = peak_bytes(lambda graph=graph: graph.run(memory_budget=budget))
        seconds = {"plan_s": planned - start, "run_s": time.perf_counter() - planned}
        report[size] = {"rise": rise, "estimate": plan.peak_bytes, "passes": plan.n_passes, **seconds}
        print(
            f"  {size:5} ranges in {plan.n_passes:3} passes: {seconds['run_s']:7.2f} s, of which planning "
            f"{seconds['plan_s']:.4f} s ({seconds['plan_s'] / seconds['run_s']:.2%}); memory rises by "
            f"{rise / 2**20:.0f} MiB, {plan.peak_bytes / 2**20:.0f} expected; tokens x layers "
            f"{plan.token_layers_asked:,} asked, {plan.token_layers_to_run:,} run",
            flush=True,
        )
    return {"budget": budget, "sizes": report}


def many_nodes(ours: Ours, n: int) -> dict:
    """Seconds to build and to plan a graph of about n nodes: every range, and equally many questions after each."""
    ranges, draw = all_ranges(ours.model.cfg.n_layers), random.Random(0)
    questions = [[draw.randrange(1000, 2000) for _ in range(10)] for _ in range(n // len(ranges))]
    start = time.perf_counter()
    graph = sweep_graph(ours, ranges, questions)
    built = time.perf_counter()
    plan = graph.plan()
    planned = time.perf_counter()
    print(f"  {len(graph):,} nodes: built in {built - start:.2f} s, planned in {planned - built:.2f} s", flush=True)
    return {"nodes": len(graph), "build_s": built - start, "plan_s": planned - built, "passes": plan.n_passes}


def together(ours: Ours) -> dict:
    """The article's conversations, with the lens and without, protocol by protocol and in one graph."""
    names = ["no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report"]
    names += [f"lens_{name}" for name in ("no_info", "with_info", "inaccurate_location", "content_report")]
    protocols = [introspect.load_protocol(name) for name in names]
    options = {"vectors": ours.vectors, "strengths": [STRENGTH], "questions": [], "nulls": 2}
    start = time.perf_counter()
    for protocol in protocols:
        introspect.run_experiment(ours.model, protocol, **options)
    alone = time.perf_counter()
    introspect.run_experiments(ours.model, protocols, **options)
    end = time.perf_counter()
    seconds = {"alone_s": alone - start, "together_s": end - alone}
    print(f"  {len(names)} protocols: {alone - start:.1f} s one by one, {end - alone:.1f} s in one graph", flush=True)
    return seconds


WORKLOADS = {"sweep": range_sweep, "suite": suite, "grid": grid}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS, "planner"], default=[*WORKLOADS, "planner"])
    parser.add_argument(
        "--sample", type=int, default=24, help="cells of the peer in a workload, spread over its strata"
    )
    parser.add_argument("--full", action="store_true", help="every cell of the peer instead")
    parser.add_argument("--turns", type=int, default=3, help="of ours; the peer's cells are divided among them")
    parser.add_argument("--suffixes", type=int, default=582, help="pairs that the vectors are trained on")
    parser.add_argument("--budget-mib", type=int, default=512, help="of ours in the planner's table")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--small", action="store_true", help="a few cells of each workload, to try the script")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    warnings.filterwarnings("ignore", message=".* tokens of this model")  # spellings of yes and no for the lens
    half_vectors: Vectors = {}
    half = Ours(args.gguf, "bfloat16", half_vectors)
    ours = Ours(args.gguf, "float32", {})
    for concept in ("cat", "bread"):
        pairs = introspect.concept_pairs(ours.model, concept, introspect.load_suffixes()[: args.suffixes])
        half.vectors[concept] = ours.vectors[concept] = introspect.ControlVector.train(ours.model, pairs)
    n_layers, report = ours.model.cfg.n_layers, {}
    print(f"{args.gguf.name}, {torch.get_num_threads()} threads")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peer = Peer(args.gguf, ours.model, ours.vectors, folder)
        stack.enter_context(peer.worker)
        for name in args.workloads:
            if name == "planner":
                continue
            work = WORKLOADS[name](n_layers, args.small)
            figures = compare(work, ours, half, peer, args)
            show(work, figures)
            report[name] = figures.as_dict()
            if name == "suite":
                report["top_of_mind"] = top_of_mind(ours, peer, ["cat", "bread"])
    if "planner" in args.workloads:
        print(f"\nplanner, with a budget of {args.budget_mib} MiB")
        report["together"] = together(ours)
        report["planner"] = planner(ours, args.budget_mib << 20)
        report["many_nodes"] = many_nodes(ours, 1000 if args.small else 100_000)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
