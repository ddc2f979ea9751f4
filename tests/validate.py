"""Do the scores on the offline features measure quality?  By hand, 25 minutes on a CPU core.

Use:
    python tests/validate.py                        # markdown tables on stdout
    python tests/validate.py --images 500           # a quick look
    python tests/validate.py --scores animals/ --others food/ plants/ --res 64 --sizes 40 106
    python tests/validate.py --save classifier.pt2  # a file for --features, of Fashion-MNIST
    python tests/validate.py --run runs/biggan-fashion-mnist-0.1-HASH

Each set of degraded test images is scored against other test images by FD-effnet and by the Frechet distance
on 128 features of a small classifier.  The classifier was trained on all of Fashion-MNIST and knows these
images as ImageNet's networks do not.  FD-effnet is of use if it grows with every step, is close to zero
between two halves of the test images, and ranks the sets as the classifier's distance does.

With --scores: all scores of pictures that should be good, of copies, and of pictures that should be bad. The
reference are --sizes images of a folder or data set.

With --run: the share of a conditional run's samples that the classifier puts into the class they were asked
for.
"""
import argparse
import os

import conftest                                                # noqa: F401  (puts the repository on the path)
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import generate
import loop
import metrics
from data import images
from models import sngan


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', default='datasets', help='where Fashion-MNIST lies')
    p.add_argument('--images', type=int, default=5000, help='images of each set')
    p.add_argument('--epochs', type=int, default=4, help='epochs of the classifier')
    p.add_argument('--save', metavar='FILE', help='write the classifier as a module for --features')
    p.add_argument('--scores', metavar='NAME|FOLDER', help='table of all scores, against these images')
    p.add_argument('--others', nargs='+', default=[], metavar='NAME', help='with --scores: other images')
    p.add_argument('--res', type=int, default=32, help='with --scores: width and height of the images')
    p.add_argument('--sizes', nargs='+', type=int, default=[40, 150, 1000], metavar='N',
                   help='with --scores: numbers of reference images')
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
        features = self.body(x.float() / 127.5 - 1).mean((2, 3))       # [N, 128]
        return features, self.head(features)


def train_classifier(data, epochs):
    """The classifier, trained on {images, labels}."""
    torch.manual_seed(0)
    net = Classifier()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(epochs):
        for group in adam.param_groups:
            group['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(data.images)).split(128):
            logits = net(data.images[rows])[1]
            loss = F.cross_entropy(logits, data.labels[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.eval()


def degraded(x, y):
    """{kind: {level: images}}: growing blur, noise, lost classes, colour shift of uint8 x [N, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator)
    tint = torch.tensor([1., 0., -1.])[:, None, None]

    def of_classes(c):                                         # as many images, of the first c classes
        rows = torch.nonzero(y < c)[:, 0]
        return x[rows[torch.arange(len(x)) % len(rows)]]

    def clipped(v):
        return v.round().clamp(0, 255).byte()
    return {
        'blur, sigma in px': {s: clipped(gaussian_blur(x.float(), 9, s)) for s in (.4, .6, .8, 1.2, 2.)},
        'noise, sigma of 255': {s: clipped(x + s * noise) for s in (4, 8, 16, 32, 64)},
        'classes left': {c: of_classes(c) for c in (9, 7, 5, 3, 1)},
        'colour shift, % of red to blue': {s: clipped(x * (1 + s / 100 * tint)) for s in (5, 10, 20, 40, 80)}}


@torch.no_grad()
def predictions(net, x):
    """The classes [N] of images x [N, 3, 32, 32]."""
    return torch.cat([net(part)[1].argmax(1) for part in x.split(500)])


def print_agreement(net, run, test, names):
    """The table of --run: of 200 samples of each class, how many the classifier calls so."""
    G = generate.load(os.path.join(run, 'last.pt') if os.path.isdir(run) else run, 'cpu')
    z = loop.latents(range(200), G.z_dim, 'cpu')
    right = predictions(net, test.images) == test.labels
    lines, shares = [], []
    for c, name in enumerate(names):
        with torch.no_grad():
            samples = metrics.to_uint8(G(z, torch.full((200,), c)))
            called = net(samples)[1].argmax(1)
        shares.append((called == c).double().mean().item())
        lines.append(f'| {name} | {right[test.labels == c].double().mean():.1%} | {shares[c]:.1%} |')
    print('| class | test images called so | samples asked for it and called so |\n|---|---|---|')
    print(f'| all | {right.double().mean():.1%} | {sum(shares) / 10:.1%} |')
    print('\n'.join(lines))


def print_degradations(nets, test, count):
    """The table of degradations by the classifier and another extractor, and their rank correlation."""
    half = len(test.images) // 2
    n = min(count, half)
    x, y = test.images[half:half + n], test.labels[half:half + n]
    references = [metrics.reference(test.images[:half], net) for net in nets]

    def distances(x):
        found = []
        for net, reference in zip(nets, references):
            scores = metrics.evaluate(lambda a, b: x[a:b], len(x), net, {'half': reference})
            found.append(scores[net.score]['half'])
        return found

    right = predictions(nets[0], test.images) == test.labels
    print(f'{n} images against the {half} others of the test split. '
          f'Classifier: {right.double().mean():.1%} right.\n')
    print('| degradation | distance on | none |' + 5 * ' |' + '\n|---|---|---|' + 5 * '---|')
    clean = distances(x)
    every_set = [clean]
    for kind, sets in degraded(x, y).items():
        found = [distances(images) for images in sets.values()]
        every_set += found
        print(f'| {kind} | | – |' + ''.join(f' {level} |' for level in sets))
        for i, name in enumerate(('classifier', 'effnet')):
            column = [scores[i] for scores in (clean, *found)]
            note = '' if column == sorted(column) else ' (not monotone)'
            print(f'| | {name}{note} |' + ''.join(f' {v:.3g} |' for v in column), flush=True)
    rank = spearmanr(*zip(*every_set))
    print(f'\nRank correlation of the two over all {len(every_set)} sets: {rank.statistic:.3f}')


def save_classifier(net, path):
    """Write the features of the classifier as a module for --features: any number of images, of any size."""
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)[0]

    auto = torch.export.Dim.AUTO
    x = torch.zeros(3, 3, 32, 40, dtype=torch.uint8)
    sizes = ({0: auto, 2: auto, 3: auto},)
    program = torch.export.export(Features().eval(), (x,), dynamic_shapes=sizes)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)                     # paths of this machine
    torch.export.save(program, path)


# ---- all scores of good and of bad pictures

def title(data):
    """What a table calls a data set or a folder."""
    return os.path.basename(data.rstrip('/'))


def pictures(args):
    """The reference images, and {kind: images} of sets to be scored, uint8 [., 3, res, res].

    The sets that are made of reference images are in their order."""
    most = max(args.sizes)
    data = images.load(args.scores, args.root, res=args.res, frac=most, subset='random')
    ref, held, labels = data.images, data.holdout, data.holdout_labels
    rows = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:most]
    held, labels = held[rows], labels[rows]
    ref = ref[torch.randperm(len(ref), generator=torch.Generator().manual_seed(0))]
    n, res = len(held), args.res

    sets = {'held out': held}
    for name in args.others:
        other = images.load(name, args.root, res=res).images
        order = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))
        sets[f'other: {title(name)}'] = other[order[:n]]
    for kind, levels in degraded(held, labels).items():
        for level in list(levels)[2::2]:
            sets[f'held out, {kind}: {level}'] = levels[level]

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(ref[:n].shape, generator=generator)
    uniform = torch.randint(0, 256, (n, 3, res, res), generator=generator, dtype=torch.uint8)
    sets['uniform noise'] = uniform
    sets['flat colour'] = uniform[:, :, :1, :1].expand(-1, -1, res, res).contiguous()
    with torch.no_grad():
        torch.manual_seed(0)
        sets['untrained SNGAN'] = metrics.to_uint8(sngan.Generator(res).eval()(torch.randn(n, 128)))
    sets['copies'] = ref[:n]
    for sigma in (2, 6, 16):
        sets[f'copies, noise: {sigma}'] = (ref[:n] + sigma * noise).round().clamp(0, 255).byte()
    sets['copies, mirrored'] = ref[:n].flip(3)
    return ref, sets


def print_scores(args):
    """The table of --scores.  The last columns are of plain features, and without mirror images."""
    net = metrics.EffNet()
    ref, sets = pictures(args)
    words = [f'FD, {n}' for n in args.sizes] + [f'KID, {n}' for n in args.sizes]
    words += ['precision', 'recall', 'density', 'coverage', 'copy', 'plain: precision', 'density', 'copy']
    print(f'| {title(args.scores)} |', ' | '.join(words), '|\n|---' + '|---' * len(words) + '|')

    references = [{'': metrics.reference(ref[:n], net, keep=True, mirrored=True)} for n in args.sizes]
    for name, x in sets.items():
        cells = []
        features = metrics.stats(lambda a, b: x[a:b], len(x), net, keep=['features']).features
        made = [moments_of(features[:n], net) for n in args.sizes]
        few = [metrics.scores(*pair, ['fid', 'kid'], net) for pair in zip(made, references)]
        cells += [f'{round(found[net.score][""]):,}' for found in few]
        cells += [f'{found["kid"][""][0]:.2f}' for found in few]
        found = metrics.scores(made[-1], references[-1], ['prdc', 'copy'], net)
        cells += [f'{found[key][""]:.2f}' for key in ('precision', 'recall', 'density', 'coverage', 'copy')]
        found = metrics.scores(made[-1], references[-1], ['prdc', 'copy'])
        cells += [f'{found[key][""]:.2f}' for key in ('precision', 'density', 'copy')]
        print(f'| {name} ({len(made[-1].features)}) |', ' | '.join(cells), '|', flush=True)


def moments_of(features, net):
    """Stats of features [N, D]."""
    f = features.double()
    return metrics.make_stats(len(f), f.mean(0), f.T.cov(), features, protocol=net.protocol)


def main(args):
    """Print a table."""
    if args.scores:
        return print_scores(args)
    whole, test, names, _ = images.read_fashion(args.root, 32)
    net = train_classifier(whole, args.epochs)
    if args.save:
        return save_classifier(net, args.save)
    if args.run:
        print_agreement(net, args.run, test, names)
    else:
        print_degradations([net, metrics.EffNet()], test, args.images)


if __name__ == '__main__':
    main(get_args())
