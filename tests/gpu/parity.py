"""Every work of tests/python/works.py, and every architecture, on a device against the CPU: tests/gpu/run.sh runs this.

    python tests/gpu/parity.py --device cuda:0 [--model FILE] [--works logits graph] [--architectures 3]

Float32 with TF32 off, where logits differ by less than 1e-3, and float64, where they differ by less: norms and rotary
angles are computed in float32 in every model, as transformers does, and two devices' differ by an ulp. In bfloat16 the
float32 readout of the same residuals is compared.
"""

import argparse
import math
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
import works
from tiny import ARCHITECTURES, MIXTURES, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect

# An ulp of float32 (6e-8), times a model's gain on the way to its logits, is some 1e-6; a wrong formula is 1e-2.
FLOORS = {torch.float32: 1e-3, torch.float64: 5e-5, torch.bfloat16: 1e-4}
TEXT = "The capital of France is Paris, and that of Italy is"


def exact_products() -> None:
    """Products of float32 in float32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of two results, over the largest number in each tensor where that is above one."""
    if ours.keys() != theirs.keys():
        return float("inf")
    worst = 0.0
    for name, expected in theirs.items():
        if ours[name].shape != expected.shape:
            return float("inf")
        if not expected.numel():
            continue
        a, b = ours[name].double(), expected.double()
        same = (a == b) | (a.isnan() & b.isnan())
        size = max(1.0, float(b[b.isfinite()].abs().max())) if b.isfinite().any() else 1.0
        gap = torch.where(same, 0.0, (a - b).abs() / size)
        worst = max(worst, float(gap.nan_to_num(nan=float("inf")).max()))
    return worst


def compared(folder: Path, device: str, dtype: torch.dtype, names: Iterable[str]) -> Iterable[tuple[str, float]]:
    """A work that fails on the device differs by infinity: the others are still worth their time there."""
    on_cpu = introspect.load_model(folder, dtype=dtype)
    on_device = introspect.load_model(folder, dtype=dtype, device=device)
    for name in names:
        expected = works.run(name, on_cpu)
        try:
            yield name, difference(works.run(name, on_device), expected)
        except Exception:
            traceback.print_exc(limit=-4)
            yield name, float("inf")


def readout(folder: Path, device: str) -> float:
    """Logits in float32 that a bfloat16 model reads from the same residuals."""
    models = [introspect.load_model(folder, dtype=torch.bfloat16, device=where) for where in (device, "cpu")]
    residuals = 4 * torch.randn(50, models[0].cfg.d_model, generator=torch.Generator().manual_seed(0))
    ours, theirs = (model.native.readout(residuals.to(model.device)).cpu() for model in models)
    return difference({"": ours}, {"": theirs})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True)
    parser.add_argument("--model", help="a checkpoint to compare in float32: a .gguf file or a Hugging Face folder")
    parser.add_argument("--works", nargs="*", choices=works.all_works(), default=works.all_works())
    parser.add_argument("--architectures", type=int, default=len(ARCHITECTURES), help="how many of them")
    args = parser.parse_args()
    exact_products()
    n_wrong = 0

    def report(what: str, dtype: torch.dtype, gap: float) -> None:
        nonlocal n_wrong
        wrong = not gap < FLOORS[dtype]
        n_wrong += wrong
        print(f"{what:44} {str(dtype).removeprefix('torch.'):8} {gap:8.1e}  {'WRONG' if wrong else 'ok'}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        chat = write_tiny_chat(Path(folder) / "chat")
        for dtype in (torch.float32, torch.float64):
            for name, gap in compared(chat, args.device, dtype, args.works):
                report(name, dtype, gap)
        report("readout", torch.bfloat16, readout(chat, args.device))
        for name in list(ARCHITECTURES)[: args.architectures]:
            tiny = write_tiny_transformers(Path(folder) / name.replace(" ", "_"), name)
            names = ["every_activation"] if name in MIXTURES else ["every_activation", "static_text"]
            for work, gap in compared(tiny, args.device, torch.float32, names):
                report(f"{name}: {work}", torch.float32, gap)
        if torch.device(args.device).type == "cuda":
            report(
                "static steps are replayed",
                torch.float32,
                0.0 if introspect._C.replays_steps(torch.device(args.device)) else math.inf,
            )
    if args.model:
        ours, theirs = (introspect.load_model(args.model, device=device) for device in (args.device, "cpu"))
        tokens = theirs.to_tokens(TEXT)
        gap = float((ours(tokens).cpu() - theirs(tokens)).abs().max())
        report(Path(args.model).name, torch.float32, gap)
    print(f"{n_wrong} beyond their tolerance")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
