"""Trains the miniature's feature nets on the "features" split: `python -m w2svd_bench.build_mini.features`.

The targets are the renderer's own parameters, so nothing is labelled by hand. Augmentation never teaches a net to look
past a fault: where frames are blurred, noisy or tinted, the amount of it is a target too.
Axes: N clips, T frames of a clip, B a batch of frames, P and Q targets as in metrics/mini_nets.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from w2svd_bench.data.attributes import portrait
from w2svd_bench.data.portraits import CHUNK
from w2svd_bench.data.render import Scene, paint, scene
from w2svd_bench.metrics.mini_nets import (
    COLOURS,
    FRAME_TARGETS,
    FRAMES,
    HEIGHT,
    MOTIONS,
    STATICS,
    WIDTH,
    ClipNet,
    FrameNet,
    columns,
    save_net,
)

Log = Callable[[str], None]
HELD_OUT_FIRST = 1_000_000  # clips from this index on are never trained on
MOVING = (*MOTIONS, "gaze")  # what differs between the frames of a scene
# Features are scaled to this mean variance a dimension on clean data, so that a distance reads alike after the nets are
# trained anew: 512 real clips against 2048 others score about 1 (frames) and 5 (clips), as people know it from FID.
FEATURE_VARIANCE = 3.0


def frame_targets(s: Scene) -> Tensor:
    """The targets of clean frames, (N, T, P): blur and noise are 0."""
    clips, frames = s.mouth.shape
    parts = []
    for name, width in FRAME_TARGETS.items():
        value = torch.zeros(clips) if name in ("blur", "noise") else getattr(s, name)
        parts.append(value[..., None] if name in MOTIONS else value.view(clips, 1, width).expand(clips, frames, width))
    return torch.cat(parts, dim=2)


def draw(first: int, num_clips: int, frames_a_clip: int = FRAMES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Renders clips of the "features" split.

    Args:
        frames_a_clip: so many frames out of 17, at random; all of them in order by default.

    Returns:
        uint8 frames (N, T, 48, 48, 3), their targets (N, T, P), and the class of speech (N,), 0 slow and 1 fast.
    """
    generator = torch.Generator().manual_seed(seed)
    frames, targets, speech = [], [], []
    for start in range(first, first + num_clips, CHUNK):
        portraits = [portrait("features", i) for i in range(start, min(start + CHUNK, first + num_clips))]
        s = scene(portraits, FRAMES)
        if frames_a_clip < FRAMES:
            chosen = torch.rand(s.mouth.shape, generator=generator).argsort(dim=1)[:, :frames_a_clip]
            s = replace(s, **{name: getattr(s, name).gather(1, chosen) for name in MOVING})
        frames.append(paint(s, HEIGHT, WIDTH))
        targets.append(frame_targets(s))
        speech.append(torch.tensor([p.classes["speech"] for p in portraits]))
    return torch.cat(frames), torch.cat(targets), torch.cat(speech).float()


def spoil(x_NTCHW: Tensor, targets_NTP: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tints, blurs and makes noisy some of the clips (in [-1, 1]), each clip alike in all its frames.

    Half of them are tinted by up to 0.08 a channel, and the colour targets with them; a third is blurred, a third is
    noisy, and the blur and noise targets say how much.
    """
    n, t, c, h, w = x_NTCHW.shape

    def amount(share: float, width: int = 1) -> Tensor:
        chosen = (torch.rand(n, 1, generator=generator) < share).float()
        return (chosen * torch.rand(n, width, generator=generator)).to(x_NTCHW.device)

    tint = amount(0.5, 3)
    tint = torch.where(tint > 0, 0.16 * (tint - 0.5), tint)
    blur, noise = amount(1 / 3), amount(1 / 3)
    flat = x_NTCHW.reshape(n * t, c, h, w)
    offsets = torch.arange(-3.0, 4.0)
    bell = torch.softmax(-offsets.square() / (2 * 1.2**2), dim=0).to(flat.device)
    padded = nn.functional.pad(flat, (3, 3, 3, 3), mode="replicate")
    soft = nn.functional.conv2d(padded, bell.view(1, 1, 1, 7).repeat(c, 1, 1, 1), groups=c)
    soft = nn.functional.conv2d(soft, bell.view(1, 1, 7, 1).repeat(c, 1, 1, 1), groups=c).view_as(x_NTCHW)
    white = torch.randn(x_NTCHW.shape, generator=generator).to(x_NTCHW.device)
    x = x_NTCHW + 2 * tint.view(n, 1, 3, 1, 1)
    x = x + blur.view(n, 1, 1, 1, 1) * (soft - x_NTCHW) + 0.2 * noise.view(n, 1, 1, 1, 1) * white
    targets = targets_NTP.clone()
    for name in COLOURS:
        targets[..., columns(FRAME_TARGETS, name)] += tint[:, None]
    targets[..., columns(FRAME_TARGETS, "blur")] = blur[:, None]
    targets[..., columns(FRAME_TARGETS, "noise")] = noise[:, None]
    return x.clamp(-1, 1), targets


def to_video(frames_NTHWC: Tensor) -> Tensor:
    """uint8 (N, T, H, W, 3) to float (N, T, 3, H, W) in [-1, 1]."""
    return frames_NTHWC.permute(0, 1, 4, 2, 3).float().div(127.5).sub(1)


def train_frame_net(
    steps: int = 3000,
    batch_size: int = 128,
    num_clips: int = 8192,
    seed: int = 0,
    device: str = "cpu",
    log: Log = print,
) -> tuple[FrameNet, dict[str, float]]:
    """Trains the frame net by regression of the targets.

    Returns:
        the net, and its R2 by target on 256 held-out clips (clean frames; spoilt ones for blur and noise).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    frames, targets, _ = draw(0, num_clips, frames_a_clip=4, seed=seed)
    frames, targets = frames.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None]  # every frame is a clip of one here
    log(f"frame net: {len(frames)} frames of {num_clips} clips")
    net = FrameNet().to(device)
    _set_units(net, *_spread(spoil(to_video(frames[:2048]), targets[:2048], generator)[1]))

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(frames), (batch_size,), generator=generator)
        x, y = spoil(to_video(frames[rows]).to(device), targets[rows].to(device), generator)
        return x[:, 0], y[:, 0]

    _regress(net, batch, steps, 2e-3, "frame net", log)
    frames, targets, _ = draw(HELD_OUT_FIRST, 256)
    clean = to_video(frames)
    spoilt, spoilt_targets = spoil(clean, targets, generator)
    with torch.no_grad():
        embedded = torch.cat([net.embed(part.to(device)) for part in clean.flatten(0, 1).split(1024)])
        read = torch.cat([net.read(part.to(device)) for part in spoilt.flatten(0, 1).split(1024)])
        scores = _report("frame net", net, embedded, targets.flatten(0, 1), read, spoilt_targets.flatten(0, 1), log)
    return net, scores


def clip_targets(targets_NTP: Tensor, speech_N: Tensor) -> Tensor:
    """The targets of clips, (N, Q), from those of their frames."""
    motion = {name: targets_NTP[..., columns(FRAME_TARGETS, name)].squeeze(-1) for name in MOTIONS}
    statistics = {
        "mouth_mean": motion["mouth"].mean(1),
        "mouth_std": motion["mouth"].std(1),
        "mouth_change": motion["mouth"].diff(dim=1).square().mean(1).sqrt(),
        "sway": motion["head_x"].std(1),
        "tilting": motion["tilt"].std(1),
        "blink": motion["eye_open"].amin(1),
        "speech": speech_N,
    }
    statics = [targets_NTP[:, 0, columns(FRAME_TARGETS, name)] for name in STATICS]
    parts = [*statics, *motion.values(), *(value[:, None] for value in statistics.values())]
    return torch.cat(parts, dim=1)


def train_clip_net(
    frame_net: FrameNet,
    steps: int = 3000,
    batch_size: int = 128,
    num_clips: int = 8192,
    seed: int = 0,
    device: str = "cpu",
    log: Log = print,
) -> tuple[ClipNet, dict[str, float]]:
    """Trains the clip net on the features of a frozen frame net; half of the clips are spoilt.

    Returns:
        the net, and its R2 by target on 512 held-out clips (clean ones; half of them spoilt for blur and noise).
    """
    torch.manual_seed(seed + 1)
    generator = torch.Generator().manual_seed(seed + 1)
    net = ClipNet().to(device)
    net.frame_net.load_state_dict(frame_net.state_dict())
    net.frame_net.requires_grad_(False)

    @torch.no_grad()
    def look_at(first: int, count: int, spoilt: bool) -> tuple[Tensor, Tensor]:
        features, targets = [], []
        for start in range(first, first + count, 64):
            size = min(64, first + count - start)
            frames, y, speech = draw(start, size)
            x = to_video(frames).to(device)
            if spoilt and (start - first) // 64 % 2:
                x, y = spoil(x, y, generator)
            features.append(net.frame_net.embed(x.flatten(0, 1)).view(size, FRAMES, -1))
            targets.append(clip_targets(y, speech).to(device))
        return torch.cat(features), torch.cat(targets)

    features, targets = look_at(0, num_clips, spoilt=True)
    log(f"clip net: frame features of {num_clips} clips")
    _set_units(net, *_spread(targets))

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(features), (batch_size,), generator=generator).to(device)
        return features[rows], targets[rows]

    _regress(net, batch, steps, 2e-3, "clip net", log)
    features, targets = look_at(HELD_OUT_FIRST, 512, spoilt=False)
    spoilt, spoilt_targets = look_at(HELD_OUT_FIRST, 512, spoilt=True)
    with torch.no_grad():
        scores = _report("clip net", net, net.embed(features), targets, net.read(spoilt), spoilt_targets, log)
    return net, scores


def r2(read_NP: Tensor, targets_NP: Tensor, names: dict[str, int]) -> dict[str, float]:
    """The share of variance explained, by target; a target that never varies (blur of clean frames) is left out."""
    scores = {}
    for name in names:
        at = columns(names, name)
        variance = (targets_NP[:, at] - targets_NP[:, at].mean(0)).square().mean()
        if variance > 0:
            scores[name] = round(1 - float((read_NP[:, at] - targets_NP[:, at]).square().mean() / variance), 4)
    return scores


def _report(
    what: str,
    net: FrameNet | ClipNet,
    embedded: Tensor,
    targets: Tensor,
    spoilt: Tensor,
    spoilt_targets: Tensor,
    log: Log,
) -> dict[str, float]:
    """Sets the net's feature scale, and gives its R2: from features of clean data, and from readings of spoilt data."""
    net.feature_scale = round((FEATURE_VARIANCE / float(embedded.var(0).mean())) ** 0.5, 4)
    read = net.heads(embedded) * net.target_std + net.target_mean
    faults = r2(spoilt.cpu(), spoilt_targets.cpu(), net.targets)
    scores = r2(read.cpu(), targets.cpu(), net.targets) | {name: faults[name] for name in ("blur", "noise")}
    log(f"{what}: feature scale {net.feature_scale}")
    log(f"{what}: held-out R2 " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return scores


def _spread(targets: Tensor) -> tuple[Tensor, Tensor]:
    flat = targets.flatten(0, -2)
    return flat.mean(0), flat.std(0).clamp_min(1e-6)


def _set_units(net: FrameNet | ClipNet, mean: Tensor, std: Tensor) -> None:
    net.target_mean.copy_(mean)
    net.target_std.copy_(std)


def _regress(
    net: FrameNet | ClipNet, batch: Callable[[], tuple[Tensor, Tensor]], steps: int, rate: float, what: str, log: Log
) -> None:
    """Minimises the squared error of the readings in units of their spread.

    Every target counts the same, of any width, except the mouth, which is small on the screen, matters most, and counts
    three times.
    """
    shares = [torch.full((width,), (3 if name == "mouth" else 1) / width) for name, width in net.targets.items()]
    weight = (torch.cat(shares) / sum(map(torch.sum, shares))).to(device=net.heads.weight.device)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    start, total = time.perf_counter(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        x, y = batch()
        loss = (((net.read(x) - y) / net.target_std).square() * weight).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 250 == 0:
            log(f"{what}: step {step + 1}/{steps} loss {total / 250:.4f} {time.perf_counter() - start:.0f} s")
            total = 0.0
    net.eval()


def main() -> None:
    """Trains both nets and puts them into the package; about five minutes on one thread."""
    torch.set_num_threads(1)
    log: Log = lambda line: print(line, flush=True)  # noqa: E731
    frame_net, scores = train_frame_net(log=log)
    save_net(frame_net, "frame", {"held_out_r2": scores})
    clip_net, scores = train_clip_net(frame_net, log=log)
    save_net(clip_net, "clip", {"held_out_r2": scores})


if __name__ == "__main__":
    main()
