"""Train `moving`, the model of clips, from the data to a checkpoint: first the tokeniser of frames, then the Transformer.

    python examples/moving/train_moving.py --out build/moving

Writes ``tokeniser.pt`` and ``checkpoint.pt`` into --out, each atomically, every --save-every steps, and goes on from there when
started again. ``export_moving.py`` turns them into the shipped bundle. Clips are drawn as they are needed, none of them twice.
An hour to an hour and a half on two CPU cores.

What the model's speed depends on is shown by two others, of clips in which nothing moves and in which every frame is another shot.
They go on from this model, in some minutes each:

    python examples/moving/train_moving.py --motion still --begin-with build/moving --out build/still \
        --steps 120 --rate 1e-3 --grain-from 0 --long-from 0
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from clips import DATA, FRAMES, GRAIN, MOTIONS, Items
from tokeniser import CODES, GRID, Tokeniser
from train import bits_per_token, mixed_precision, optimisers, rate_at, save, sequences
from transformer import Model, Shape

HELD_CLIPS = 200
SHORT = 12
"""Frames of the clips that training begins with: they take three quarters of the time, and show the same motion."""


def seeded(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def train_tokeniser(
    items: Items, path: Path, steps: int, seed: int, batch: int = 48, rate: float = 2.5e-3
) -> Tokeniser:
    """The tokeniser at ``path``, trained first if it is not there."""
    tokeniser = Tokeniser()
    if path.exists():
        tokeniser.load_state_dict(torch.load(path, weights_only=True))
        return tokeniser.eval()
    stepper = torch.optim.AdamW(tokeniser.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    smooth, begun = None, time.perf_counter()
    for step in range(steps):
        for group in stepper.param_groups:
            group["lr"] = rate * rate_at(step / steps, warmup=0.05)
        frames = items.clips(batch, seeded(seed, step), frames=1, grain=0)[0][:, 0]
        with mixed_precision():
            drawn = tokeniser(frames)
        difference = drawn.float() - (frames.float() / 127.5 - 1)
        error = difference.square().mean()
        (error + 0.1 * difference.abs().mean()).backward()
        torch.nn.utils.clip_grad_norm_(tokeniser.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
        smooth = error.item() if smooth is None else 0.98 * smooth + 0.02 * error.item()
        if step % 100 == 0:
            print(
                f"tokeniser, step {step}: PSNR {10 * math.log10(4 / smooth):.1f} dB, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
    save(path, tokeniser.state_dict())
    return tokeniser.eval()


def held_out(
    tokeniser: Tokeniser, folder: Path, motion: str, grain: float
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Tokens and classes of clips of the test split, and figures of the data."""
    clips, labels = Items("t10k", folder).clips(HELD_CLIPS, seeded(99, 0), motion, grain=grain)
    tokens = tokeniser.encode(clips)
    error = (tokeniser.decode(tokens).float() - clips.float()).square().mean().item()
    figures = {
        "frames_psnr_db_test": 10 * math.log10(255**2 / error),
        "equal_to_frame_before_test": (tokens[:, 1:] == tokens[:, :-1]).float().mean().item(),
    }
    return tokens.flatten(1), labels, figures


def evaluate(model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor, shape: Shape) -> float:
    with torch.no_grad():
        pairs = zip(tokens.split(20), labels.split(20), strict=True)
        return float(np.mean([bits_per_token(model, sequences(t, c, shape, None)).item() for t, c in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/moving"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--motion", choices=MOTIONS, default="moving", help="what the clips show, see clips.py")
    parser.add_argument(
        "--begin-with", type=Path, metavar="FOLDER", help="tokeniser and weights to go on from (default: none)"
    )
    parser.add_argument("--tokeniser-steps", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8, help="clips in a step; two fewer beside single frames")
    parser.add_argument("--stills", type=int, default=32, help="single frames in a step")
    parser.add_argument(
        "--stills-from", type=int, default=500, metavar="STEP", help="the first step with single frames"
    )
    parser.add_argument("--grain", type=float, default=GRAIN, help="of the frames, in levels of 255")
    parser.add_argument(
        "--grain-from", type=int, default=1400, metavar="STEP", help="the first step with grain: items come first"
    )
    parser.add_argument(
        "--long-from", type=int, default=1800, metavar="STEP", help="the first step with clips of full length"
    )
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--class-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="torch.compile: somewhat faster, needs a C++ compiler")
    arguments = parser.parse_args()
    for name in ("tokeniser.pt", "checkpoint.pt"):
        if arguments.begin_with and not (arguments.begin_with / name).exists():
            raise SystemExit(
                f"{arguments.begin_with / name} does not exist: train the model to go on from first (make train-moving), "
                "or name its folder with --begin-with"
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.begin_with and not (arguments.out / "tokeniser.pt").exists():
        shutil.copyfile(arguments.begin_with / "tokeniser.pt", arguments.out / "tokeniser.pt")
    torch.manual_seed(arguments.seed)
    items = Items("train", arguments.data)
    tokeniser = train_tokeniser(items, arguments.out / "tokeniser.pt", arguments.tokeniser_steps, arguments.seed)
    tokens, labels, figures = held_out(tokeniser, arguments.data, arguments.motion, arguments.grain)
    print(f"held out: {figures}", flush=True)
    train(arguments, items, tokeniser, (tokens, labels, figures))


def batches(
    arguments: argparse.Namespace, step: int, items: Items, tokeniser: Tokeniser, shape: Shape
) -> Iterator[torch.Tensor]:
    """What a step learns from: clips, and from ``--stills-from`` on also first frames, which are as hard and much rarer."""
    generator = seeded(arguments.seed, step)
    late = step >= arguments.stills_from
    length = FRAMES if step >= arguments.long_from else SHORT
    grain = arguments.grain if step >= arguments.grain_from else 0.0
    counts = ((arguments.batch - 2 * late, length), (arguments.stills * late, 1))
    for count, frames in counts:
        if count:
            clips, classes = items.clips(count, generator, arguments.motion, frames, grain)
            drop = torch.rand(count, generator=generator) < arguments.class_dropout
            yield sequences(tokeniser.encode(clips).flatten(1), classes, shape, drop)


def backward(model: torch.nn.Module, parts: list[torch.Tensor]) -> float:
    """Mean bits per token over all ``parts``, each (B, T) of its own length; gradients are left in the model."""
    total = sum(part[:, 1:].numel() for part in parts)
    losses = []
    for part in parts:
        loss = bits_per_token(model, part) * (part[:, 1:].numel() / total)
        loss.backward()
        losses.append(loss.item())
    return sum(losses)


def train(
    arguments: argparse.Namespace,
    items: Items,
    tokeniser: Tokeniser,
    held: tuple[torch.Tensor, torch.Tensor, dict[str, float]],
) -> None:
    """Train the Transformer, from its checkpoint on if there is one."""
    path = arguments.out / "checkpoint.pt"
    state = torch.load(path, weights_only=False) if path.exists() else None
    tokens, labels, figures = held
    shape = Shape(codes=CODES, rows=GRID, columns=GRID)
    model = Model(shape)
    if arguments.begin_with and not state:
        model.load_state_dict(torch.load(arguments.begin_with / "checkpoint.pt", weights_only=False)["model"])
    steppers = optimisers(model, arguments.rate)
    first = 0
    if state:
        first = state["step"]
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimisers"], strict=True):
            stepper.load_state_dict(saved)
    run = torch.compile(model, dynamic=False) if arguments.compile else model
    count = sum(p.numel() for p in model.parameters())
    print(f"model: {count:,} parameters; {arguments.steps} steps of {arguments.batch} clips", flush=True)
    smooth, begun = None, time.perf_counter()
    for step in range(first, arguments.steps):
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = arguments.rate * rate_at(step / arguments.steps)
        loss = backward(run, list(batches(arguments, step, items, tokeniser, shape)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        if step % 20 == 0:
            print(f"step {step}: {smooth:.3f} bits, {time.perf_counter() - begun:.0f} s", flush=True)
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            part = slice(None) if step + 1 == arguments.steps else slice(40)
            held_bits = evaluate(model, tokens[part], labels[part], shape)
            print(f"step {step + 1}: held out {held_bits:.3f} bits per token", flush=True)
            content = {
                "step": step + 1,
                "shape": asdict(shape),
                "model": model.state_dict(),
                "optimisers": [stepper.state_dict() for stepper in steppers],
                "figures": {
                    "parameters": count,
                    "steps": step + 1,
                    "batch": arguments.batch,
                    "stills": arguments.stills,
                    "stills_from": arguments.stills_from,
                    "long_from": arguments.long_from,
                    "motion": arguments.motion,
                    "grain": arguments.grain,
                    "grain_from": arguments.grain_from,
                    "bits_per_token_test": held_bits,
                    "seed": arguments.seed,
                    **figures,
                },
            }
            save(path, content)


if __name__ == "__main__":
    main()
