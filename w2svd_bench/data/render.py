"""Draws talking portraits: a head, hair, neck and shirt of soft-edged ellipses, moving as a person who speaks.

Shapes: N clips, T frames, H, W pixels. Coordinates run over [-1, 1], x to the right and y down. Colours are in
[0, 1]. All of it is plain tensor arithmetic on one thread, in chunks that stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2svd_bench.data.attributes import Portrait

SKIN = ((0.96, 0.83, 0.73), (0.87, 0.66, 0.48), (0.63, 0.42, 0.28), (0.37, 0.24, 0.17))
HAIR = ((0.11, 0.10, 0.11), (0.36, 0.22, 0.13), (0.85, 0.68, 0.35), (0.66, 0.24, 0.11))
BACKDROP = ((0.25, 0.52, 0.55), (0.80, 0.73, 0.60), (0.17, 0.21, 0.40), (0.38, 0.56, 0.33))
SHIRT = ((0.72, 0.18, 0.18), (0.90, 0.90, 0.92), (0.18, 0.30, 0.68))

# The clip's time axis is in cycles per frame, so that the number of frames does not change how fast a face moves.
SLOW_SPEECH, FAST_SPEECH = 0.085, 0.20
HEAD_SIZE = 1.15
SOFTNESS = 1.5  # width of an outline in pixels: a mild soft focus, which 8 x 8 x 4 latents can carry


@dataclass(frozen=True)
class Scene:
    """Everything the painter needs: statics of shape (N,), colours (N, 3), motion (N, T)."""

    skin: Tensor
    hair: Tensor
    backdrop: Tensor
    shirt: Tensor
    face_width: Tensor
    eye_size: Tensor
    hair_length: Tensor
    fringe: Tensor
    light: Tensor
    head_x: Tensor
    head_y: Tensor
    tilt: Tensor
    mouth: Tensor
    eye_open: Tensor
    gaze: Tensor


def scene(portraits: Sequence[Portrait], num_frames: int) -> Scene:
    """Turns attributes and jitter into the parameters of a scene, frame by frame.

    The motion is what makes the clip a person who talks: the mouth follows a product of two sinusoids (a syllable
    under a phrase), the head sways, bobs and tilts together, and the eyes blink once in most clips.
    """
    u = torch.from_numpy(np.stack([p.uniforms for p in portraits])).float()
    classes = {name: torch.tensor([p.classes[name] for p in portraits]) for name in portraits[0].classes}
    frame_T = torch.arange(num_frames, dtype=torch.float32)

    def colour(palette: Sequence[Sequence[float]], which: str, first: int) -> Tensor:
        base = torch.tensor(palette)[classes[which]]
        brightness = 0.88 + 0.24 * u[:, first : first + 1]
        return (base * brightness + 0.06 * (u[:, first + 1 : first + 4] - 0.5)).clamp(0.02, 0.98)

    def wave(frequency_N: Tensor, phase_N: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * (frequency_N[:, None] * frame_T + phase_N[:, None]))

    fast = classes["speech"].float()
    syllable = (SLOW_SPEECH + (FAST_SPEECH - SLOW_SPEECH) * fast) * (0.88 + 0.24 * u[:, 16])
    envelope = 0.72 + 0.28 * wave(0.35 * syllable, u[:, 18])
    mouth = (0.5 + 0.5 * wave(syllable, u[:, 17])) * envelope * (0.75 + 0.25 * u[:, 19])[:, None]

    swaying = classes["head"].float()
    amplitude = (0.015 + 0.015 * u[:, 20]) + swaying * (0.085 + 0.045 * u[:, 20])
    sway = wave(0.04 + 0.03 * u[:, 21], u[:, 22])
    bob = wave(0.06 + 0.04 * u[:, 23], u[:, 24])

    blink_at = u[:, 25] * num_frames * 1.25  # one clip in five does not blink
    eye_open = 1 - 0.92 * torch.exp(-(((frame_T - blink_at[:, None]) / 1.1) ** 2))

    return Scene(
        skin=colour(SKIN, "skin", 0),
        hair=colour(HAIR, "hair", 4),
        backdrop=colour(BACKDROP, "backdrop", 8),
        shirt=colour(SHIRT, "shirt", 12),
        face_width=0.335 + 0.085 * classes["face"] + 0.03 * (u[:, 26] - 0.5),
        eye_size=0.052 + 0.026 * classes["eyes"] + 0.008 * (u[:, 27] - 0.5),
        hair_length=u[:, 28],
        fringe=u[:, 29],
        light=2 * u[:, 30] - 1,
        head_x=0.06 * (u[:, 31:32] - 0.5) + amplitude[:, None] * sway,
        head_y=-0.08 + 0.05 * (u[:, 15:16] - 0.5) + (0.006 + 0.22 * amplitude)[:, None] * bob,
        tilt=0.9 * amplitude[:, None] * sway + 0.03 * bob,
        mouth=mouth,
        eye_open=eye_open,
        gaze=0.012 * wave(0.03 + 0.02 * u[:, 21], u[:, 19]),
    )


def paint(s: Scene, height: int, width: int) -> Tensor:
    """Paints a scene.

    Returns:
        uint8 frames of shape (N, T, H, W, 3).
    """
    num_clips, num_frames = s.head_x.shape
    pixel = 2.0 / min(height, width)
    ys = (torch.arange(height) + 0.5) * (2.0 / height) - 1
    xs = (torch.arange(width) + 0.5) * (2.0 / width) - 1
    x, y = xs.view(1, 1, 1, width), ys.view(1, 1, height, 1)

    # Head coordinates: (hx, hy) turn and move with the head.
    cos, sin = (f(s.tilt)[..., None, None] for f in (torch.cos, torch.sin))
    dx, dy = x - s.head_x[..., None, None], y - s.head_y[..., None, None]
    hx, hy = (cos * dx + sin * dy) / HEAD_SIZE, (cos * dy - sin * dx) / HEAD_SIZE

    def each(value: Tensor | float) -> Tensor:
        """(N,) or (N, T) to something that broadcasts over (N, T, H, W)."""
        if not isinstance(value, Tensor):
            return torch.tensor(float(value))
        return value.view(*value.shape, *([1] * (4 - value.ndim)))

    def ellipse(
        px: Tensor, py: Tensor, cx: Tensor | float, cy: Tensor | float, a: Tensor | float, b: Tensor | float
    ) -> Tensor:
        """Coverage in [0, 1] of an ellipse, from the first-order distance f / |grad f| to its outline."""
        inv_a2 = each(a).clamp_min(0.6 * pixel).square().reciprocal()
        inv_b2 = each(b).clamp_min(0.6 * pixel).square().reciprocal()
        qx, qy = px - each(cx), py - each(cy)
        gx, gy = qx * inv_a2, qy * inv_b2
        f = (qx * gx + qy * gy).sub_(1)
        slope = (gx.square_() + gy.square_()).add_(1e-6).sqrt_().mul_(2 * SOFTNESS * pixel)
        return f.div_(slope).neg_().add_(0.5).clamp_(0, 1)

    canvas = s.backdrop[:, None, :, None, None] * (1.12 - 0.22 * (y + 0.6 * each(s.light) * x).unsqueeze(2))
    canvas = canvas.expand(num_clips, num_frames, 3, height, width).contiguous()

    def draw(colour_N3: Tensor, mask: Tensor, shade: Tensor | None = None) -> None:
        colour = colour_N3[:, None, :, None, None]
        canvas.lerp_(colour if shade is None else colour * shade.unsqueeze(2), mask.unsqueeze(2))

    w = s.face_width
    lit = 1.0 + 0.22 * each(s.light) * hx - 0.10 * hy
    # Behind the head: long hair, shoulders, neck.
    draw(s.hair * 0.82, ellipse(hx, hy, 0.0, 0.02 + 0.16 * s.hair_length, w * 1.24, 0.50 + 0.22 * s.hair_length))
    follow_x, follow_y = x - 0.35 * s.head_x[..., None, None], y
    shoulders = ellipse(follow_x, follow_y, 0.0, 1.12, 0.80, 0.50)
    draw(s.shirt, shoulders, 1.05 - 0.35 * (y - 0.6) + 0.12 * each(s.light) * x)
    draw(s.shirt * 0.72, shoulders * ellipse(follow_x, follow_y, 0.0, 0.52, w * 0.72, 0.32))
    draw(s.skin * 0.78, ellipse(follow_x, follow_y, 0.0, 0.50, w * 0.50, 0.26))
    # Ears, head.
    for side in (-1.0, 1.0):
        draw(s.skin * 0.85, ellipse(hx, hy, side * w * 0.98, 0.04, 0.055, 0.10))
    head = ellipse(hx, hy, 0.0, 0.02, w, 0.50)
    draw(s.skin, head, lit)
    # Hair on top: what lies outside a face oval and above the temples.
    cap = ellipse(hx, hy, 0.0, -0.12, w * 1.13, 0.44)
    below = ellipse(hx, hy, 0.16 * (s.fringe - 0.5), 0.24, w * 1.02, 0.47 + 0.06 * s.fringe)
    draw(s.hair, cap * (1 - below), lit)

    # The features of the face live in a window in the middle; painting only there saves most of the work.
    top, bottom, left, right = height * 5 // 24, height * 19 // 24, width * 5 // 24, width * 19 // 24
    fx, fy = hx[..., top:bottom, left:right], hy[..., top:bottom, left:right]
    window = canvas[..., top:bottom, left:right]

    def mark(colour_N3: Tensor, mask: Tensor) -> None:
        window.lerp_(colour_N3[:, None, :, None, None], mask.unsqueeze(2))

    white, dark = torch.full((num_clips, 3), 0.95), torch.full((num_clips, 3), 0.07)
    eye_y, eye_x = 0.0, w * 0.45
    for side in (-1.0, 1.0):
        lid = s.eye_size[:, None] * (0.12 + 0.88 * s.eye_open)
        outline = ellipse(fx, fy, side * eye_x, eye_y, s.eye_size * 1.75, lid)
        mark(white, outline)
        mark(
            dark, outline * ellipse(fx, fy, side * eye_x[:, None] + s.gaze, eye_y, s.eye_size * 0.85, s.eye_size * 0.95)
        )
        mark(
            s.skin * 0.55,
            ellipse(fx, fy, side * eye_x, eye_y - s.eye_size[:, None] * s.eye_open, s.eye_size * 1.6, 0.012) * 0.6,
        )
        mark(s.hair * 0.8, ellipse(fx, fy, side * eye_x, eye_y - 0.075 - s.eye_size, w * 0.26, 0.024))
    mark(s.skin * 0.74, ellipse(fx, fy, 0.02 * s.light, 0.15, 0.055, 0.035) * 0.8)
    # A jaw that drops as the mouth opens: lips, then the dark inside.
    open_NT = 0.105 * s.mouth
    lips = s.skin * torch.tensor([0.80, 0.46, 0.46])
    mark(lips, ellipse(fx, fy, 0.0, 0.29 + 0.4 * open_NT, w[:, None] * (0.44 - 0.10 * s.mouth), 0.034 + open_NT))
    inside = torch.tensor([0.20, 0.05, 0.06]).expand(num_clips, 3)
    mark(
        inside,
        ellipse(fx, fy, 0.0, 0.29 + 0.4 * open_NT, w[:, None] * (0.34 - 0.10 * s.mouth), open_NT)
        * (s.mouth * 4).clamp(0, 1)[..., None, None],
    )

    return canvas.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
