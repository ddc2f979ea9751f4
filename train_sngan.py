"""Algorithm 2 on SNGAN: train a ticket (or the dense network) with DiffAugment on images and AdvAug on features.

Use:
    python train_sngan.py --data cifar10 --frac 0.1                                   # the dense baseline
    python train_sngan.py --data cifar10 --frac 0.1 --mask ticket.pt --aug diffaug --advaug gd
    torchrun --nproc_per_node 8 train_sngan.py --data photos/ --mask ticket.pt        # eight GPUs, BN per GPU
The same command resumes.

    D:  min  L_D(T(x), T(G(z)))  + lambda_2 L_D(D2(D1(.) + delta))          five times, then
    G:  min  L_G(D(T(G(z))))     + lambda_1 L_G(D(T(G2(G1(z) + delta))))    once,  then E <- ema E + (1 - ema) G
"""
import argparse
import copy
import os

import torch

import advaug
import augment
import loop
import losses
import metrics
import prune
from data import images
from models import sngan

PRESETS = {                                                   # flag defaults, chosen by --data unless --preset is given
    'paper': {},                                              # the flag defaults are the paper's CIFAR-10 values
    'demo': dict(ch_g=32, ch_d=32, steps=1000, d_steps=1, batch=16, g_batch=16, lr_g=1e-3, lr_d=1e-3, ema=.99,
                 eval_samples=500, log_every=25),             # two minutes on two CPU cores
}


def get_args(argv=None):
    """The flags of this script; exits 2 on what contradicts itself."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    for leaf in (images, loop, augment, advaug, metrics):
        leaf.add_flags(p)
    a = p.add_argument
    a('--preset', choices=PRESETS, help='defaults for the flags (emoji sets: demo, else paper)')
    a('--ch-g', type=int, help='channels of G (default: the ticket\'s, else 256)')
    a('--ch-d', type=int, help='channels of D (default: the ticket\'s, else 128)')
    a('--g-batch', type=int, default=64, help='images per G update (the paper: 64, the released code: 128)')
    a('--loss', choices=losses.LOSSES, default='hinge', help='f_D and f_G of losses.py')
    a('--d-pass', choices=['joint', 'separate'], default='joint',
      help='separate: reals and fakes pass D one after the other, each with its own power iteration, as released')
    first = p.parse_known_args(argv)[0]
    preset = first.preset or ('demo' if first.data in ('emoji', 'emoji-faces') else 'paper')
    p.set_defaults(preset=preset, **PRESETS[preset])
    metrics.protocol_defaults(p, argv)
    args = p.parse_args(argv)
    args.frac = images.share(args.frac)
    loop.check(args)
    for leaf in (augment, advaug):
        if sentence := leaf.contradiction(args, p.get_default):
            loop.refuse(sentence)
    for name, net in (('adv_cut_g', sngan.Generator), ('adv_cut_d', sngan.Discriminator)):
        if abs(getattr(args, name)) > net.cuts:
            loop.refuse(f'{loop.flag(args, name)} is not one of its {net.cuts} stages: use -{net.cuts} to {net.cuts}')
    return widths(args, first)


def widths(args, given):
    """Widths and resolution from the ticket, which is complete by itself; a flag that says otherwise is refused."""
    ticket = read_ticket(args) if args.mask else None
    if ticket and ticket['model'] != 'sngan':
        loop.refuse(f"--mask {args.mask} is a ticket of {ticket['model']}: use train_{ticket['model']}.py")
    for name, default in (('ch_g', 256), ('ch_d', 128), ('res', 32)):
        own = ticket['args'][name] if ticket else getattr(args, name)
        setattr(args, name, getattr(given, name) or own or default)
    if args.res % 8 or args.res < 8:
        loop.refuse(f'--res {args.res} is not a multiple of 8: SNGAN makes 32, 48, 64 ... pixels')
    if ticket:
        G, D = build(args)
        for name, net in (('G', G), ('D', D)):
            if sentence := prune.mismatch(net, ticket['init'][name], ticket['mask'][name]):
                loop.refuse(f'--mask {args.mask} does not fit {name}: {sentence}; '
                            'leave out --ch-g, --ch-d and --res, the ticket has its own')
    if args.init_from:
        read_weights(args)
    return args


def read_ticket(args):
    return loop.read(args.mask, f'--mask {args.mask}', 'model', 'args', 'init', 'mask', 'data')


def read_weights(args):
    return loop.read(args.init_from, f'--init-from {args.init_from}', 'G', 'D')


def build(args):
    """theta_0 and phi_0 of --seed, on the CPU, in torch's default format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return sngan.Generator(args.res, args.ch_g), sngan.Discriminator(args.ch_d)


def start(args):
    """G, D, masks {G, D} and hashes of what they come from: the seed, a ticket, or the weights of a checkpoint."""
    G, D = build(args)
    masks, facts = {'G': {}, 'D': {}}, {}
    if args.mask:
        ticket = read_ticket(args)
        G.load_state_dict(ticket['init']['G']), D.load_state_dict(ticket['init']['D'])
        masks, facts['mask_hash'] = ticket['mask'], loop.digest({k: ticket[k] for k in ('init', 'mask')})
    if args.init_from:
        weights = read_weights(args)
        for name, net in (('G', G), ('D', D)):
            if sentence := prune.mismatch(net, weights[name], {}):
                loop.refuse(f'--init-from {args.init_from} does not fit {name}: {sentence}')
            net.load_state_dict(weights[name])
        facts['init_hash'] = loop.digest({k: weights[k] for k in 'GD'})
    return G, D, masks, facts


def d_loss(D, real, fake, args, sums):
    """L_D + lambda_2 L_D^adv (Eqs. 5-6) on images [N, 3, H, W]; the adversary lowers D on reals, raises it on fakes."""
    f_D, n = losses.LOSSES[args.loss][0], len(real)
    both = torch.cat((real, fake))                                                 # [2N, 3, H, W]
    both = augment.draw(args.aug_policy if args.aug == 'diffaug' else None, both)(both)
    passes = [both] if args.d_pass == 'joint' else both.chunk(2)
    split = [D.split(x, args.adv_cut_d) for x in passes]
    logits = torch.cat([D2(h) for h, D2 in split])                                 # [2N]
    loss = losses.d_loss(logits[:n], logits[n:], f_D)
    sums.add(L_D=loss, D_real=logits[:n], D_fake=logits[n:])
    if 'd' in args.advaug:
        sign = torch.ones(2 * n, device=both.device)                               # released: up for the reals too
        sign[:n] = -1 if args.adv_sign == 'adversary' else 1
        moved = [D2(perturb(h, lambda h, D2=D2, s=s: s * D2(h), args))
                 for (h, D2), s in zip(split, sign.chunk(len(passes)))]
        moved = torch.cat(moved)                                                   # [2N]
        loss = loss + args.adv_lambda_d * sums.add(L_D_adv=losses.d_loss(moved[:n], moved[n:], f_D))
    return loss


def g_loss(G, D, z, args, sums, context):
    """L_G + lambda_1 L_G^adv (Eqs. 3-4); with PGD the backward passes have been run and the value carries no graph."""
    f_G = losses.LOSSES[args.loss][1]
    with context():
        h, G2 = G.split(z, args.adv_cut_g if 'g' in args.advaug else 0)
    T = augment.draw(args.aug_policy if args.aug == 'diffaug' else None, z.new_empty(len(z), 3, args.res, args.res))

    def fool(h):
        with context():
            return losses.g_loss(D(T(G2(h))), f_G)
    if 'g' not in args.advaug:
        return sums.add(L_G=fool(h))
    if args.adv_noise:
        return sums.add(L_G=fool(h)) + args.adv_lambda_g * sums.add(L_G_adv=fool(advaug.noise(h, args.adv_noise)))
    step = args.adv_step if args.adv_sign == 'adversary' else -args.adv_step       # f_G falls where D rises
    clean, adv = advaug.backward(h, fool, args.adv_pgd, step, args.adv_eps, args.adv_lambda_g)
    sums.add(L_G=clean, L_G_adv=adv)
    return clean + args.adv_lambda_g * adv


def perturb(h, objective, args):
    if args.adv_noise:
        return advaug.noise(h, args.adv_noise)
    return advaug.pgd(h, objective, args.adv_pgd, args.adv_step, args.adv_eps)


def inside(path, folder):
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath((path, folder)) == folder


def some(x, n):
    """Up to n rows of a tensor, the same ones always, from all of its classes."""
    return x[loop.rng(0, 'some').permutation(len(x))[:n]]


def note(run, data, args):
    """Write reals.png and subset.json, print what the data are and whether a ticket was found on others."""
    for line in data.report:
        run.say(line)
    if args.mask and (found := read_ticket(args)['data']) not in (None, data.fingerprint):
        run.say(f'--mask {args.mask} was found on other images ({found}) than these ({data.fingerprint}): '
                'the paper finds and trains a ticket on the same ones')
    if run.rank == 0:
        images.save_grid(run.path('reals.png'), some(data.images, 64))
        loop.write_json(run.path('subset.json'), {'data': data.name, 'of': data.total,
                                                  'fingerprint': data.fingerprint, 'index': data.index})


def settled(E, device, batches):
    """A copy of the averaged generator with BN statistics of its own z."""
    return loop.settle(E.net, ((z,) for z in loop.settling(E.net.z_dim, device, batches)))


@torch.no_grad()
def grid(run, E, device):
    """samples/STEP.png: seeds 0-63, uncurated."""
    if run.rank == 0:
        with run.observing():
            x = settled(E, device, 8)(loop.latents(range(64), E.net.z_dim, device))
            images.save_grid(run.path(f'samples/{run.step:06d}.png'), metrics.to_uint8(x))


def references(data, args, extractor, names):
    """Statistics of the reference, and of two halves: one to choose the best checkpoint, one to report it. Copies are
    sought among the training images."""
    order = loop.rng(0, 'halves').permutation(len(data.ref))
    half = len(order) // 2
    rest = dict(batch=args.eval_batch, keep=bool({'kid', 'prdc', 'copy'} & {*names}), cache=args.cache)
    refs = metrics.references(data.ref, extractor, {'choose': order[:half], 'report': order[half:]}, **rest)
    refs = {name: ref if name == 'all' else ref._replace(features=None) for name, ref in refs.items()}
    if 'copy' in names and data.ref is not data.images:
        refs['train'] = metrics.reference(data.images, extractor, **rest)
    return refs


@torch.no_grad()
def evaluate(run, E, args, data, masks, extractor, names, refs):
    """Scores of --eval-samples images, over --eval-repeats sets of z, into metrics.jsonl."""
    net = settled(E, run.device, 64)

    def sample(first):
        def draw(a, b):
            run.interrupt()
            return metrics.to_uint8(net(loop.latents(range(first + a, first + b), net.z_dim, run.device)))
        return draw
    scores = [metrics.evaluate(sample(r * 10 ** 6), args.eval_samples, extractor, refs, names, args.eval_batch,
                               splits=args.is_splits) for r in range(args.eval_repeats)]
    protocol = {**scores[0]['protocol'], 'ref': data.ref_name, 'frac': args.frac, 'repeats': args.eval_repeats,
                'seed': args.seed, 'sparsity': {name: round(prune.sparsity(m), 4) for name, m in masks.items()},
                'generator': f'EMA {args.ema}, BN settled on 64 x 64 z'}
    run.score(scores, extractor.score, protocol, net, masks)


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    device = loop.launch(args)
    data = images.load(args.data, args.root, args.frac, args.data_seed, args.subset, args.holdout, args.ref, args.res,
                       args.crop, args.strict)
    if args.check_data:
        return print('\n'.join(data.report))
    if args.out and os.path.isdir(args.data) and inside(args.out, args.data):
        loop.refuse(f'--out {args.out} lies in --data {args.data}: its grids would be trained on, name another place')
    extractor, names = metrics.from_args(args, device)                             # exits 2 before a network is built
    if extractor and min(len(data.ref), len(data.images)) < 6:
        loop.refuse(f'--metrics: {len(data.images)} training and {len(data.ref)} reference images are too few for '
                    'scores, give --metrics none')
    if extractor and 'fid' not in names:
        loop.refuse(f'--metrics {args.metrics}: the best checkpoint is chosen by fid, add it')
    if 'is' in names and args.eval_samples < args.is_splits:
        loop.refuse(f'--eval-samples {args.eval_samples} do not make --is-splits {args.is_splits}: use more of them')
    G, D, masks, facts = start(args)
    run = loop.Run('sngan', args, data_fingerprint=data.fingerprint, **facts)
    note(run, data, args)
    E = copy.deepcopy(G)
    place = dict(device=device, memory_format=torch.channels_last)
    G = loop.Flat(G.to(**place), args.lr_g, mask=masks['G'], graph=args.graph)
    D = loop.Flat(D.to(**place), args.lr_d, mask=masks['D'], graph=args.graph, share_sn=args.d_pass == 'joint')
    E = loop.Flat(E.to(**place), mask=masks['G'])
    nets, sums = dict(G=G, D=D, E=E), loop.Sums(device, 'L_D', 'D_real', 'D_fake', 'L_D_adv', 'L_G', 'L_G_adv')
    run.restore(nets, sums)
    reals = data.images.to(device)
    shown = some(data.images, 128).to(device)
    held = some(data.holdout, 128).to(device) if data.holdout is not None else shown[:0]
    if run.done and (run.scored() or not extractor):
        run.say(f'{run.out}: finished at step {run.step}')
        return G.net, D.net
    refs = references(data, args, extractor, names) if extractor else {}

    n, m, z_dim = args.batch // run.ranks, args.g_batch // run.ranks, G.net.z_dim
    x = torch.empty(n, 3, args.res, args.res, device=device).to(memory_format=torch.channels_last)
    z, z_g = torch.empty(n, z_dim, device=device), torch.empty(m, z_dim, device=device)
    context = lambda: loop.autocast(args, device)

    def d_step(part):
        with context():
            return d_loss(D.net, x[part], G.net(z[part]), args, sums)

    def g_step(part):
        return g_loss(G.net, D.net, z_g[part], args, sums, context)

    def observed():
        gen = settled(E, device, 1)(loop.latents(range(64), z_dim, device))
        seen = dict(train=images.batch(shown), held=images.batch(held), gen=gen)
        sparsity = {f'sparsity_{name}': prune.sparsity(masks[name]) for name in 'GD'}
        return {**loop.accuracies(D.net, **seen), **sparsity}

    def score():
        if extractor and run.due('eval') and not run.scored():
            run.save(nets, sums)                                                   # what fails from here costs no step
            with run.observing():
                evaluate(run, E, args, data, masks, extractor, names, refs)

    if run.step == 0:
        grid(run, E, device)
    score()                                                                        # one that was cut off
    for step in run.iterations(nets, sums):
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            index = loop.order(len(reals), ((step - 1) * args.d_steps + k) * args.batch, args.batch, args.seed)
            flip = rng.random(args.batch) < .5 * args.mirror
            x.copy_(images.batch(reals, loop.mine(index), loop.mine(flip)))        # in place: a CUDA graph reads x, z
            z.copy_(loop.gaussian(rng, args.batch, z_dim))
            D.update(d_step, loop.parts(n, args.batch_gpu))
        z_g.copy_(loop.gaussian(loop.rng(args.seed, 'G', step), args.g_batch, z_dim))
        G.update(g_step, loop.parts(m, args.batch_gpu))
        E.track(G, args.ema)
        run.log(nets, sums, observed)
        if run.due('sample'):
            grid(run, E, device)
        score()
    run.save(nets, sums, done=True)
    return G.net, D.net


if __name__ == '__main__':
    main(get_args())
