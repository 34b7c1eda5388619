"""Fits the miniature's codec: principal components for the encoder, then a short training of the decoder.

Axes: N patches, P values of a patch, K latent channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from w2svd_bench.backbones.mini_codec import MiniCodec, to_patches
from w2svd_bench.data.portraits import batches, clips

Log = Callable[[str], None]


def to_unit(frames_BTHWC: Tensor) -> Tensor:
    """uint8 clips to video in [-1, 1], (B, 3, frames, height, width)."""
    return frames_BTHWC.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def fit_linear(codec: MiniCodec, num_clips: int, log: Log) -> None:
    """Fits mean, basis and scale of both patch kinds on the first ``num_clips`` clips of the train split.

    Channels are divided by the square root of their standard deviation (half-way to white, which keeps the strong
    channels strong), then all by one factor to unit variance. The second basis takes the signs of the first on
    clips that stand still, so that a channel means about the same in every latent frame.
    """
    moments: dict[str, tuple[Tensor, Tensor, int]] = {}
    for _, frames in batches("train", num_clips):
        for name, part in zip(("first", "rest"), to_patches(to_unit(frames)), strict=True):
            flat = part.flatten(0, 3)
            total, outer, count = moments.get(name, (0.0, 0.0, 0))
            moments[name] = (total + flat.sum(0).double(), outer + (flat.T @ flat).double(), count + len(flat))
    channels = codec.config["latent_channels"]
    for name, (total, outer, count) in moments.items():
        mean = total / count
        values, vectors = torch.linalg.eigh(outer / count - torch.outer(mean, mean))
        basis = vectors.flip(1).T[:channels]
        if name == "rest":
            standing = codec.first_basis.double().view(channels, 1, -1).repeat(1, 4, 1).flatten(1)
            basis = basis * torch.sign((basis * standing).sum(1, keepdim=True))
        else:
            basis = basis * torch.sign(basis.sum(1, keepdim=True))
        scale = values.flip(0)[:channels].clamp_min(1e-9).pow(0.25)
        if name == "first":  # a still clip has the same energy in frame 0 as in the groups of four
            scale = scale / 2**0.5
        getattr(codec, f"{name}_mean").copy_(mean)
        getattr(codec, f"{name}_basis").copy_(basis)
        getattr(codec, f"{name}_scale").copy_(scale)
        log(
            f"codec {name}: {channels} of {len(values)} components keep "
            f"{values.flip(0)[:channels].sum() / values.sum():.4f} of the variance"
        )
    latents = codec.encode(to_unit(clips("train", range(256)))).latent_dist.mode()
    for name in ("first", "rest"):
        getattr(codec, f"{name}_scale").mul_(latents.std())
    log(f"codec latent std: {codec.encode(to_unit(clips('train', range(256)))).latent_dist.mode().std():.4f}")


def fit_decoder(
    codec: MiniCodec, num_clips: int, steps: int, batch_size: int, learning_rate: float, device: str, log: Log
) -> None:
    """Trains the decoder's correction on the train split (L2 and L1 in pixels); the encoder stays as it is."""
    codec.to(device).train()
    pool = torch.cat([frames for _, frames in batches("train", num_clips)])
    optimizer = torch.optim.AdamW(codec.correction.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50, 2.2 * (1 - step / steps) + 0.01)
        video = to_unit(pool[torch.randint(len(pool), (batch_size,), generator=generator)]).to(device)
        error = codec.decode(codec.encode(video).latent_dist.mode()).sample - video
        loss = error.square().mean() * 10 + error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 199 or step == 0:
            seconds, quality = time.perf_counter() - start, psnr(codec, 64, device)
            log(f"codec step {step + 1}/{steps} loss {loss.item():.4f} psnr {quality:.2f} dB {seconds:.0f} s")
    codec.eval().cpu()


@torch.no_grad()
def psnr(codec: MiniCodec, num_clips: int, device: str = "cpu") -> float:
    """Mean PSNR in dB over clips of the validation split, after rounding to uint8."""
    values = []
    for _, frames in batches("validation", num_clips, size=32):
        video = to_unit(frames).to(device)
        out = codec.decode(codec.encode(video).latent_dist.mode()).sample.clamp(-1, 1)
        error = (((out + 1) * 127.5).round() - ((video + 1) * 127.5).round()).square().flatten(1).mean(1)
        values.append(10 * torch.log10(255**2 / error))
    return float(torch.cat(values).mean())
