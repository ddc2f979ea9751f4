"""Algorithm 1: find a lottery ticket in a GAN with little data, by iterative magnitude pruning with rewinding.

Use:
    python find_ticket.py sngan --data cifar10 --frac 0.1 --rounds 5            # ticket.pt at 1 - 0.8^5 = 67.23 %
    python find_ticket.py sngan --data photos/ --rounds 3 --steps 2000 --ticket photos.pt
    torchrun --nproc_per_node 8 find_ticket.py sngan --data cifar10 --frac 0.1
Every flag of train_sngan.py passes through.  The same command resumes, in the middle of a round too.

    m_g, m_d <- 1
    repeat  train {G(., theta_0 * m_g), D(., phi_0 * m_d)} on the limited data
            m <- m without the rho = 20 % smallest of the surviving trained weights, for G and for D
            theta <- theta_0, phi <- phi_0

Writes ticket0.pt (dense) ... ticketN.pt and the runs round0 ... into --out.  A ticket is complete by itself: {model,
args, round, sparsity, data, rewind, init: {G, D} full state dicts, mask: {G, D} of {parameter name: bool tensor}}.
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
    a('--rounds', type=int, default=5, help='train and prune so often')
    a('--rho', type=float, default=.2, help='share of the surviving weights that a round prunes')
    a('--prune', choices=['g', 'd', 'gd'], default='gd', help='which networks (the paper: gd, its released code: g)')
    a('--prunable', choices=['conv', 'all'], default='conv', help='which weights: of convolutions, or of every layer')
    a('--rewind', type=int, default=0, help='rewind to the weights after this many steps of round 0 instead of theta_0')
    a('--ticket', default='ticket.pt', help='where the last ticket is copied to')
    a('--out', help='directory of the tickets and rounds (default: runs/find-MODEL-DATA-FRAC-HASH)')
    args, train = p.parse_known_args(argv)
    if args.rounds < 1:
        loop.refuse(f'--rounds {args.rounds} finds nothing: use 1 or more')
    if not 0 < args.rho < 1:
        loop.refuse(f'--rho {args.rho} is not a share between 0 and 1')
    args.recipe = importlib.import_module(f'train_{args.model}')
    args.flags = args.recipe.get_args(train)                   # exits 2 on a wrong flag
    if args.flags.mask:
        loop.refuse(f'--mask {args.flags.mask}: find_ticket.py makes the masks; give --init-from for trained weights')
    if not 0 <= args.rewind < args.flags.steps:
        loop.refuse(f'--rewind {args.rewind} is not below --steps {args.flags.steps}')
    data = os.path.basename(args.flags.data.rstrip('/'))
    own = {k: getattr(args, k) for k in ('model', 'rho', 'prune', 'prunable', 'rewind')}
    passed = {k: v for k, v in vars(args.flags).items() if k not in loop.FREE or k == 'steps'}
    args.identity = {**own, **passed, 'data': data}
    args.out = args.out or f'runs/find-{args.model}-{data}-{args.flags.frac}-{loop.digest(args.identity)[:8]}'
    return args


def train(args, ticket, name, **other):
    """Line 4: one training from a ticket, which holds the weights to start from; returns the trained G, D."""
    own = {'mask': ticket, 'init_from': None, 'out': f'{args.out}/{name}', 'restart': False}
    return args.recipe.main(argparse.Namespace(**{**vars(args.flags), **own, **other}))


def save(path, args, k, init, masks, data):
    """Write a ticket on rank 0; all ranks wait for it, and must hold the same masks."""
    assert loop.same(loop.digest(masks)), 'the ranks pruned different weights'
    ticket = {'model': args.model, 'args': vars(args.flags), 'round': k, 'rewind': args.rewind, 'data': data,
              'init': init, 'mask': masks, 'sparsity': {name: prune.sparsity(m) for name, m in masks.items()}}
    if loop.world()[0] == 0:
        loop.write(path, lambda tmp: torch.save(ticket, tmp))
    loop.barrier()


def first(args, path, nets):
    """ticket0.pt: dense masks and what every round rewinds to, theta_0 and phi_0 or the weights of --rewind."""
    masks = {name: prune.ones(net, args.prunable) if name.lower() in args.prune else {} for name, net in nets.items()}
    init = {name: loop.to_cpu(net.state_dict()) for name, net in nets.items()}
    if args.rewind:
        early = f'{args.out}/early.pt'
        save(early, args, 0, init, masks, None)
        nets = dict(zip('GD', train(args, early, 'early', steps=args.rewind, metrics='none')))
        init = {name: loop.to_cpu(net.state_dict()) for name, net in nets.items()}
    save(path, args, 0, init, masks, None)


def clear(out):
    """Remove the tickets and rounds of an earlier finding, and nothing else that lies there."""
    names = os.listdir(out) if os.path.exists(f'{out}/args.json') else []
    for name in names:
        if re.fullmatch(r'ticket\d+\.pt|early\.pt|args\.json', name):
            os.remove(f'{out}/{name}')
        elif re.fullmatch(r'round\d+|early', name):
            shutil.rmtree(f'{out}/{name}')


def main(args):
    """Lines 3 to 8; returns the last ticket's path."""
    if args.flags.check_data:
        return args.recipe.main(args.flags)
    loop.launch(args.flags)
    rank, _ = loop.world()
    if args.flags.restart and rank == 0:
        clear(args.out)
    loop.barrier()
    G, D, _, facts = gan.start(args.flags, args.recipe.build)
    args.identity |= facts
    if os.path.exists(f'{args.out}/ticket1.pt') or os.path.exists(f'{args.out}/round0/last.pt'):
        loop.compare(args.out, args.identity)
    elif rank == 0 and os.path.exists(f'{args.out}/ticket0.pt'):
        os.remove(f'{args.out}/ticket0.pt')                    # nothing was trained from it
    loop.barrier()
    if rank == 0:
        os.makedirs(args.out, exist_ok=True)
        os.makedirs(os.path.dirname(os.path.abspath(args.ticket)), exist_ok=True)
        loop.write_json(f'{args.out}/args.json', {'command': loop.command(), 'identity': args.identity})
    path = [f'{args.out}/ticket{k}.pt' for k in range(args.rounds + 1)]
    if not os.path.exists(path[0]):
        first(args, path[0], {'G': G, 'D': D})
    for k in range(args.rounds):
        if os.path.exists(path[k + 1]):                        # a ticket is written only after a whole round
            continue
        G, D = train(args, path[k], f'round{k}')
        ticket = loop.load(path[k])
        try:
            masks = {name: prune.magnitude(net, ticket['mask'][name], args.rho) for name, net in (('G', G), ('D', D))}
        except ValueError as e:
            loop.refuse(f'--rounds {args.rounds} --rho {args.rho}: {e}')
        with open(f'{args.out}/round{k}/subset.json') as f:
            save(path[k + 1], args, k + 1, ticket['init'], masks, json.load(f)['fingerprint'])
        if rank == 0:
            pruned = ', '.join(f'{n} {prune.sparsity(m):.2%} pruned' for n, m in masks.items())
            print(f'round {k + 1} of {args.rounds}: {pruned}')
            print('\n'.join(f'{n}  {line}' for n, m in masks.items() for line in prune.table(m)), flush=True)
        del G, D
        torch.cuda.empty_cache()
    if rank == 0:
        loop.write(args.ticket, lambda tmp: shutil.copyfile(path[-1], tmp))
        print(f'{args.ticket}: ticket of round {args.rounds}, {path[-1]}', flush=True)
    return path[-1]


if __name__ == '__main__':
    main(get_args())
