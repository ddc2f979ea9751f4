"""What the training scripts share: Algorithm 2's losses on any G and D, where a training starts, and its observers.

Use (see train_sngan.py, whose loop this serves):
    args = gan.parse(gan.add_flags(argparse.ArgumentParser(), PRESETS), argv, PRESETS, 'paper')
    job = gan.Training('sngan', args, build)                                      # data, G, D, E; resumed
    job.D.update(lambda part: gan.d_loss(job.D.net, x[part], fake, args, job.sums))
    job.observe()                                                                 # log, grid, score where they fall due

    D:  min  L_D(T(x), T(G(z)))  + lambda_2 L_D(D2(D1(.) + delta))  + R_LC
    G:  min  L_G(D(T(G(z))))     + lambda_1 L_G(D(T(G2(G1(z) + delta))))

A conditional G or D takes classes y after its first argument; the same code serves both kinds.
"""
import argparse
import bisect
import copy
import functools
import itertools
import os

import numpy as np
import torch

import advaug
import augment
import loop
import losses
import metrics
import prune
from data import images

SUMS = 'L_D', 'D_real', 'D_fake', 'L_D_adv', 'D_shift', 'R_LC', 'R_1', 'L_G', 'L_G_adv', 'R_pl', 'L1'
SLIM = 1e-4                                                   # Liu et al. 2017; the paper gives none


def add_flags(p, presets):
    """The flags of every training script; returns the parser."""
    for leaf in (images, loop, augment, advaug, losses, metrics):
        leaf.add_flags(p)
    a = p.add_argument
    a('--preset', choices=presets, help='defaults for the flags (default: chosen by --data)')
    a('--ch-g', type=int, help="channels of G (default: the ticket's, else the published ones)")
    a('--ch-d', type=int, help="channels of D (default: the ticket's, else the published ones)")
    a('--small-dense', metavar='TICKET', help='dense networks, so narrow that they have as many weights as this ticket')
    a('--reinit', action='store_true', default=None, help="other initial weights than the ticket's under its masks")
    a('--slim', type=float, nargs='?', const=SLIM, metavar='WEIGHT',
      help=f"L1 of G's batch-norm scales, for network slimming (default weight: {SLIM:g})")
    a('--d-pass', choices=['joint', 'separate'], default='joint',
      help='separate: reals and fakes pass D one after the other, each with its own power iteration, as released')
    return p


def parse(p, argv, presets, preset):
    """The flags with the defaults of --preset (else of `preset`) and --protocol; exits 2 on contradictions."""
    preset = p.parse_known_args(argv)[0].preset or preset
    p.set_defaults(preset=preset, **presets[preset])
    metrics.protocol_defaults(p, argv)
    args = p.parse_args(argv)
    args.frac = images.share(args.frac)
    loop.check(args)
    for leaf in (augment, advaug, losses):
        if sentence := leaf.contradiction(args, p.get_default):
            loop.refuse(sentence)
    if args.reinit and (args.init_from or not args.mask):
        loop.refuse('--reinit draws other weights for the masks of a ticket: give --mask TICKET and no --init-from')
    if args.slim is not None and not 0 < args.slim < float('inf'):
        loop.refuse(f'{loop.flag(args, "slim")} is not a positive number')
    return args


def ticket_flag(args):
    """'--mask ticket.pt', or --small-dense."""
    return loop.flag(args, 'mask' if args.mask else 'small_dense')


def read_ticket(args):
    """The ticket of --mask, or of --small-dense."""
    return loop.read(args.mask or args.small_dense, ticket_flag(args), 'model', 'args', 'init', 'mask', 'data')


def adopt(args, given, model, build, **defaults):
    """Complete the flags that shape the networks: as given, else the ticket's, else the preset's, else these defaults.

    given: the flags before any preset. Exits 2 where networks of this shape fit neither the ticket nor a cut."""
    for name in ('mask', 'ch_g', 'ch_d'):
        if args.small_dense and getattr(given, name):
            loop.refuse(f'--small-dense {args.small_dense} finds the widths of dense networks: leave out '
                        f'{loop.flag(given, name)}')
    ticket = read_ticket(args) if args.mask or args.small_dense else None
    if ticket and ticket['model'] != model:
        loop.refuse(f"{ticket_flag(args)} is a ticket of {ticket['model']}: use train_{ticket['model']}.py")
    shaped = ticket or args.init_from and loop.read(args.init_from, f'--init-from {args.init_from}', 'G', 'D', 'args')
    for name, default in defaults.items():
        if shaped and name in shaped['args']:                  # even None: of a snapshot's group, the whole batch
            default = own = shaped['args'][name]
        else:
            own = None if shaped else getattr(args, name)
        asked = getattr(given, name, None)
        if ticket and isinstance(asked, bool) and asked != own:                    # the shapes would not tell
            loop.refuse(f"--{'' if asked else 'no-'}{name.replace('_', '-')}: the network of {ticket_flag(args)} is "
                        'another, leave it out')
        setattr(args, name, next((value for value in (asked, own) if value is not None), default))
    try:
        if args.small_dense:
            args.ch_g, args.ch_d = widths(args, ticket['mask'], build)
        nets = dict(zip('GD', blank(build, args)))
    except ValueError as e:
        loop.refuse(f'--{e}')
    if args.slim and not hasattr(nets['G'], 'slimmable'):
        loop.refuse(f'{loop.flag(args, "slim")}: network slimming needs batch norms with scales of their own, which G '
                    f"of {model} does not have (BigGAN's depend on the class): take sngan")
    for name, net in nets.items():
        cut = f'adv_cut_{name.lower()}'
        if abs(getattr(args, cut)) > net.cuts:
            loop.refuse(f'{loop.flag(args, cut)} is not one of its {net.cuts} stages: use -{net.cuts} to {net.cuts}')
        if args.mask and (sentence := prune.mismatch(net, ticket['init'][name], ticket['mask'][name])):
            loop.refuse(f'--mask {args.mask} does not fit {name}: {sentence}; '
                        'leave out --ch-g, --ch-d and --res, the ticket has its own')
    args.ch_g, args.ch_d = (net.ch for net in nets.values())
    return args


def blank(build, args, **other):
    """G, D of these flags with shapes and no weights."""
    with torch.device('meta'):
        return build(argparse.Namespace(**{**vars(args), **other}))


def widths(args, masks, build):
    """ch_g and ch_d of dense networks with as many parameters as those of args have under the masks {G, D}."""
    found = []
    for i, (name, flag) in enumerate((('G', 'ch_g'), ('D', 'ch_d'))):
        @functools.cache
        def size(ch, i=i, flag=flag):
            try:
                return sum(p.numel() for p in blank(build, args, **{flag: ch})[i].parameters())
            except ValueError:                                                     # this model does not go so narrow
                return 0
        ch = getattr(args, flag)
        goal = size(ch) - sum(int((~m).sum()) for m in masks[name].values())
        found.append(nearest(size, goal, ch))
        if loop.world()[0] == 0:
            print(f'--small-dense {args.small_dense}: {name} has {goal:,} weights in the ticket and '
                  f'{size(found[-1]):,} with --{flag.replace("_", "-")} {found[-1]} ({ch} in the ticket)')
    return found


def nearest(size, goal, top):
    """The width up to `top` whose size(width), which grows, is next to goal: a multiple of 8, for its speed, where one
    is within 1 %, else of 4, 2 or 1."""
    enough = 1 + bisect.bisect_left(range(1, top), goal, key=size)                 # the first that is large enough
    for step in (8, 4, 2, 1):
        up = -(-enough // step) * step
        ch = min((max(up - step, step), up), key=lambda ch: abs(size(ch) - goal))
        if abs(size(ch) - goal) <= .01 * goal:
            break
    return ch


def start(args, build):
    """G, D, masks {G, D} and hashes of what they come from: the seed, a ticket, or the weights of a checkpoint."""
    seed = int(loop.rng(args.seed, 'reinit').integers(2 ** 31)) if args.reinit else args.seed
    G, D = build(argparse.Namespace(**{**vars(args), 'seed': seed}))
    masks, facts = {'G': {}, 'D': {}}, {}
    if args.mask:
        ticket = read_ticket(args)
        if not args.reinit:
            G.load_state_dict(ticket['init']['G']), D.load_state_dict(ticket['init']['D'])
        masks, facts['mask_hash'] = ticket['mask'], loop.digest({k: ticket[k] for k in ('init', 'mask')})
    if args.init_from:
        weights = loop.read(args.init_from, f'--init-from {args.init_from}', 'G', 'D')
        for name, net in (('G', G), ('D', D)):
            if sentence := prune.mismatch(net, weights[name], {}, 'checkpoint'):
                loop.refuse(f'--init-from {args.init_from} does not fit {name}: {sentence}')
            net.load_state_dict(weights[name])
        facts['init_hash'] = loop.digest({k: weights[k] for k in 'GD'})
    return G, D, masks, facts


def draw(args, x, ada):
    """T for images like x [N, 3, H, W]: DiffAugment, ADA with the p of its controller, or the identity."""
    return augment.draw(None if args.aug == 'none' else args.aug_policy, x, ada.p if ada else None)


def d_loss(D, real, fake, args, sums, y=None, y_fake=None, ada=None, lecam=None, r1=0.):
    """L_D + lambda_2 L_D^adv (Eqs. 5-6) + R_LC + r1 R_1 on images [N, 3, H, W]; the adversary lowers D on reals, raises
    it on fakes.

    y, y_fake: classes [N] of a conditional D. ada: augment.Controller. lecam: losses.LeCam."""
    f_D, n = losses.LOSSES[args.loss][0], len(real)
    f_D = f_D if args.margin == 1 else lambda t: losses.hinge(t, args.margin)
    real = real.detach().requires_grad_(r1 > 0)                                    # R_1 is of images before T
    if args.aug_on == 'real':
        both = torch.cat((draw(args, real, ada)(real), fake))                      # [2N, 3, H, W]
    else:
        both = torch.cat((real, fake))
        both = draw(args, both, ada)(both)
    inputs = (both,) if y is None else (both, torch.cat((y, y_fake)))
    passes = [inputs] if args.d_pass == 'joint' else zip(*(i.chunk(2) for i in inputs))
    split = [D.split(*i, cut=args.adv_cut_d) for i in passes]
    logits = torch.cat([D2(h) for h, D2 in split])                                 # [2N]
    loss = losses.d_loss(logits[:n], logits[n:], f_D)
    sums.add(L_D=loss, D_real=logits[:n], D_fake=logits[n:])
    if ada:
        ada.add(real=logits[:n], fake=logits[n:])
    if r1:
        loss = loss + r1 * sums.add(R_1=losses.r1(logits[:n], real))
    if lecam:
        loss = loss + sums.add(R_LC=lecam(logits[:n], logits[n:]))
    if 'd' in args.advaug:
        sign = torch.ones(2 * n, device=both.device)                               # released: up for the reals too
        sign[:n] = -1 if args.adv_sign == 'adversary' else 1
        moved = [D2(perturb(h, lambda h, D2=D2, s=s: s * D2(h), args))
                 for (h, D2), s in zip(split, sign.chunk(len(split)))]
        moved = torch.cat(moved)                                                   # [2N]
        sums.add(D_shift=(moved - logits).abs())
        loss = loss + args.adv_lambda_d * sums.add(L_D_adv=losses.d_loss(moved[:n], moved[n:], f_D))
    return loss


def g_loss(G, D, z, args, sums, context, *y, ada=None):
    """L_G + lambda_1 L_G^adv (Eqs. 3-4) + slim(G); with PGD the backward passes of the first two have been run, and
    their value carries no graph.

    context: of loop.autocast. y: the classes [N] of conditional networks. ada: augment.Controller."""
    f_G = losses.LOSSES[args.loss][1]
    with context():
        h, G2 = G.split(z, *y, cut=args.adv_cut_g if 'g' in args.advaug else 0)
    x = z.new_empty(len(z), 3, args.res, args.res)
    T = draw(args, x, ada) if args.aug_on == 'both' else lambda x: x

    def fool(h):
        with context():
            return losses.g_loss(D(T(G2(h)), *y), f_G)
    if 'g' not in args.advaug:
        return sums.add(L_G=fool(h)) + slim(G, args, sums)
    if args.adv_noise:
        return (sums.add(L_G=fool(h)) + args.adv_lambda_g * sums.add(L_G_adv=fool(advaug.noise(h, args.adv_noise)))
                + slim(G, args, sums))
    step = args.adv_step if args.adv_sign == 'adversary' else -args.adv_step       # f_G falls where D rises
    clean, adv = advaug.backward(h, fool, args.adv_pgd, step, args.adv_eps, args.adv_lambda_g)
    sums.add(L_G=clean, L_G_adv=adv)
    return clean + args.adv_lambda_g * adv + slim(G, args, sums)


def slim(G, args, sums):
    """Network slimming's pull on G's channels: --slim times the sum of |gamma| over batch norms (Liu et al. 2017)."""
    if not args.slim:
        return 0.
    return sums.add(L1=args.slim * sum(G.get_parameter(name).abs().sum() for name in G.slimmable()))


def perturb(h, objective, args):
    if args.adv_noise:
        return advaug.noise(h, args.adv_noise)
    return advaug.pgd(h, objective, args.adv_pgd, args.adv_step, args.adv_eps)


def load(args):
    """The data set of the flags (images.load); with --check-data prints what it is."""
    conditional = bool(getattr(args, 'classes', None))
    data = images.load(args.data, args.root, args.frac, args.data_seed, args.subset, args.holdout, args.ref, args.res,
                       args.crop, args.strict, plain=conditional)
    if conditional:
        count = data.labels.bincount(minlength=len(data.classes)).tolist()
        empty = [name for name, n in zip(data.classes, count) if not n]
        if empty:
            loop.refuse(f'--data {args.data} --frac {args.frac} --subset {args.subset}: nothing to train on in '
                        f"{len(empty)} of {len(data.classes)} classes ({', '.join(empty[:5])}), be it unreadable, held "
                        'out or not in the share; change these, or take SNGAN, which has no classes')
        data.report.append('classes: ' + ', '.join(f'{c} {name} ({n})' for c, (name, n) in enumerate(
            zip(data.classes, count)) if c < 20) + (' ...' if len(count) > 20 else ''))
    if args.check_data:
        if loop.world()[0] == 0:
            print('\n'.join(data.report))
    elif args.out and os.path.isdir(args.data) and inside(args.out, args.data):
        loop.refuse(f'--out {args.out} lies in --data {args.data}: its grids would be trained on, name another place')
    return data


def inside(path, folder):
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath((path, folder)) == folder


def some(n, count):
    """Up to `count` random ones of n rows, the same always."""
    return loop.rng(0, 'some').permutation(n)[:count]


def gallery(labels, classes):
    """Rows [64] of training images for reals.png, or eight of each class that a grid of samples shows, repeated where
    there are fewer."""
    if not classes:
        return some(len(labels), 64)
    rows = some(len(labels), len(labels))
    return np.concatenate([np.resize(rows[labels[rows] == c], 8) for c in loop.shown(classes)])


def proportional(labels, n, seed):
    """Classes [n] in the proportions of labels [N], in an order of the seed."""
    counts = np.bincount(labels)
    y = np.searchsorted(np.cumsum(counts), (np.arange(n) + .5) / n * len(labels), side='right')
    return torch.from_numpy(loop.rng(0, 'classes', seed).permutation(y))


def balanced(rng, n, classes):
    """This rank's classes [n / ranks] out of n, each class as often as another, or one time less."""
    return torch.from_numpy(loop.mine(rng.permutation(classes)[np.arange(n) % classes]))


class Training:
    """Data, G, D and their average E on the device, and what watches them; continues where last.pt ends.

    build(args) -> G, D of the seed. prepare(G, D) -> names {G, D} of parameters that stay as they are. lazy: {G, D},
    Adam's steps on the loss as a share of all, the others being on regularisers (Karras et al. 2020, appendix B).
    `over` says that nothing is left to do, and `trained` is the result then. Exits 2 on what flags and data do not
    allow."""

    def __init__(self, model, args, build, prepare=lambda G, D: {}, lazy=None):
        self.args, self.device = args, loop.launch(args)
        self.data = data = load(args)
        self.over, self.trained = args.check_data, None
        if self.over:
            return
        self.extractor, self.names = metrics.from_args(args, self.device)          # exits 2 before a network is built
        if args.metrics == 'auto' and self.extractor and data.ref is data.images:
            self.names = [*self.names, 'copy']                 # such a reference rewards copying
        self.check()
        G, D, self.masks, facts = start(args, build)
        with loop.seeded(args.seed):                           # MineGAN's miner is drawn
            frozen = prepare(G, D)
        self.classes, self.z_dim = getattr(G, 'classes', 0), G.z_dim
        self.run = loop.Run(model, args, data_fingerprint=data.fingerprint, **facts)
        self.note()
        E = copy.deepcopy(G)
        if args.sync_bn:
            loop.sync_bn_(G)
        place = dict(device=self.device, memory_format=torch.channels_last)
        c = {'G': 1., 'D': 1., **(lazy or {})}
        adam = {k: dict(betas=tuple(b ** c[k] for b in args.betas), eps=args.adam_eps, graph=args.graph) for k in c}
        self.G = loop.Flat(G.to(**place), args.lr_g * c['G'], mask=self.masks['G'], **adam['G'])
        self.D = loop.Flat(D.to(**place), args.lr_d * c['D'], mask=self.masks['D'], share_sn=args.d_pass == 'joint',
                           **adam['D'])
        for name, names in frozen.items():
            getattr(self, name).freeze(names)
        self.E = loop.Flat(E.to(**place), mask=self.masks['G'])
        self.nets = dict(G=self.G, D=self.D, E=self.E)
        self.sums = loop.Sums(self.device, *SUMS)
        self.ada = augment.Controller(args.batch * args.d_steps, args.ada_heuristic, args.ada_target, args.ada_kimg,
                                      args.ada_interval, args.ada_pmax, args.ada_p,
                                      self.device) if args.aug == 'ada' else None
        self.lecam = losses.LeCam(args.lecam, args.lecam_start, args.lecam_decay, args.lecam_form,
                                  self.device) if args.lecam else None
        self.pl = losses.PathLength(args.pl, device=self.device) if getattr(args, 'pl', 0) else None
        saved = self.run.restore(self.nets, self.sums)
        for name, part in self.moving().items():
            if name in saved:
                part.load(saved[name])
        self.over = self.run.done and (self.run.scored() or not self.extractor)
        self.trained = self.G.net, self.D.net
        if self.over:
            self.run.say(f'{self.run.out}: finished at step {self.run.step}')
            return
        rv = args.aug == 'ada' and args.ada_heuristic == 'rv'
        self.held = self.batches(data.holdout, data.holdout_labels, self.run.step) if rv else None
        self.seen = {'train': self.watched(data.images, data.labels)}
        if data.holdout is not None:
            self.seen['held'] = self.watched(data.holdout, data.holdout_labels)
        self.refs = self.references() if self.extractor else {}
        if self.run.step == 0:
            self.grid()
        self.score()                                                               # one that was cut off

    def check(self):
        args, data = self.args, self.data
        if self.extractor and min(len(data.ref), len(data.images)) < 6:
            loop.refuse(f'--metrics: {len(data.images)} training and {len(data.ref)} reference images are too few for '
                        'scores, give --metrics none')
        if self.extractor and 'fid' not in self.names:
            loop.refuse(f'--metrics {args.metrics}: the best checkpoint is chosen by fid, add it')
        if args.aug == 'ada':
            try:
                augment.draw(args.aug_policy, torch.empty(1, 3, args.res, args.res), 0.)
            except ValueError as e:
                loop.refuse(f'--res {args.res} --aug-policy {args.aug_policy}: {e}')
        if args.aug == 'ada' and args.ada_heuristic == 'rv' and data.holdout is None:
            loop.refuse('--ada-heuristic rv needs held-out images, and there are none: give --holdout, or rt')
        if 'is' in self.names and args.eval_samples < args.is_splits:
            loop.refuse(f'--eval-samples {args.eval_samples} do not make --is-splits {args.is_splits}: use more')

    def note(self):
        """Write reals.png and subset.json, print what the data are and whether a ticket was found on others."""
        run, args, data = self.run, self.args, self.data
        for line in data.report:
            run.say(line)
        if args.mask and (found := read_ticket(args)['data']) not in (None, data.fingerprint):
            run.say(f'--mask {args.mask} was found on other images ({found}) than these ({data.fingerprint}): '
                    'the paper finds and trains a ticket on the same ones')
        if run.rank == 0:
            images.save_grid(run.path('reals.png'), data.images[gallery(data.labels.numpy(), self.classes)])
            loop.write_json(run.path('subset.json'), {'data': data.name, 'of': data.total, 'classes': data.classes,
                                                      'fingerprint': data.fingerprint, 'index': data.index})

    def of(self, x, y):
        """The arguments of G or D: x, and y of conditional ones."""
        return (x, y.to(self.device)) if self.classes else (x,)

    def adaptive(self):
        """What adapts to D, by name: ADA's controller, LeCam's anchors."""
        return {name: part for name, part in (('ada', self.ada), ('lecam', self.lecam)) if part}

    def moving(self):
        """These and path length's average: what has a state beside the networks."""
        return self.adaptive() | ({'pl': self.pl} if self.pl else {})

    def extra(self):
        """Their states, for checkpoints."""
        return {name: part.state() for name, part in self.moving().items()}

    def watched(self, x, labels):
        """Up to 128 of the images, as float and with their classes."""
        rows, group = some(len(x), 128), getattr(self.args, 'group', None) or 1
        rows = rows[:len(rows) // group * group or None]       # 17 images are no groups, 16 are
        return self.of(images.batch(x[rows].to(self.device)), labels[rows])

    def reals(self):
        """uint8 images [n, 3, H, W] and classes [n] of this rank, batch after batch from the run's position on."""
        return self.batches(self.data.images, self.data.labels, self.run.step * self.args.d_steps)

    def batches(self, x, labels, start):
        """As `reals`, of any images, from batch number `start` on."""
        size, labels = self.args.batch, labels.to(self.device)
        orders = lambda: (loop.mine(loop.order(len(labels), k * size, size, self.args.seed))
                          for k in itertools.count(start))
        feed = images.feed(x, orders(), self.device)
        return ((x, labels[torch.as_tensor(index, device=self.device)]) for index, x in zip(orders(), feed))

    def anchor(self):
        """After an update of D: LeCam's anchors."""
        if self.lecam:
            self.lecam.step(self.run.step, loop.mean)

    @torch.no_grad()
    def adapt(self):
        """After the updates of a step: ADA's p."""
        if not self.ada:
            return
        if self.held:                                                              # r_v: D on held-out images, too
            x, y = next(self.held)
            x = images.batch(x)
            self.D.net.eval()                                                      # no power iteration
            self.ada.add(held=self.D.net(*self.of(draw(self.args, x, self.ada)(x), y)))
            self.D.net.train()
        self.ada.adjust(self.run.step, loop.mean)

    def fitting(self, n, phases):
        """--batch-gpu or, without it on a GPU, the largest n, n / 2, ... for which there is memory.

        phases: (Flat, f) of every update, all of which are run without a step of Adam, so that the peak comes now:
        beside Adam's moments, and with all of ADA's transforms."""
        args, micro = self.args, self.args.batch_gpu or n
        if args.batch_gpu or not self.tries():
            return micro
        before = [(b, b.clone()) for net in self.nets.values() for b in net.net.buffers()]
        before += [(x, x.clone()) for part in self.moving().values() for x in vars(part).values() if torch.is_tensor(x)]
        before.append((self.sums.total, self.sums.total.clone()))
        moments = [torch.empty_like(net.w) for net in (self.G, self.D) if not net.adam.state for _ in 'mv']
        p = self.ada and self.ada.p
        if self.ada:
            self.ada.p = 1.
        while True:
            try:
                for net, f in phases:
                    with net.training():
                        net.backward(f, loop.parts(n, micro))
                break
            except torch.OutOfMemoryError:
                if micro == 1:
                    raise
                micro = next(m for m in range(micro // 2, 0, -1) if n % m == 0)
                torch.cuda.empty_cache()
        micro = -loop.most([-micro])[0]                        # the smallest over ranks
        del moments
        for x, old in before:
            x.copy_(old)
        if self.ada:
            self.ada.p = p
        for net, _ in phases:
            net.bucket[:len(net.g) + 1] = 0
        if self.lecam:
            self.lecam.calls = 0
        if micro < n:
            args.batch_gpu = micro
            self.run.say(f'memory: --batch-gpu {micro}, gradients of {n // micro} micro-batches are added up')
        return micro

    def tries(self):
        """Whether memory is so short that it must be tried out."""
        return self.device.type == 'cuda'

    def settled(self, batches):
        """A copy of the averaged generator with BN statistics of its own samples."""
        return loop.settle(self.E.net, loop.settling(self.z_dim, self.device, batches, self.classes))

    @torch.no_grad()
    def grid(self):
        """samples/STEP.png: seeds 0-63, or seeds 0-7 (columns) of up to ten classes (rows); uncurated."""
        if self.run.rank == 0:
            with self.run.observing():
                seeds, y = loop.panel(self.classes)
                net = self.settled(8)
                if hasattr(net, 'noise'):
                    net.noise = 'const'
                x = net(*self.of(loop.latents(seeds, self.z_dim, self.device), y))
                images.save_grid(self.run.path(f'samples/{self.run.step:06d}.png'), metrics.to_uint8(x))

    def notes(self):
        """For a log line: D on training, held-out and generated images, and the sparsities."""
        z = loop.latents(range(64), self.z_dim, self.device)
        gen = self.of(z, proportional(self.data.labels, 64, 0))
        with loop.seeded(self.args.seed):
            seen = {**self.seen, 'gen': (self.settled(1)(*gen), *gen[1:])}
        sparsity = {f'sparsity_{name}': prune.sparsity(self.masks[name]) for name in 'GD'}
        ada = {'ada_p': self.ada.p, 'ada_r': self.ada.r} if self.ada else {}
        return {**loop.accuracies(self.D.net, **seen), **sparsity, **ada}

    def references(self):
        """Statistics of the reference, and of two halves: one to choose the best checkpoint, one to report it. Copies
        are sought among the training images."""
        args, data = self.args, self.data
        order = loop.rng(0, 'halves').permutation(len(data.ref))
        half = len(order) // 2
        rest = dict(batch=args.eval_batch, keep=bool({'kid', 'prdc', 'copy'} & {*self.names}), cache=args.cache)
        refs = metrics.references(data.ref, self.extractor, {'choose': order[:half], 'report': order[half:]}, **rest)
        refs = {name: ref if name == 'all' else ref._replace(features=None) for name, ref in refs.items()}
        if 'copy' in self.names and data.ref is not data.images:
            refs['train'] = metrics.reference(data.images, self.extractor, **rest)
        return refs

    @torch.no_grad()
    def evaluate(self):
        """Scores of --eval-samples images, over --eval-repeats sets of z, into metrics.jsonl."""
        args, net = self.args, self.settled(64)

        def sample(repeat):
            y = proportional(self.data.labels, args.eval_samples, repeat)

            def batch(a, b):
                self.run.interrupt()
                z = loop.latents(range(repeat * 10 ** 6 + a, repeat * 10 ** 6 + b), self.z_dim, self.device)
                return metrics.to_uint8(net(*self.of(z, y[a:b])))
            return batch
        with loop.seeded(args.seed):                           # StyleGAN2's noise
            scores = [metrics.evaluate(sample(r), args.eval_samples, self.extractor, self.refs, self.names,
                                       args.eval_batch, splits=args.is_splits) for r in range(args.eval_repeats)]
        ema = f'{args.ema_kimg:g} kimg' if args.ema is None else args.ema
        sparsity = {name: round(prune.sparsity(m), 4) for name, m in self.masks.items()}
        protocol = {**scores[0]['protocol'], 'ref': self.data.ref_name, 'frac': args.frac,
                    'repeats': args.eval_repeats, 'seed': args.seed, 'sparsity': sparsity,
                    'generator': f'EMA {ema}' + (', BN settled on 64 x 64 z' if self.G.tail.numel() else ''),
                    **({'classes': 'as often as in the training images'} if self.classes else {})}
        self.run.score(scores, self.extractor.score, protocol, net, self.masks)

    def score(self):
        if self.extractor and self.run.due('eval') and not self.run.scored():
            self.run.save(self.nets, self.sums, self.extra)                        # what fails from here costs no step
            with self.run.observing():
                self.evaluate()

    def observe(self):
        """The log line, the grid and the score, where they fall due."""
        self.run.log(self.nets, self.sums, self.notes)
        if self.run.due('sample'):
            self.grid()
        self.score()

    def finish(self):
        """The last checkpoint; returns the trained G and D."""
        self.run.save(self.nets, self.sums, self.extra, done=True)
        return self.trained
