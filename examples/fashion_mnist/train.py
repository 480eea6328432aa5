"""Train `fashion`, the embedded model of pictures, from the data to a checkpoint.

    python examples/fashion_mnist/train.py --out build/fashion

Writes ``checkpoint.pt`` (weights, codebook, figures) into --out, atomically, every --save-every steps, and goes on
from there when started again. ``export.py`` turns it into the shipped bundle. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path

import data
import numpy as np
import torch
from model import Model, Shape
from torch.nn import functional


def sequences(tokens: torch.Tensor, labels: torch.Tensor, shape: Shape, drop: torch.Tensor | None) -> torch.Tensor:
    """Class token, then image tokens: int64 (B, 197). Where ``drop`` is true the class is replaced by the null class."""
    first = shape.codes + labels
    if drop is not None:
        first = torch.where(drop, shape.null, first)
    return torch.cat([first[:, None], tokens], 1)


def mixed_precision() -> torch.autocast:
    """Products in bfloat16 where the CPU has them: an emulated one takes five times as long as one in float32."""
    able = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=any(able[name] is True for name in able if "bf16" in name))


def bits_per_token(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in bits over the image tokens of ``batch`` (B, 197)."""
    with mixed_precision():
        logits = model(batch[:, :-1])
    loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    return loss / math.log(2)


def optimisers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(progress: float, warmup: float = 0.02) -> float:
    """Learning-rate factor at ``progress`` in [0, 1]: linear warm-up, then cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def save(path: Path, content: dict) -> None:
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def evaluate(model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor, shape: Shape) -> float:
    with torch.no_grad():
        parts = [
            bits_per_token(model, sequences(t, c, shape, None)).item()
            for t, c in zip(tokens.split(250), labels.split(250), strict=True)
        ]
    return float(np.mean(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/fashion"))
    parser.add_argument("--data", type=Path, default=data.DATA)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--class-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--compile", action="store_true", help="torch.compile: about 15%% faster, needs a C++ compiler")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "checkpoint.pt"
    state = torch.load(path, weights_only=False) if path.exists() else None

    torch.manual_seed(arguments.seed)
    pixels, labels = data.load("train", arguments.data)
    codebook = state["codebook"] if state else data.fit_codebook(pixels)
    shape = Shape(codes=len(codebook))
    train = torch.from_numpy(data.tokenise(pixels, codebook)), torch.from_numpy(labels)
    held_pixels, held_labels = data.load("t10k", arguments.data)
    held = torch.from_numpy(data.tokenise(held_pixels, codebook)), torch.from_numpy(held_labels)
    error = np.mean((data.detokenise(held[0].numpy(), codebook).astype(float) - held_pixels) ** 2)
    psnr = 10 * math.log10(255**2 / error)
    print(f"codebook: {len(codebook)} entries, PSNR {psnr:.1f} dB on the test split", flush=True)

    model = Model(shape)
    steppers = optimisers(model, arguments.rate)
    first = 0
    if state:
        first = state["step"]
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimisers"], strict=True):
            stepper.load_state_dict(saved)
    run = torch.compile(model) if arguments.compile else model
    count = sum(p.numel() for p in model.parameters())
    print(f"model: {count:,} parameters; {arguments.steps} steps of {arguments.batch}", flush=True)

    smooth, begun = None, time.perf_counter()
    for step in range(first, arguments.steps):
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = arguments.rate * rate_at(step / arguments.steps)
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        pick = torch.randint(len(labels), (arguments.batch,), generator=generator)
        drop = torch.rand(arguments.batch, generator=generator) < arguments.class_dropout
        loss = bits_per_token(run, sequences(train[0][pick], train[1][pick], shape, drop))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}: {smooth:.3f} bits, {time.perf_counter() - begun:.0f} s", flush=True)
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            whole = step + 1 == arguments.steps
            held_bits = evaluate(model, *(t if whole else t[:1000] for t in held), shape)
            print(f"step {step + 1}: held out {held_bits:.3f} bits per token", flush=True)
            save(
                path,
                {
                    "step": step + 1,
                    "shape": asdict(shape),
                    "codebook": codebook,
                    "model": model.state_dict(),
                    "optimisers": [stepper.state_dict() for stepper in steppers],
                    "figures": {
                        "parameters": count,
                        "steps": step + 1,
                        "batch": arguments.batch,
                        "bits_per_token_test": held_bits,
                        "codebook_psnr_db_test": psnr,
                        "seed": arguments.seed,
                    },
                },
            )


if __name__ == "__main__":
    main()
