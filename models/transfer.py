"""Ways to start a StyleGAN2 from one that was trained on other images: which parameters stay as they are.

Use:
    import torch, transfer                                     # models.transfer inside the repository
    from stylegan2 import Generator, Discriminator             # stylegan2.py travels with this file
    G, D = Generator(32, 1024), Discriminator(32, 1024)        # give them the weights of the source first
    frozen = transfer.prepare_('freezed', G, D)                # {'D': names of what is not trained}
    for name in frozen['D']:
        D.get_parameter(name).requires_grad_(False)

The modes are
    finetune     Everything is trained (TransferGAN, Wang et al. 2018).
    freezed      The layers of D near the image stay: all those that see more than 16 px (FreezeD, Mo et al.
                 2020).
    scaleshift   Of G, only what scales and shifts features is trained: the affine layers of the styles, and
                 the biases of convolutions.  Noguchi and Harada 2019 train those of batch norm instead.  Here
                 the training is adversarial, and all of D is trained.
    minegan      A miner M of two layers finds the part of the source's z that suits: the images are G(M(z)).
                 M and D are trained first, and then all together (Wang et al. 2020).  From then on, the miner
                 is a part of G: the average of G, its checkpoints and its samples go through it.
"""
from torch import nn

MODES = 'finetune', 'freezed', 'scaleshift', 'minegan'
TRAINED_RES = 16                                               # px: FreezeD trains D from here down
LAYERS = 'fromrgb', 'conv0', 'conv1', 'skip'                   # of a block of D, from the image on


def layers_from_image(D):
    """The names of D's parameters by layer, from the image on: {(res, layer): [names]}.

    The layers of a block are in the order of LAYERS.  The 4 px block and the classes are left out."""
    layers = {}
    for name, _ in D.named_parameters():
        block, layer, *_ = name.split('.')                     # such as b32, conv0 of b32.conv0.weight
        if block == 'b4' or not block.startswith('b'):
            continue
        res = int(block[1:])
        layers.setdefault((res, layer), []).append(name)

    def depth(place):
        res, layer = place
        return -res, LAYERS.index(layer)

    return {place: layers[place] for place in sorted(layers, key=depth)}


def freezed(D, count=None):
    """The names of the parameters in the first `count` layers of D, by default FreezeD's (13 at 256 px).

    Raises ValueError for more layers than D has, or for less than none."""
    layers = layers_from_image(D)
    if count is None:
        count = sum(res > TRAINED_RES for res, _ in layers)
    if not 0 <= count <= len(layers):
        raise ValueError(f'freeze-layers {count}: D has {len(layers)} layers before its last block')

    frozen = []
    for names in list(layers.values())[:count]:
        frozen += names
    return frozen


def scaleshift(G):
    """The names of the parameters of G that scale and shift leaves as they are."""
    frozen = []
    for name, _ in G.named_parameters():
        is_affine = '.affine.' in name
        is_bias = name.startswith('synthesis.') and name.endswith('.bias')
        if not is_affine and not is_bias:
            frozen.append(name)
    return frozen


def mine_(G):
    """Put a fresh miner z [N, z_dim] -> z' [N, z_dim] in front of G, in place."""
    first = nn.Linear(G.z_dim, G.z_dim)
    second = nn.Linear(G.z_dim, G.z_dim)
    G.miner = nn.Sequential(first, nn.ReLU(), second)


def prepare_(mode, G, D, count=None):
    """Prepare G and D, in place, and return the names {'G': [...], 'D': [...]} of the parameters that stay.

    mode: one of MODES.  A network of which all is trained has no entry.  minegan puts a miner in front of G,
    and returns what stays in its first stage.  count: the layers of D that freezed keeps.  Raises ValueError
    as freezed does."""
    if mode == 'freezed':
        return {'D': freezed(D, count)}
    if mode == 'scaleshift':
        return {'G': scaleshift(G)}
    if mode == 'minegan':
        mine_(G)
        return {'G': [name for name, _ in G.named_parameters() if not name.startswith('miner.')]}
    return {}
