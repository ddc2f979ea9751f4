"""Ways to start a StyleGAN2 from one that was trained on other images: what stays as it is, and MineGAN's miner.

Use (after G and D have the weights of the source):
    import torch, transfer                                     # models.transfer inside the repository
    from stylegan2 import Generator, Discriminator
    G, D = Generator(32, 1024), Discriminator(32, 1024)
    frozen = transfer.prepare_('freezed', G, D)                # names {'G': [...], 'D': [...]} whose gradient is 0

    finetune     everything is trained (TransferGAN, Wang et al. 2018)
    freezed      D's layers near the image stay: all those that see 32 px and more (FreezeD, Mo et al. 2020)
    scaleshift   of G only what scales and shifts features is trained: the style affines and the biases of
                 convolutions (Noguchi & Harada 2019, who train batch norm's; adversarial here, all of D is trained)
    minegan      a miner M of two layers finds a part of the source's z: G(M(z)); M and D are trained first, with G as
                 it is, then all together (Wang et al. 2020).  The miner is a part of G from then on: its average, its
                 checkpoints and its samples go through it
"""
from torch import nn

MODES = 'finetune', 'freezed', 'scaleshift', 'minegan'
KEPT = 16                                                      # px: FreezeD trains D's blocks from here down


def layers(D):
    """Names of D's parameters by layer, from the image on: fromrgb, then conv0, conv1, skip of every block.

    The 4 px block and the mapping of classes are not among them."""
    found = {}
    for name, _ in D.named_parameters():
        block, layer, *_ = name.split('.')
        if block.startswith('b') and block != 'b4':
            found.setdefault((-int(block[1:]), ('fromrgb', 'conv0', 'conv1', 'skip').index(layer)), []).append(name)
    return {at: found[at] for at in sorted(found)}


def freezed(D, count=None):
    """Names of the parameters in the first `count` layers of D (default: FreezeD's, 13 at 256 px).

    Raises ValueError for more layers than D has, or less than none."""
    parts = layers(D)
    if count is None:
        count = sum(-r > KEPT for r, _ in parts)
    if not 0 <= count <= len(parts):
        raise ValueError(f'freeze-layers {count}: D has {len(parts)} layers before its last block')
    return [name for names in list(parts.values())[:count] for name in names]


def scaleshift(G):
    """Names of the parameters of G that scale-and-shift leaves as they are."""
    def trained(name):
        return '.affine.' in name or name.startswith('synthesis.') and name.endswith('.bias')
    return [name for name, _ in G.named_parameters() if not trained(name)]


def mine_(G):
    """Put a fresh miner z [N, z_dim] -> z' before G, in place."""
    G.miner = nn.Sequential(nn.Linear(G.z_dim, G.z_dim), nn.ReLU(), nn.Linear(G.z_dim, G.z_dim))


def prepare_(mode, G, D, count=None):
    """Names {'G': [...], 'D': [...]} of the parameters that stay as they are; minegan: in its first stage.

    count: FreezeD's layers of D. minegan puts a miner before G."""
    if mode == 'minegan':
        mine_(G)
        return {'G': [name for name, _ in G.named_parameters() if not name.startswith('miner.')]}
    return {'G': scaleshift(G)} if mode == 'scaleshift' else {'D': freezed(D, count)} if mode == 'freezed' else {}
