"""Masks of neural networks: the magnitude pruning of Algorithm 1, and the methods that it is compared with.

Use:
    import numpy, torch, prune
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    dense = masks = prune.ones(net)                          # {parameter name: bool tensor}, True where alive
    for k in range(3):
        masks = prune.magnitude(net, masks, rho=.2)          # sparsity 20, 36, 48.8 %
    prune.apply_(net, masks)                                 # pruned weights become exactly 0
    prune.hold_(net, masks)                                  # in a loop of your own: and stay 0
    keep = prune.alive_after(prune.alive(dense), .2, 3)      # as many weights as three rounds leave
    other = prune.random(dense, keep, numpy.random.default_rng(0))
    print(prune.sparsity(masks), prune.overlap(masks, other))

Each network is ranked by itself, and all its convolution weights are ranked together:

    alive = {i : m_i = 1}
    m_i <- 0 for the int(rho |alive|) smallest g_i |w_i| of alive
    sparsity after k rounds = 1 - (1 - rho)^k

g_i is 1, or the factor of w_i in the forward pass (the equalised learning rate of StyleGAN2).  The paper
prunes G and D; the documented command of its code prunes G alone.  Linear layers, embeddings, norms and
biases stay dense, as in the released code.
"""
import functools

import torch


# ---- masks

def prunable(net, which='conv'):
    """Names of the weights that may be pruned: those of convolutions ('conv'), or of all layers ('all').

    Layers are recognised by the name and the number of dimensions of their weight, not by their class.
    Raises KeyError for another word."""
    if which not in ('conv', 'all'):
        raise KeyError(which)
    least = 3 if which == 'conv' else 2                        # dimensions: of a 1d convolution, of a matrix

    names = []
    for name, p in net.named_parameters():
        attribute = name.removesuffix('.original').rsplit('.', 1)[-1]      # .original: of spectral norm
        if attribute == 'weight' and least <= p.dim() <= 5:
            names.append(name)
    return names


def ones(net, which='conv'):
    """The dense masks {name: bool tensor} of a network, on the CPU."""
    parameters = dict(net.named_parameters())
    masks = {}
    for name in prunable(net, which):
        masks[name] = torch.ones_like(parameters[name], dtype=torch.bool, device='cpu')
    return masks


def tensors(net):
    """{name: tensor} of the parameters of a module; a state dict is returned as it is."""
    if isinstance(net, dict):
        return net
    return dict(net.named_parameters())


def apply_(net, masks):
    """Set the pruned weights of a module (or of its state dict) to 0, in place, and return it.

    In training, the masks act on the gradient (flat.py): a pruned weight starts at 0 and stays there.  In
    another loop, `hold_` does both."""
    weights = tensors(net)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = weights[name]
            weight.masked_fill_(~mask.to(weight.device), 0)
    return net


def hold_(net, masks):
    """Set the pruned weights of a module to 0, and from now on their gradients, too: for any training loop.

    A pruned weight stays exactly 0 under every optimiser of torch that is made now.  One that has trained the
    dense weights would move the pruned ones by its moments.  The network must be on its device already.
    Returns the hooks; hook.remove() of each ends it."""
    apply_(net, masks)
    weights = tensors(net)
    hooks = []
    for name, mask in masks.items():
        pruned = ~mask.to(weights[name].device)
        hook = functools.partial(zero_where, pruned)
        hooks.append(weights[name].register_hook(hook))
    return hooks


def zero_where(pruned, gradient):
    """A gradient with 0 at the pruned weights."""
    return gradient.masked_fill(pruned, 0)


def alive(masks):
    """Number of surviving weights."""
    return sum(int(mask.sum()) for mask in masks.values())


def total(masks):
    """Number of prunable weights."""
    return sum(mask.numel() for mask in masks.values())


def alive_after(count, rho, rounds):
    """How many of `count` weights survive so many rounds of iterative pruning."""
    for _ in range(rounds):
        count -= int(rho * count)
    return count


def nonempty(masks):
    """The masks as they are.  Raises ValueError with the name of a tensor that has no surviving weight."""
    for name, mask in masks.items():
        if not mask.any():
            raise ValueError(f'{name} would lose all its weights: stop at fewer rounds or a smaller rho')
    return masks


# ---- pruning: every function takes masks and returns new ones

def largest(masks, scores, keep):
    """New masks with the `keep` largest scores among the surviving weights of the whole network.

    scores: {name: tensor}.  Raises ValueError with the name of a tensor that would become empty."""
    if not masks:
        return {}
    return nonempty(top(masks, scores, keep))


def top(masks, scores, keep):
    """As `largest`, but a tensor may become empty."""
    survivors = []
    for name, mask in masks.items():
        survivors.append(scores[name][mask])                   # [number alive in this tensor]
    ranked = torch.cat(survivors)                              # [number alive in the network]

    # Algorithm 1, line 5: the smallest go
    smallest = ranked.topk(len(ranked) - keep, largest=False, sorted=False).indices
    kept = torch.ones_like(ranked, dtype=torch.bool)
    kept[smallest] = False

    # Algorithm 1, line 6: the masks are updated
    new = {}
    parts = kept.split([len(part) for part in survivors])
    for (name, mask), part in zip(masks.items(), parts):
        new[name] = mask.clone()
        new[name][mask] = part
    return new


def magnitude(net, masks, rho=.2, keep=None, gains=None):
    """New masks without the int(rho * alive) smallest |weights| of the surviving ones of the whole network.

    net: a trained module or its state dict.  keep: how many weights survive, instead of rho.
    gains: {name: factor of this tensor's weights in the forward pass}, 1 where a name is missing.
    Raises ValueError with the name of a tensor that would become empty."""
    if keep is None:
        keep = alive_after(alive(masks), rho, 1)
    gains = gains or {}
    weights = tensors(net)

    scores = {}
    for name in masks:
        weight = weights[name].detach().cpu()
        scores[name] = weight.abs() * gains.get(name, 1.)
    return largest(masks, scores, keep)


def random(masks, keep, rng):
    """New masks with `keep` of the surviving weights, drawn uniformly from the whole network.

    rng: a numpy generator.  From equal generators, masks of a smaller `keep` lie inside those of a larger.
    Raises ValueError with the name of a tensor that would become empty."""
    scores = {}
    for name, mask in masks.items():
        scores[name] = torch.from_numpy(rng.random(tuple(mask.shape)))
    return largest(masks, scores, keep)


def random_layers(masks, rng):
    """New masks with as many weights in every tensor, at random places.

    This is random pruning with the layer ratios of a ticket.
    rng: a numpy generator."""
    new = {}
    for name, mask in masks.items():
        shuffled = rng.permutation(mask.flatten().numpy())
        new[name] = torch.from_numpy(shuffled).view_as(mask)
    return new


def slim(net, masks, norms, keep):
    """New masks without whole channels: network slimming (Liu et al. 2017).

    Channels go, smallest |gamma| of all batch norms first, until the number of weights is closest to `keep`.
    Every norm keeps its largest channel.  With a channel go its filter of the convolution in front of the
    norm, and its slice of the convolution behind; their weights are [out, in, ...].

    net: a trained module or its state dict.
    norms: {name of gamma: (name of the weight in front, name of the weight behind)}.  The name in front is
    None where other layers use the output of this convolution, too: its filters stay."""
    weights = tensors(net)
    candidates = []                                            # (|gamma|, name of gamma, channel)
    for name in norms:
        gamma = weights[name].tolist()
        ranked = sorted((abs(g), name, c) for c, g in enumerate(gamma))
        candidates += ranked[:-1]                              # the largest channel stays

    new = {name: mask.clone() for name, mask in masks.items()}
    left = alive(new)
    for _, name, c in sorted(candidates):
        front, behind = norms[name]
        views = [new[behind][:, c]]
        if front:
            views.append(new[front][c])

        fewer = left - sum(int(view.sum()) for view in views)
        if abs(fewer - keep) > abs(left - keep):
            break
        for view in views:
            view.fill_(False)
        left = fewer
    return new


# ---- sparse from the start: masks that move during one training, the rival of a ticket

def erk(masks, density):
    """How many weights of each tensor live, {name: count}, so that int(density * all) live in the network.

    Erdos-Renyi for kernels (Evci et al. 2020): the share of a tensor that lives is
        c (sum of its shape) / (product of its shape), at most 1,
    with one c for the whole network.  Raises ValueError for less than one weight a tensor."""
    sizes = {name: mask.numel() for name, mask in masks.items()}
    goal = int(density * sum(sizes.values()))
    if goal < len(sizes):
        raise ValueError(f'a density of {density} leaves {goal} weights to {len(sizes)} tensors')

    # Tensors that c would fill to more than all of them are dense, and the others share what is left.
    full = set()
    while True:
        left = goal - sum(sizes[name] for name in full)
        sums = {name: sum(mask.shape) for name, mask in masks.items() if name not in full}
        c = left / max(sum(sums.values()), 1)
        over = {name for name in sums if c * sums[name] > sizes[name]}
        if not over:
            break
        full |= over

    counts = {name: sizes[name] for name in full}
    for name in sums:
        counts[name] = max(int(c * sums[name]), 1)

    # What rounding left over goes to the sparsest tensors, and what it took too much comes from the densest.
    while sum(counts.values()) != goal:
        way = 1 if sum(counts.values()) < goal else -1
        name = min(sums, key=lambda name: way * counts[name] / sizes[name])
        counts[name] += way
    return {name: counts[name] for name in masks}


def sparse(masks, density, rng):
    """Random masks of this density, shared among the tensors as `erk` says.  rng: a numpy generator."""
    first = {}
    for name, count in erk(masks, density).items():
        places = torch.arange(masks[name].numel()).view_as(masks[name])
        first[name] = places < count
    return random_layers(first, rng)


def drop(net, masks, count, gains=None):
    """New masks without the `count` smallest |weights| of the network; the largest of each tensor stays.

    net, gains: as in `magnitude`."""
    gains = gains or {}
    weights = tensors(net)
    scores = {}
    for name, mask in masks.items():
        score = (weights[name].detach().cpu().abs() * gains.get(name, 1.) * mask).contiguous()
        score.view(-1)[score.argmax()] = float('inf')
        scores[name] = score
    return largest(masks, scores, alive(masks) - count)


def grow(masks, scores, count):
    """New masks with `count` weights more: those of largest score among the pruned ones of the network."""
    pruned = {name: ~mask for name, mask in masks.items()}
    born = top(pruned, scores, count)
    return {name: mask | born[name] for name, mask in masks.items()}


# ---- how much is pruned, and how far two masks are apart

def sparsity(masks):
    """Share of the prunable weights that are pruned; 0 without masks."""
    if not masks:
        return 0.
    return 1 - alive(masks) / total(masks)


def channels(masks):
    """Share of the output channels (filters, rows) that are wholly pruned; 0 without masks."""
    if not masks:
        return 0.
    gone = []
    for mask in masks.values():
        gone.append(~mask.flatten(1).any(1))                   # [out]
    return torch.cat(gone).double().mean().item()


def hamming(a, b):
    """Share of the prunable weights on which two masks differ; 0 without masks."""
    if not a:
        return 0.
    different = 0
    for name in a:
        different += int((a[name] != b[name]).sum())
    return different / total(a)


def overlap(a, b):
    """Number of weights that survive in both masks, over the number that survive in either; 1 without any."""
    both = either = 0
    for name in a:
        both += int((a[name] & b[name]).sum())
        either += int((a[name] | b[name]).sum())
    return both / either if either else 1.


def drift(last, length=5):
    """Largest `hamming` distance of the newest mask from the `length` - 1 before it; 1 if there are fewer.

    last: list of masks, oldest first.  An early-bird ticket (You et al. 2020) is found where the drift falls
    below a threshold."""
    if len(last) < length:
        return 1.
    newest = last[-1]
    return max(hamming(mask, newest) for mask in last[-length:-1])


def table(masks):
    """Lines 'name  alive / all  sparsity', one per tensor, for a log."""
    lines = []
    for name, mask in masks.items():
        short = name.replace('.parametrizations', '').replace('.original', '')
        pruned = 1 - mask.float().mean()
        lines.append(f'{short:24} {int(mask.sum()):9,} / {mask.numel():9,}  {pruned:7.2%}')
    return lines


def mismatch(net, state, masks, what='ticket'):
    """One sentence on the first tensor in which a ticket does not fit a network; None if it fits.

    state: the weights of the ticket {name: tensor}.  masks: its masks.  what: its name in the sentence."""
    own = net.state_dict()
    for name in own:
        if name not in state:
            return f'the network has {name}, the {what} does not'

        here, there = tuple(own[name].shape), tuple(state[name].shape)
        if here != there:
            return f'{name} is {here} in the network and {there} in the {what}'

    for name in [*state, *masks]:
        if name not in own:
            return f'the {what} has {name}, the network does not'
