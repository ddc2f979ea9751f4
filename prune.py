"""Masks of iterative magnitude pruning: lines 5 to 7 of the paper's Algorithm 1.

Use:
    import torch, prune
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    masks = prune.ones(net)                                  # {parameter name: bool tensor}, True = alive
    for k in range(3):
        masks = prune.magnitude(net, masks, rho=.2)          # 20, 36, 48.8 % of the convolution weights
    prune.apply_(net, masks)                                 # rewound weights, pruned ones exactly 0
    print(prune.sparsity(masks))

Each network is ranked by itself, over all its convolution weights together:
    alive = {i : m_i = 1};   m_i <- 0 for the int(rho |alive|) smallest |w_i| of alive;
    sparsity after k rounds 1 - (1 - rho)^k
The paper prunes G and D (its code G alone).  Linear layers, embeddings, norms and biases stay dense, as released.
"""
import torch
from torch import nn
from torch.nn.utils import parametrize


def prunable(net, which='conv'):
    """Names of the weights that may be pruned: of convolutions, or of every layer with a weight matrix ('all')."""
    kinds = {'conv': (nn.modules.conv._ConvNd,), 'all': (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)}[which]
    return [f'{name}.parametrizations.weight.original' if parametrize.is_parametrized(m, 'weight') else f'{name}.weight'
            for name, m in net.named_modules() if isinstance(m, kinds)]


def ones(net, which='conv'):
    """The dense masks {name: bool tensor} of a network."""
    parameters = dict(net.named_parameters())
    return {name: torch.ones_like(parameters[name], dtype=torch.bool, device='cpu') for name in prunable(net, which)}


def magnitude(net, masks, rho=.2):
    """New masks with the int(rho * alive) smallest of the surviving |weights| of the whole network removed.

    net: a module or its state dict, trained. Raises ValueError with the name of a tensor that would become empty."""
    if not masks:
        return {}
    weights = net if isinstance(net, dict) else dict(net.named_parameters())
    alive = [weights[name].detach().cpu().abs()[keep] for name, keep in masks.items()]          # each [alive_i]
    flat = torch.cat(alive)
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.topk(int(rho * len(flat)), largest=False, sorted=False).indices] = False
    new = {}
    for (name, old), part in zip(masks.items(), keep.split([len(a) for a in alive])):
        if not part.any():
            raise ValueError(f'{name} would lose all its weights: stop at fewer rounds or a smaller rho')
        new[name] = old.clone()
        new[name][old] = part
    return new


def apply_(net, masks):
    """Set the pruned weights of a module (or its state dict) to 0, in place."""
    weights = net if isinstance(net, dict) else dict(net.named_parameters())
    with torch.no_grad():
        for name, keep in masks.items():
            weights[name].masked_fill_(~keep.to(weights[name].device), 0)
    return net


def sparsity(masks):
    """Share of pruned weights among the prunable ones, 0 for no masks."""
    total = sum(m.numel() for m in masks.values())
    return 1 - sum(int(m.sum()) for m in masks.values()) / total if total else 0.


def table(masks):
    """Lines 'name  alive / all  sparsity' per tensor, for a log."""
    short = [name.replace('.parametrizations', '').replace('.original', '') for name in masks]
    return [f'{name:24} {int(m.sum()):9,} / {m.numel():9,}  {1 - m.float().mean():7.2%}'
            for name, m in zip(short, masks.values())]


def mismatch(net, state, masks, what='ticket'):
    """One sentence on the first tensor in which a ticket does not fit a network, or None."""
    own = net.state_dict()
    for name in own:
        if name not in state:
            return f'the network has {name}, the {what} does not'
        if own[name].shape != state[name].shape:
            return f'{name} is {tuple(own[name].shape)} in the network and {tuple(state[name].shape)} in the {what}'
    for name in [*state, *masks]:
        if name not in own:
            return f'the {what} has {name}, the network does not'
