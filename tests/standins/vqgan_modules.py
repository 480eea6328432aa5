"""Picture decoders in PyTorch with the names of the published checkpoints: oracles for the exporter.

Written from the published structure of FoundationVision/LlamaGen (``tokenizer/tokenizer_image/vq_model.py``, which
deepseek-ai/Janus repeats), of facebookresearch/chameleon (``chameleon/inference/vqgan.py``, from taming-transformers) and of
baaivision/Emu3 (``emu3/tokenizer/modeling_emu3visionvq.py``). They are none of these codes, and were not run beside them.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class ConditionalNorm(nn.Module):
    """Emu3's norm, scaled and shifted by convolutions of the code vectors."""

    def __init__(self, width, vectors):
        super().__init__()
        self.norm_layer = norm(width)
        self.conv_y, self.conv_b = nn.Conv2d(vectors, width, 1), nn.Conv2d(vectors, width, 1)

    def forward(self, x, zq):
        zq = F.interpolate(zq, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(zq) + self.conv_b(zq)


class Block(nn.Module):
    def __init__(self, inputs, outputs, make_norm=norm):
        super().__init__()
        self.norm1, self.norm2 = make_norm(inputs), make_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, *condition):
        y = self.conv1(F.silu(self.norm1(x, *condition)))
        y = self.conv2(F.silu(self.norm2(y, *condition)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width, make_norm=norm):
        super().__init__()
        self.norm = make_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x, *condition):
        y = self.norm(x, *condition)
        query, key, value = (part(y).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(y)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def stage(inputs, outputs, blocks, *, attends, last, block="block", make_norm=norm):
    """A module with a list of blocks, one of attentions, and an upsampling."""
    module = nn.Module()
    setattr(module, block, nn.ModuleList(Block(outputs if j else inputs, outputs, make_norm) for j in range(blocks)))
    module.attn = nn.ModuleList(Attention(outputs, make_norm) for _ in range(blocks if attends else 0))
    if not last:
        module.upsample = Upsample(outputs)
    return module


def run_stage(module, x, *condition, block="block"):
    for j, each in enumerate(getattr(module, block)):
        x = each(x, *condition)
        x = module.attn[j](x, *condition) if len(module.attn) else x
    return module.upsample(x) if hasattr(module, "upsample") else x


class LlamaGenDecoder(nn.Module):
    def __init__(self, latent, base, multipliers, blocks):
        super().__init__()
        width = base * multipliers[-1]
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = nn.ModuleList([Block(width, width), Attention(width), Block(width, width)])
        self.conv_blocks = nn.ModuleList()
        for i in reversed(range(len(multipliers))):
            is_coarsest = i == len(multipliers) - 1
            made = stage(width, base * multipliers[i], blocks + 1, attends=is_coarsest, last=not i, block="res")
            self.conv_blocks.append(made)
            width = base * multipliers[i]
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for part in self.mid:
            x = part(x)
        for part in self.conv_blocks:
            x = run_stage(part, x, block="res")
        return self.conv_out(F.silu(self.norm_out(x)))


class TamingDecoder(nn.Module):
    """Stages are inserted at the front of their list, so that the one that runs first has the highest number."""

    def __init__(self, latent, base, multipliers, blocks, attended, make_norm=norm):
        super().__init__()
        width = base * multipliers[-1]
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = Block(width, width, make_norm), Block(width, width, make_norm)
        self.mid.attn_1 = Attention(width, make_norm)
        self.up = nn.ModuleList()
        for i in reversed(range(len(multipliers))):
            attends = i in attended
            outputs = base * multipliers[i]
            self.up.insert(0, stage(width, outputs, blocks + 1, attends=attends, last=not i, make_norm=make_norm))
            width = outputs
        self.norm_out, self.conv_out = make_norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, *condition):
        x = self.mid.block_1(self.conv_in(x), *condition)
        x = self.mid.block_2(self.mid.attn_1(x, *condition), *condition)
        for i in reversed(range(len(self.up))):
            x = run_stage(self.up[i], x, *condition)
        return self.conv_out(F.silu(self.norm_out(x, *condition)))


class Quantizer(nn.Module):
    def __init__(self, codes, size):
        super().__init__()
        self.embedding = nn.Embedding(codes, size)


class VqModel(nn.Module):
    """Codebook, ``post_quant_conv``, decoder, and an encoder's convolution that nothing here uses."""

    def __init__(self, codes, size, latent, decoder, *, normalised):
        super().__init__()
        self.quantize, self.decoder, self.normalised = Quantizer(codes, size), decoder, normalised
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, size, 1), nn.Conv2d(size, latent, 1)
        self.encoder = nn.Module()
        self.encoder.conv_in = nn.Conv2d(3, 32, 3, padding=1)

    def decode_code(self, codes):
        """Pictures (B, 3, H, W) of codes (B, rows, columns)."""
        book = self.quantize.embedding.weight
        book = F.normalize(book, dim=-1) if self.normalised else book
        return self.decoder(self.post_quant_conv(book[codes].permute(0, 3, 1, 2)))


class CausalConvolution(nn.Module):
    """A convolution in time and space that sees two frames before its own."""

    def __init__(self, inputs, outputs, size):
        super().__init__()
        edge = size // 2
        self.padding = (edge, edge, edge, edge, 2, 0)
        self.conv = nn.Conv3d(inputs, outputs, (3, size, size))

    def forward(self, x):
        return self.conv(F.pad(x, self.padding))


class TimeBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.conv1, self.conv2 = CausalConvolution(width, width, 3), CausalConvolution(width, width, 3)

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class TimeUpsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = CausalConvolution(width, width, 3)

    def forward(self, x):
        return self.conv(x.repeat_interleave(2, dim=2))


class Emu3Decoder(TamingDecoder):
    def __init__(self, latent, base, multipliers, blocks, attended, doublings):
        super().__init__(latent, base, multipliers, blocks, attended, lambda width: ConditionalNorm(width, latent))
        self.time_res_stack = nn.Sequential(*(TimeBlock(latent) for _ in range(blocks)))
        self.time_conv = nn.ModuleList(TimeUpsample(latent) for _ in range(doublings))

    def forward(self, z, zq):
        both = self.time_res_stack(torch.cat([z, zq]))
        for part in self.time_conv:
            both = F.silu(part(both))
        frames, conditions = (half.transpose(1, 2).flatten(0, 1) for half in both.chunk(2))
        return super().forward(frames, conditions).unflatten(0, (len(z), both.shape[2]))


class Emu3VisionVq(nn.Module):
    """BAAI's names; a picture is the first of the frames that one latent frame gives."""

    def __init__(self, codes, latent, decoder):
        super().__init__()
        self.quantize, self.decoder = Quantizer(codes, latent), decoder
        self.quant_conv, self.post_quant_conv = (CausalConvolution(latent, latent, 1) for _ in range(2))
        self.encoder = nn.Module()
        self.encoder.conv_in = nn.Conv2d(3, 32, 3, padding=1)

    def decode_code(self, codes):
        """Pictures (B, 3, H, W) of codes (B, rows, columns)."""
        return self.decode_clip(codes[:, None])[:, 0]

    def decode_clip(self, codes):
        """Frames (B, 4 * frames, 3, H, W) of codes (B, frames, rows, columns)."""
        vectors = self.quantize.embedding(codes).permute(0, 4, 1, 2, 3)
        return self.decoder(self.post_quant_conv(vectors), vectors)
