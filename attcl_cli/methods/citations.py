"""The publications that each method asks to cite, for reports and papers. Loads no method.

References are those of the two papers' own lists (`seeds/` of the method notes) and of the pages in docs/methods.
"""

from __future__ import annotations

from collections.abc import Mapping

_ATTCL_GAN = (
    "Xu Z, Tang J, Yao D, Wang Z, Lukasiewicz T. AttCL-GAN: Attentional contrastive learning-based generative "
    "adversarial network for modality completion of medical images."
)
_STARGAN_V2 = (
    "Choi Y, Uh Y, Yoo J, Ha JW. StarGAN v2: Diverse image synthesis for multiple domains. CVPR 2020, "
    "8188-8197."
)
_PLAVE = (
    "Lim M, Kang B, Kam TE. Multi-modal contrastive learning for tumor-specific missing modality synthesis. "
    "arXiv:2502.19390, 2025."
)
_CYCLEGAN = (
    "Zhu JY, Park T, Isola P, Efros AA. Unpaired image-to-image translation using cycle-consistent adversarial "
    "networks. ICCV 2017, 2223-2232."
)

_OF_METHODS: Mapping[str, tuple[str, ...]] = {
    "attcl-gan": (_ATTCL_GAN, _STARGAN_V2),
    "plave": (_PLAVE,),
    "unet": (
        "Ronneberger O, Fischer P, Brox T. U-Net: Convolutional networks for biomedical image segmentation. "
        "MICCAI 2015, 234-241.",
    ),
    "attgan": (
        "He Z, Zuo W, Kan M, Shan S, Chen X. AttGAN: Facial attribute editing by only changing what you want. "
        "IEEE Transactions on Image Processing 28(11), 5464-5478, 2019. arXiv:1711.10678.",
    ),
    "superstargan": (
        "Ko K, Yeom T, Lee M. SuperstarGAN: Generative adversarial networks for image-to-image translation in "
        "large-scale domains. Neural Networks 162, 330-339, 2023. doi:10.1016/j.neunet.2023.02.042.",
    ),
    "cyclegan": (_CYCLEGAN,),
    "u-gat-it": (
        "Kim J, Kim M, Kang H, Lee K. U-GAT-IT: Unsupervised generative attentional networks with adaptive "
        "layer-instance normalization for image-to-image translation. ICLR 2020. arXiv:1907.10830.",
    ),
    "attentiongan": (
        "Tang H, Liu H, Xu D, Torr PHS, Sebe N. AttentionGAN: Unpaired image-to-image translation using "
        "attention-guided generative adversarial networks. IEEE Transactions on Neural Networks and Learning "
        "Systems 34(4), 1972-1987, 2021. arXiv:1911.11897.",
    ),
    "msa-gan": (
        "Wang F, Zhang Q, Zhao Q, Wang M, Sun F. Unsupervised image-to-image translation with multiscale attention "
        "generative adversarial network. Applied Intelligence 54(8), 6558-6578, 2024 (re-specified here: no code is "
        "public).",
        _CYCLEGAN,
    ),
    "w2gan": (
        "Yang Q, Pu Y, Zhao Z, Xu D, Li S. W2GAN: Importance weight and wavelet feature guided image-to-image "
        "translation under limited data. Computers & Graphics 116, 115-127, 2023 (re-specified here: no code is "
        "public).",
        _STARGAN_V2,
    ),
}


# The list of PLAVE's paper, [4] to [6].
_OF_VARIANTS: Mapping[str, str] = {
    "ae-gan": "Cao B, Bi Z, Hu Q, Zhang H, Wang N, Gao X, Shen D. Autoencoder-driven multimodal collaborative learning "
    "for medical image synthesis. International Journal of Computer Vision 131(8), 1995-2014, 2023.",
    "aca-gan": "Cao B, Cao H, Liu J, Zhu P, Zhang C, Hu Q. Autoencoder-based collaborative attention GAN for "
    "multi-modal image synthesis. IEEE Transactions on Multimedia 26, 995-1010, 2023.",
    "auto-gan": "Cao B, Zhang H, Wang N, Gao X, Shen D. Auto-GAN: Self-supervised collaborative learning for medical "
    "image synthesis. AAAI 2020, 10486-10493 (re-specified here: no code is public).",
}


def references(method: str, variant: str = "") -> tuple[str, ...]:
    """Return what a method asks to cite, the main publication first; () for a method of another package.

    Args:
        method: its name.
        variant: of the method; one with a publication of its own has it in front.
    """
    own = _OF_VARIANTS.get(variant)
    return (*([own] if own else []), *_OF_METHODS.get(method, ()))
