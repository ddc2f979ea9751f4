"""Find a lottery ticket in a GAN with little data: Algorithm 1, iterative magnitude pruning with rewinding.

Use:
    python find_ticket.py sngan --data cifar10 --frac 0.1 --rounds 5   # ticket.pt at 1 - 0.8^5 = 67.23 %
    python find_ticket.py sngan --data photos/ --rounds 3 --steps 2000 --ticket photos.pt
    torchrun --nproc_per_node 8 find_ticket.py sngan --data cifar10 --frac 0.1
    python find_ticket.py sngan --data cifar10 --frac 0.1 --method oneshot --ticket oneshot.pt
The flags of train_MODEL.py pass through, but for --mask.  The same command resumes, in a round too.

Algorithm 1, as the paper numbers its lines (--method imp, see `iterative_pruning`):
     1  input:   m_g = 1 and m_d = 1;  theta_0 and phi_0
     2  output:  {G(., theta_0 * m_g), D(., phi_0 * m_d)}
     3  repeat
     4      train {G(., theta_0 * m_g), D(., phi_0 * m_d)} on the limited data
     5      prune rho = 20 % of the remaining weights of G and of D: those of smallest trained magnitude
     6      update m_g and m_d
     7      rewind the weights of G and D to theta_0 and phi_0
     8  until the masks are as sparse as --rounds says:  1 - (1 - rho)^rounds

The other methods prune the dense networks once, to as many weights as k of these rounds leave (slimming: as
close as whole channels come), and rewind.  All but the last two make the tickets of k = 1 ... --rounds:
    oneshot        the smallest weights of one training go
    random         weights drawn at random go, without training
    init           the smallest of theta_0 and phi_0 go, without training
    slimming       whole channels of G go: the smallest batch-norm scales of one training with --slim
    random-layers  the mask of --like TICKET is shuffled within each tensor, without training
    early-bird     as oneshot, but the training stops as soon as its mask has settled

--out gets ticket0.pt (dense) ... ticketN.pt and the runs round0 ...  A ticket is complete by itself:
    {model, args, method, round, sparsity, data, rewind,
     init: {G, D} of state dicts,  mask: {G, D} of {parameter name: bool tensor}}
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import filecmp
import functools
import gc
import glob
import importlib
import os
import re
import shlex
import shutil

import torch

import cli
import files
import loop
import metrics
import prune
import trainer

# What names a finding and must be the same when it resumes, beside the flags of the training script
OWN_FLAGS = ('model', 'method', 'rho', 'prune', 'prunable', 'rank', 'rewind', 'eb_every', 'eb_threshold')

# Defaults of the flags that --method random-layers refuses, because the --like ticket decides
INHERITED = {'rounds': 5, 'rho': .2, 'prune': 'gd', 'prunable': 'conv'}

ROUND = r'round\d+|early'                             # the names of the directories of trainings
OWN_FILES = r'ticket\d+\.pt|early\.pt|masks\.pt|args\.json'        # in --out, beside the rounds
WITHOUT_TRAINING = 'random', 'init', 'random-layers'  # methods
EARLY_BIRD_MASKS = 5                                  # masks that must be alike

# What each number may be, see cli.check_ranges
RANGES = {
    'rounds': '[1, 1000]',
    'rho': '(0, 1)',
    'rewind': '[0, 1e12]',
    'eb_every': '[1, 1e12]',
    'eb_threshold': '(0, 1]'}


# ---- Algorithm 1

def iterative_pruning(args):
    """Algorithm 1, whose output (line 2) is the last ticket.

    Ticket k holds theta_0, phi_0 and the masks after k rounds; ticket 0 is line 1 (`save_dense_ticket`)."""
    for k in missing(args):                                            # lines 3 and 8: repeat ... until
        ticket = ticket_path(args, k - 1)
        masks = read_ticket(ticket)['mask']                            # {'G': m_g, 'D': m_d}
        trained = train(args, ticket, f'round{k - 1}')                 # line 4: train
        masks = pruned(args, masks, smallest(args, trained))           # lines 5, 6: prune, update the masks
        del trained                                                    # before the next networks are made
        rewind_and_save(args, k, masks)                                # line 7: rewind


def missing(args):
    """The rounds whose tickets are still to be made: 1 to --rounds, or --rounds alone."""
    first = 1
    if args.method in ('random-layers', 'early-bird'):
        first = args.rounds
    return [k for k in range(first, args.rounds + 1) if not os.path.exists(ticket_path(args, k))]


def ticket_path(args, k):
    """The file of the ticket of round k."""
    return f'{args.out}/ticket{k}.pt'


def training(args):
    """The command of Algorithm 2 on the ticket, on the images that it was found on."""
    words = ['--data', args.flags.data, '--mask', args.ticket, '--advaug', 'gd']
    for name in ('frac', 'data_seed'):
        words += cli.flag(args.flags, name).split()
    return f'python train_{args.model}.py {shlex.join(words)}'


def save_dense_ticket(args, nets):
    """Line 1: ticket0.pt with dense masks and what every round rewinds to.

    nets: {G, D} with theta_0 and phi_0.  With --rewind the ticket gets their weights after so many steps."""
    masks = {'G': {}, 'D': {}}
    for name, net in nets.items():
        if name.lower() in args.prune:
            masks[name] = prune.ones(net, args.prunable)
    weights = {name: files.to_cpu(net.state_dict()) for name, net in nets.items()}
    if args.rewind:
        early = f'{args.out}/early.pt'
        save_ticket(early, args, 0, weights, masks, None)
        nets = train(args, early, 'early', steps=args.rewind, metrics='none')
        weights = {name: files.to_cpu(net.state_dict()) for name, net in nets.items()}
    save_ticket(ticket_path(args, 0), args, 0, weights, masks, found_on(args, 0))


def train(args, ticket, name, **other):
    """Line 4: one training in --out/NAME, from a ticket that holds the weights to start from.

    other: flags that differ.  Returns the trained networks {G, D}."""
    own = {'mask': ticket, 'init_from': None, 'out': f'{args.out}/{name}', 'restart': False}
    flags = trainer.with_flags(args.flags, **{**own, **other})
    G, D = args.recipe.main(flags)
    return {'G': G, 'D': D}


def smallest(args, nets):
    """The rule of line 5: the smallest of the surviving weights of `nets` {G, D} go."""
    def rule(name, masks, keep):
        return prune.magnitude(nets[name], masks, keep=keep, gains=args.gains[name])
    return rule


def pruned(args, masks, rule, rounds=1):
    """Lines 5 and 6: new masks {G, D}, each with the number of weights that so many rounds leave.

    rule(name, masks of the network, number of weights to keep) -> new masks of the network.
    Exits 2 where a tensor would be empty."""
    new = {}
    for name, old in masks.items():
        keep = prune.alive_after(prune.alive(old), args.rho, rounds)   # 1 - rho of the weights, a round
        try:
            new[name] = rule(name, old, keep) if old else {}
        except ValueError as e:
            cli.refuse(f'--rounds {args.rounds} --rho {args.rho}: {e}')
    return new


def rewind_and_save(args, k, masks):
    """Line 7: ticket k holds theta_0 and phi_0 again, under the new masks.  Says how sparse it is."""
    initial = read_ticket(ticket_path(args, 0))['init']                # {'G': theta_0, 'D': phi_0}
    save_ticket(ticket_path(args, k), args, k, initial, masks, found_on(args, k))
    for name, mask in masks.items():
        if mask:
            cli.say(f'round {k} of {args.rounds}: {name} {prune.sparsity(mask):.2%} pruned, '
                f'{prune.alive(mask):,} weights left, {prune.channels(mask):.2%} of the channels gone')
            cli.say('\n'.join(f'{name}  {line}' for line in prune.table(mask)))
    gc.collect()                                      # a training refers to itself, so that it is still there
    torch.cuda.empty_cache()


# ---- what iterative pruning is compared with: each yields rounds k and their masks {G, D}

def at_once(args, rule):
    """Yield k and the dense masks, pruned to what k rounds leave."""
    dense = read_ticket(ticket_path(args, 0))['mask']
    for k in missing(args):
        yield k, pruned(args, dense, rule, k)


def oneshot(args):
    """The smallest weights of one training go."""
    trained = train(args, ticket_path(args, 0), 'round0')
    return at_once(args, smallest(args, trained))


def random(args):
    """Weights drawn at random go."""
    def rule(name, masks, keep):
        return prune.random(masks, keep, mask_stream(args, name))
    return at_once(args, rule)


def init(args):
    """The smallest of theta_0 and phi_0 go."""
    initial = read_ticket(ticket_path(args, 0))['init']
    return at_once(args, smallest(args, initial))


def slimming(args):
    """Whole channels of G go, those of the smallest batch-norm scales (Liu et al. 2017)."""
    G = train(args, ticket_path(args, 0), 'round0')['G']

    def rule(name, masks, keep):
        return prune.slim(G, masks, G.slimmable(), keep)
    return at_once(args, rule)


def random_layers(args):
    """The mask of each tensor of the --like ticket is shuffled."""
    like = read_ticket(args.like)['mask']
    masks = {name: prune.random_layers(mask, mask_stream(args, name)) for name, mask in like.items()}
    yield args.rounds, masks


def early_bird(args):
    """Train in stretches until the last masks of each network are alike (You et al. 2020, for channels)."""
    file = f'{args.out}/masks.pt'
    steps = args.flags.steps
    dense = read_ticket(ticket_path(args, 0))['mask']
    saved = {'step': 0, 'last': []}                   # last: the newest masks {G, D}, oldest first
    if os.path.exists(file):
        saved = loop.read(file, file, 'step', 'last')
    while True:
        step, last = saved['step'], saved['last']
        drift = max(prune.drift([masks[name] for masks in last], EARLY_BIRD_MASKS) for name in 'GD')
        settled = drift < args.eb_threshold
        if step == steps or settled:
            break

        step = min(step + args.eb_every, steps)
        trained = train(args, ticket_path(args, 0), 'round0', steps=step, metrics='none')
        masks = pruned(args, dense, smallest(args, trained), args.rounds)
        del trained                                   # before the next networks are made
        saved = {'step': step, 'last': [*last[1 - EARLY_BIRD_MASKS:], masks]}
        if cli.world()[0] == 0:
            files.save(file, saved)
        loop.barrier()

    line = (f'early-bird: step {step} of {steps}, {1 - step / steps:.1%} of a training saved; '
            f'the last masks differ in {drift:.2%} of the weights')
    if not settled:
        line += ', they have not settled'
    cli.say(line)
    yield args.rounds, last[-1]


def mask_stream(args, name):
    """The generator of a network's random masks: the same numbers on every rank and machine."""
    return loop.rng(args.flags.seed, f'mask {name}')


METHODS = {
    'oneshot': oneshot,
    'random': random,
    'init': init,
    'slimming': slimming,
    'random-layers': random_layers,
    'early-bird': early_bird,
}


# ---- files

def begin(args):
    """Make the directory and ticket0.pt, or go on with a finding of the same settings (others exit 2)."""
    G, D, _, hashes = trainer.initial_networks(args.flags, args.recipe.build)      # exits 2
    nets = {'G': G, 'D': D}
    args.identity |= hashes

    check_ticket_file(args)
    rank, _ = cli.world()
    if rank == 0:
        claim_finding(args.out)
        if args.flags.restart:
            clear_finding(args.out)
    loop.barrier()

    # Factors by which a network multiplies its weights: they are ranked as they act.
    args.gains = {'G': {}, 'D': {}}
    if args.rank == 'effective' and hasattr(args.recipe, 'gains'):
        args.gains = {name: args.recipe.gains(net) for name, net in nets.items()}

    # With a pruned ticket or a checkpoint of round0 the settings must agree; else ticket0.pt is made anew.
    found = os.listdir(args.out) if os.path.isdir(args.out) else []
    pruned_before = any(re.fullmatch(r'ticket[1-9]\d*\.pt', name) for name in found)
    if pruned_before or os.path.exists(f'{args.out}/round0/last.pt'):
        loop.compare(args.out, args.identity)
    elif rank == 0 and 'ticket0.pt' in found:
        os.remove(ticket_path(args, 0))
    loop.barrier()

    if rank == 0:
        os.makedirs(os.path.dirname(os.path.abspath(args.ticket)), exist_ok=True)
        files.write_json(f'{args.out}/args.json', {'command': cli.command(), 'identity': args.identity})
    if not os.path.exists(ticket_path(args, 0)):
        save_dense_ticket(args, nets)


def save_ticket(file, args, k, weights, masks, data):
    """Write a ticket on rank 0; all ranks wait for it, and must hold the same masks.

    data: the fingerprint of the images that it was found on, or None."""
    assert loop.equal_on_ranks(files.digest(masks)), 'the ranks pruned different weights'
    ticket = {
        'model': args.model, 'args': vars(args.flags),
        'method': args.method, 'round': k, 'rewind': args.rewind,
        'data': data,
        'init': weights, 'mask': masks,
        'sparsity': {name: prune.sparsity(mask) for name, mask in masks.items()}}
    if cli.world()[0] == 0:
        files.save(file, ticket)
    loop.barrier()


def found_on(args, k):
    """The fingerprint of the images that ticket k was found on, None where nothing was trained."""
    names = ['early']                                 # ticket 0 knows of no round, even where some lie there
    if k:
        names = [f'round{k - 1}', 'round0', 'early']
    for name in names:
        file = f'{args.out}/{name}/subset.json'
        if os.path.exists(file):
            return files.read_json(file, fingerprint=str)['fingerprint']
    return None


def read_ticket(path):
    """A ticket of this finding, or of --like; exits 2 where it is damaged."""
    return loop.read(path, path, 'init', 'mask')


def check_ticket_file(args):
    """Exit 2 where the file of --ticket is no ticket of this finding, which may replace its own ones alone."""
    if not os.path.exists(args.ticket):
        return
    for own in glob.glob(f'{glob.escape(args.out)}/ticket*.pt'):
        if filecmp.cmp(args.ticket, own, shallow=False):
            return
    other = loop.read(args.ticket, f'--ticket {args.ticket}', 'model', 'args', 'round', 'mask')
    cli.refuse(f"--ticket {args.ticket} is the ticket of another finding ({other['model']} on "
               f"{other['args'].get('data')}, round {other['round']}) than of {args.out}: "
               'name another --ticket, or move that file away')


def claim_finding(out):
    """Hold the directory of a finding and those of its rounds; exit 2 where another process writes there."""
    loop.claim(out)
    for name in os.listdir(out):
        if re.fullmatch(ROUND, name):
            loop.claim(f'{out}/{name}')


def clear_finding(out):
    """Remove the tickets and rounds of an earlier finding, and nothing else that lies there."""
    if not os.path.exists(f'{out}/args.json'):
        return
    for name in os.listdir(out):
        if re.fullmatch(OWN_FILES, name):
            os.remove(f'{out}/{name}')
        elif re.fullmatch(ROUND, name):
            shutil.rmtree(f'{out}/{name}')
            files.free(f'{out}/{name}')


# ---- flags

def get_args(argv=None):
    """The flags of ticket finding; the training script parses the others.  Exits 2 on contradictions."""
    args, train_words = own_parser().parse_known_args(argv)
    check_own_flags(args)

    # The flags of the training script: without augmentation (the paper's footnote 1), unless it is asked for
    words = list(train_words)
    if not any(word.split('=')[0] == '--aug' for word in train_words):
        words = ['--aug', 'none', *words]
    if args.method == 'slimming':
        words = ['--slim', str(trainer.SLIM), *words]
    args.recipe = importlib.import_module(f'train_{args.model}')
    args.flags = args.recipe.get_args(words)          # exits 2 on a wrong flag
    check_training(args)
    check_rounds(args)

    if args.method == 'early-bird':
        args.eb_every = args.eb_every or -(-args.flags.steps // 50)    # 2 %, rounded up
        args.eb_threshold = args.eb_threshold or .1
    like_hash = None
    if args.like:
        like_hash = adopt_rounds(args)

    # What must be the same when the finding is resumed, and names its directory
    data = os.path.basename(args.flags.data.rstrip('/'))
    args.identity = {
        **{name: getattr(args, name) for name in OWN_FLAGS},
        **loop.run_identity(args.flags),
        'steps': args.flags.steps,
        'data': data,
        'like_hash': like_hash,
        'rounds': args.rounds if args.method == 'early-bird' else None}    # others may go on to more rounds
    name = f'find-{args.model}-{data}-{args.flags.frac}-{files.digest(args.identity)[:8]}'
    if args.flags.check_data:
        args.flags.out = args.out                     # where augmented.png goes
    args.out = args.out or f'runs/{name}'
    check_ticket(args)
    return args


def own_parser():
    """The parser of the flags that train_MODEL.py does not have."""
    here = os.path.dirname(os.path.abspath(__file__))
    models = []
    for file in sorted(glob.glob(f'{here}/train_*.py')):
        models.append(os.path.basename(file).removeprefix('train_').removesuffix('.py'))
    p = argparse.ArgumentParser(
        description=__doc__,
        usage='%(prog)s MODEL --data NAME|FOLDER|ZIP [flags]',
        epilog='Beside these: every flag of train_MODEL.py, see its --help.',
        allow_abbrev=False,
        formatter_class=metrics.HelpFormatter)
    a = p.add_argument
    a('model', choices=models, help='train_MODEL.py trains the rounds; its flags pass through')

    a = p.add_argument_group('ticket').add_argument
    a('--rounds', type=int,
      help='rounds of training and pruning; other methods prune as much as so many rounds do (default: 5)')
    a('--rho', type=float, help='share of the surviving weights that a round prunes (default: 0.2)')
    a('--ticket', default='ticket.pt', help='file to which the last ticket is copied')
    a('--out', help='directory of all tickets and trainings (default: runs/find-MODEL-DATA-FRAC-HASH)')

    a = p.add_argument_group('for experiments').add_argument
    a('--method', choices=['imp', *METHODS], default='imp', help='how weights are chosen, see above')
    a('--prune', choices=['g', 'd', 'gd'],
      help="networks that are pruned: G, D or both (default: gd, as in the paper; the released command: g)")
    a('--prunable', choices=['conv', 'all'],
      help='weights that may go: of convolutions, or of every layer (default: conv)')
    a('--rank', choices=['effective', 'raw'], default='effective',
      help="StyleGAN2 multiplies its weights by constants: rank them with these, or as they are stored")
    a('--rewind', type=int, default=0, metavar='STEP',
      help='rewind to the weights after this many steps of training, not to the initial ones')
    a('--like', metavar='TICKET', help='random-layers: the ticket whose number of weights each tensor keeps')
    a('--eb-every', type=int, metavar='STEPS',
      help='early-bird: steps between two masks that are compared (default: 2 %% of --steps)')
    a('--eb-threshold', type=float, metavar='SHARE',
      help=f'early-bird: stop when the last {EARLY_BIRD_MASKS} masks differ in less than this share of the '
           'weights (default: 0.1)')
    return p


def check_own_flags(args):
    """Set the defaults of INHERITED; refuse numbers out of range, flags of another method, unusable paths."""
    cli.check_ranges(args, RANGES)
    cli.check_output('--out', args.out, folder=True)
    cli.check_output('--ticket', args.ticket)
    for name, default in INHERITED.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.method == 'random-layers':
            cli.refuse(f'{cli.flag(args, name)}: --method random-layers has it from --like, leave it out')

    methods = {'like': 'random-layers', 'eb_every': 'early-bird', 'eb_threshold': 'early-bird'}
    for name, method in methods.items():
        if getattr(args, name) is not None and args.method != method:
            cli.refuse(f'{cli.flag(args, name)} is for --method {method}: leave it out')
    if args.method == 'slimming' and args.prune != 'g':
        cli.refuse('--method slimming prunes channels by batch norms, which D does not have: add --prune g')
    if args.method == 'random-layers' and not args.like:
        cli.refuse('--method random-layers keeps the sparsity of each tensor of a ticket: '
                   'give --like TICKET')


def check_training(args):
    """Refuse flags of the training script that do not go with finding a ticket."""
    if args.flags.mask:
        cli.refuse(f'--mask {args.flags.mask}: find_ticket.py makes the masks; '
                   'give --init-from for trained weights')
    if args.flags.dst:
        cli.refuse(f'--dst {args.flags.dst} trains under masks of its own: leave it out')
    if getattr(args.flags, 'transfer', None) == 'minegan':
        cli.refuse('--transfer minegan: the miner is no part of a ticket')
    if args.rewind >= args.flags.steps:
        cli.refuse(f'--rewind {args.rewind} is not below --steps {args.flags.steps}')


def check_rounds(args):
    """Refuse rounds that prune not one weight, or that leave fewer weights than there are tensors."""
    if args.method == 'random-layers':                # which takes its numbers from --like
        return
    for name, net in zip('GD', trainer.without_weights(args.recipe.build, args.flags)):
        if name.lower() not in args.prune:
            continue
        weights = dict(net.named_parameters())
        sizes = [weights[key].numel() for key in prune.prunable(net, args.prunable)]
        left = sum(sizes)
        for k in range(1, args.rounds + 1):
            before = left
            left = prune.alive_after(before, args.rho, 1)
            round_k = f'--rounds {args.rounds} --rho {args.rho}: round {k}'
            if left == before:
                cli.refuse(f'{round_k} would prune not one of the {before:,} weights of {name}: '
                           'use a larger rho, or fewer rounds')
            if left < len(sizes):
                cli.refuse(f'{round_k} would leave {left} weights in the {len(sizes)} tensors of {name}: '
                           'use a smaller rho, or fewer rounds')


def check_ticket(args):
    """Refuse a --ticket in the place of the directory, or of another file of this finding."""
    if trainer.lies_in(args.out, args.ticket):
        cli.refuse(f'--ticket {args.ticket} is the directory of --out {args.out}, or one above: name a file')
    folder, name = os.path.split(os.path.realpath(args.ticket))
    is_last = name == f'ticket{args.rounds}.pt'
    if folder == os.path.realpath(args.out) and re.fullmatch(OWN_FILES, name) and not is_last:
        cli.refuse(f'--ticket {args.ticket} is a file that the finding in --out {args.out} needs: '
                   'use another name')


def adopt_rounds(args):
    """Take the round of the --like ticket; returns the hash of its masks.  Exits 2 where it does not fit."""
    like = loop.read(args.like, f'--like {args.like}', 'model', 'round', 'init', 'mask')
    if like['model'] != args.model or not like['round']:
        cli.refuse(f"--like {args.like} is of {like['model']}, round {like['round']}: "
                   f"give a pruned {args.model}'s")
    G, D = trainer.without_weights(args.recipe.build, args.flags)
    for name, net in (('G', G), ('D', D)):
        sentence = prune.mismatch(net, like['init'][name], like['mask'][name])
        if sentence:
            cli.refuse(f'--like {args.like} does not fit {name}: {sentence}')
    args.rounds = like['round']
    return files.digest(like['mask'])


def check_with_data(args, device):
    """Exit 2 on data and scores that the first training would refuse, before anything is made."""
    trains = args.rewind or args.method not in WITHOUT_TRAINING
    if trains and not os.path.exists(f'{args.out}/args.json'):
        flags = trainer.with_flags(args.flags, out=args.out)
        trainer.scores_on(flags, trainer.load_data(flags), device)


def say_length(args):
    """Say how many trainings of what length are still to be done."""
    left = len(missing(args))
    count = left
    if args.method in WITHOUT_TRAINING:
        count = 0
    elif args.method != 'imp':
        count = min(left, 1)
    cli.say(f'{args.out}: {count} trainings of {args.flags.steps} steps are to be done, for {left} tickets')


def main(args):
    """Make the tickets that are missing; returns the path of the last one."""
    if args.flags.check_data:
        return args.recipe.main(args.flags)
    device = loop.launch(args.flags)
    check_with_data(args, device)
    begin(args)
    say_length(args)
    if args.method == 'imp':
        iterative_pruning(args)
    elif missing(args):                               # else nothing is trained again
        for k, masks in METHODS[args.method](args):
            rewind_and_save(args, k, masks)

    last = ticket_path(args, args.rounds)
    if cli.world()[0] == 0:
        files.write(args.ticket, functools.partial(shutil.copyfile, last))
    cli.say(f'{args.ticket}: ticket of round {args.rounds}, {last}.  Next: {training(args)}')
    return last


if __name__ == '__main__':
    cli.script(main, get_args)
