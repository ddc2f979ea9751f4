"""Every table, figure and control of the paper as command lines, one training each: what run_all.sh runs.

Use:
    python paper/experiments.py table4 fig7                         # small, for a laptop
    python paper/experiments.py all --scale paper --seeds 0 1 2     # as published
    python paper/experiments.py table4 fig7 > rows.txt
    python paper/page.py fig7 --rows rows.txt                       # the page of what has been trained

A line is 'STAGE NAME SCRIPT FLAGS'.  NAME is the experiment.  A line may need files of the earlier stages:
    1  find_ticket.py finds the tickets
    2  find_ticket.py makes the tickets that are like another ticket
    3  train_*.py trains
    4  train_*.py trains from the weights of stage 3
A training that several experiments share is one command with one --out, so it runs once.  Round k of a
finding is the plain training of ticket k, so most plainly trained tickets cost nothing.
"""
import argparse
import re
import signal
from functools import partial

SCALES = 'smoke', 'demo', 'paper'

# Without --scale paper each model has one data set, a number of updates and a last round.
SMALL = {
    'sngan': ('fashion-mnist', 600, 8),
    'biggan': ('fashion-mnist', 600, 3),
    'stylegan2': ('emoji-faces', 1500, 3)}

EVALUATIONS = {'smoke': 1, 'demo': 2, 'paper': 10}             # of one training
NO_LIMIT = 99                                                  # rounds, more than any experiment asks for

# The ways to train and their flags.
WAYS = {
    'plain': '',
    'advaug': '--advaug gd',
    'advaug-g': '--advaug g',
    'advaug-d': '--advaug d',
    'noise': '--advaug gd --adv-noise 0.01',
    'released': '--advaug gd --adv-sign released',
    'diffaug': '--aug diffaug',
    'diffaug-advaug': '--aug diffaug --advaug gd',
    'translation': '--aug diffaug --aug-policy translation',
    'color-cutout': '--aug diffaug --aug-policy color,cutout',
    'real': '--aug diffaug --aug-on real',
    'd': '--aug diffaug --aug-on d',
    'ada': '--aug ada',
    'apa': '--aug apa',
    'ada-lecam': '--aug ada --lecam',
    'ada-advaug': '--aug ada --advaug gd',
    'reinit': '--reinit',
    'ada-0.5': '--aug ada --ada-p 0.5',
    'ada-0.8': '--aug ada --ada-p 0.8',
    'ada-0.95': '--aug ada --ada-p 0.95',
    'ada-1.0': '--aug ada --ada-p 1.0',

    # Figure 8: strength and place of AdvAug.  The way `advaug` has step 0.01, PGD-1, weight 1, and cuts after
    # G's first stage and before D's last layer.
    'step-0.001': '--advaug gd --adv-step 0.001',
    'step-0.05': '--advaug gd --adv-step 0.05',
    'step-0.1': '--advaug gd --adv-step 0.1',
    'pgd-3': '--advaug gd --adv-pgd 3',
    'pgd-5': '--advaug gd --adv-pgd 5',
    'pgd-7': '--advaug gd --adv-pgd 7',
    'cut-g2': '--advaug gd --adv-cut-g 2',
    'cut-g3': '--advaug gd --adv-cut-g 3',
    'cut-g4': '--advaug gd --adv-cut-g 4',
    'cut-d1': '--advaug gd --adv-cut-d 1',
    'cut-d2': '--advaug gd --adv-cut-d 2',
    'cut-d3': '--advaug gd --adv-cut-d 3',
    'cut-d4': '--advaug gd --adv-cut-d 4',
    'lambda-0.25': '--advaug gd --adv-lambda-g 0.25 --adv-lambda-d 0.25',
    'lambda-0.5': '--advaug gd --adv-lambda-g 0.5 --adv-lambda-d 0.5',
    'lambda-2': '--advaug gd --adv-lambda-g 2 --adv-lambda-d 2',

    # AdvAug at D's last layer shifts logits, which a hinge with another margin does, too.
    'margin-1.045': '--margin 1.045',
    'margin-1.09': '--margin 1.09'}

# Paper, section 4: 'training iterations will be doubled when training GANs with DiffAug'.
LONGER = 'diffaug', 'diffaug-advaug'
SHOTS = ['100-shot-obama', '100-shot-grumpy_cat', '100-shot-panda', 'AnimalFace-cat', 'AnimalFace-dog']
MORE_SHOTS = ['100-shot-bridge_of_sighs', '100-shot-medici_fountain', '100-shot-temple_of_heaven',
              '100-shot-wuzhen']

# DiffAugment's StyleGAN2 on CIFAR: its recipe for FFHQ with other numbers.
DIFFAUGMENT_CIFAR = '--preset large --res 32 --ch-g 4096 --ch-d 4096 --r1 0.1 --ema-kimg 1000 --aug none'
WITH_ROUNDS = re.compile(r'(find_ticket .*)--rounds (\d+)(.*)')


def get_args(argv=None):
    """The flags; exits 2 on unknown names."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='+', choices=[*EXPERIMENTS, 'all'], metavar='NAME',
                   help=', '.join(EXPERIMENTS) + ', all')
    p.add_argument('--scale', choices=SCALES, default='demo',
                   help='smoke: seconds a training; demo: small; paper: as published')
    p.add_argument('--seeds', type=whole(0, 10 ** 18), nargs='+', default=[0],
                   help='each fixes initial weights, subset and z: the rows of a seed are paired')
    p.add_argument('--steps', type=whole(1, 10 ** 9),
                   help='G updates of every training at the scales smoke and demo')
    return p.parse_args(argv)


def whole(least, most):
    """A type of argparse: whole numbers from `least` to `most`.  loop.py has such checks, but needs torch."""
    def number(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f'{value} is out of range: use one from {least} to {most:g}')
        return value
    return number


class Family:
    """The trainings of one model on one share of one data set with one seed, all below one directory.

    variant: the end of the directory's name of a second recipe.  doubled: whether the ways LONGER have twice
    the updates, at the scale `paper`.  `find` and `train` yield (stage, command)."""

    def __init__(self, args, seed, model, data, frac=1., steps=None, flags='', variant='', doubled=True):
        self.model = model
        self.seed = seed
        self.small = args.scale != 'paper'
        self.doubled = doubled and not self.small
        self.last_round = NO_LIMIT
        self.evaluations = EVALUATIONS[args.scale]
        folder = args.scale

        if self.small:
            variant = ''
            data, steps, self.last_round = SMALL[model]
            flags = '--preset demo'
            if model == 'stylegan2':
                flags += ' --aug none'
        if args.scale == 'smoke':
            steps = 4
            self.last_round = min(self.last_round, 2)
            flags += ' --eval-samples 16 --eval-repeats 1'
            if model == 'biggan':
                flags += ' --ch-g 8 --ch-d 8'
        if self.small and args.steps:
            steps = args.steps
            folder += f'-{steps}'

        self.steps = steps
        self.out = f'runs/{folder}/{model}-{data}{variant}-{frac:g}'
        self.flags = f'--data {data} --frac {frac:g} {flags}'
        if seed:
            self.out += f'-s{seed}'
            self.flags += f' --seed {seed} --data-seed {seed}'

    def command(self, script, extra, name, steps=None):
        """One command line that writes into the directory `name` of this family."""
        steps = steps or self.steps
        every = -(-steps // self.evaluations)                  # rounded up
        line = f'{script} {self.flags} --steps {steps} --eval-every {every} {extra} --out {self.out}/{name}'
        return ' '.join(line.split())

    def available(self, k):
        """Round k, or the last round that is found at this scale."""
        return min(k, self.last_round)

    def ticket(self, k, name='find'):
        """The file of the ticket of round k."""
        return f'{self.out}/{name}/ticket{self.available(k)}.pt'

    def find(self, rounds, name='find', extra='', stage=1):
        """Algorithm 1, or another way to prune to the sparsity of as many rounds."""
        # A ticket that is like another one has the sparsity of that one.
        if '--like' not in extra:
            extra = f'--rounds {self.available(rounds)} {extra}'
        yield stage, self.command(f'find_ticket {self.model}', f'{extra} --ticket {self.out}/{name}.pt', name)

    def train(self, k, way='plain', steps=None, name=None, mask=None):
        """Algorithm 2 on the ticket of round k, on the dense network for k = 0, or on another mask."""
        start = f'ticket{self.available(k)}' if k else 'dense'
        if k and not mask:
            mask = self.ticket(k)

        flags = WAYS[way]
        if mask:
            flags = f'--mask {mask} {flags}'
        yield 3, self.command(f'train_{self.model}', flags, name or f'{start}-{way}', steps)

    def find_and_train(self, rounds, levels, ways):
        """A finding; the dense network and the tickets of the rounds `levels`, each trained in all ways."""
        yield from self.find(rounds)
        last_round = self.available(rounds)
        for k in self.distinct([0, *levels]):
            for way in ways:
                # The finding itself trains the dense network and every ticket but the last one plainly.
                if way == 'plain' and k != last_round:
                    continue
                steps = self.steps
                if way in LONGER and self.doubled:
                    steps *= 2
                yield from self.train(k, way, steps)

    def distinct(self, levels):
        """The rounds that are available at this scale, each once."""
        return list(dict.fromkeys(self.available(k) for k in levels))


# ---- tables: `family(model, data, frac, steps, flags)` is a Family at the scale and with the seed asked for

def table1(family):
    """BigGAN on Tiny-ImageNet."""
    for frac in (1., .2, .1):
        f = family('biggan', 'tiny-imagenet', frac, 100000)
        yield from f.find_and_train(5, [2, 5], ['plain', 'advaug'])


def table2(family):
    """BigGAN on a quarter of ImageNet."""
    yield from family('biggan', 'imagenet', .25, 100000).find_and_train(2, [2], ['plain', 'advaug'])


def table3(family):
    """BigGAN on CIFAR: both sparsities of the caption for each of the three shares of the data."""
    for data in ('cifar10', 'cifar100'):
        for frac in (1., .2, .1):
            f = family('biggan', data, frac, 100000)
            yield from f.find_and_train(9, [5, 9], ['plain', 'diffaug', 'diffaug-advaug'])
            yield from at_equal_updates(f)


def table4(family):
    """Ways to train on little data, beside each other: StyleGAN2; small: SNGAN."""
    # The paper gives neither batch nor updates of this table: ADA's CIFAR recipe for 16 million images is ours.
    f = family('stylegan2', 'cifar100', .1, 250000)
    if f.small:
        f = family('sngan', 'cifar10', .1)
    yield from f.find_and_train(3, [3], ['plain', 'diffaug', 'ada', 'ada-lecam', 'ada-advaug'])
    yield from at_equal_updates(f)


def few_images(family, data):
    """StyleGAN2 on one of the few-shot sets by DiffAugment's recipe, whose length is that of DiffAugment."""
    steps = 31250 if 'Animal' in data else 18750
    return family('stylegan2', data, 1., steps, '--aug none', doubled=False)


def few_shot(family, names, ways):
    """Tickets of three rounds on few-shot sets; small: on one set."""
    for data in names:
        f = few_images(family, data)
        yield from f.find_and_train(3, [3], ways)
        if f.small:
            return


def table5(family):
    """StyleGAN2 from few images by DiffAugment's recipe and by the paper's own (batch 5, 100,000 updates),
    beside transfer from FFHQ (ffhq.pt, of models/convert_nvidia.py)."""
    ways = ['plain', 'diffaug-advaug']
    yield from few_shot(family, SHOTS, ways)
    for data in SHOTS:
        f = family('stylegan2', data, 1., 100000, '--preset paper --aug none', '-paper')
        if not f.small:
            yield from f.find_and_train(3, [3], ways)
    yield from transfer(family)


def transfer(family):
    """The baselines of Table 5 that start from trained weights; small: from all emoji to the faces."""
    start = '--init-from ffhq.pt'
    for data in SHOTS:
        f = few_images(family, data)
        if f.small:
            yield from transfer_between_emoji(f)
            return

        # Published: all four without augmentation, the first two with DiffAugment, too.
        yield transferred(f, start, 'finetune', '--aug none')
        yield transferred(f, start, 'finetune', '--aug diffaug', 'finetune-diffaug')
        yield transferred(f, start, 'freezed', '--aug none')
        yield transferred(f, start, 'freezed', '--aug diffaug', 'freezed-diffaug')
        yield transferred(f, start, 'scaleshift', '--aug none')
        yield transferred(f, start, 'minegan', '--aug none')

        # Tickets of the trained network.
        flags = f'{start} --rounds 3 --ticket {f.out}/ffhq.pt'
        yield 1, f.command('find_ticket stylegan2', flags, 'find-ffhq')
        for way in ('plain', 'advaug'):
            yield from f.train(3, way, name=f'ticket3-ffhq-{way}', mask=f.ticket(3, 'find-ffhq'))


def transfer_between_emoji(f):
    """A dense training on all emoji, from which short trainings on the faces start."""
    source = f.out.replace('emoji-faces', 'emoji')
    start = f'--init-from {source}/dense-plain/last.pt'
    yield 3, f.command('train_stylegan2', '--aug none', 'dense-plain').replace('emoji-faces', 'emoji')

    if f.steps > 3:
        f.steps //= 3
    yield 3, f.command('train_stylegan2', '--aug diffaug', 'scratch')
    for mode in ('finetune', 'freezed', 'scaleshift'):
        yield transferred(f, start, mode, '--aug diffaug')
    yield transferred(f, start, 'minegan', f'--aug diffaug --mine-steps {max(f.steps // 4, 1)}')


def transferred(f, start, mode, flags, name=None):
    """One training that starts from other weights."""
    return 4, f.command('train_stylegan2', f'{start} --transfer {mode} {flags}', name or mode)


def table6(family):
    """SNGAN: baseline, Gaussian noise, AdvAug; and what AdvAug at D's last layer amounts to."""
    for frac in (1., .1):
        f = family('sngan', 'cifar10', frac, 50000)
        for way in ('plain', 'noise', 'advaug', 'advaug-g', margin(f)):
            yield from f.train(0, way)


def margin(f):
    """The hinge with the margin 1 + c that shifts logits as AdvAug at D's last layer does.

    For a step of 0.01 the shift is c = 0.01 * 0.8 * sqrt(channels), about."""
    return 'margin-1.045' if f.small else 'margin-1.09'


def imagenet(family):
    """DiffAugment's rows of BigGAN on ImageNet, where it translates alone."""
    for frac in (1., .5, .25):
        f = family('biggan', 'imagenet', frac, 100000)
        yield from f.train(0)
        yield from f.train(0, 'translation', None if f.small else 200000)
        yield from at_equal_updates(f, 'translation')


def at_equal_updates(f, way='diffaug'):
    """The dense network with as many updates as the published rows with DiffAugment, which have twice as many
    as the others, and DiffAugment with as few as the others."""
    if not f.small:
        yield from f.train(0, 'plain', 2 * f.steps, 'dense-twice')
        yield from f.train(0, way, name=f'dense-{way}-once')


# ---- figures

def fig1(family):
    """BigGAN on 10 % of CIFAR-100 over sparsities, without and with both augmentations."""
    f = family('biggan', 'cifar100', .1, 100000)
    yield from f.find_and_train(9, [2, 3, 5, 6, 9], ['plain', 'diffaug-advaug'])
    yield from at_equal_updates(f)


def fig2(family):
    """D's accuracies and the scores over training: dense and ticket, with 10 % and all of the data."""
    for frac in (.1, 1.):
        yield from family('sngan', 'cifar10', frac, 50000).find_and_train(3, [3], ['plain'])


def fig4(family):
    """SNGAN: the sparsity that is best depends on the share of the data."""
    for frac, k in ((.1, 1), (.2, 2), (.3, 2), (.5, 5), (.7, 3), (.9, 2)):
        f = family('sngan', 'cifar10', frac, 50000)
        if f.small and frac not in (.1, .3, .9):
            continue                                   # three shares make the figure
        yield from f.find_and_train(k, [k], ['plain', 'advaug'])


def fig5(family):
    """Few-shot samples and interpolations of tickets with AdvAug alone (Figures 5 and 6)."""
    yield from few_shot(family, SHOTS + MORE_SHOTS, ['advaug'])


def fig7(family):
    """SNGAN: the share pruned in a round; AdvAug on G, D or both; ways to prune."""
    f = family('sngan', 'cifar10', .1, 50000)
    levels = [3, 8] if f.small else [1, 2, 3, 5, 8]
    yield from f.find_and_train(8, levels, ['plain', 'advaug-g', 'advaug-d', 'advaug'])

    # Findings that prune 10 % and 40 % in a round, instead of 20 %.
    yield from f.find(6 if f.small else 16, 'rho0.1', '--rho 0.1')
    yield from f.find(3 if f.small else 4, 'rho0.4', '--rho 0.4')
    yield from other_masks(f, ['oneshot', 'random', 'slimming'], levels)


def other_masks(f, methods, levels=(3, 8)):
    """Tickets of other methods, as sparse as after these rounds of iterative pruning, trained plainly."""
    for method in methods:
        for k in f.distinct(levels):
            extra = f'--method {method}'
            if method == 'slimming':
                extra += ' --prune g'
            if method == 'random-layers':
                extra += f' --like {f.ticket(k)}'

            name = f'{method}{k}'
            yield from f.find(k, name, extra, stage=2 if method == 'random-layers' else 1)
            yield from f.train(k, name=f'{name}-plain', mask=f'{f.out}/{name}.pt')


def fig8(family):
    """SNGAN: strength and place of AdvAug, on a ticket."""
    f = family('sngan', 'cifar10', .1, 50000)
    yield from f.find(3)
    varied = [way for way in WAYS if way.startswith(('step', 'pgd', 'cut', 'lambda'))]
    for way in ('plain', 'advaug', *varied, 'noise', 'released', 'advaug-g', margin(f)):
        yield from f.train(3, way)


# ---- controls

def controls(family):
    """Tickets beside other masks, other weights under the same masks, narrow dense networks, and rivals."""
    f = family('sngan', 'cifar10', .1, 50000)
    yield from f.find_and_train(8, [8], ['plain'])

    # The rivals at equal compute: dense trainings from other weights on the images of seed 0.
    if f.seed == 0:
        for n in range(1, f.available(8) + 1):
            yield 3, f.command(f'train_{f.model}', f'--seed {n}', f'dense-seed{n}')

    yield from other_masks(f, ['oneshot', 'random', 'random-layers', 'init'])
    yield from f.find(3, 'early', '--method early-bird')
    yield from f.train(3, name='early-plain', mask=f'{f.out}/early.pt')
    for k in f.distinct([3, 8]):
        yield from f.train(k, 'reinit')
        yield 3, f.command(f'train_{f.model}', f'--small-dense {f.ticket(k)}', f'small{k}-plain')

    # Sparse from the start, in one training (docs/rivals.md), and APA
    density = .8 ** f.available(8)
    kinds = ['static']
    if f.steps > 1:                                   # in one step, no weight moves
        kinds += ['set', 'rigl']
    for kind in kinds:
        moves = '' if kind == 'static' else f'--dst-every {max(f.steps // 100, 1)}'
        yield 3, f.command(f'train_{f.model}', f'--dst {kind} --density {density:.4f} {moves}', f'{kind}-plain')
    yield from f.train(0, 'apa')


def mask_quality(family):
    """Tickets found with 10, 20 and 100 % of the data, and with DiffAugment, trained on 10 % and on all."""
    families = {frac: family('sngan', 'cifar10', frac, 50000) for frac in (.1, .2, 1.)}
    for f in families.values():
        yield from f.find(3)
    tenth = families[.1]
    yield from tenth.find(3, 'find-diffaug', '--aug diffaug')

    for frac in (.1, 1.):
        f = families[frac]
        start = f'ticket{f.available(3)}'
        for other, source in families.items():
            yield from f.train(3, name=f'{start}-of-{other:g}-plain', mask=source.ticket(3))
        yield from f.train(3, name=f'{start}-of-diffaug-plain', mask=tenth.ticket(3, 'find-diffaug'))


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
    yield from few_shot(family, SHOTS + MORE_SHOTS, ['plain', 'diffaug', 'diffaug-advaug'])


def stylegan2(family):
    """StyleGAN2 on CIFAR at 10, 20 and 100 %, by DiffAugment's recipe."""
    for data in ('cifar10', 'cifar100'):
        for frac in (.1, .2, 1.):
            f = family('stylegan2', data, frac, 781250, DIFFAUGMENT_CIFAR, '-diffaugment')
            for way in ('plain', 'diffaug', 'ada'):
                if way == 'diffaug' and frac == 1 and not f.small:
                    way = 'color-cutout'                       # as published
                yield from f.train(0, way)
            if f.small:
                return


def ffhq(family):
    """StyleGAN2 against the number of photographs: FFHQ and LSUN cat, by DiffAugment's recipe."""
    sizes = [('ffhq', n) for n in (1000, 5000, 10000, 30000)]
    sizes += [('ffhq', 1.)]                            # 70,000; by --mirror of the recipe ADA's 140,000
    sizes += [('lsun-cat', n) for n in (1000, 5000, 10000, 30000)]
    if family('stylegan2', 'ffhq').small:
        sizes = [('', .2), ('', 1.)]
    for data, n in sizes:
        f = family('stylegan2', data, n, 781250, '--aug none --eval-samples 50000')
        for way in ('plain', 'diffaug', 'ada'):
            yield from f.train(0, way)


EXPERIMENTS = {
    'table1': table1,
    'table2': table2,
    'table3': table3,
    'table4': table4,
    'table5': table5,
    'table6': table6,
    'fig1': fig1,
    'fig2': fig2,
    'fig4': fig4,
    'fig5': fig5,
    'fig6': fig5,
    'fig7': fig7,
    'fig8': fig8,
    'mask-quality': mask_quality,
    'controls': controls,
    'imagenet': imagenet,
    'ada-sizes': ada_sizes,
    'diffaug': diffaug,
    'leak': leak,
    'fewshot': fewshot,
    'transfer': transfer,
    'stylegan2': stylegan2,
    'ffhq': ffhq}


# ---- lines

def all_rows(args):
    """[(stage, name, command)] of all experiments asked for, stage by stage, each once."""
    rows = []
    for name in EXPERIMENTS if 'all' in args.names else args.names:
        for seed in args.seeds:
            family = partial(Family, args, seed)
            rows += [(stage, name, command) for stage, command in EXPERIMENTS[name](family)]

    most = most_rounds(command for _, _, command in rows)
    rows = [(stage, name, with_rounds(command, most)) for stage, name, command in rows]
    return sorted(dict.fromkeys(rows), key=lambda row: row[0])


def most_rounds(commands):
    """{a finding's command around --rounds: the most rounds that an experiment asks of the finding}."""
    most = {}
    for command in commands:
        match = WITH_ROUNDS.fullmatch(command)
        if match:
            before, rounds, after = match.groups()
            most[before, after] = max(int(rounds), most.get((before, after), 0))
    return most


def with_rounds(command, most):
    """The command with the most rounds, so that a finding that experiments share runs once."""
    match = WITH_ROUNDS.fullmatch(command)
    if not match:
        return command
    before, _, after = match.groups()
    return f'{before}--rounds {most[before, after]}{after}'


def main(args):
    """Print the lines."""
    for row in all_rows(args):
        print(*row)


if __name__ == '__main__':
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)     # `| head` ends it, without a traceback
    main(get_args())
