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

SCALES = 'smoke', 'demo', 'paper'
SMALL = {'sngan': ('fashion-mnist', 600), 'biggan': ('fashion-mnist', 600)}        # data and steps without --scale paper
WAYS = {                                                       # ways to train: flags
    'plain': '', 'advaug': '--advaug gd', 'advaug-g': '--advaug g', 'advaug-d': '--advaug d',
    'noise': '--advaug gd --adv-noise 0.01', 'diffaug': '--aug diffaug', 'diffaug-advaug': '--aug diffaug --advaug gd',
    'real': '--aug diffaug --aug-on real', 'd': '--aug diffaug --aug-on d', 'ada': '--aug ada',
    'ada-lecam': '--aug ada --lecam', 'ada-advaug': '--aug ada --advaug gd',
    **{f'ada-{p}': f'--aug ada --ada-p {p}' for p in ('0.5', '0.8', '0.95', '1.0')}}
LONGER = 'diffaug', 'diffaug-advaug'                           # paper: twice the updates


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

    def __init__(self, args, seed, model, data, frac, steps, flags=''):
        self.model, self.small = model, args.scale != 'paper'
        if self.small:
            data, steps = SMALL[model]
            steps = args.steps or {'smoke': 4, 'demo': steps}[args.scale]
            flags = '--preset demo' + ' --eval-samples 16 --eval-repeats 1' * (args.scale == 'smoke')
        self.steps, scale = steps, args.scale + f'-{args.steps}' * bool(self.small and args.steps)
        self.evals = 10 if args.scale == 'paper' else 2
        self.out = f'runs/{scale}/{model}-{data}-{frac}' + f'-s{seed}' * bool(seed)
        self.flags = f'--data {data} --frac {frac} {flags}' + f' --seed {seed} --data-seed {seed}' * bool(seed)

    def command(self, script, extra, name, steps=None):
        steps = steps or self.steps
        return ' '.join(f'{script} {self.flags} --steps {steps} --eval-every {-(-steps // self.evals)} {extra} '
                        f'--out {self.out}/{name}'.split())

    def find(self, rounds):
        """Algorithm 1; its round k is the plain training of ticket k."""
        yield 1, self.command(f'find_ticket {self.model}', f'--rounds {rounds} --ticket {self.out}/ticket.pt', 'find')

    def train(self, level, way, steps=None, name=None):
        """Algorithm 2 on the ticket of a round (0: on the dense network)."""
        start = f'--mask {self.out}/find/ticket{level}.pt' if level else ''
        name = name or f'{f"ticket{level}" if level else "dense"}-{way}'
        yield 3, self.command(f'train_{self.model}', f'{start} {WAYS[way]}', name, steps)

    def rows(self, rounds, levels, ways):
        """A finding, and the dense network and the tickets of some rounds, trained in each way."""
        yield from self.find(rounds)
        for level in (0, *levels):
            for way in ways:
                if way != 'plain' or level == rounds:
                    long = way in LONGER and self.model == 'biggan' and not self.small
                    yield from self.train(level, way, 2 * self.steps if long else None)


def table4(family):
    """Ways to train on little data, beside each other."""
    f = family('sngan', 'cifar10', 0.1, 50000)
    yield from f.rows(3, [3], ['plain', 'diffaug', 'ada', 'ada-lecam', 'ada-advaug'])


def ada_sizes(family):
    """The score against the number of images: without augmentation, with DiffAugment, with ADA."""
    for n in (100, 500, 0.1, 1.0):
        for way in ('plain', 'diffaug', 'ada'):
            yield from family('sngan', 'cifar10', n, 50000).train(0, way)


def diffaug(family):
    """DiffAugment everywhere, on reals only, in D's loss only."""
    for frac in (0.1, 0.2, 1.0):
        for way in ('plain', 'diffaug', 'real', 'd'):
            yield from family('sngan', 'cifar10', frac, 50000).train(0, way)


def leak(family):
    """Do the samples show the augmentations? (leak.py)"""
    for way in ('plain', 'advaug', 'diffaug', 'ada-0.5', 'ada-0.8', 'ada-0.95', 'ada-1.0'):
        yield from family('sngan', 'cifar10', 0.1, 50000).train(0, way)


EXPERIMENTS = {'table4': table4, 'ada-sizes': ada_sizes, 'diffaug': diffaug, 'leak': leak}


def main(args):
    """The lines, stage by stage; a finding that is asked for with several numbers of rounds has the most."""
    lines = []
    for name in EXPERIMENTS if 'all' in args.names else args.names:
        for seed in args.seeds:
            lines += [(stage, name, c) for stage, c in EXPERIMENTS[name](lambda *a: Family(args, seed, *a))]
    for stage, name, command in sorted(dict.fromkeys(lines), key=lambda line: line[0]):
        print(stage, name, command)


if __name__ == '__main__':
    main(get_args())
