"""The codec of the miniature HunyuanVideo: a linear causal encoder and a small convolutional decoder.

It stands where `AutoencoderKLHunyuanVideo` stands, behind the same calls (``encode(x).latent_dist.mode()``,
``decode(z)``, ``config.scaling_factor``) and with the same geometry: frame 0 alone, then groups of 4 frames, 8 x 8
pixels a latent pixel, 16 channels. The encoder is a principal component analysis of 8 x 8 and 4 x 8 x 8 patches;
the decoder adds a learned correction that sees the neighbouring latents, which removes the seams between patches.
Axes: B batch, C channels, T latent frames, F frames, H, W latent pixels.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

SPATIAL, TEMPORAL, COLOURS = 8, 4, 3


def to_patches(x_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts a video into patches: frame 0 as (B, 1, h, w, 192), the other frames as (B, T - 1, h, w, 768)."""
    b, c, f, height, width = x_BCFHW.shape
    h, w = height // SPATIAL, width // SPATIAL
    first = x_BCFHW[:, :, :1].reshape(b, c, 1, 1, h, SPATIAL, w, SPATIAL)
    rest = x_BCFHW[:, :, 1:].reshape(b, c, (f - 1) // TEMPORAL, TEMPORAL, h, SPATIAL, w, SPATIAL)
    order = (0, 2, 4, 6, 3, 1, 5, 7)  # B, T, h, w, frame in group, colour, row, column
    return tuple(part.permute(order).flatten(4) for part in (first, rest))  # type: ignore[return-value]


def from_patches(first: Tensor, rest: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    videos = []
    for part, frames in ((first, 1), (rest, TEMPORAL)):
        b, t, h, w, _ = part.shape
        grid = part.view(b, t, h, w, frames, COLOURS, SPATIAL, SPATIAL).permute(0, 5, 1, 4, 2, 6, 3, 7)
        videos.append(grid.reshape(b, COLOURS, t * frames, h * SPATIAL, w * SPATIAL))
    return torch.cat(videos, dim=2)


class _Point:
    """A distribution without spread, with the two calls that diffusers makes on a posterior."""

    def __init__(self, latents: Tensor) -> None:
        self._latents = latents

    def mode(self) -> Tensor:
        return self._latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._latents


class MiniCodec(ModelMixin, ConfigMixin):
    """A causal video codec of 8 x 8 x 4 compression to 16 channels, for clips of 4k + 1 frames.

    Args:
        latent_channels: channels of a latent, 16 as in HunyuanVideo.
        hidden_channels: width of the decoder's correction net; 0 leaves the decoder linear.
        scaling_factor: multiplied on encode and divided on decode by the callers, as for every diffusers VAE.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 16, hidden_channels: int = 128, scaling_factor: float = 1.0) -> None:
        super().__init__()
        sizes = {"first": COLOURS * SPATIAL**2, "rest": TEMPORAL * COLOURS * SPATIAL**2}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_basis", torch.zeros(latent_channels, size))
            self.register_buffer(f"{name}_scale", torch.ones(latent_channels))
        self.correction = _Correction(latent_channels, hidden_channels, sizes) if hidden_channels else None
        self.spatial_compression_ratio, self.temporal_compression_ratio = SPATIAL, TEMPORAL

    def encode(self, x_BCFHW: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[_Point]:
        """Video in [-1, 1], (B, 3, 4k+1, 8h, 8w), to latents (B, 16, k+1, h, w) of about unit variance."""
        first, rest = to_patches(x_BCFHW)
        parts = [
            (part - getattr(self, f"{name}_mean")) @ getattr(self, f"{name}_basis").T / getattr(self, f"{name}_scale")
            for name, part in (("first", first), ("rest", rest))
        ]
        posterior = _Point(torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3).contiguous())
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z_BCTHW: Tensor, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, 16, T, h, w) to video (B, 3, 4T-3, 8h, 8w), about [-1, 1]; not clamped."""
        z = z_BCTHW.permute(0, 2, 3, 4, 1)
        first, rest = (
            (part * getattr(self, f"{name}_scale")) @ getattr(self, f"{name}_basis") + getattr(self, f"{name}_mean")
            for name, part in (("first", z[:, :1]), ("rest", z[:, 1:]))
        )
        if self.correction is not None:
            add_first, add_rest = self.correction(z_BCTHW)
            first, rest = first + add_first, rest + add_rest
        video = from_patches(first, rest)
        if self.correction is not None:
            video = self.correction.smooth(video)
        return DecoderOutput(sample=video) if return_dict else (video,)


class _Correction(nn.Module):
    """What the linear decoder misses, from each latent and its neighbours; causal in time, like the real decoder."""

    def __init__(self, channels: int, hidden: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.mix = nn.Conv3d(channels, hidden, kernel_size=(2, 3, 3), padding=(0, 1, 1))
        self.deep = nn.Conv3d(hidden, hidden, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.to_first = nn.Linear(hidden, sizes["first"])
        self.to_rest = nn.Linear(hidden, sizes["rest"])
        self.blur = nn.Conv3d(COLOURS, 12, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.sharpen = nn.Conv3d(12, COLOURS, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        for last in (self.to_first, self.to_rest, self.sharpen):  # the decoder starts as the linear one
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, z_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        past = torch.cat([z_BCTHW[:, :, :1], z_BCTHW], dim=2)
        hidden = nn.functional.silu(self.mix(past))
        hidden = hidden + nn.functional.silu(self.deep(hidden))
        hidden = hidden.permute(0, 2, 3, 4, 1)
        return self.to_first(hidden[:, :1]), self.to_rest(hidden[:, 1:])

    def smooth(self, video_BCFHW: Tensor) -> Tensor:
        """A last touch over full-size pixels, across the seams of the patches."""
        return video_BCFHW + self.sharpen(nn.functional.silu(self.blur(video_BCFHW)))
