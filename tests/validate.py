"""Does FD-effnet measure quality?  By hand, 25 minutes on a CPU core: degrades Fashion-MNIST step by step.

Use:
    python tests/validate.py                        # markdown tables on stdout
    python tests/validate.py --images 500           # a quick look
    python tests/validate.py --run runs/biggan-fashion-mnist-0.1-HASH              # are its samples what was asked for?

Each set of degraded test images is scored against the training images by FD-effnet and by the Frechet distance on 128
features of a small classifier trained on all of Fashion-MNIST, which knows these images as ImageNet's networks do not.
FD-effnet is of use if it grows with every step, is close to zero between two halves, and ranks the sets as the other.

With --run, the share of a conditional run's samples that this classifier puts into the class they were asked for.
"""
import argparse
import os

import conftest                                                 # noqa: F401  (puts the repository on the path)
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import generate
import loop
import metrics
from data import images


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', default='datasets', help='where Fashion-MNIST lies')
    p.add_argument('--images', type=int, default=5000, help='images of each set')
    p.add_argument('--epochs', type=int, default=4, help='of the classifier')
    p.add_argument('--run', help='run directory or checkpoint of train_biggan.py on fashion-mnist')
    return p.parse_args(argv)


class Classifier(nn.Module):
    """uint8 images [N, 3, 32, 32] -> 128 features, logits: an extractor of metrics.py."""
    name, score, dim, classes, device, bias = 'classifier', 'FD-classifier', 128, 10, 'cpu', True
    protocol = {'features': 'classifier', 'resize': 'none'}

    def __init__(self):
        super().__init__()
        def block(c_in, c_out):
            return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128))
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        f = self.body(x.float() / 127.5 - 1).mean((2, 3))           # [N, 128]
        return f, self.head(f)


def train(data, epochs):
    """The classifier, trained on {images, labels}."""
    torch.manual_seed(0)
    net = Classifier()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(epochs):
        for g in adam.param_groups:
            g['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(data['images'])).split(128):
            loss = F.cross_entropy(net(data['images'][rows])[1], data['labels'][rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.eval()


def degraded(x, y):
    """{kind: [(level, images)]}: growing blur, noise, missing classes and colour shift of x uint8 [N, 3, 32, 32]."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=g)
    tint = torch.tensor([1., 0., -1.])[:, None, None]
    n = len(x)

    def kept(c):                                                    # as many images, from the first c classes
        rows = torch.nonzero(y < c)[:, 0]
        return x[rows[torch.arange(n) % len(rows)]]

    def clipped(v):
        return v.round().clamp(0, 255).byte()
    return {'blur, sigma in px': [(s, clipped(gaussian_blur(x.float(), 9, s))) for s in (.4, .6, .8, 1.2, 2.)],
            'noise, sigma of 255': [(s, clipped(x + s * noise)) for s in (4, 8, 16, 32, 64)],
            'classes left of 10': [(c, kept(c)) for c in (9, 7, 5, 3, 1)],
            'colour shift, % of red to blue': [(s, clipped(x * (1 + s / 100 * tint))) for s in (5, 10, 20, 40, 80)]}


@torch.no_grad()
def agreement(net, run):
    """Shares [10] of 200 samples of each class that the classifier calls so."""
    G = generate.load(os.path.join(run, 'last.pt') if os.path.isdir(run) else run, 'cpu')
    z = loop.latents(range(200), G.z_dim, 'cpu')
    samples = [metrics.to_uint8(G(z, torch.full((200,), c))) for c in range(10)]
    return [(net(x)[1].argmax(1) == c).double().mean().item() for c, x in enumerate(samples)]


def main(args):
    """Print the table."""
    whole, test, names, _ = images.fashion(args.root, 32)
    nets = train(whole, args.epochs), metrics.EffNet()
    with torch.no_grad():
        found = torch.cat([nets[0](x)[1].argmax(1) for x in test['images'].split(500)])
    right = found == test['labels']
    if args.run:
        shares = agreement(nets[0], args.run)
        print(f'| class | test images called so | samples asked for it and called so |\n|---|---|---|\n| all '
              f'| {right.double().mean():.1%} | {sum(shares) / 10:.1%} |')
        return print('\n'.join(f'| {name} | {right[test["labels"] == c].double().mean():.1%} | {shares[c]:.1%} |'
                               for c, name in enumerate(names)))
    half, n = len(right) // 2, min(args.images, len(right) // 2)
    x, y = test['images'][half:half + n], test['labels'][half:half + n]
    refs = [metrics.reference(test['images'][:half], net) for net in nets]

    def score(x):
        return [metrics.evaluate(lambda a, b: x[a:b], len(x), net, {'half': ref})[net.score]['half']
                for net, ref in zip(nets, refs)]
    clean = score(x)
    print(f'{n} images against the {half} others of the test split. Classifier: {right.double().mean():.1%} right.\n')
    print('| degradation | distance on | none |' + 5 * ' |' + '\n|---|---|---|' + 5 * '---|')
    all_sets = [clean]
    for kind, levels in degraded(x, y).items():
        scores = [clean] + [score(images) for _, images in levels]
        all_sets += scores[1:]
        print(f'| {kind} | | – |' + ''.join(f' {level} |' for level, _ in levels))
        for i, name in enumerate(('classifier', 'effnet')):
            column = [s[i] for s in scores]
            note = '' if column == sorted(column) else ' (not monotone)'
            print(f'| | {name}{note} |' + ''.join(f' {v:.3g} |' for v in column), flush=True)
    rank = spearmanr(*zip(*all_sets))
    print(f'\nRank correlation of the two over all {len(all_sets)} sets: {rank.statistic:.3f}')


if __name__ == '__main__':
    main(get_args())
