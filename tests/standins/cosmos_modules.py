"""Cosmos' discrete tokenizer of videos in PyTorch, written from the published structure and names.

The source is nvidia-cosmos/cosmos-predict1 at 4ed35fa, ``cosmos_predict1/autoregressive/tokenizer``. This is not that code, and was
not run beside it. State dicts have the names of the published archives.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Causal(nn.Module):
    """A convolution that finds the first frame again before the first one, and zeros around a frame."""

    def __init__(self, inputs, outputs, time=1, space=1, stride=(1, 1), copies=None, edge=None):
        super().__init__()
        self.copies = time - 1 if copies is None else copies
        edge = space // 2 if edge is None else edge
        strides = (stride[0], stride[1], stride[1])
        self.conv3d = nn.Conv3d(inputs, outputs, (time, space, space), strides, (0, edge, edge))

    def forward(self, x):
        return self.conv3d(torch.cat([x[:, :, :1]] * self.copies + [x], dim=2))


def pair(inputs, outputs):
    return nn.Sequential(Causal(inputs, outputs, space=3), Causal(outputs, outputs, time=3))


class FrameNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(1, width, eps=1e-6)

    def forward(self, x):
        frames = x.transpose(1, 2).flatten(0, 1)
        return self.norm(frames).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = FrameNorm(inputs), FrameNorm(outputs)
        self.conv1, self.conv2 = pair(inputs, outputs), pair(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = Causal(inputs, outputs)

    def forward(self, x):
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Over the places of each frame, or over the frames up to its own of each place."""

    def __init__(self, width, *, in_time):
        super().__init__()
        self.in_time, self.norm = in_time, FrameNorm(width)
        self.q, self.k, self.v, self.proj_out = (Causal(width, width) for _ in range(4))

    def forward(self, x):
        normed, (batch, width, frames, rows, columns) = self.norm(x), x.shape
        order = (0, 3, 4, 2, 1) if self.in_time else (0, 2, 3, 4, 1)
        parts = [part(normed).permute(order) for part in (self.q, self.k, self.v)]
        if self.in_time:
            y = F.scaled_dot_product_attention(*parts, is_causal=True).permute(0, 4, 3, 1, 2)
        else:
            y = F.scaled_dot_product_attention(*(part.flatten(2, 3) for part in parts))
            y = y.reshape(batch, frames, rows, columns, width).permute(0, 4, 1, 2, 3)
        return x + self.proj_out(y)


class Upsample(nn.Module):
    def __init__(self, width, *, space, time):
        super().__init__()
        if time:
            self.conv1 = Causal(width, width, time=3)
        if space:
            self.conv2 = Causal(width, width, space=3)
        self.conv3 = Causal(width, width)

    def forward(self, x):
        if hasattr(self, "conv1"):
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = x + self.conv1(x)
        if hasattr(self, "conv2"):
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
            x = x + self.conv2(x)
        return self.conv3(x)


class Downsample(nn.Module):
    def __init__(self, width, *, space, time):
        super().__init__()
        if space:
            self.conv1 = Causal(width, width, space=3, stride=(1, 2), edge=0)
        if time:
            self.conv2 = Causal(width, width, time=3, stride=(2, 1), copies=1)
        self.conv3 = Causal(width, width)

    def forward(self, x):
        if hasattr(self, "conv1"):
            x = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + F.avg_pool3d(x, (1, 2, 2))
        if hasattr(self, "conv2"):
            x = torch.cat([x[:, :, :1], x], dim=2)
            x = self.conv2(x) + F.avg_pool3d(x, (2, 1, 1))
        return self.conv3(x)


class Middle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block_1, self.block_2 = Block(width, width), Block(width, width)
        self.attn_1 = nn.Sequential(Attention(width, in_time=False), Attention(width, in_time=True))

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


def level(widths, resample=None):
    module = nn.Module()
    module.block = nn.ModuleList(Block(*two) for two in itertools.pairwise(widths))
    if resample is not None:
        module.add_module("upsample" if isinstance(resample, Upsample) else "downsample", resample)
    return module


def signs():
    bits = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    return (1 - 2 * (bits @ bits.T % 2)).float()


def inverse_haar(x):
    batch, channels, frames, rows, columns = x.shape
    blocks = torch.einsum("vk,bkctij->bvctij", signs(), x.unflatten(1, (8, channels // 8)))
    blocks = blocks.unflatten(1, (2, 2, 2)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return blocks.reshape(batch, channels // 8, 2 * frames, 2 * rows, 2 * columns)


def haar(x):
    parts = [x[:, :, a::2, b::2, c::2] for a, b, c in itertools.product((0, 1), repeat=3)]
    return torch.einsum("kv,bvctij->bkctij", signs() / 8, torch.stack(parts, dim=1)).flatten(1, 2)


class Decoder(nn.Module):
    """``stages`` are those of the description."""

    def __init__(self, latent, stages):
        super().__init__()
        width = stages[0].width
        self.conv_in, self.mid = pair(latent, width), Middle(width)
        self.up = nn.ModuleList()
        for stage in stages:
            resample = Upsample(stage.width, space=stage.space, time=stage.time) if stage.space or stage.time else None
            self.up.insert(0, level([width, *[stage.width] * stage.blocks], resample))
            width = stage.width
        self.norm_out, self.conv_out = FrameNorm(width), pair(width, 192)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        x = self.conv_out(F.silu(self.norm_out(x)))
        return inverse_haar(inverse_haar(x))[:, :, 3:]


class VideoDecoder(nn.Module):
    """What ``decoder.jit`` holds."""

    levels = (8, 8, 8, 5, 5, 5)

    def __init__(self, latent, stages):
        super().__init__()
        self.post_quant_conv, self.decoder = Causal(6, latent), Decoder(latent, stages)

    def forward(self, codes):
        """Frames (B, 3, frames, height, width) of codes (B, frames, rows, columns)."""
        levels = torch.tensor(self.levels)
        places = torch.cumprod(torch.tensor([1, *self.levels[:-1]]), 0)
        digits = codes[..., None] // places % levels
        vectors = digits / (levels // 2) - 1
        return self.decoder(self.post_quant_conv(vectors.permute(0, 4, 1, 2, 3)))


class Encoder(nn.Module):
    """``stages`` are those of the description's encoder."""

    def __init__(self, latent, base, stages):
        super().__init__()
        self.conv_in, width = pair(192, base), base
        self.down = nn.ModuleList()
        for stage in stages:
            halves = stage.space or stage.time
            resample = Downsample(stage.width, space=stage.space, time=stage.time) if halves else None
            self.down.append(level([width, *[stage.width] * stage.blocks], resample))
            width = stage.width
        self.mid = Middle(width)
        self.norm_out, self.conv_out = FrameNorm(width), pair(width, latent)

    def forward(self, x):
        x = self.conv_in(haar(haar(torch.cat([x[:, :, :1]] * 3 + [x], dim=2))))
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VideoEncoder(nn.Module):
    """What ``encoder.jit`` holds."""

    levels = (8, 8, 8, 5, 5, 5)

    def __init__(self, latent, base, stages):
        super().__init__()
        self.encoder, self.quant_conv = Encoder(latent, base, stages), Causal(latent, 6)

    def forward(self, pixels):
        """Digits from 0 on, before they are rounded, (B, 6, frames, rows, columns), of uint8 (B, frames, height, width, 3)."""
        x = self.quant_conv(self.encoder(pixels.permute(0, 4, 1, 2, 3) / 255.0 * 2 - 1))
        levels = torch.tensor(self.levels)[:, None, None, None]
        half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset + levels // 2
