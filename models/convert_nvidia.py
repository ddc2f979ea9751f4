"""NVIDIA's snapshots of StyleGAN2-ADA (.pkl) as checkpoints for --init-from; no code in them is run.

Use:
    from math import prod
    import convert_nvidia                                        # models.convert_nvidia inside the repository
    expected = convert_nvidia.shapes(res=256, ch_g=16384, ch_d=16384)              # of G and D: {name: shape}
    print(expected['G']['synthesis.b8.conv0.weight'], sum(map(prod, expected['D'].values())))

To convert (takes three times the size of the snapshot in memory):
    python models/convert_nvidia.py network-snapshot.pkl ffhq.pt

Such a pickle brings its own source text, which Python executes where the pickle is loaded.  Here nothing of
the file is executed.  A machine of 40 opcodes makes plain values and records out of it, and can call only the
few small functions of ALLOWED.  The names and shapes of the tensors must then be those that the configuration
in the file implies.
"""
import argparse
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
from collections import namedtuple
from math import prod

import torch

# What a file may hold besides plain values: records, which do nothing.
Module = namedtuple('Module', 'kind state')                    # a part of a network
Tensor = namedtuple('Tensor', 'storage offset size stride requires_grad hooks')
Storage = namedtuple('Storage', 'data')                        # the values of tensors, as bytes
Latin1 = namedtuple('Latin1', 'text code')                     # bytes in protocol 2
Dtype = namedtuple('Dtype', 'code align copy')                 # the type of a numpy scalar

# How struct reads the numpy scalars that are plain numbers.
NUMBERS = {'f8': '<d', 'f4': '<f', 'f2': '<e', 'i8': '<q', 'i4': '<i', 'u8': '<Q', 'u4': '<I', 'b1': '<?'}

# How a pickled storage begins; a zip or a tar, which torch.load reads too, does not.
STORAGE = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

# A snapshot has some 20,000 opcodes.  The limit bounds the memory that records take.
MOST_OPCODES = 10 ** 6

# Settings of NVIDIA's networks that must have these values, because no shape would tell another one.
FIXED_SETTINGS = {'activation': 'lrelu', 'lr_multiplier': .01, 'resample_filter': [1, 3, 3, 1]}

# Settings that may have any value here: they are checked later, or do not change what a network computes.
FREE_SETTINGS = set("""
    z_dim w_dim c_dim img_resolution img_channels channel_base channel_max num_layers architecture use_noise
    mbstd_group_size mbstd_num_channels embed_features layer_features cmap_dim num_fp16_res conv_clamp
    w_avg_beta channels_last fp16_channels_last fused_modconv_default freeze_layers""".split())


class Refused(ValueError):
    """Why a file is not read, as a sentence without its subject."""


def printable(x):
    """A word out of the file, fit for a terminal.

    Of a container only its type is shown, because it may hold itself a billion times."""
    if not isinstance(x, (str, int, float)):
        x = type(x)
    return ascii(str(x)[:80])[1:-1]


# ---- the functions that a pickle may call

def empty_dict():
    return {}


def ignored_set(items):
    return None


def parameter_data(data, requires_grad, hooks):
    return data


def module_record(meta):
    """A network, or a part of one, as a record.

    `module_src`, the source text that NVIDIA's hook executes, is dropped unseen."""
    if (meta['type'], meta['version']) != ('class', 6):
        raise Refused("was written by another version of NVIDIA's persistence.py than 6")
    return Module(meta['class_name'], meta['state'])


def numpy_scalar(dtype, data):
    """A numpy scalar as a plain number.  Objects, strings and records are refused."""
    if dtype.code not in NUMBERS:
        raise Refused(f'holds a numpy scalar of type {printable(dtype.code)}, '
                      f'which a StyleGAN2 snapshot does not need')
    return struct.unpack(NUMBERS[dtype.code], as_bytes(data))[0]


def as_bytes(data):
    """The bytes that a pickle of any protocol holds."""
    if type(data) is Latin1:
        return data.text.encode('latin1')
    return data


ALLOWED = {
    # Containers.  A snapshot has sets in protocols 2 and 3, which are of no use here.
    ('collections', 'OrderedDict'): empty_dict,
    ('dnnlib.util', 'EasyDict'): empty_dict,
    ('builtins', 'set'): ignored_set,
    ('__builtin__', 'set'): ignored_set,

    # Bytes and numbers.
    ('_codecs', 'encode'): Latin1,
    ('numpy', 'dtype'): Dtype,
    ('numpy.core.multiarray', 'scalar'): numpy_scalar,
    ('numpy._core.multiarray', 'scalar'): numpy_scalar,

    # Tensors and networks.
    ('torch._utils', '_rebuild_parameter'): parameter_data,
    ('torch._utils', '_rebuild_tensor_v2'): Tensor,
    ('torch.storage', '_load_from_bytes'): Storage,
    ('torch_utils.persistence', '_reconstruct_persistent_obj'): module_record,
}


def allowed(module, name):
    """The function that stands for a global of the pickle.  Raises Refused for any that is not in ALLOWED."""
    # str.startswith, not module.startswith: what a pickle calls a name may be of any type.
    if str.startswith(module, 'dnnlib.tflib.'):
        raise Refused('is of the TensorFlow era: convert it with legacy.py of stylegan2-ada-pytorch first '
                      '(which runs the code in it)')
    if (module, name) not in ALLOWED:
        # The attributes of StyleGAN3's layers are numpy arrays.
        era = ' (StyleGAN3 has such)' if name == '_reconstruct' else ''
        raise Refused(f'asks for {printable(module)}.{printable(name)}, '
                      f'which a StyleGAN2 snapshot does not need{era}')
    return ALLOWED[module, name]


# ---- the machine

class Machine:
    """What a pickle works on: a stack of values, marks in the stack, and a memo of values by number."""

    def __init__(self):
        self.stack = []
        self.marks = []
        self.memo = {}

    def ignore(self, argument):
        pass

    def push(self, value):
        self.stack.append(value)

    def take(self, start):
        """The values from an index of the stack on, which leave it."""
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def take_marked(self):
        """The values behind the last mark, which leaves the stack with them."""
        return self.take(self.marks.pop())

    def memoize(self, number):
        self.memo[number] = self.stack[-1]

    def recall(self, number):
        self.push(self.memo[number])

    # list.extend and dict.update, not the methods of the value: it may be of any type.

    def extend(self, values):
        list.extend(self.stack[-1], values)

    def update(self, values):
        dict.update(self.stack[-1], zip(values[::2], values[1::2]))

    def call(self, _):
        """Of all that can lie on the stack, only what ALLOWED holds can be called."""
        arguments = self.stack.pop()
        function = self.stack.pop()
        self.push(function(*arguments))

    def build(self, _):
        """Attributes are refused, but for the byte order of a numpy type: little-endian or none."""
        state = self.stack.pop()
        if not state:
            return
        is_dtype = type(self.stack[-1]) is Dtype
        if not is_dtype or state[1] not in ('<', '|'):
            raise Refused('sets attributes, which a StyleGAN2 snapshot does not need')


# What an opcode does, by its name in pickletools: a function of the machine m and the argument of the opcode.
OPERATIONS = {
    # Start, frames and end of a pickle.
    **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), Machine.ignore),

    # Values that are the argument of the opcode: None, numbers, text and bytes.
    'NONE': Machine.push,
    **dict.fromkeys(('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'), Machine.push),
    **dict.fromkeys(('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'), Machine.push),
    **dict.fromkeys(('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'), Machine.push),

    # Constants and empty containers.
    'NEWTRUE': lambda m, _: m.push(True),
    'NEWFALSE': lambda m, _: m.push(False),
    'EMPTY_TUPLE': lambda m, _: m.push(()),
    'EMPTY_LIST': lambda m, _: m.push([]),
    'EMPTY_DICT': lambda m, _: m.push({}),
    'EMPTY_SET': lambda m, _: m.push(None),                    # of no use here

    # Tuples of the last values of the stack, or of those behind a mark.
    'MARK': lambda m, _: m.marks.append(len(m.stack)),
    'TUPLE1': lambda m, _: m.push(tuple(m.take(-1))),
    'TUPLE2': lambda m, _: m.push(tuple(m.take(-2))),
    'TUPLE3': lambda m, _: m.push(tuple(m.take(-3))),
    'TUPLE': lambda m, _: m.push(tuple(m.take_marked())),

    # Values for the list or the dict below them; a dict takes keys and values in turn.
    'APPEND': lambda m, _: m.extend(m.take(-1)),
    'APPENDS': lambda m, _: m.extend(m.take_marked()),
    'SETITEM': lambda m, _: m.update(m.take(-2)),
    'SETITEMS': lambda m, _: m.update(m.take_marked()),

    # Memo.
    'MEMOIZE': lambda m, _: m.memoize(len(m.memo)),
    'BINPUT': Machine.memoize,
    'LONG_BINPUT': Machine.memoize,
    'BINGET': Machine.recall,
    'LONG_BINGET': Machine.recall,

    # Globals, calls and attributes: these could run code elsewhere.
    'GLOBAL': lambda m, names: m.push(allowed(*names.split(' ', 1))),
    'STACK_GLOBAL': lambda m, _: m.push(allowed(*m.take(-2))),
    'REDUCE': Machine.call,
    'NEWOBJ': Machine.call,
    'BUILD': Machine.build,
}


def parse(file):
    """The object in a pickle of protocol 2 to 5, as plain values and records.

    Nothing is imported, no attribute is set, and nothing is called but the functions of ALLOWED.
    pickle.Unpickler would set attributes behind find_class, and allocate a memo of any size.  Raises Refused,
    and errors of every kind for a damaged file."""
    machine = Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in OPERATIONS:
            raise Refused(f'has the opcode {opcode.name}, which a StyleGAN2 snapshot does not need')
        if count == MOST_OPCODES:
            raise Refused(f'has {MOST_OPCODES} opcodes, which a StyleGAN2 snapshot does not need')
        operation = OPERATIONS[opcode.name]
        operation(machine, argument)
    return machine.stack.pop()


# ---- the shapes that a configuration implies

def mapping_shapes(n_in, classes, width, layers):
    """Mapping network: z [n_in] and a class -> [width]."""
    table = {}
    if classes:
        table['mapping.embed.weight'] = width, classes
        table['mapping.embed.bias'] = (width,)
        n_in += width
    for i in range(layers):
        table[f'mapping.fc{i}.weight'] = width, n_in
        table[f'mapping.fc{i}.bias'] = (width,)
        n_in = width
    return table


def modulated_shapes(prefix, c_out, c_in, k, w_dim):
    """Modulated convolution, and the affine layer w -> style."""
    return {
        f'{prefix}.weight': (c_out, c_in, k, k),
        f'{prefix}.bias': (c_out,),
        f'{prefix}.affine.weight': (c_in, w_dim),
        f'{prefix}.affine.bias': (c_in,),
    }


def layer_shapes(prefix, c_out, c_in, res, w_dim):
    """Modulated 3x3 convolution with noise."""
    table = modulated_shapes(prefix, c_out, c_in, 3, w_dim)
    table[f'{prefix}.noise_strength'] = ()
    table[f'{prefix}.noise_const'] = res, res
    return table


def generator_shapes(channels, mapping, classes, z_dim, w_dim, colors):
    """{name: shape} of G, channels being {r: channels at r px}."""
    table = mapping_shapes(z_dim, classes, w_dim, mapping)
    table['mapping.w_avg'] = (w_dim,)
    table['synthesis.b4.const'] = channels[4], 4, 4
    for r, ch in channels.items():
        block = f'synthesis.b{r}'
        if r > 4:
            table |= layer_shapes(f'{block}.conv0', ch, channels[r // 2], r, w_dim)
        table |= layer_shapes(f'{block}.conv1', ch, ch, r, w_dim)
        table |= modulated_shapes(f'{block}.torgb', colors, ch, 1, w_dim)
    return table


def discriminator_shapes(res, channels, classes, arch, colors):
    """{name: shape} of D, channels being {r: channels at r px}."""
    table = {}
    table[f'b{res}.fromrgb.weight'] = channels[res], colors, 1, 1
    table[f'b{res}.fromrgb.bias'] = (channels[res],)
    for r in sorted(channels, reverse=True)[:-1]:              # res, ..., 8
        ch = channels[r]
        half = channels[r // 2]
        table[f'b{r}.conv0.weight'] = ch, ch, 3, 3
        table[f'b{r}.conv0.bias'] = (ch,)
        table[f'b{r}.conv1.weight'] = half, ch, 3, 3
        table[f'b{r}.conv1.bias'] = (half,)
        if arch == 'resnet':
            table[f'b{r}.skip.weight'] = half, ch, 1, 1

    ch = channels[4]
    if classes:
        table |= mapping_shapes(0, classes, ch, 8)
    n_out = ch if classes else 1
    table['b4.conv.weight'] = ch, ch + 1, 3, 3
    table['b4.conv.bias'] = (ch,)
    table['b4.fc.weight'] = ch, ch * 16
    table['b4.fc.bias'] = (ch,)
    table['b4.out.weight'] = n_out, ch
    table['b4.out.bias'] = (n_out,)
    return table


def shapes(res, ch_g, ch_d, ch_max=512, mapping=8, classes=0, group=4, arch='resnet', z_dim=512, w_dim=512,
           colors=3):
    """{'G': {name: shape}, 'D': {name: shape}} of StyleGAN2: min(ch // r, ch_max) channels at r px.

    ch_g, ch_d: NVIDIA's channel_base of G and D.  mapping: layers in the mapping network of G.  arch: of D,
    resnet or orig.  group changes no shape."""
    sizes = [2 ** i for i in range(2, res.bit_length())]       # 4, 8, ..., res
    channels_g = {r: min(ch_g // r, ch_max) for r in sizes}
    channels_d = {r: min(ch_d // r, ch_max) for r in sizes}
    G = generator_shapes(channels_g, mapping, classes, z_dim, w_dim, colors)
    D = discriminator_shapes(res, channels_d, classes, arch, colors)
    return {'G': G, 'D': D}


# ---- from a parsed snapshot to a checkpoint

def settings(net, kind):
    """What a network was built with, its groups of settings laid flat.

    Raises Refused for a network of another kind, and for a setting that our StyleGAN2 does not have."""
    if net.kind != kind or net.state['_init_args']:
        raise Refused(f'has a {printable(net.kind)} built otherwise than the {kind} of StyleGAN2')

    pairs = []
    for key, value in net.state['_init_kwargs'].items():
        if key.endswith('_kwargs'):
            pairs += value.items()
        else:
            pairs.append((key, value))

    for key, value in pairs:
        is_fixed = key in FIXED_SETTINGS and FIXED_SETTINGS[key] == value
        if key not in FREE_SETTINGS and not is_fixed:
            raise Refused(f"has a {kind} with {printable(key)} {printable(value)}, which is not StyleGAN2's")
    defaults = {'channel_base': 32768, 'channel_max': 512, 'num_layers': 8, 'mbstd_group_size': 4}
    return {**defaults, **dict(pairs)}


def configuration(G, D):
    """The arguments of `shapes`, out of what the two networks were built with.

    Raises Refused where they contradict each other, or where one is outside of what StyleGAN2 can have."""
    g = settings(G, 'Generator')
    d = settings(D, 'Discriminator')
    for key in ('img_resolution', 'img_channels', 'c_dim', 'channel_max'):
        if g[key] != d[key]:
            raise Refused(f'has a G and a D of different {key}')
    args = {
        'res': g['img_resolution'],
        'ch_g': g['channel_base'],
        'ch_d': d['channel_base'],
        'ch_max': g['channel_max'],
        'mapping': g['num_layers'],
        'classes': g['c_dim'],
        'group': d['mbstd_group_size'],
        'arch': d.get('architecture', 'resnet'),
        'z_dim': g['z_dim'],
        'w_dim': g['w_dim'],
        'colors': g['img_channels'],
    }

    # Numbers within bounds: later steps must neither fail on them nor need memory without end.
    least = {'res': 8, 'ch_g': args['res'], 'ch_d': args['res'], 'classes': 0}
    most = {'res': 2048, 'mapping': 99}
    for key, value in args.items():
        if key == 'arch':
            is_known = value in ('resnet', 'orig')
        elif key == 'group' and value is None:
            is_known = True
        else:
            is_known = type(value) is int and least.get(key, 1) <= value <= most.get(key, 2 ** 20)
        if not is_known:
            raise Refused(f'has {key} {printable(value)}, which is unknown here')

    if args['colors'] != 3:
        raise Refused(f"has images of {args['colors']} channels, ours have 3")
    if args['res'] & args['res'] - 1 or g.get('architecture', 'skip') != 'skip':
        raise Refused('has a G of another architecture than skip, or a resolution that is no power of 2')
    return args


def tensor_values(record, shape, name):
    """The values of a Tensor record: finite, fp32, contiguous, with memory of their own.

    Raises Refused for any other values or shape."""
    data = as_bytes(record.storage.data)
    storage = values = None
    # UnpicklingError: a hostile storage.  RuntimeError: not fp32, or outside of the storage.
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError):
        if data.startswith(STORAGE):
            storage = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        if isinstance(storage, torch.TypedStorage) and record.size == shape:
            flat = torch.empty(0).set_(storage)
            view = flat.as_strided(shape, record.stride, record.offset)
            values = view.clone(memory_format=torch.contiguous_format)
    if values is None or not values.isfinite().all():
        raise Refused(f'has {name} as something else than finite fp32 values of shape {shape}')
    return values


def module_paths(names):
    """The paths of all modules that hold the tensors of these names: of a.b.weight, 'a.' and 'a.b.'."""
    paths = set()
    for name in names:
        path = ''
        for part in name.split('.')[:-1]:
            path += f'{part}.'
            paths.add(path)
    return paths


def network_tensors(net, expected, word):
    """{name: tensor} of a network, called `word` in sentences.

    Raises Refused where its names or shapes are not exactly the expected ones."""
    parts = module_paths(expected) | {'b4.mbstd.'}
    found = {}

    # A part that is not expected ends the walk, also where parts hold themselves.
    def walk(module, path):
        tensors = {**module.state['_parameters'], **module.state['_buffers']}
        for key, record in tensors.items():
            if record is not None and key != 'resample_filter':             # a fixed setting
                found[path + key] = record
        for key, child in module.state['_modules'].items():
            child_path = f'{path}{key}.'
            if child_path not in parts:
                part = f'{word}.{printable(path + key)}'
                raise Refused(f'has a part {part}, which its configuration does not imply')
            walk(child, child_path)

    walk(net, '')
    for name in {**found, **expected}:
        if name not in expected:
            raise Refused(f'has {word}.{printable(name)}, unlike its configuration')
        if name not in found:
            raise Refused(f'lacks {word}.{printable(name)}, unlike its configuration')

    tensors = {}
    for name, shape in expected.items():
        tensors[name] = tensor_values(found[name], shape, f'{word}.{name}')
    return tensors


def checkpoint(snapshot, size):
    """The checkpoint of a parsed snapshot whose file has `size` bytes.

    Raises Refused for what is no StyleGAN2, and errors of every kind for a snapshot that is laid out
    otherwise."""
    G = snapshot['G']
    D = snapshot['D']
    E = snapshot['G_ema']
    args = configuration(G, D)
    if configuration(E, D) != args:
        raise Refused('has a G_ema of another configuration than G')

    # A file as long as its tensors: none of them can take more memory than the file.
    expected = shapes(**args)
    need = 0
    for name in 'GDG':
        need += 4 * sum(prod(shape) for shape in expected[name].values())
    if need > size:
        raise Refused(f'is shorter than the {need} bytes of tensors that its configuration implies')

    # Of the path of the images only the name is kept: the rest may tell who trained where.
    path = (snapshot.get('training_set_kwargs') or {}).get('path') or ''
    dataset = re.split(r'[\\/]', path.rstrip('\\/'))[-1]
    return {
        'model': 'stylegan2',
        'args': args,
        'step': 0,
        'done': False,
        'G': network_tensors(G, expected['G'], 'G'),
        'D': network_tensors(D, expected['D'], 'D'),
        'E': network_tensors(E, expected['G'], 'G_ema'),
        'masks': {'G': {}, 'D': {}},
        'source': {'dataset': printable(dataset)},
    }


def read_snapshot(path):
    """The checkpoint {model, args, step, done, G, D, E, masks, source} of the snapshot at `path`, on the CPU.

    Raises Refused, a ValueError, for all that a snapshot of StyleGAN2 does not have, and OSError."""
    if os.path.exists(path) and not os.path.isfile(path):      # a pipe would never end
        raise Refused('is no regular file')
    with open(path, 'rb') as f:
        if f.read(2) not in (b'\x80\2', b'\x80\3', b'\x80\4', b'\x80\5'):
            raise Refused('does not begin like a pickle (a web page? a .pt?)')
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as file:
            try:
                saved = checkpoint(parse(file), len(file))
            except Refused:
                raise
            except Exception as e:                             # a damaged file raises errors of every kind
                raise Refused(f'is damaged, cut short or laid out otherwise ({type(e).__name__})') from e
            saved['source']['file'] = os.path.basename(path)
            saved['source']['sha256'] = hashlib.sha256(file).hexdigest()
            return saved


# ---- command line

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('snapshot', help='.pkl of stylegan2-ada-pytorch')
    parser.add_argument('out', help='.pt to write')
    args = parser.parse_args(argv)

    # Written beside and renamed, so that a failure leaves an older file as it was.
    temporary = f'{args.out}.tmp'
    error = None
    try:
        saved = read_snapshot(args.snapshot)
        with open(temporary, 'wb') as f:
            torch.save(saved, f)
        os.replace(temporary, args.out)
    except Refused as e:
        error = f'{args.snapshot}: {e}: not read'
    except OSError as e:
        error = f'{e.filename or args.out}: {e.strerror}'
        if not os.path.exists(args.snapshot):
            error += '; NVIDIA lists its snapshots at https://github.com/NVlabs/stylegan2-ada-pytorch'
    except RuntimeError as e:                                  # torch hides the error of the disk behind its own
        error = f'{args.out}: {e.__context__ or e}'
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)

    if error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2)
    dataset = saved['source']['dataset'] or 'unknown images'
    print(f"{args.out}: {saved['args']}, trained on {dataset}")


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')          # for names that it cannot print
    main()
