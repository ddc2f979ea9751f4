"""Masks of neural networks: Algorithm 1's iterative magnitude pruning, the ways it is compared with, and how far two
masks are apart.

Use:
    import numpy, torch, prune
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    dense = masks = prune.ones(net)                          # {parameter name: bool tensor}, True = alive
    for k in range(3):
        masks = prune.magnitude(net, masks, rho=.2)          # 20, 36, 48.8 % of the convolution weights
    prune.apply_(net, masks)                                 # rewound weights, pruned ones exactly 0
    left = prune.alive_after(prune.alive(dense), .2, 3)      # the same number at once, at random
    other = prune.random(dense, left, numpy.random.default_rng(0))
    print(prune.sparsity(masks), prune.overlap(masks, other))

Each network is ranked by itself, over all its convolution weights together:
    alive = {i : m_i = 1};   m_i <- 0 for the int(rho |alive|) smallest g_i |w_i| of alive;
    sparsity after k rounds 1 - (1 - rho)^k
g_i is 1, or what the network multiplies a weight with when it runs (StyleGAN2's equalised learning rate).  The paper
prunes G and D (its code G alone).  Linear layers, embeddings, norms and biases stay dense, as released.
"""
import torch


def prunable(net, which='conv'):
    """Names of the weights that may be pruned: of convolutions, or of every layer with a weight matrix ('all')."""
    if which not in ('conv', 'all'):
        raise KeyError(which)
    dims = (3, 4, 5) if which == 'conv' else (2, 3, 4, 5)                  # any layer's, also of one's own making
    return [name for name, p in net.named_parameters() if p.dim() in dims
            and name.removesuffix('.original').rsplit('.', 1)[-1] == 'weight']


def ones(net, which='conv'):
    """The dense masks {name: bool tensor} of a network."""
    parameters = dict(net.named_parameters())
    return {name: torch.ones_like(parameters[name], dtype=torch.bool, device='cpu') for name in prunable(net, which)}


def tensors(net):
    """{name: tensor} of a module's parameters, or of its state dict."""
    return net if isinstance(net, dict) else dict(net.named_parameters())


def alive(masks):
    """Number of surviving weights."""
    return sum(int(m.sum()) for m in masks.values())


def alive_after(total, rho, rounds):
    """How many of `total` weights survive so many rounds of iterative pruning."""
    for _ in range(rounds):
        total -= int(rho * total)
    return total


def largest(masks, scores, keep):
    """New masks with the `keep` largest scores {name: tensor} among the surviving weights of the whole network.

    Raises ValueError with the name of a tensor that would become empty."""
    if not masks:
        return {}
    survivors = [scores[name][mask] for name, mask in masks.items()]            # each [alive_i]
    flat = torch.cat(survivors)
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.topk(len(flat) - keep, largest=False, sorted=False).indices] = False
    new = {}
    for (name, old), part in zip(masks.items(), kept.split([len(s) for s in survivors])):
        new[name] = old.clone()
        new[name][old] = part
    return nonempty(new)


def nonempty(masks):
    """The masks; raises ValueError with the name of an empty one."""
    for name, mask in masks.items():
        if not mask.any():
            raise ValueError(f'{name} would lose all its weights: stop at fewer rounds or a smaller rho')
    return masks


def magnitude(net, masks, rho=.2, keep=None, gains=None):
    """New masks without the int(rho * alive) smallest of the surviving |weights| of the whole network; or with `keep`.

    net: a module or its state dict, trained. gains: {name: factor of the weights of this tensor}, 1 where not named.
    Raises ValueError with the name of a tensor that would become empty."""
    weights = tensors(net)
    scores = {name: weights[name].detach().cpu().abs() * (gains or {}).get(name, 1.) for name in masks}
    return largest(masks, scores, alive_after(alive(masks), rho, 1) if keep is None else keep)


def random(masks, keep, rng):
    """New masks with `keep` of the surviving weights, uniformly drawn from the whole network by a numpy generator.

    From equal generators the masks of smaller `keep` lie in those of larger. Raises ValueError as magnitude does."""
    return largest(masks, {name: torch.from_numpy(rng.random(tuple(m.shape))) for name, m in masks.items()}, keep)


def random_layers(masks, rng):
    """Every tensor's mask at random places: random pruning with the layer ratios of these masks."""
    return {name: torch.from_numpy(rng.permutation(m.flatten().numpy())).view_as(m) for name, m in masks.items()}


def slim(net, masks, norms, keep):
    """New masks without the channels of smallest |gamma| of all batch norms together, with as near to `keep` weights as
    whole channels come: network slimming (Liu et al. 2017). Every norm keeps its largest.

    norms: {scale: (convolution in front of the norm, or None where others use its output too; convolution behind it)},
    by parameter name, convolutions [out, in, ...]. A channel takes the filter in front and the slice behind along."""
    weights, new = tensors(net), {name: m.clone() for name, m in masks.items()}
    scales = {name: sorted((abs(g), name, c) for c, g in enumerate(weights[name].tolist())) for name in norms}
    left = alive(new)
    for _, name, c in sorted(scale for of in scales.values() for scale in of[:-1]):
        front, behind = norms[name]
        parts = [new[behind][:, c]] + ([new[front][c]] if front else [])
        fewer = left - sum(int(p.sum()) for p in parts)
        if abs(fewer - keep) > abs(left - keep):
            break
        for part in parts:
            part.fill_(False)
        left = fewer
    return new


def apply_(net, masks):
    """Set the pruned weights of a module (or its state dict) to 0, in place."""
    weights = tensors(net)
    with torch.no_grad():
        for name, keep in masks.items():
            weights[name].masked_fill_(~keep.to(weights[name].device), 0)
    return net


def sparsity(masks):
    """Share of pruned weights among the prunable ones, 0 for no masks."""
    total = sum(m.numel() for m in masks.values())
    return 1 - alive(masks) / total if total else 0.


def channels(masks):
    """Share of the output channels (filters, rows) that are wholly pruned, 0 for no masks."""
    gone = [~m.flatten(1).any(1) for m in masks.values()]                                      # each [out]
    return torch.cat(gone).double().mean().item() if gone else 0.


def hamming(a, b):
    """Share of the prunable weights that are alive in one of two masks and pruned in the other, 0 for no masks."""
    total = sum(m.numel() for m in a.values())
    return sum(int((a[name] != b[name]).sum()) for name in a) / total if total else 0.


def overlap(a, b):
    """Weights that survive in both masks, as a share of those that survive in either; 1 for no masks."""
    both, either = (sum(int(f(a[name], b[name]).sum()) for name in a) for f in (torch.logical_and, torch.logical_or))
    return both / either if either else 1.


def drift(last, length=5):
    """How far the newest of the last `length` masks is from the others at most; 1 while there are fewer.

    last: list of masks, oldest first. Below a threshold an early-bird ticket is found (You et al. 2020)."""
    return max(hamming(old, last[-1]) for old in last[-length:-1]) if len(last) >= length else 1.


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
