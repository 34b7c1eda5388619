"""What weight files there are for metrics, and who says so. `weights.py` finds and checks them; this is data only.

Every size and hash here was stated by somebody else, in public: by Hugging Face for files that it stores ("LFS"), by a
repository's LFS pointer, by an address that holds the hash, or by code that pins it; "several projects" are ones that
have nothing to do with each other. What nobody states is None.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A published file.

    Attributes:
        id: what the program calls it.
        file: its place in the weights folder, with forward slashes. What VBench reads lies under ``vbench/`` in the
            layout of ``$VBENCH_CACHE_DIR``, so that the folder can serve as one.
        urls: where it can be had, best first; all serve the same bytes.
        size: bytes; None where no public source states it.
        sha256: None where no public source states it.
        stated_by: who states size and hash.
        licence: as its publisher states it.
        used_by: the metrics and dimensions that need it, as they are named on the command line.
        in_torch_hub: whether it is also taken from torch's own cache of checkpoints, where other tools leave it.
    """

    id: str
    file: str
    urls: tuple[str, ...]
    size: int | None
    sha256: str | None
    stated_by: str
    licence: str
    used_by: tuple[str, ...]
    in_torch_hub: bool = False


_HUB = "https://huggingface.co"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
# A public copy of VBench's files; what comes from there is held against the same hash.
_COPY = f"{_HUB}/datasets/videogenevalkit/checkpoints/resolve/main/vbench/pretrained"
_VBENCH_HUB = f"{_HUB}/OpenGVLab/VBench_Used_Models/resolve/83290ee59b4e2c0a4d198857edbc79dd186b8d44"

_ALL = (
    Weight(
        id="inception-pytorchfid",
        file="pt_inception-2015-12-05-6726825d.pth",
        urls=(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        ),
        size=95628359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        stated_by="LFS pointer of RaphaelLiu/EvalCrafter-Models; pinned by several projects; its start is in the name",
        licence="Apache-2.0",
        used_by=("fid", "fid_clean", "kid", "kid_clean"),
        in_torch_hub=True,
    ),
    Weight(
        id="i3d-torchscript",
        file="i3d_torchscript.pt",
        urls=(
            f"{_HUB}/flateon/FVD-I3D-torchscript/resolve/1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        ),
        size=51235320,
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        stated_by="LFS pointer of Open-Sora-Plan v1.0.0, pinned by several projects",
        licence="not stated (DeepMind's original: Apache-2.0)",
        used_by=("fvd", "kvd"),
    ),
    Weight(
        id="i3d-kinetics400",
        file="i3d_pretrained_400.pt",
        urls=(
            f"{_HUB}/spaces/LanguageBind/Open-Sora-Plan-v1.0.0/resolve/810fa8c4bdb3a4c8eec9bd57375c29bde6fb46de/"
            "opensora/eval/fvd/videogpt/i3d_pretrained_400.pt",
            "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
        ),
        size=50939526,
        sha256="55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",
        stated_by="LFS pointer of Open-Sora-Plan v1.0.0 (VideoGPT's file); no source says that TATS's copy is the same",
        licence="not stated (DeepMind's original: Apache-2.0)",
        used_by=("fvd_videogpt", "fvd_cdfvd"),
    ),
    Weight(
        id="videomae-ssv2",
        file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        urls=(
            f"{_HUB}/OpenGVLab/VideoMAE2/resolve/97d119d270aca7a1217fff7f413c0c543eb325d9/"
            "mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
            f"{_HUB}/OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        ),
        size=2023804201,
        sha256="5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
        stated_by="LFS of OpenGVLab/VideoMAE2; size as pinned for the copy in ByteDance/LatentSync-1.5",
        licence="Apache-2.0",
        used_by=("cd_fvd",),
    ),
    Weight(
        id="vbench-dino",
        file="vbench/dino_model/dino_vitbase16_pretrain.pth",
        urls=(
            "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
            f"{_COPY}/dino_model/dino_vitbase16_pretrain.pth",
        ),
        size=343242485,
        sha256="bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e",
        stated_by="pinned by several projects, measured from the publisher's address",
        licence="Apache-2.0",
        used_by=("vbench", "vbench.subject_consistency", "vbench_i2v", "vbench_i2v.i2v_subject"),
    ),
    Weight(
        id="vbench-clip-b32",
        file="vbench/clip_model/ViT-B-32.pt",
        urls=(
            f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
            f"{_COPY}/clip_model/ViT-B-32.pt",
        ),
        size=353976522,
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        stated_by="its address (openai/CLIP, clip.py); size as pinned by a public check of VBench's files",
        licence="MIT",
        used_by=("vbench", "vbench.background_consistency"),
    ),
    Weight(
        id="vbench-clip-l14",
        file="vbench/clip_model/ViT-L-14.pt",
        urls=(
            f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
            f"{_COPY}/clip_model/ViT-L-14.pt",
        ),
        size=932768134,
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        stated_by="its address (openai/CLIP, clip.py); size as pinned by a public check of VBench's files",
        licence="MIT",
        used_by=("vbench", "vbench.aesthetic_quality"),
    ),
    Weight(
        id="vbench-aesthetic",
        file="vbench/aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        urls=(
            "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f/"
            "sa_0_4_vit_l_14_linear.pth",
            "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        ),
        size=4071,
        sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        stated_by="pinned by several projects, measured from the publisher's repository",
        licence="MIT",
        used_by=("vbench", "vbench.aesthetic_quality"),
    ),
    Weight(
        id="vbench-musiq",
        file="vbench/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        urls=(
            "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
            f"{_COPY}/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        ),
        size=108610983,
        sha256="358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50",
        stated_by="pinned by several projects; the file name has its start",
        licence="CC BY-NC-SA 4.0 and S-Lab License 1.0",
        used_by=("vbench", "vbench.imaging_quality"),
    ),
    Weight(
        id="vbench-amt",
        file="vbench/amt_model/amt-s.pth",
        urls=(
            f"{_HUB}/lalala125/AMT/resolve/4af6ffbd88d33b3cef3802f65ce910f44a7b4849/amt-s.pth",
            f"{_COPY}/amt_model/amt-s.pth",
        ),
        size=12038359,
        sha256="07e7e03405c213fe4405678db9b42d05671e48c56faf6a441b99bb0047d3cf77",
        stated_by="LFS of lalala125/AMT",
        licence="CC BY-NC-SA 4.0",
        used_by=("vbench", "vbench.motion_smoothness"),
    ),
    Weight(
        id="vbench-raft",
        file="vbench/raft_model/models/raft-things.pth",
        # VBench takes it out of models.zip (dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz); here the member is had alone.
        urls=(
            "https://github.com/sczhou/ProPainter/releases/download/v0.1.0/raft-things.pth",
            f"{_HUB}/datasets/videogenevalkit/checkpoints/resolve/main/worldscore/raft-things.pth",
        ),
        size=21108000,
        sha256="fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
        stated_by="pinned by several projects, as the member of RAFT's models.zip and as ProPainter's copy of it",
        licence="BSD-3-Clause",
        used_by=("vbench", "vbench.dynamic_degree"),
    ),
    Weight(
        id="vbench-umt",
        file="vbench/umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        urls=(f"{_VBENCH_HUB}/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
        size=607024201,
        sha256="bfee78a03bf806fbc0c216309e8f92792011b7db6556fa860e9d869c1e69fecd",
        stated_by="pinned by two projects, as VBench's file on Hugging Face",
        licence="MIT",
        used_by=("vbench.human_action",),
    ),
    Weight(
        id="vbench-viclip",
        file="vbench/ViCLIP/ViClip-InternVid-10M-FLT.pth",
        urls=(f"{_VBENCH_HUB}/ViClip-InternVid-10M-FLT.pth",),
        size=1710545812,
        sha256="7a4d6ad6eac6632db3693f4b97f9f8f6445b65b1e139a6fc6686150522238c56",
        stated_by="LFS of OpenGVLab/VBench_Used_Models; size as pinned by a public check of VBench's files",
        licence="MIT",
        used_by=("vbench.overall_consistency", "vbench.temporal_style"),
    ),
)

WEIGHTS: dict[str, Weight] = {weight.id: weight for weight in _ALL}
