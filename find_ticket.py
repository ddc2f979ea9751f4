"""Find a lottery ticket in a GAN with little data: Algorithm 1, iterative magnitude pruning, and what it is compared
with.

Use:
    python find_ticket.py sngan --data cifar10 --frac 0.1 --rounds 5            # ticket.pt at 1 - 0.8^5 = 67.23 %
    python find_ticket.py sngan --data photos/ --rounds 3 --steps 2000 --ticket photos.pt
    torchrun --nproc_per_node 8 find_ticket.py sngan --data cifar10 --frac 0.1
    python find_ticket.py sngan --data cifar10 --frac 0.1 --method oneshot --ticket oneshot.pt
Every flag of train_sngan.py passes through.  The same command resumes, in the middle of a round too.

    m_g, m_d <- 1
    repeat  train {G(., theta_0 * m_g), D(., phi_0 * m_d)} on the limited data                            (--method imp)
            m <- m without the rho = 20 % smallest of the surviving trained weights, for G and for D
            theta <- theta_0, phi <- phi_0

The other methods prune the dense networks once, to exactly the number of weights that k of these rounds leave, and
rewind; all but the last two make the tickets of k = 1 ... --rounds:
    oneshot        the smallest weights of one training go
    random         weights drawn at random go, without training
    init           the smallest of theta_0 and phi_0 go, without training
    slimming       whole channels of G go, those of the smallest batch-norm scales of one training with --slim
    random-layers  the mask of --like TICKET is shuffled within each tensor, without training
    early-bird     as oneshot, but training stops as soon as its mask has settled

Writes ticket0.pt (dense) ... ticketN.pt and the runs round0 ... into --out.  A ticket is complete by itself: {model,
args, method, round, sparsity, data, rewind, init: {G, D} full state dicts, mask: {G, D} of {parameter name: bool
tensor}}.
"""
import argparse
import glob
import importlib
import json
import os
import re
import shutil

import torch

import gan
import loop
import prune


def get_args(argv=None):
    """The flags of ticket finding; the rest is parsed by the training script. Exits 2 on what contradicts itself."""
    here = os.path.dirname(os.path.abspath(__file__))
    models = sorted(os.path.basename(f)[6:-3] for f in glob.glob(f'{here}/train_*.py'))
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('model', choices=models, help='train_MODEL.py trains the rounds; its flags pass through')
    a('--method', choices=METHODS, default='imp', help='what to prune: see above')
    a('--rounds', type=int, help='train and prune so often; other methods than imp: as sparse as that (default: 5)')
    a('--rho', type=float, help='share of the surviving weights that a round prunes (default: 0.2)')
    a('--prune', choices=['g', 'd', 'gd'], help='which networks (default and paper: gd, its released code: g)')
    a('--prunable', choices=['conv', 'all'], help='which weights: of convolutions, or of every layer (default: conv)')
    a('--rank', choices=['effective', 'raw'], default='effective',
      help="magnitude of weights as they act, or as stored: StyleGAN2's equalised learning rate scales them")
    a('--rewind', type=int, default=0, help='rewind to the weights after this many steps of round 0 instead of theta_0')
    a('--like', metavar='TICKET', help='random-layers: the ticket whose number of weights each tensor keeps')
    a('--eb-every', type=int, metavar='STEPS', help='early-bird: look at the mask so often (default: 2 %% of --steps)')
    a('--eb-threshold', type=float, metavar='SHARE',
      help='early-bird: settled when the last 5 masks differ in less than this share of the weights (default: 0.1)')
    a('--ticket', default='ticket.pt', help='where the last ticket is copied to')
    a('--out', help='directory of the tickets and rounds (default: runs/find-MODEL-DATA-FRAC-HASH)')
    args, train = p.parse_known_args(argv)
    check(args)
    args.recipe = importlib.import_module(f'train_{args.model}')
    slim = ['--slim', str(gan.SLIM)] if args.method == 'slimming' else []
    asked = any(word.split('=')[0] == '--aug' for word in train)
    plain = [] if asked else ['--aug', 'none']                 # the paper's footnote 1
    args.flags = args.recipe.get_args([*slim, *plain, *train])          # exits 2 on a wrong flag
    if args.flags.mask:
        loop.refuse(f'--mask {args.flags.mask}: find_ticket.py makes the masks; give --init-from for trained weights')
    if getattr(args.flags, 'transfer', None) == 'minegan':
        loop.refuse('--transfer minegan: the miner is no part of a ticket')
    if not 0 <= args.rewind < args.flags.steps:
        loop.refuse(f'--rewind {args.rewind} is not below --steps {args.flags.steps}')
    if args.method == 'early-bird':
        args.eb_every = args.eb_every or -(-args.flags.steps // 50)
        args.eb_threshold = args.eb_threshold or .1
    like = adopt(args) if args.like else None
    data = os.path.basename(args.flags.data.rstrip('/'))
    own = {k: getattr(args, k) for k in ('model', 'method', 'rho', 'prune', 'prunable', 'rank', 'rewind', 'eb_every',
                                         'eb_threshold')}
    passed = {k: v for k, v in vars(args.flags).items() if k not in loop.FREE or k == 'steps'}
    args.identity = {**own, **passed, 'data': data, 'like_hash': like,
                     'rounds': args.rounds if args.method == 'early-bird' else None}
    args.out = args.out or f'runs/find-{args.model}-{data}-{args.flags.frac}-{loop.digest(args.identity)[:8]}'
    return args


def check(args):
    """Set the defaults of what random-layers takes from --like; refuse flags out of range and of another method."""
    for name, default in (('rounds', 5), ('rho', .2), ('prune', 'gd'), ('prunable', 'conv')):
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.method == 'random-layers':
            loop.refuse(f'{loop.flag(args, name)}: --method random-layers has it from --like, leave it out')
    if args.rounds < 1:
        loop.refuse(f'--rounds {args.rounds} finds nothing: use 1 or more')
    if not 0 < args.rho < 1:
        loop.refuse(f'--rho {args.rho} is not a share between 0 and 1')
    for name, method in (('like', 'random-layers'), ('eb_every', 'early-bird'), ('eb_threshold', 'early-bird')):
        if getattr(args, name) is not None and args.method != method:
            loop.refuse(f'{loop.flag(args, name)} is for --method {method}: leave it out')
    for name in ('eb_every', 'eb_threshold'):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            loop.refuse(f'{loop.flag(args, name)} is not positive')
    if args.method == 'slimming' and args.prune != 'g':
        loop.refuse('--method slimming prunes channels by batch norms, which D does not have: add --prune g')
    if args.method == 'random-layers' and not args.like:
        loop.refuse('--method random-layers keeps the sparsity of each tensor of a ticket: give --like TICKET')


def adopt(args):
    """Take the round of the --like ticket; returns its masks' hash. Exits 2 where it does not fit."""
    like = loop.read(args.like, f'--like {args.like}', 'model', 'round', 'init', 'mask')
    if like['model'] != args.model or not like['round']:
        loop.refuse(f"--like {args.like} is of {like['model']}, round {like['round']}: give a pruned {args.model}'s")
    for name, net in zip('GD', gan.blank(args.recipe.build, args.flags)):
        if sentence := prune.mismatch(net, like['init'][name], like['mask'][name]):
            loop.refuse(f'--like {args.like} does not fit {name}: {sentence}')
    args.rounds = like['round']
    return loop.digest(like['mask'])


def path(args, k):
    return f'{args.out}/ticket{k}.pt'


def say(line):
    if loop.world()[0] == 0:
        print(line, flush=True)


def missing(args):
    """The rounds whose tickets are still to be made: 1 to --rounds, or --rounds alone."""
    start = args.rounds if args.method in ('random-layers', 'early-bird') else 1
    return [k for k in range(start, args.rounds + 1) if not os.path.exists(path(args, k))]


def train(args, ticket, name, **other):
    """Line 4: one training from a ticket, which holds the weights to start from; returns the trained {G, D}."""
    own = {'mask': ticket, 'init_from': None, 'out': f'{args.out}/{name}', 'restart': False}
    return dict(zip('GD', args.recipe.main(argparse.Namespace(**{**vars(args.flags), **own, **other}))))


def pruned(args, masks, rule, rounds=1):
    """Line 5: rule(name, masks, number of weights that so many rounds leave) -> new masks, of G and of D.

    Exits 2 where a tensor would become empty."""
    try:
        return {name: rule(name, m, prune.alive_after(prune.alive(m), args.rho, rounds)) if m else {}
                for name, m in masks.items()}
    except ValueError as e:
        loop.refuse(f'--rounds {args.rounds} --rho {args.rho}: {e}')


def at_once(args, rule):
    """Yield k and the dense masks pruned to what k rounds leave."""
    dense = loop.load(path(args, 0))['mask']
    for k in missing(args):
        yield k, pruned(args, dense, rule, k)


def smallest(args, nets):
    """The rule that prunes the smallest of these weights."""
    return lambda name, masks, keep: prune.magnitude(nets[name], masks, keep=keep, gains=args.gains[name])


def stream(args, name):
    """The generator of a network's random masks: the same numbers on every rank and machine."""
    return loop.rng(args.flags.seed, f'mask {name}')


# ---- the methods: each yields rounds k and their masks {G, D}, and main saves ticket k before it asks for the next

def imp(args):
    for k in missing(args):
        masks = loop.load(path(args, k - 1))['mask']
        yield k, pruned(args, masks, smallest(args, train(args, path(args, k - 1), f'round{k - 1}')))


def oneshot(args):
    return at_once(args, smallest(args, train(args, path(args, 0), 'round0')))


def random(args):
    return at_once(args, lambda name, masks, keep: prune.random(masks, keep, stream(args, name)))


def init(args):
    return at_once(args, smallest(args, loop.load(path(args, 0))['init']))


def slimming(args):
    G = train(args, path(args, 0), 'round0')['G']
    return at_once(args, lambda name, masks, keep: prune.slim(G, masks, G.slimmable(), keep))


def random_layers(args):
    like = loop.load(args.like)['mask']
    yield args.rounds, {name: prune.random_layers(m, stream(args, name)) for name, m in like.items()}


def early_bird(args):
    """Train in stretches until the last five masks of each network are alike (You et al. 2020, who prune channels)."""
    file, steps, dense = f'{args.out}/masks.pt', args.flags.steps, loop.load(path(args, 0))['mask']
    saved = loop.load(file) if os.path.exists(file) else {'step': 0, 'last': []}
    while True:
        step, last = saved['step'], saved['last']
        drift = max(prune.drift([masks[name] for masks in last]) for name in 'GD')
        if step == steps or drift < args.eb_threshold:
            break
        step = min(step + args.eb_every, steps)
        rule = smallest(args, train(args, path(args, 0), 'round0', steps=step, metrics='none'))
        saved = {'step': step, 'last': [*last[-4:], pruned(args, dense, rule, args.rounds)]}
        del rule                                               # and the networks, before the next ones are made
        if loop.world()[0] == 0:
            loop.write(file, lambda tmp: torch.save(saved, tmp))
        loop.barrier()
    say(f'early-bird: step {step} of {steps}, {1 - step / steps:.1%} of a training saved; the last masks differ in '
        f'{drift:.2%} of the weights' + ('' if drift < args.eb_threshold else ', they have not settled'))
    yield args.rounds, last[-1]


METHODS = {'imp': imp, 'oneshot': oneshot, 'random': random, 'init': init, 'slimming': slimming,
           'random-layers': random_layers, 'early-bird': early_bird}


def save(file, args, k, init, masks):
    """Write a ticket on rank 0; all ranks wait for it, and must hold the same masks."""
    assert loop.same(loop.digest(masks)), 'the ranks pruned different weights'
    ticket = {'model': args.model, 'args': vars(args.flags), 'method': args.method, 'round': k, 'rewind': args.rewind,
              'data': found_on(args, k), 'init': init, 'mask': masks,
              'sparsity': {name: prune.sparsity(m) for name, m in masks.items()}}
    if loop.world()[0] == 0:
        loop.write(file, lambda tmp: torch.save(ticket, tmp))
    loop.barrier()


def found_on(args, k):
    """The fingerprint of the images that ticket k was found on, None where nothing was trained."""
    for name in (f'round{k - 1}', 'round0', 'early'):
        if os.path.exists(f'{args.out}/{name}/subset.json'):
            with open(f'{args.out}/{name}/subset.json') as f:
                return json.load(f)['fingerprint']


def first(args, nets):
    """ticket0.pt: dense masks and what every round rewinds to, theta_0 and phi_0 or the weights of --rewind."""
    masks = {name: prune.ones(net, args.prunable) if name.lower() in args.prune else {} for name, net in nets.items()}
    init = {name: loop.to_cpu(net.state_dict()) for name, net in nets.items()}
    if args.rewind:
        early = f'{args.out}/early.pt'
        save(early, args, 0, init, masks)
        nets = train(args, early, 'early', steps=args.rewind, metrics='none')
        init = {name: loop.to_cpu(net.state_dict()) for name, net in nets.items()}
    save(path(args, 0), args, 0, init, masks)


def clear(out):
    """Remove the tickets and rounds of an earlier finding, and nothing else that lies there."""
    names = os.listdir(out) if os.path.exists(f'{out}/args.json') else []
    for name in names:
        if re.fullmatch(r'ticket\d+\.pt|early\.pt|masks\.pt|args\.json', name):
            os.remove(f'{out}/{name}')
        elif re.fullmatch(r'round\d+|early', name):
            shutil.rmtree(f'{out}/{name}')


def begin(args):
    """The directory and ticket0.pt, new or of a finding with the same settings (others exit 2)."""
    rank, _ = loop.world()
    if args.flags.restart and rank == 0:
        clear(args.out)
    loop.barrier()
    G, D, _, facts = gan.start(args.flags, args.recipe.build)
    nets = {'G': G, 'D': D}
    args.identity |= facts
    gains = getattr(args.recipe, 'gains', None) if args.rank == 'effective' else None
    args.gains = {name: gains(net) if gains else {} for name, net in nets.items()}
    found = os.listdir(args.out) if os.path.isdir(args.out) else []
    if any(re.fullmatch(r'ticket[1-9]\d*\.pt', n) for n in found) or os.path.exists(f'{args.out}/round0/last.pt'):
        loop.compare(args.out, args.identity)
    elif rank == 0 and 'ticket0.pt' in found:
        os.remove(path(args, 0))                               # nothing was trained from it
    loop.barrier()
    if rank == 0:
        os.makedirs(args.out, exist_ok=True)
        os.makedirs(os.path.dirname(os.path.abspath(args.ticket)), exist_ok=True)
        loop.write_json(f'{args.out}/args.json', {'command': loop.command(), 'identity': args.identity})
    if not os.path.exists(path(args, 0)):
        first(args, nets)


def main(args):
    """Lines 3 to 8; returns the last ticket's path."""
    if args.flags.check_data:
        return args.recipe.main(args.flags)
    loop.launch(args.flags)
    begin(args)
    for k, masks in METHODS[args.method](args) if missing(args) else ():
        save(path(args, k), args, k, loop.load(path(args, 0))['init'], masks)
        for name, m in ((name, m) for name, m in masks.items() if m):
            say(f'round {k} of {args.rounds}: {name} {prune.sparsity(m):.2%} pruned, {prune.alive(m):,} weights left, '
                f'{prune.channels(m):.2%} of the channels gone')
            say('\n'.join(f'{name}  {line}' for line in prune.table(m)))
        torch.cuda.empty_cache()
    last = path(args, args.rounds)
    if loop.world()[0] == 0:
        loop.write(args.ticket, lambda tmp: shutil.copyfile(last, tmp))
    say(f'{args.ticket}: ticket of round {args.rounds}, {last}')
    return last


if __name__ == '__main__':
    main(get_args())
