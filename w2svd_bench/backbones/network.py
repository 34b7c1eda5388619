"""A transformer as a velocity: what it is fed beside the latents, in which precision, with which attention.

Axes: B batch, C channels, T latent frames, H, W latent pixels.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from w2svd_bench.backbones.adapters import Adapters
from w2svd_bench.backbones.quiet import only_errors
from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.types import Cond

GRAPHS = 64  # compiled versions of one block that are kept
PROBE_TOKENS = 128  # of an attention that is tried: a whole tile of the kernels


class Network:
    """One transformer in memory with its guidance; counts the clips that pass through it.

    Its velocity takes and gives what methods see. How an image-to-video transformer is fed follows from its
    ``image_condition_type``:

    - ``token_replace``: the given first latent frame stands before the noisy ones and its velocity is dropped, so
      methods never see that frame: latents have T - 1 frames.
    - ``latent_concat``: the given frame (zero elsewhere) and a mask are stacked on the channels.

    Args:
        transformer: a `HunyuanVideoTransformer3DModel`.
        guidance: the embedded guidance scale; ignored by a transformer that embeds none.
        dtype: of all activations; None is that of the weights. Weights of another type are cast as they are used.
    """

    def __init__(self, transformer: Any, guidance: float, dtype: torch.dtype | None = None) -> None:
        self.transformer = transformer
        self.guidance = guidance
        self.dtype: torch.dtype = dtype or transformer.x_embedder.proj.weight.dtype
        self.image_condition: str | None = transformer.config.image_condition_type
        self.adapters = Adapters(transformer)
        self.evaluations = 0
        for block in self.blocks:
            earlier = block.attn.processor
            processor = _Attention(self.adapters)
            processor._attention_backend = getattr(earlier, "_attention_backend", None)
            block.attn.processor = processor

    @property
    def blocks(self) -> list[Any]:
        """The transformer's repeated blocks, in order."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def velocity(self, x_BCTHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """The network at noise levels t in [0, 1] (it receives 1000 t, in float32), in the type of ``x``."""
        self.adapters.check_exact()
        self.evaluations += len(x_BCTHW)
        guidance = None
        if self.transformer.config.guidance_embeds:
            # Multiplied in the activations' type, as the pipeline does: 6.0 in bfloat16 becomes 6016.
            guidance = torch.full((len(x_BCTHW),), self.guidance, device=x_BCTHW.device, dtype=self.dtype) * 1000.0
        hidden_states = self._fed(x_BCTHW, cond).to(self.dtype)
        # Where no text is padded the mask hides nothing, and without it the fast attention kernels apply.
        unmasked = bool(cond.mask_BL.bool().all())
        if not unmasked and not self._takes_masks:
            raise BenchError(
                f"attention backend {self._attention.value!r} can't take texts of different lengths in one batch",
                "the shorter ones are padded, and this backend knows no mask that would hide the padding",
                "use a training.micro_batch of 1, eval --batch 1, or engine.attention=native",
            )
        with self._casting(x_BCTHW.device.type), self.adapters.without_mask(unmasked):
            velocity: Tensor = self.transformer(
                hidden_states=hidden_states,
                timestep=t_B.float() * 1000.0,
                encoder_hidden_states=cond.tokens_BLD.to(self.dtype),
                encoder_attention_mask=cond.mask_BL.to(self.dtype),
                pooled_projections=cond.pooled_BP.to(self.dtype),
                guidance=guidance,
                return_dict=False,
            )[0]
        if self.image_condition == "token_replace":
            velocity = velocity[:, :, 1:]
        return velocity.to(x_BCTHW.dtype)

    def use_attention(self, backend: str) -> None:
        """Chooses one of diffusers' attention backends; raises `BenchError` if it is unknown or not installed."""
        known = [one.value for one in AttentionBackendName]
        if backend not in known:
            raise unknown_name("attention backend", backend, known)
        before, _ = _AttentionBackendRegistry.get_active_backend()
        try:
            with only_errors(diffusers_logging):  # it warns that the choice is experimental
                self.transformer.set_attention_backend(backend)
            # diffusers makes it the choice of every model that has none of its own, too: of the runs evaluated after
            # this one, and of the teacher.
            _AttentionBackendRegistry.set_active_backend(before)
            self.__dict__.pop("_takes_masks", None)
        except (ImportError, RuntimeError, ValueError) as error:
            raise BenchError(
                f"attention backend {backend!r} can't be used here",
                " ".join(str(error).split()),
                "install what it needs, or use engine.attention=native",
            ) from error

    def check_trainable(self) -> None:
        """Tries backward through the attention in use, in a probe of a few tokens; for training alone.

        Kernels made for sampling know nothing of autograd: what passes through them gets no gradient, and adapters of
        queries, keys and values would stay as they are without a word.

        Raises:
            BenchError: queries, keys or values get no gradient, or one that is 0 or no number.
        """
        backend = self._attention
        if backend is AttentionBackendName.NATIVE:
            return
        why = self._untrainable(backend)
        if why:
            raise BenchError(
                f"attention backend {backend.value!r} can't be trained with",
                why,
                "train with engine.attention=native (or flash) and without DIFFUSERS_ATTN_BACKEND; sampling may use "
                "this one",
            )

    @property
    def _attention(self) -> AttentionBackendName:
        """The backend in use: a model without a choice of its own takes that of DIFFUSERS_ATTN_BACKEND."""
        chosen = self.blocks[0].attn.processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        return AttentionBackendName(chosen)

    @cached_property
    def _takes_masks(self) -> bool:
        """Whether the attention in use takes a mask; tried with a few tokens, the first time that one is needed."""
        if self._attention is AttentionBackendName.NATIVE:
            return True
        shape, device = self._probe
        tokens = torch.zeros(shape, device=device, dtype=self.dtype)
        mask = torch.ones(1, 1, 1, PROBE_TOKENS, device=device, dtype=torch.bool)  # as the transformer's own
        try:
            with torch.no_grad(), only_errors(diffusers_logging):
                dispatch_attention_fn(tokens, tokens, tokens, attn_mask=mask, backend=self._attention)
        except (RuntimeError, ValueError, TypeError, AssertionError):
            return False
        return True

    @property
    def _probe(self) -> tuple[tuple[int, int, int, int], torch.device]:
        """Of what shape (B, tokens, heads, D), and where, an attention is tried."""
        head = self.transformer.config.attention_head_dim
        return (1, PROBE_TOKENS, 2, head), next(self.transformer.parameters()).device

    def _untrainable(self, backend: AttentionBackendName) -> str:
        """What is wrong with backward through an attention backend; nothing if it is right."""
        shape, device = self._probe
        generator = torch.Generator().manual_seed(0)  # its own: nothing else is drawn differently for the probe
        inputs = {
            name: torch.randn(shape, generator=generator).to(device, self.dtype).requires_grad_()
            for name in ("queries", "keys", "values")
        }
        weight = torch.randn(shape, generator=generator).to(device, self.dtype)
        try:
            with torch.enable_grad(), only_errors(diffusers_logging):
                out = dispatch_attention_fn(*inputs.values(), backend=backend)
                if out.requires_grad:
                    (out * weight).sum().backward()
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            said = " ".join(str(error).split())
            return f"forward and backward of a few tokens ended in {type(error).__name__}: {said}"
        grads = {name: x.grad for name, x in inputs.items()}
        missing = [name for name, grad in grads.items() if grad is None or not bool(grad.any())]
        if missing:
            return f"it has no backward pass: no gradient comes back to {', '.join(missing)}"
        wrong = [name for name, grad in grads.items() if grad is not None and not bool(grad.isfinite().all())]
        return f"its backward pass gives gradients that are no numbers, for {', '.join(wrong)}" if wrong else ""

    def compile_blocks(self) -> None:
        """Compiles the repeated blocks with `torch.compile`; call it when all adapters are there.

        Every adapter, its strength and whether gradients are wanted make a graph of their own: with four roles more
        than torch allows a function before it goes on without compiling it, so the limit is raised.
        """
        from torch._dynamo import config as dynamo_config  # takes seconds to import, and most runs never need it

        dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, GRAPHS)
        for block in self.blocks:
            block.compile()

    def _fed(self, x: Tensor, cond: Cond) -> Tensor:
        if self.image_condition is None:
            return x
        image = cond.image_BCTHW
        if image is None:
            raise BenchError(
                "this backbone needs a first frame for each clip",
                f"it is an image-to-video transformer ({self.image_condition}) and the conditioning holds none",
                "prepare the data with this backbone (w2svd-bench data prepare), or use a text-to-video one",
            )
        image = image.to(x)
        if self.image_condition == "token_replace":
            return torch.cat([image, x], dim=2)
        given = torch.cat([image, image.new_zeros(x.shape).narrow(2, 1, x.shape[2] - 1)], dim=2)
        mask = torch.zeros_like(x[:, :1])
        mask[:, :, 0] = 1
        return torch.cat([x, given, mask], dim=1)

    def _casting(self, device: str) -> Any:
        """Autocast where weights are kept in a higher precision than activations; FSDP2 casts by itself."""
        weights = self.transformer.x_embedder.proj.weight.dtype
        if weights == self.dtype or isinstance(self.transformer, FSDPModule):
            return nullcontext()
        return torch.autocast(device, dtype=self.dtype)


class _Attention(HunyuanVideoAttnProcessor2_0):
    """diffusers' attention, without its mask while the adapters' pass says that it hides nothing."""

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self._adapters = adapters

    # The arguments are named because diffusers reads them off this signature and drops what it does not find there.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        mask = None if self._adapters.unmasked else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)

    def __deepcopy__(self, memo: dict[int, Any]) -> HunyuanVideoAttnProcessor2_0:
        """A copied transformer gets plain attention until it has a network, and adapters, of its own."""
        plain = HunyuanVideoAttnProcessor2_0()
        plain._attention_backend = self._attention_backend
        return plain
