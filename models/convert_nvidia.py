"""A snapshot of NVIDIA's StyleGAN2-ADA (.pkl) as a checkpoint for --init-from, without running the code it carries.

Use:
    from math import prod
    import convert_nvidia                                        # models.convert_nvidia inside the repository
    expected = convert_nvidia.shapes(res=256, ch_g=16384, ch_d=16384)              # of G and D: {name: shape}
    print(expected['G']['synthesis.b8.conv0.weight'], sum(map(prod, expected['D'].values())))

To convert (takes three times the size of the snapshot in memory):
    python models/convert_nvidia.py network-snapshot.pkl ffhq.pt

Such a pickle brings its own source text and has it executed where it is loaded.  Here nothing of it is: a machine of
some thirty opcodes makes plain values and records, and can call only the few small functions of ALLOWED.  Names and
shapes of the tensors must then be those that the configuration in the file implies.
"""
import argparse
import collections
import contextlib
import hashlib
import io
import mmap
import os
import pickle
import pickletools
import re
import struct
import sys
from math import prod

import torch

Module = collections.namedtuple('Module', 'kind state')
Tensor = collections.namedtuple('Tensor', 'storage offset size stride requires_grad hooks')
Storage = collections.namedtuple('Storage', 'data')
Latin1 = collections.namedtuple('Latin1', 'text code')                             # bytes in protocol 2
Dtype = collections.namedtuple('Dtype', 'code align copy')
NUMBERS = {'f8': '<d', 'f4': '<f', 'f2': '<e', 'i8': '<q', 'i4': '<i', 'u8': '<Q', 'u4': '<I', 'b1': '<?'}
VALUES = ('NONE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
          'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8')
OPCODES = 10 ** 6                                   # a snapshot has some 20,000; bounds the memory that records take
STORAGE = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'           # how a pickled storage begins; a zip or tar does not
FIXED = {'activation': 'lrelu', 'lr_multiplier': .01, 'resample_filter': [1, 3, 3, 1]}  # no shape would tell these
FREE = set('z_dim w_dim c_dim img_resolution img_channels channel_base channel_max num_layers architecture use_noise '
           'mbstd_group_size mbstd_num_channels embed_features layer_features cmap_dim num_fp16_res conv_clamp '
           'w_avg_beta channels_last fp16_channels_last fused_modconv_default freeze_layers'.split())


class Refused(ValueError):
    """Why a file is not read, as a sentence without its subject."""


def shown(x):
    """A word out of the file, fit for a terminal; of a container its type only (it may hold itself a billion times)."""
    return ascii(str(x if isinstance(x, (str, int, float)) else type(x))[:80])[1:-1]


def raw(data):
    return data.text.encode('latin1') if type(data) is Latin1 else data


def module(meta):
    """NVIDIA's persistence hook without its point: `module_src`, the text it executes, is dropped unseen."""
    if (meta['type'], meta['version']) != ('class', 6):
        raise Refused("was written by another version of NVIDIA's persistence.py than 6")
    return Module(meta['class_name'], meta['state'])


def scalar(dtype, data):
    """A numpy scalar as a plain number; objects, strings and records are none."""
    if dtype.code not in NUMBERS:
        raise Refused(f'holds a numpy scalar of type {shown(dtype.code)}, which a StyleGAN2 snapshot does not need')
    return struct.unpack(NUMBERS[dtype.code], raw(data))[0]


ALLOWED = {('collections', 'OrderedDict'): lambda: {},
           ('dnnlib.util', 'EasyDict'): lambda: {},
           ('builtins', 'set'): lambda items: None,                                # protocols 2 and 3; of no use here
           ('__builtin__', 'set'): lambda items: None,
           ('_codecs', 'encode'): Latin1,
           ('numpy', 'dtype'): Dtype,
           ('numpy.core.multiarray', 'scalar'): scalar,
           ('numpy._core.multiarray', 'scalar'): scalar,
           ('torch._utils', '_rebuild_parameter'): lambda data, requires_grad, hooks: data,
           ('torch._utils', '_rebuild_tensor_v2'): Tensor,
           ('torch.storage', '_load_from_bytes'): Storage,
           ('torch_utils.persistence', '_reconstruct_persistent_obj'): module}


def allowed(module, name):
    """The function that stands for a global of the pickle."""
    if str.startswith(module, 'dnnlib.tflib.'):
        raise Refused('is of the TensorFlow era: convert it with legacy.py of stylegan2-ada-pytorch first (which runs '
                      'the code in it)')
    if (module, name) not in ALLOWED:
        era = ' (StyleGAN3 has such)' if name == '_reconstruct' else ''            # numpy arrays as attributes
        raise Refused(f'asks for {shown(module)}.{shown(name)}, which a StyleGAN2 snapshot does not need{era}')
    return ALLOWED[module, name]


def parse(file):
    """A pickle of protocol 2 to 5 as plain values and records.

    It imports nothing and sets no attribute; all that can be called on its stack is the functions of ALLOWED.
    (pickle.Unpickler sets attributes behind find_class, and allocates a memo of any size on demand.)"""
    stack, marks, memo = [], [], {}
    push, pop = stack.append, stack.pop

    def top(start):
        items = stack[start:]
        del stack[start:]
        return items

    def extend(items):
        list.extend(stack[-1], items)

    def update(items):
        dict.update(stack[-1], zip(items[::2], items[1::2]))

    def call(args):
        push(pop()(*args))

    def build(state):
        if state and not (type(stack[-1]) is Dtype and state[1] in ('<', '|')):    # the byte order of a dtype
            raise Refused('sets attributes, which a StyleGAN2 snapshot does not need')

    machine = {
        **dict.fromkeys(VALUES, push), **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda _: None),
        'NEWTRUE': lambda _: push(True), 'NEWFALSE': lambda _: push(False), 'EMPTY_SET': lambda _: push(None),
        'EMPTY_TUPLE': lambda _: push(()), 'EMPTY_LIST': lambda _: push([]), 'EMPTY_DICT': lambda _: push({}),
        'MARK': lambda _: marks.append(len(stack)), 'MEMOIZE': lambda _: memo.update({len(memo): stack[-1]}),
        'BINPUT': lambda i: memo.update({i: stack[-1]}), 'BINGET': lambda i: push(memo[i]),
        'TUPLE1': lambda _: push(tuple(top(-1))), 'TUPLE2': lambda _: push(tuple(top(-2))),
        'TUPLE3': lambda _: push(tuple(top(-3))), 'TUPLE': lambda _: push(tuple(top(marks.pop()))),
        'APPEND': lambda _: extend(top(-1)), 'APPENDS': lambda _: extend(top(marks.pop())),
        'SETITEM': lambda _: update(top(-2)), 'SETITEMS': lambda _: update(top(marks.pop())),
        'GLOBAL': lambda names: push(allowed(*names.split(' ', 1))), 'STACK_GLOBAL': lambda _: push(allowed(*top(-2))),
        'REDUCE': lambda _: call(pop()), 'NEWOBJ': lambda _: call(pop()), 'BUILD': lambda _: build(pop())}
    machine |= {'LONG_BINPUT': machine['BINPUT'], 'LONG_BINGET': machine['BINGET']}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in machine or count == OPCODES:
            what = f'{OPCODES} opcodes' if opcode.name in machine else f'the opcode {opcode.name}'
            raise Refused(f'has {what}, which a StyleGAN2 snapshot does not need')
        machine[opcode.name](arg)
    return pop()


def mapping_shapes(width, classes, features, layers):
    """Mapping network: (z [width], class) -> [features]."""
    table = {'mapping.embed.weight': (features, classes), 'mapping.embed.bias': (features,)} if classes else {}
    for i in range(layers):
        fan_in = features if i else width + features * bool(classes)
        table |= {f'mapping.fc{i}.weight': (features, fan_in), f'mapping.fc{i}.bias': (features,)}
    return table


def modulated_shapes(prefix, c_out, c_in, k, w_dim):
    """Modulated convolution and its affine w -> style."""
    return {f'{prefix}.weight': (c_out, c_in, k, k), f'{prefix}.bias': (c_out,),
            f'{prefix}.affine.weight': (c_in, w_dim), f'{prefix}.affine.bias': (c_in,)}


def shapes(res, ch_g, ch_d, ch_max=512, mapping=8, classes=0, group=4, arch='resnet', z_dim=512, w_dim=512, colors=3):
    """{'G': {name: shape}, 'D': ...} of StyleGAN2 (Karras et al. 2020): min(ch / r, ch_max) channels at r px.

    ch_g, ch_d: NVIDIA's channel_base. mapping: layers in G's mapping network. arch: of D, resnet or orig."""
    sizes = [2 ** i for i in range(2, res.bit_length())]                           # 4 ... res
    c = {r: min(ch_g // r, ch_max) for r in sizes}
    G = mapping_shapes(z_dim, classes, w_dim, mapping)
    G |= {'mapping.w_avg': (w_dim,), 'synthesis.b4.const': (c[4], 4, 4)}
    for r in sizes:
        for conv, c_in in (('conv0', c.get(r // 2)), ('conv1', c[r]))[r == 4:]:
            prefix = f'synthesis.b{r}.{conv}'
            G |= modulated_shapes(prefix, c[r], c_in, 3, w_dim)
            G |= {f'{prefix}.noise_strength': (), f'{prefix}.noise_const': (r, r)}
        G |= modulated_shapes(f'synthesis.b{r}.torgb', colors, c[r], 1, w_dim)
    c = {r: min(ch_d // r, ch_max) for r in sizes}
    D = {f'b{res}.fromrgb.weight': (c[res], colors, 1, 1), f'b{res}.fromrgb.bias': (c[res],)}
    for r in sizes[:0:-1]:
        for conv, c_out in (('conv0', c[r]), ('conv1', c[r // 2])):
            D |= {f'b{r}.{conv}.weight': (c_out, c[r], 3, 3), f'b{r}.{conv}.bias': (c_out,)}
        D |= {f'b{r}.skip.weight': (c[r // 2], c[r], 1, 1)} if arch == 'resnet' else {}
    out = c[4] if classes else 1
    D |= mapping_shapes(0, classes, c[4], 8) if classes else {}
    D |= {'b4.conv.weight': (c[4], c[4] + 1, 3, 3), 'b4.conv.bias': (c[4],), 'b4.fc.weight': (c[4], c[4] * 16),
          'b4.fc.bias': (c[4],), 'b4.out.weight': (out, c[4]), 'b4.out.bias': (out,)}
    return {'G': G, 'D': D}


def settings(net, kind):
    """What a network was built with, its groups laid flat; refuses what our StyleGAN2 does not have."""
    if net.kind != kind or net.state['_init_args']:
        raise Refused(f'has a {shown(net.kind)} built otherwise than the {kind} of StyleGAN2')
    pairs = []
    for key, value in net.state['_init_kwargs'].items():
        pairs += value.items() if key.endswith('_kwargs') else [(key, value)]
    for key, value in pairs:
        if key not in FREE and not (key in FIXED and FIXED[key] == value):
            raise Refused(f"has a {kind} with {shown(key)} {shown(value)}, which is not StyleGAN2's")
    return {'channel_base': 32768, 'channel_max': 512, 'num_layers': 8, 'mbstd_group_size': 4, **dict(pairs)}


def configuration(G, D):
    """The arguments of `shapes`, out of what the two networks were built with."""
    g, d = settings(G, 'Generator'), settings(D, 'Discriminator')
    for key in ('img_resolution', 'img_channels', 'c_dim', 'channel_max'):
        if g[key] != d[key]:
            raise Refused(f'has a G and a D of different {key}')
    args = dict(res=g['img_resolution'], ch_g=g['channel_base'], ch_d=d['channel_base'], ch_max=g['channel_max'],
                mapping=g['num_layers'], classes=g['c_dim'], group=d['mbstd_group_size'],
                arch=d.get('architecture', 'resnet'), z_dim=g['z_dim'], w_dim=g['w_dim'], colors=g['img_channels'])
    least = {'res': 8, 'ch_g': args['res'], 'ch_d': args['res'], 'classes': 0}
    most = {'res': 2048, 'mapping': 99}
    for key, value in args.items():
        known = type(value) is int and least.get(key, 1) <= value <= most.get(key, 2 ** 20)
        if not (value in ('resnet', 'orig') if key == 'arch' else known or (key, value) == ('group', None)):
            raise Refused(f'has {key} {shown(value)}, which is unknown here')
    if args['colors'] != 3:
        raise Refused(f"has images of {args['colors']} channels, ours have 3")
    if args['res'] & args['res'] - 1 or g.get('architecture', 'skip') != 'skip':
        raise Refused('has a G of another architecture than skip, or a resolution that is no power of 2')
    return args


def tensor(x, shape, name):
    """The values of a Tensor record: finite, fp32, contiguous, with memory of their own."""
    data, values = raw(x.storage.data), None
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError):                # hostile; outside of the storage
        storage = data.startswith(STORAGE) and torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        if isinstance(storage, torch.TypedStorage) and x.size == shape:
            flat = torch.empty(0).set_(storage)                                    # refuses all but fp32
            values = flat.as_strided(shape, x.stride, x.offset).clone(memory_format=torch.contiguous_format)
    if values is None or not values.isfinite().all():
        raise Refused(f'has {name} as something else than finite fp32 values of shape {shape}')
    return values


def state_dict(net, expected, word):
    """{name: tensor} of a network: exactly the expected names and shapes."""
    parts = {name[:i + 1] for name in expected for i, c in enumerate(name) if c == '.'} | {'b4.mbstd.'}
    found = {}

    def walk(module, path):
        for key, x in {**module.state['_parameters'], **module.state['_buffers']}.items():
            if x is not None and key != 'resample_filter':                         # FIXED
                found[path + key] = x
        for key, child in module.state['_modules'].items():
            if f'{path}{key}.' not in parts:
                raise Refused(f'has a part {word}.{shown(path + key)}, which its configuration does not imply')
            walk(child, f'{path}{key}.')
    walk(net, '')
    for name in {**found, **expected}:
        if (name in found) != (name in expected):
            raise Refused(f"{'has' if name in found else 'lacks'} {word}.{shown(name)}, unlike its configuration")
    return {name: tensor(found[name], shape, f'{word}.{name}') for name, shape in expected.items()}


def checkpoint(snapshot, size):
    """The checkpoint of a parsed snapshot of `size` bytes."""
    G, D, E = (snapshot[name] for name in ('G', 'D', 'G_ema'))
    args = configuration(G, D)
    if configuration(E, D) != args:
        raise Refused('has a G_ema of another configuration than G')
    expected = shapes(**args)
    need = 4 * sum(prod(shape) for net in 'GDG' for shape in expected[net].values())
    if need > size:                                                                # so no tensor can be a bomb
        raise Refused(f'is shorter than the {need} bytes of tensors that its configuration implies')
    path = (snapshot.get('training_set_kwargs') or {}).get('path') or ''
    return {'model': 'stylegan2', 'args': args, 'step': 0, 'done': False,
            'G': state_dict(G, expected['G'], 'G'), 'D': state_dict(D, expected['D'], 'D'),
            'E': state_dict(E, expected['G'], 'G_ema'), 'masks': {'G': {}, 'D': {}},
            'source': {'dataset': shown(re.split(r'[\\/]', path.rstrip('\\/'))[-1])}}


def load(path):
    """The checkpoint {model, args, step, done, G, D, E, masks, source} of the snapshot at `path`, on the CPU.

    Raises Refused, a ValueError, on all that a snapshot of StyleGAN2 does not have; OSError."""
    with open(path, 'rb') as f:
        if f.read(2) not in (b'\x80\2', b'\x80\3', b'\x80\4', b'\x80\5'):
            raise Refused('does not begin like a pickle (a web page? a .pt?)')
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as file:
            try:
                saved = checkpoint(parse(file), len(file))
            except Refused:
                raise
            except Exception as e:                                                 # rubbish raises of every kind
                raise Refused(f'is damaged, cut short or laid out otherwise ({type(e).__name__})') from e
            saved['source'] |= {'file': os.path.basename(path), 'sha256': hashlib.sha256(file).hexdigest()}
            return saved


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('snapshot', help='.pkl of stylegan2-ada-pytorch')
    p.add_argument('out', help='.pt to write')
    args = p.parse_args(argv)
    try:
        saved = load(args.snapshot)
        with open(f'{args.out}.tmp', 'wb') as f:
            torch.save(saved, f)
        os.replace(f'{args.out}.tmp', args.out)
    except (Refused, OSError) as e:
        why = (args.snapshot, f'{e}: not read') if isinstance(e, Refused) else (e.filename or args.out, e.strerror)
        print('error: {}: {}'.format(*why), file=sys.stderr)
        raise SystemExit(2)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(f'{args.out}.tmp')
    print(f"{args.out}: {saved['args']}, trained on {saved['source']['dataset'] or 'unknown images'}")


if __name__ == '__main__':
    main()
