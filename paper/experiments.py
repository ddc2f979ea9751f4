"""Every table and figure of the paper as command lines, one training each: what run_all.sh runs.

Use:
    python experiments.py table4 fig7                             # small, for a laptop
    python experiments.py all --scale paper --seeds 0 1 2         # as published
    python experiments.py table4 | sort -u | wc -l
Prints 'STAGE NAME SCRIPT FLAGS', a line a row; a row may need the files of the stages before its own (1: tickets are
found; 2: tickets that need a ticket; 3: trainings; 4: trainings that start from one).  A training that several figures
share is one command with one --out, so that it runs once.

Round k of a finding is the plain training of its ticket k, so these rows cost nothing more.
"""
import argparse
import re

SCALES = 'smoke', 'demo', 'paper'
SMALL = {                                                      # data, steps and largest round without --scale paper
    'sngan': ('fashion-mnist', 600, 8), 'biggan': ('fashion-mnist', 600, 3), 'stylegan2': ('emoji-faces', 1500, 3)}
ADV = '--advaug gd'
WAYS = {                                                       # ways to train: flags
    'plain': '', 'advaug': ADV, 'advaug-g': '--advaug g', 'advaug-d': '--advaug d', 'noise': f'{ADV} --adv-noise 0.01',
    'released': f'{ADV} --adv-sign released', 'diffaug': '--aug diffaug', 'diffaug-advaug': f'--aug diffaug {ADV}',
    'translation': '--aug diffaug --aug-policy translation',
    'real': '--aug diffaug --aug-on real', 'd': '--aug diffaug --aug-on d', 'ada': '--aug ada',
    'ada-lecam': '--aug ada --lecam', 'ada-advaug': f'--aug ada {ADV}', 'reinit': '--reinit',
    **{f'ada-{p}': f'--aug ada --ada-p {p}' for p in ('0.5', '0.8', '0.95', '1.0')},
    **{f'step-{s}': f'{ADV} --adv-step {s}' for s in ('0.001', '0.05', '0.1')},
    **{f'pgd-{k}': f'{ADV} --adv-pgd {k}' for k in (3, 5, 7)},
    **{f'cut-{n}{k}': f'{ADV} --adv-cut-{n} {k}' for n, cuts in (('g', (2, 3, 4)), ('d', (1, 2, 3, 4))) for k in cuts},
    **{f'lambda-{x}': f'{ADV} --adv-lambda-g {x} --adv-lambda-d {x}' for x in ('0.25', '0.5', '2')},
    **{f'margin-{c}': f'--margin {c}' for c in ('1.045', '1.09')}}             # cuts: without g1 and d5, AdvAug's own
LONGER = 'diffaug', 'diffaug-advaug'                           # paper: twice the updates
SHOTS = [f'100-shot-{x}' for x in ('obama', 'grumpy_cat', 'panda')] + [f'AnimalFace-{x}' for x in ('cat', 'dog')]
FIND = re.compile(r'(find_ticket .*)--rounds (\d+)(.*)')
MORE_SHOTS = [f'100-shot-{x}' for x in ('bridge_of_sighs', 'medici_fountain', 'temple_of_heaven', 'wuzhen')]


def get_args(argv=None):
    """The flags; exits 2 on unknown names."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('names', nargs='+', choices=[*EXPERIMENTS, 'all'], metavar='NAME', help=', '.join(EXPERIMENTS) + ', all')
    a('--scale', choices=SCALES, default='demo', help='smoke: seconds each; demo: small; paper: as published')
    a('--seeds', type=int, nargs='+', default=[0], help='each fixes theta_0, the subset and z, so that rows are paired')
    a('--steps', type=int, help='G updates of every training, for smoke and demo')
    return p.parse_args(argv)


class Family:
    """The trainings of one model on one share of one data set, in one directory; each yields (stage, command)."""

    def __init__(self, args, seed, model, data, frac=1., steps=None, flags=''):
        self.model, self.seed, self.small, self.most = model, seed, args.scale != 'paper', 99
        if self.small:
            data, steps, self.most = SMALL[model]
            steps = args.steps or {'smoke': 4, 'demo': steps}[args.scale]
            flags = '--preset demo' + ' --aug none' * (model == 'stylegan2')
            if args.scale == 'smoke':
                flags += ' --eval-samples 16 --eval-repeats 1' + ' --ch-g 8 --ch-d 8' * (model == 'biggan')
                self.most = min(self.most, 2)
        self.steps, scale = steps, args.scale + f'-{args.steps}' * bool(self.small and args.steps)
        self.evals = {'smoke': 1, 'demo': 2, 'paper': 10}[args.scale]
        self.out = f'runs/{scale}/{model}-{data}-{frac:g}' + f'-s{seed}' * bool(seed)
        self.flags = f'--data {data} --frac {frac:g} {flags}' + f' --seed {seed} --data-seed {seed}' * bool(seed)

    def command(self, script, extra, name, steps=None):
        steps = steps or self.steps
        return ' '.join(f'{script} {self.flags} --steps {steps} --eval-every {-(-steps // self.evals)} {extra} '
                        f'--out {self.out}/{name}'.split())

    def level(self, k):
        """Round k, or the last one that is found at this scale."""
        return min(k, self.most)

    def find(self, rounds, name='find', extra='', stage=1):
        """Algorithm 1 or another way to prune to its sparsity; round k of it is the plain training of ticket k."""
        rounds = '' if '--like' in extra else f'--rounds {self.level(rounds)}'           # a ticket has its own
        extra = f'{rounds} {extra} --ticket {self.out}/{name}.pt'
        yield stage, self.command(f'find_ticket {self.model}', extra, name)

    def ticket(self, k, name='find'):
        return f'{self.out}/{name}/ticket{self.level(k)}.pt'

    def train(self, k, way='plain', steps=None, name=None, mask=None):
        """Algorithm 2 on the ticket of round k (0: on the dense network), or on another mask."""
        mask = mask or (self.ticket(k) if k else None)
        name = name or f'{f"ticket{self.level(k)}" if k else "dense"}-{way}'
        yield 3, self.command(f'train_{self.model}', f'{f"--mask {mask}" if mask else ""} {WAYS[way]}', name, steps)

    def rows(self, rounds, levels, ways):
        """A finding, and the dense network and the tickets of some rounds, trained in each way."""
        yield from self.find(rounds)
        for k in dict.fromkeys((0, *map(self.level, levels))):
            for way in ways:
                if way != 'plain' or k == self.level(rounds):
                    long = way in LONGER and self.model == 'biggan' and not self.small
                    yield from self.train(k, way, 2 * self.steps if long else None)


# ---- tables

def table1(family):
    """BigGAN on Tiny-ImageNet."""
    for frac in (1., .2, .1):
        yield from family('biggan', 'tiny-imagenet', frac, 100000).rows(5, [2, 5], ['plain', 'advaug'])


def table2(family):
    """BigGAN on a quarter of ImageNet."""
    yield from family('biggan', 'imagenet', .25, 100000).rows(2, [2], ['plain', 'advaug'])


def table3(family):
    """BigGAN on CIFAR; its caption has two sparsities for three shares of the data: both, of each."""
    for data in ('cifar10', 'cifar100'):
        for frac in (1., .2, .1):
            f = family('biggan', data, frac, 100000)
            yield from f.rows(9, [5, 9], ['plain', 'diffaug', 'diffaug-advaug'])
            yield from fair(f)


def table4(family):
    """Ways to train on little data, beside each other: StyleGAN2; small: SNGAN."""
    ways = ['plain', 'diffaug', 'ada', 'ada-lecam', 'ada-advaug']
    f = family('stylegan2', 'cifar100', .1, 250000)
    yield from (family('sngan', 'cifar10', .1) if f.small else f).rows(3, [3], ways)


def shots(family, names, ways, rounds=3):
    for data in names:
        f = family('stylegan2', data, 1., 31250 if 'Animal' in data else 18750, '--aug none')
        yield from f.rows(rounds, [rounds], ways)
        if f.small:
            return


def table5(family):
    """StyleGAN2 from few images, beside transfer from FFHQ (ffhq.pt, of models/convert_nvidia.py)."""
    yield from shots(family, SHOTS, ['plain', 'diffaug-advaug'])
    yield from transfer(family)


def transfer(family):
    """The baselines of Table 5 that start from trained weights; small: from all emoji to the faces."""
    for data in SHOTS:
        f = family('stylegan2', data, 1., 31250 if 'Animal' in data else 18750, '--aug none')
        start, ways = '--init-from ffhq.pt', ['none', 'diffaug']
        if f.small:
            source = f.out.replace('emoji-faces', 'emoji')
            start = f'--init-from {source}/dense-plain/last.pt'
            yield 3, f.command('train_stylegan2', '--aug none', 'dense-plain').replace('emoji-faces', 'emoji')
            f.steps //= 3 if f.steps > 3 else 1
            yield 3, f.command('train_stylegan2', '--aug diffaug', 'scratch')
            ways = ['diffaug']
        for mode in ('finetune', 'freezed', 'scaleshift', 'minegan'):
            extra = f' --mine-steps {max(f.steps // 4, 1)}' if f.small and mode == 'minegan' else ''
            for aug in ways:                                   # published: none, and of two also DiffAugment
                if aug == ways[0] or mode in ('finetune', 'freezed'):
                    name = mode if aug == ways[0] else f'{mode}-{aug}'
                    yield 4, f.command('train_stylegan2', f'{start} --transfer {mode} --aug {aug}{extra}', name)
        if f.small:
            return
        yield 1, f.command('find_ticket stylegan2', f'{start} --rounds 3 --ticket {f.out}/ffhq.pt', 'find-ffhq')
        for way in ('plain', 'advaug'):
            mask = f'--mask {f.out}/find-ffhq/ticket3.pt'
            yield 3, f.command('train_stylegan2', f'{mask} {WAYS[way]}', f'ticket3-ffhq-{way}')


def table6(family):
    """SNGAN: baseline, Gaussian noise, AdvAug; and what AdvAug at D's last layer amounts to."""
    for frac in (1., .1):
        f = family('sngan', 'cifar10', frac, 50000)
        for way in ('plain', 'noise', 'advaug', 'advaug-g', margin(f)):
            yield from f.train(0, way)


def margin(f):
    """At D's last layer AdvAug shifts logits by c, about .01 * .8 * sqrt(channels): a hinge with another margin."""
    return 'margin-1.045' if f.small else 'margin-1.09'


def imagenet(family):
    """DiffAugment's rows of BigGAN on ImageNet, where it translates alone."""
    for frac in (1., .5, .25):
        f = family('biggan', 'imagenet', frac, 100000)
        yield from f.train(0)
        yield from f.train(0, 'translation', None if f.small else 200000)
        yield from fair(f, 'translation')


def fair(family, way='diffaug'):
    """The published rows with DiffAugment have twice the updates: dense with as many, it with as few."""
    if not family.small:
        yield from family.train(0, 'plain', 200000, 'dense-twice')
        yield from family.train(0, way, 100000, f'dense-{way}-once')


# ---- figures

def fig1(family):
    """BigGAN on 10 % of CIFAR-100 over sparsities, without and with both augmentations."""
    f = family('biggan', 'cifar100', .1, 100000)
    yield from f.rows(9, [2, 3, 5, 6, 9], ['plain', 'diffaug-advaug'])
    yield from fair(f)


def fig2(family):
    """D's accuracies and the scores over training: dense and ticket, with 10 % and all of the data."""
    for frac in (.1, 1.):
        yield from family('sngan', 'cifar10', frac, 50000).rows(3, [3], ['plain'])


def fig4(family):
    """SNGAN: the sparsity that is best depends on the share of the data."""
    for frac, k in ((.1, 1), (.2, 2), (.3, 2), (.5, 5), (.7, 3), (.9, 2)):
        f = family('sngan', 'cifar10', frac, 50000)
        yield from f.rows(k, [k], ['plain', 'advaug'])
        if f.small:
            return


def fig5(family):
    """Few-shot samples and interpolations of tickets with AdvAug alone (Figures 5 and 6)."""
    yield from shots(family, SHOTS + MORE_SHOTS, ['advaug'])


def fig7(family):
    """SNGAN: the share pruned in a round; AdvAug on G, D or both; ways to prune."""
    f = family('sngan', 'cifar10', .1, 50000)
    levels = [3, 8] if f.small else [1, 2, 3, 5, 8]
    yield from f.rows(8, levels, ['plain', 'advaug-g', 'advaug-d', 'advaug'])
    yield from f.find(16, 'rho0.1', '--rho 0.1') if not f.small else f.find(6, 'rho0.1', '--rho 0.1')
    yield from f.find(4 if not f.small else 3, 'rho0.4', '--rho 0.4')
    yield from pruned(f, ['oneshot', 'random', 'slimming'], levels)


def pruned(f, methods, levels=(3, 8)):
    """Tickets of other methods at IMP's sparsities after so many rounds, trained plainly."""
    for method in methods:
        for k in dict.fromkeys(map(f.level, levels)):
            like = f'--like {f.ticket(k)}' if method == 'random-layers' else ''
            extra = {'slimming': '--prune g', 'random-layers': like}.get(method, '')
            name = f'{method}{k}'
            yield from f.find(k, name, f'--method {method} {extra}', 2 if like else 1)
            yield from f.train(k, name=f'{name}-plain', mask=f'{f.out}/{name}.pt')


def fig8(family):
    """SNGAN: strength and place of AdvAug, on a ticket."""
    f = family('sngan', 'cifar10', .1, 50000)
    yield from f.find(3)
    grid = [way for way in WAYS if way.startswith(('step', 'pgd', 'cut', 'lambda'))]
    for way in ('plain', 'advaug', *grid, 'noise', 'released', 'advaug-g', margin(f)):
        yield from f.train(3, way)


# ---- controls

def controls(family):
    """Tickets beside other masks, other weights under the same masks, small dense networks, and as many dense ones."""
    f = family('sngan', 'cifar10', .1, 50000)
    yield from f.rows(8, [8], ['plain'])
    for n in range(1, f.level(8) + 1) if not f.seed else ():   # on the same images
        yield 3, f.command(f'train_{f.model}', f'--seed {n}', f'dense-seed{n}')
    yield from pruned(f, ['oneshot', 'random', 'random-layers', 'init'])
    yield from f.find(3, 'early', '--method early-bird')
    yield from f.train(3, name='early-plain', mask=f'{f.out}/early.pt')
    for k in dict.fromkeys(map(f.level, (3, 8))):
        yield from f.train(k, 'reinit')
        yield 3, f.command(f'train_{f.model}', f'--small-dense {f.ticket(k)}', f'small{k}-plain')


def mask_quality(family):
    """Tickets found with 10, 20 and 100 % of the data, and with DiffAugment, trained on 10 % and on all."""
    found = {}
    for frac in (.1, .2, 1.):
        f = found[frac] = family('sngan', 'cifar10', frac, 50000)
        yield from f.find(3)
    f = found[.1]
    yield from f.find(3, 'find-diffaug', '--aug diffaug')
    for frac in (.1, 1.):
        for other, g in found.items():
            yield from found[frac].train(3, name=f'ticket{f.level(3)}-of-{other:g}-plain', mask=g.ticket(3))
        yield from found[frac].train(3, name=f'ticket{f.level(3)}-of-diffaug-plain', mask=f.ticket(3, 'find-diffaug'))


def ada_sizes(family):
    """The score against the number of images: without augmentation, with DiffAugment, with ADA."""
    for n in (100, 500, .1, 1.):
        for way in ('plain', 'diffaug', 'ada'):
            yield from family('sngan', 'cifar10', n, 50000).train(0, way)


def diffaug(family):
    """DiffAugment everywhere, on reals only, in D's loss only."""
    for frac in (.1, .2, 1.):
        for way in ('plain', 'diffaug', 'real', 'd'):
            yield from family('sngan', 'cifar10', frac, 50000).train(0, way)


def leak(family):
    """Do the samples show the augmentations? (leak.py)"""
    for way in ('plain', 'advaug', 'diffaug', 'ada-0.5', 'ada-0.8', 'ada-0.95', 'ada-1.0'):
        yield from family('sngan', 'cifar10', .1, 50000).train(0, way)


# ---- StyleGAN2

def fewshot(family):
    """DiffAugment's few-shot table, dense and ticket; small: on 100 emoji faces."""
    yield from shots(family, SHOTS + MORE_SHOTS, ['plain', 'diffaug', 'diffaug-advaug'])


def stylegan2(family):
    """StyleGAN2 on CIFAR at 10, 20 and 100 %, and on 1,000 images of FFHQ and LSUN cat."""
    cifar = [(data, frac) for data in ('cifar10', 'cifar100') for frac in (.1, .2, 1.)]
    for data, frac in [*cifar, ('ffhq', 1000), ('lsun-cat', 1000)]:
        f = family('stylegan2', data, frac, 250000, '' if 'cifar' in data else '--aug none')
        for way in ('plain', 'diffaug', 'ada'):
            yield from f.train(0, way)
        if f.small:
            return


EXPERIMENTS = {
    'table1': table1, 'table2': table2, 'table3': table3, 'table4': table4, 'table5': table5, 'table6': table6,
    'fig1': fig1, 'fig2': fig2, 'fig4': fig4, 'fig5': fig5, 'fig6': fig5, 'fig7': fig7, 'fig8': fig8,
    'mask-quality': mask_quality, 'controls': controls, 'imagenet': imagenet, 'ada-sizes': ada_sizes,
    'diffaug': diffaug, 'leak': leak, 'fewshot': fewshot, 'transfer': transfer, 'stylegan2': stylegan2}


def rows(args):
    """Lines (stage, name, command), stage by stage. A finding asked for with several numbers of rounds has the most."""
    lines, rounds = [], {}
    for name in EXPERIMENTS if 'all' in args.names else args.names:
        for seed in args.seeds:
            lines += [(stage, name, c) for stage, c in EXPERIMENTS[name](lambda *a: Family(args, seed, *a))]
    for _, _, c in lines:
        if found := FIND.fullmatch(c):
            rounds[found[1], found[3]] = max(int(found[2]), rounds.get((found[1], found[3]), 0))
    most = lambda m: f'{m[1]}--rounds {rounds[m[1], m[3]]}{m[3]}'
    lines = [(stage, name, FIND.sub(most, c)) for stage, name, c in lines]
    return sorted(dict.fromkeys(lines), key=lambda line: line[0])


def main(args):
    for line in rows(args):
        print(*line)


if __name__ == '__main__':
    main(get_args())
