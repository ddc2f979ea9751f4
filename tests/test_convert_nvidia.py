"""models/convert_nvidia.py: every tensor of a snapshot laid out like NVIDIA's arrives; hostile and odd files do not."""
import collections
import contextlib
import hashlib
import io
import math
import os
import pickle
import random
import re
import runpy
import struct
import sys
import types

import numpy as np
import pytest
import torch

import loop
from models import convert_nvidia as convert

FIR = torch.outer(*[torch.tensor([1., 3, 3, 1]) / 8] * 2)


class EasyDict(dict):
    pass


class Network:
    pass


def _reconstruct_persistent_obj(meta):
    raise AssertionError('the hook has run')


THINGS = {'torch_utils.persistence': _reconstruct_persistent_obj, 'dnnlib.util': EasyDict,
          'dnnlib.tflib.network': Network}
for module, thing in THINGS.items():
    thing.__module__ = module


class Persistent:
    """Pickles as an object under torch_utils.persistence does: through its hook, source text included."""

    def __init__(self, kind, tensors=(), buffers=(), modules=(), kwargs=(), **attributes):
        self.meta = dict(type='class', version=6, module_src='class ' + kind, class_name=kind)
        self.parameters = {k: torch.nn.Parameter(t, False) for k, t in dict(tensors).items()}
        self.buffers, self.modules, self.kwargs, self.args = dict(buffers), dict(modules), dict(kwargs), ()
        self.attributes = attributes

    def __reduce__(self):
        ordered = collections.OrderedDict
        kwargs = {k: EasyDict(v) if isinstance(v, dict) else v for k, v in self.kwargs.items()}
        state = dict(training=False, _parameters=ordered(self.parameters), _buffers=ordered(self.buffers),
                     _non_persistent_buffers_set=set(), _backward_hooks=ordered(), _modules=ordered(self.modules),
                     _init_args=self.args, _init_kwargs=kwargs, **self.attributes)
        return _reconstruct_persistent_obj, (EasyDict(self.meta, state=EasyDict(state)),)

    def __getitem__(self, path):
        module = self
        for part in path.split('.') if path else ():
            module = module.modules[part]
        return module

    def flat(self, prefix=''):
        """{name: tensor}, as state_dict() names them."""
        found = {prefix + k: t for k, t in {**self.parameters, **self.buffers}.items() if k != 'resample_filter'}
        for key, module in self.modules.items():
            found |= module.flat(f'{prefix}{key}.')
        return found


class Reduce:
    """Pickles as the call of f."""

    def __init__(self, f, *args):
        self.call = f, args

    def __reduce__(self):
        return self.call


@contextlib.contextmanager
def nvidia():
    """The modules that a snapshot names, as long as it is being written."""
    with pytest.MonkeyPatch.context() as patch:
        for name, thing in THINGS.items():
            for end in (m.start() for m in re.finditer(r'\.|$', name)):           # with the packages it lies in
                patch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
            setattr(sys.modules[name], thing.__name__, thing)
        yield


def dumps(x, protocol=4):
    with nvidia():
        return pickle.dumps(x, protocol)


def values(*shape):
    return torch.randn(shape)


def linear(c_out, c_in):
    return Persistent('FullyConnectedLayer', {'weight': values(c_out, c_in), 'bias': values(c_out)},
                      activation='lrelu', weight_gain=1 / np.sqrt(c_in), bias_gain=np.float32(1))


def conv(c_out, c_in, k, bias=True):
    tensors = {'weight': values(c_out, c_in, k, k).contiguous(memory_format=torch.channels_last)}
    return Persistent('Conv2dLayer', {**tensors, **({'bias': values(c_out)} if bias else {})}, {'resample_filter': FIR})


def layer(c_out, c_in, res):
    return Persistent('SynthesisLayer', {'weight': values(c_out, c_in, 3, 3), 'noise_strength': values(),
                                         'bias': values(c_out)},
                      {'resample_filter': FIR, 'noise_const': values(res, res)}, {'affine': linear(c_in, 3)},
                      act_gain=np.sqrt(2), up=np.int64(1), use_noise=np.bool_(True))


def to_rgb(c_in):
    return Persistent('ToRGBLayer', {'weight': values(3, c_in, 1, 1), 'bias': values(3)},
                      modules={'affine': linear(c_in, 3)})


def mapping(first, width, layers, classes, w_avg):
    embed = {'embed': linear(width, classes)} if classes else {}
    fcs = {f'fc{i}': linear(width, width if i else first + width * bool(classes)) for i in range(layers)}
    return Persistent('MappingNetwork', (), {'w_avg': values(width)} if w_avg else {'w_avg': None}, {**embed, **fcs})


def generator(classes):
    """G of 8 px by hand: 6 channels at 4 px, 4 at 8 px, z of 5, w of 3, two mapping layers."""
    b4 = Persistent('SynthesisBlock', {'const': values(6, 4, 4)}, {'resample_filter': FIR},
                    {'conv1': layer(6, 6, 4), 'torgb': to_rgb(6)})
    b8 = Persistent('SynthesisBlock', (), {'resample_filter': FIR},
                    {'conv0': layer(4, 6, 8), 'conv1': layer(4, 4, 8), 'torgb': to_rgb(4)})
    kwargs = dict(c_dim=classes, img_resolution=8, img_channels=3, z_dim=5, w_dim=3, mapping_kwargs=dict(num_layers=2),
                  synthesis_kwargs=dict(channel_base=32, channel_max=6, num_fp16_res=4, conv_clamp=256))
    return Persistent('Generator', (), (), {'synthesis': Persistent('SynthesisNetwork', modules={'b4': b4, 'b8': b8}),
                                            'mapping': mapping(5, 3, 2, classes, True)}, kwargs, z_dim=5)


def discriminator(classes, arch):
    """D of 8 px by hand: 7 channels at 8 px, 6 at 4 px."""
    skip = {'skip': conv(6, 5, 1, bias=False)} if arch == 'resnet' else {}
    b8 = Persistent('DiscriminatorBlock', (), {'resample_filter': FIR},
                    {'fromrgb': conv(5, 3, 1), 'conv0': conv(5, 5, 3), 'conv1': conv(6, 5, 3), **skip})
    out = 6 if classes else 1
    b4 = Persistent('DiscriminatorEpilogue', modules={
        'mbstd': Persistent('MinibatchStdLayer', group_size=2), 'conv': conv(6, 7, 3), 'fc': linear(6, 96),
        'out': linear(out, 6)})
    label = {'mapping': mapping(0, 6, 8, classes, False)} if classes else {}
    kwargs = dict(c_dim=classes, img_resolution=8, img_channels=3, channel_base=40, channel_max=6, conv_clamp=256,
                  block_kwargs={}, mapping_kwargs={}, epilogue_kwargs=dict(mbstd_group_size=2))
    kwargs |= {} if arch == 'resnet' else {'architecture': arch}
    return Persistent('Discriminator', modules={'b8': b8, 'b4': b4, **label}, kwargs=kwargs)


def snapshot(classes=0, arch='resnet', path='/home/somebody/sets/obama-100.zip'):
    torch.manual_seed(0)
    return {'training_set_kwargs': EasyDict(class_name='training.dataset.ImageFolderDataset', path=path, max_size=100),
            'G': generator(classes), 'D': discriminator(classes, arch), 'G_ema': generator(classes),
            'augment_pipe': None}


def write(path, content):
    with open(path, 'wb') as f:
        f.write(content)
    return str(path)


def refusal(tmp_path, content):
    """The sentence with which main refuses a file of this content, exit code 2 and nothing written."""
    source, out = write(tmp_path / 'in.pkl', content), tmp_path / 'out.pt'
    error = io.StringIO()
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as e:
        convert.main([source, str(out)])
    assert e.value.code == 2 and sorted(os.listdir(tmp_path)) == ['in.pkl']
    start, end = f'error: {source}: ', ': not read\n'
    sentence = error.getvalue()
    assert sentence.startswith(start) and sentence.endswith(end) and sentence.count('\n') == 1 and sentence.isascii()
    return sentence[len(start):-len(end)]


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('classes, arch', [(0, 'resnet'), (3, 'orig')])
def test_every_tensor_arrives_bit_for_bit(protocol, classes, arch, tmp_path, capsys):
    original = snapshot(classes, arch)
    content = dumps(original, protocol)
    source = write(tmp_path / 'in.pkl', content)
    convert.main([source, str(tmp_path / 'out.pt')])
    assert 'obama-100.zip' in capsys.readouterr().out and sorted(os.listdir(tmp_path)) == ['in.pkl', 'out.pt']
    saved = loop.read(str(tmp_path / 'out.pt'), '--init-from', 'G', 'D', 'E')      # loads with weights_only
    for name, net in (('G', 'G'), ('D', 'D'), ('E', 'G_ema')):
        expected = {k: t for k, t in original[net].flat().items() if t is not None}
        assert set(saved[name]) == set(expected) and len(expected) > 10
        for k, t in saved[name].items():
            assert torch.equal(t, expected[k]) and t.dtype == torch.float32 and type(t) is torch.Tensor, k
            assert t.is_contiguous() and t.untyped_storage().nbytes() == 4 * t.numel() and not t.requires_grad, k
    assert saved['args'] == dict(res=8, ch_g=32, ch_d=40, ch_max=6, mapping=2, classes=classes, group=2, arch=arch,
                                 z_dim=5, w_dim=3, colors=3)
    assert (saved['model'], saved['step'], saved['done'], saved['masks']) == ('stylegan2', 0, False, {'G': {}, 'D': {}})
    assert saved['source'] == {'file': 'in.pkl', 'sha256': hashlib.sha256(content).hexdigest(),
                               'dataset': 'obama-100.zip'}


@pytest.mark.parametrize('path, name', [('C:\\sets\\cats\\', 'cats'), ('/a/b/', 'b'), ('', ''), (None, '')])
def test_of_the_path_of_the_images_only_the_name_is_kept(path, name, tmp_path):
    assert convert.read_snapshot(write(tmp_path / 'a', dumps(snapshot(path=path))))['source']['dataset'] == name


def test_tensors_that_share_a_storage_or_were_frozen_arrive_too(tmp_path):
    original = snapshot()
    b8, whole = original['D']['b8'], torch.randn(100)
    b8['conv0'].parameters['bias'] = torch.nn.Parameter(whole[7:12])
    b8['fromrgb'].parameters['bias'] = torch.nn.Parameter(whole[0:50:10])
    b8['conv1'].buffers['weight'] = b8['conv1'].parameters.pop('weight').detach()  # a frozen layer is all buffers
    D = convert.read_snapshot(write(tmp_path / 'a', dumps(original)))['D']
    assert torch.equal(D['b8.conv0.bias'], whole[7:12]) and torch.equal(D['b8.fromrgb.bias'], whole[0:50:10])
    assert D['b8.conv0.bias'].untyped_storage().nbytes() == 20
    assert torch.equal(D['b8.conv1.weight'], b8['conv1'].buffers['weight'])


@pytest.mark.parametrize('args, G, D', [
    (dict(res=256, ch_g=16384, ch_d=16384), 24767458, 24001089),
    (dict(res=256, ch_g=32768, ch_d=32768), 30034338, 28864129),
    (dict(res=512, ch_g=32768, ch_d=32768), 30276583, 28982849),
    (dict(res=1024, ch_g=32768, ch_d=32768), 30370060, 29012513),
    (dict(res=32, ch_g=32768, ch_d=32768, mapping=2, arch='orig'), 19947539, 20720641),
    (dict(res=32, ch_g=32768, ch_d=32768, mapping=2, arch='orig', classes=10), 20215315, 23089664),
    (dict(res=32, ch_g=32768, ch_d=32768, mapping=2, arch='orig', classes=100), 20261395, 23135744),
    (dict(res=32, ch_g=4096, ch_d=4096), 13506963, 13918849)])
def test_the_expected_shapes_have_the_parameter_totals_of_the_originals(args, G, D):
    expected = convert.shapes(**args)
    totals = {net: sum(math.prod(shape) for name, shape in expected[net].items() if name.split('.')[-1] not in
                       ('w_avg', 'noise_const')) for net in 'GD'}
    assert totals == {'G': G, 'D': D}


@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
@pytest.mark.parametrize('x', [np.float64(-1.5), np.float32(.1), np.float16(3), np.int64(-2 ** 40), np.int32(-7),
                               np.uint64(2 ** 63), np.uint32(9), np.bool_(True)])
@pytest.mark.parametrize('protocol', [2, 3])
def test_numpy_scalars_under_either_name_are_plain_numbers(core, x, protocol):
    content = pickle.dumps(x, protocol)
    name = b'numpy._core' if b'numpy._core' in content else b'numpy.core'
    read = convert.parse(io.BytesIO(content.replace(name, core)))
    assert type(read) in (int, float, bool) and read == x.item()


@pytest.mark.parametrize('code', ['O8', 'U1', 'S8', 'V8', 'M8', 'c16'])
def test_numpy_scalars_that_are_no_numbers_are_refused(code, tmp_path):
    content = pickle.dumps(Reduce(np._core.multiarray.scalar, Reduce(np.dtype, code, False, True), bytes(8)))
    assert f'a numpy scalar of type {code}' in refusal(tmp_path, content)


def test_a_big_endian_dtype_is_refused_rather_than_misread(tmp_path):
    assert 'sets attributes' in refusal(tmp_path, pickle.dumps(np.dtype('>f8')))


def test_the_source_text_within_is_not_executed(tmp_path):
    ran, original = tmp_path / 'ran', snapshot()
    for net in ('G', 'D', 'G_ema'):
        original[net].meta['module_src'] = f'open({str(ran)!r}, "w")\nclass Generator: pass\n'
        original[net]['b4' if net == 'D' else 'mapping'].meta['module_src'] = f'import os; os.mkdir({str(ran)!r})'
    content = dumps(original)
    assert content.count(str(ran).encode()) == 6
    convert.read_snapshot(write(tmp_path / 'in.pkl', content))
    assert os.listdir(tmp_path) == ['in.pkl']


WATCHED = []
sys.addaudithook(lambda event, args: WATCHED and WATCHED.append(event))


def test_reading_looks_up_no_global_and_executes_no_code(tmp_path):
    path = write(tmp_path / 'in.pkl', dumps(snapshot()))
    convert.read_snapshot(path)                                   # torch imports what it needs
    WATCHED.append('start')
    convert.read_snapshot(path)
    events = collections.Counter(WATCHED)
    WATCHED.clear()
    assert events['open'] == events['mmap.__new__'] == 1
    assert not {'exec', 'compile', 'import', 'pickle.find_class', 'os.system', 'subprocess.Popen'} & set(events)


def string(text):
    return b'\x8c' + bytes([len(text)]) + text.encode()


def found(module, name):
    """The opcodes that push a global: names of any form are possible here."""
    return string(module) + string(name) + b'\x93'


HOOK = found('torch_utils.persistence', '_reconstruct_persistent_obj')
EASY, ORDERED = found('dnnlib.util', 'EasyDict'), found('collections', 'OrderedDict')
SET = b'}' + string('__setstate__') + found('torch.storage', '_load_from_bytes') + b's'


@pytest.mark.parametrize('module, name', [
    ('os', 'system'), ('posix', 'system'), ('builtins', 'eval'), ('builtins', 'exec'), ('builtins', 'getattr'),
    ('builtins', '__import__'), ('builtins', 'bytearray'), ('subprocess', 'Popen'), ('pathlib', 'PosixPath'),
    ('pickle', 'loads'), ('torch', 'load'), ('torch.serialization', 'load'), ('torch.hub', 'load'), ('', ''),
    ('collections', 'OrderedDict.__init__.__globals__'), ('collections', 'OrderedDict.__class__'),
    ('torch_utils.persistence', '_reconstruct_persistent_obj.__globals__'), ('collections', 'defaultdict'),
    ('torch_utils.persistence', 'sys'), ('dnnlib.util', 'EasyDict.__reduce__'), ('numpy', 'dtype.type'),
    ('torch._utils', '_rebuild_tensor_v2.__globals__'), ('torch._utils', '_rebuild_tensor'), ('numpy', 'ndarray'),
    ('collections.OrderedDict', '__init__'), ('copyreg', '_reconstructor'), ('models.convert_nvidia', 'main')])
def test_a_global_that_a_snapshot_does_not_need_is_refused_by_name(module, name, tmp_path):
    words = f'asks for {module}.{name}, which a StyleGAN2 snapshot does not need'
    assert refusal(tmp_path, b'\x80\x04' + found(module, name) + string('echo') + b'\x85R.') == words
    assert refusal(tmp_path, b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b')R.') == words


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_call_hidden_in_a_snapshot_does_not_happen(protocol, tmp_path):
    original, target = snapshot(), tmp_path / 'ran'
    original['D']['b4']['fc'].attributes['gain'] = Reduce(os.system, f'touch {target}')
    assert refusal(tmp_path, dumps(original, protocol)) == 'asks for ' + (
        f'{os.system.__module__}.system, which a StyleGAN2 snapshot does not need')


@pytest.mark.parametrize('content, words', [
    (b'}\x82\x01.', 'EXT1'), (b'}\x83\x01\x00.', 'EXT2'), (b'}\x84\x01\x00\x00\x00.', 'EXT4'),
    (b'Pid\n.', 'PERSID'), (b'K\x01Q.', 'BINPERSID'), (b'(ios\nsystem\n.', 'INST'), (b'(' + EASY + b'o.', 'OBJ'),
    (b'\x97.', 'NEXT_BUFFER'), (HOOK + b'}}\x92.', 'NEWOBJ_EX'), (b'\x96' + struct.pack('<Q', 1) + b'a.', 'BYTEARRAY8'),
    (b"S'a'\n.", 'STRING'), (b'}0.', 'POP'), (b'}2.', 'DUP')])
def test_opcodes_that_a_snapshot_does_not_need_are_refused_by_name(content, words, tmp_path):
    assert refusal(tmp_path, b'\x80\x05' + content) == (
        f'has the opcode {words}, which a StyleGAN2 snapshot does not need')


@pytest.mark.parametrize('content', [
    HOOK + SET + b'b.', HOOK + b'N' + SET + b'\x86b.',                             # onto functions, as dict and slots
    EASY + SET + b'b.', EASY + b'N' + SET + b'\x86b.', found('numpy', 'dtype') + SET + b'b.',
    EASY + b')\x81' + SET + b'b.', ORDERED + b')R' + SET + b'b.', ORDERED + b')RN' + SET + b'\x86b.',
    b']' + SET + b'b.', b'}' + SET + b'b.', string('a') + SET + b'b.',
    HOOK + b'}' + string('type') + string('class') + b's' + string('version') + b'K\x06s' + string('class_name')
    + string('Generator') + b's' + string('state') + b'}s\x85R' + SET + b'b.'])    # onto the stub of a module
def test_no_attribute_is_set_on_anything(content, tmp_path):
    before = {k: dict(vars(f)) for k, f in convert.ALLOWED.items()}
    assert 'sets attributes' in refusal(tmp_path, b'\x80\x04' + content)
    assert {k: dict(vars(f)) for k, f in convert.ALLOWED.items()} == before


def test_an_ordered_dict_with_attributes_is_refused_and_one_with_an_empty_state_is_not(tmp_path):
    odd = collections.OrderedDict(a=1)
    odd.x = 2
    assert 'sets attributes' in refusal(tmp_path, pickle.dumps(odd))
    assert convert.parse(io.BytesIO(b'\x80\x04' + EASY + b')\x81}b.')) == {}       # as Python up to 3.10 may write it


def legacy(x, *more):
    """What torch.save without zip writes, up to and with the object x."""
    return b''.join(pickle.dumps(part, 2) for part in (0x1950a86a20f9469cfc6c, 1001, {}, x, *more))


def pickled_storage(x):
    """The bytes that hold a tensor's values in a snapshot."""
    return convert.parse(io.BytesIO(pickle.dumps(x))).storage.data


def zipped(x):
    file = io.BytesIO()
    torch.save(x, file)
    return file.getvalue()


def tensor_of(data, offset=0, size=(3, 5), stride=(5, 1)):
    """A snapshot in which one tensor of shape [3, 5] is rebuilt from these."""
    original = snapshot()
    original['G']['mapping.fc0'].parameters['weight'] = Reduce(
        torch._utils._rebuild_tensor_v2, Reduce(torch.storage._load_from_bytes, data), offset, size, stride, False,
        collections.OrderedDict())
    return dumps(original)


@pytest.mark.parametrize('make', [pickle.dumps, legacy, lambda evil: legacy(['k'], evil), zipped,
                                  lambda evil: b'', lambda evil: convert.STORAGE])
def test_a_pickle_within_a_storage_is_not_executed(make, tmp_path):
    evil = make(Reduce(os.mkdir, str(tmp_path / 'ran')))
    words = 'is damaged' if evil == convert.STORAGE else 'has G.mapping.fc0.weight as something else than finite fp32'
    assert words in refusal(tmp_path, tensor_of(evil))


GOOD = pickled_storage(torch.arange(15.))


def test_a_tensor_may_be_a_transposed_view(tmp_path):
    G = convert.read_snapshot(write(tmp_path / 'in.pkl', tensor_of(GOOD, 0, (3, 5), (1, 3))))['G']
    assert torch.equal(G['mapping.fc0.weight'], torch.arange(15.).view(5, 3).T)


@pytest.mark.parametrize('data, offset, size, stride', [
    (GOOD, 1, (3, 5), (5, 1)), (GOOD, 0, (3, 5), (6, 1)), (GOOD, -1, (3, 5), (5, 1)), (GOOD, 0, (3, 5), (-5, 1)),
    (GOOD, 0, (3, 5), (5,)), (GOOD, 0, (5, 3), (3, 1)), (GOOD, 0, (15,), (1,)), (GOOD, 0, (2 ** 40, 5), (0, 1)),
    (GOOD, 2 ** 62, (3, 5), (5, 1)), (GOOD, 0, (3, 5), (2 ** 62, 1)), (GOOD, 0, (3, 5), (2 ** 70, 1)),
    (GOOD, 0, (3, 5), None), (GOOD[:-1], 0, (3, 5), (5, 1)), (None, 0, (3, 5), (5, 1)),
    (GOOD.replace(b'K\x0f', b'\x8a\x05\0\0\0\0\x10'), 0, (3, 5), (5, 1)),         # claims 2^36 values
    (pickled_storage(torch.arange(15)), 0, (3, 5), (5, 1)), (pickled_storage(torch.ones(15).half()), 0, (3, 5), (5, 1)),
    (pickled_storage(torch.full((15,), math.nan)), 0, (3, 5), (5, 1)), (zipped(torch.ones(3, 5)), 0, (3, 5), (5, 1))])
def test_a_tensor_that_is_not_what_and_where_it_says_is_refused(data, offset, size, stride, tmp_path):
    sentence = refusal(tmp_path, tensor_of(data, offset, size, stride))
    assert 'G.mapping.fc0.weight' in sentence and '(3, 5)' in sentence or 'is damaged' in sentence


def doubled(x, times=64):
    for _ in range(times):
        x = (x, x)
    return x


def odd(s, path, value=None):
    """Set, or with no value delete, an entry of a snapshot: odd(s, 'G.mapping:parameters.w', 1)."""
    net, _, path = path.partition('.')
    module, _, path = path.partition(':')
    *place, key = path.split('.')
    target = s[net][module]
    for part in place:
        target = target[part] if isinstance(target, dict) else getattr(target, part)
    if value is None:
        del target[key]
    else:
        target[key] = value


@pytest.mark.parametrize('path, value, words', [
    ('G.mapping.fc1:parameters.bias', None, 'lacks G.mapping.fc1.bias'),
    ('D.b8.skip:parameters.weight', None, 'lacks D.b8.skip.weight'),
    ('G_ema.synthesis.b8.conv0:buffers.noise_const', None, 'lacks G_ema.synthesis.b8.conv0.noise_const'),
    ('D.b8.conv0:parameters.gain', values(1), 'has D.b8.conv0.gain'),
    ('D.b8:modules.conv2', conv(5, 5, 3), 'has a part D.b8.conv2'),
    ('G.synthesis:modules.L0_36_512', conv(5, 5, 3), 'has a part G.synthesis.L0_36_512'),
    ('G.synthesis.b8.conv1:parameters.bias', values(5), 'has G.synthesis.b8.conv1.bias as something else than'),
    ('D.b4.mbstd:parameters.w', values(1), 'has D.b4.mbstd.w'),
    ('G.:kwargs.synthesis_kwargs.architecture', 'resnet', 'another architecture than skip'),
    ('D.:kwargs.architecture', 'skip', 'has arch skip'),
    ('D.:kwargs.block_kwargs.activation', 'relu', 'has a Discriminator with activation relu'),
    ('G_ema.:kwargs.mapping_kwargs.lr_multiplier', .1, 'has a Generator with lr_multiplier 0.1'),
    ('G.:kwargs.synthesis_kwargs.resample_filter', [1, 2, 1], 'has a Generator with resample_filter'),
    ('G.:kwargs.magnitude_ema_beta', .999, 'has a Generator with magnitude_ema_beta 0.999'),
    ('G_ema.:kwargs.mapping_kwargs.num_layers', 3, 'G_ema of another configuration'),
    ('D.:kwargs.img_resolution', 16, 'a G and a D of different img_resolution'),
    ('D.:kwargs.c_dim', 3, 'different c_dim'), ('D.:kwargs.channel_max', 5, 'different channel_max'),
    ('G.:kwargs.synthesis_kwargs.channel_base', 4, 'has ch_g 4'),
    ('G.:kwargs.img_resolution', 12, 'no power of 2'), ('G.:kwargs.img_resolution', 4, 'has res 4'),
    ('G.:kwargs.img_resolution', 2 ** 40, 'has res'), ('G.:kwargs.img_channels', '3', 'has colors 3'),
    ('G.:kwargs.img_channels', 1, 'has images of 1 channels'),
    ('G.:kwargs.img_resolution', doubled(8), "has res <class 'tuple'>"),
    ('G.:kwargs.mapping_kwargs.num_layers', 10 ** 9, 'has mapping 1000000000'),
    ('G.:kwargs.c_dim', doubled(0), "has classes <class 'tuple'>"), ('G.:kwargs.z_dim', 5., 'has z_dim 5.0'),
    ('G.:kwargs.z_dim', True, 'has z_dim True'), ('G.:kwargs.c_dim', -1, 'has classes -1'),
    ('D.:kwargs.epilogue_kwargs.mbstd_group_size', 0, 'has group 0'), ('G.:kwargs.c_dim', 10 ** 6, 'is shorter than'),
    ('G.:kwargs.w_dim', None, 'is damaged'), ('G.mapping.fc0:meta.type', 'function', 'another version'),
    ('G.:meta.class_name', 'G_main', 'has a G_main built otherwise'), ('D.:meta.version', 7, 'another version'),
    ('G.:meta.class_name', '\x1b[2J\n', 'has a \\x1b[2J\\n built'),
    ('G.mapping.fc1:parameters.weight', 1, 'is damaged'), ('G.mapping:modules.fc1', 'fc', 'is damaged')])
def test_what_no_stylegan2_has_is_refused_in_a_sentence(path, value, words, tmp_path):
    original = snapshot()
    odd(original, path, value)
    if path in ('G.:kwargs.img_resolution', 'G.:kwargs.c_dim', 'G.:kwargs.img_channels'):
        odd(original, path.replace('G.', 'D.'), value), odd(original, path.replace('G.', 'G_ema.'), value)
    sentence = refusal(tmp_path, dumps(original))
    assert words in sentence and len(sentence) < 200


def test_positional_settings_a_missing_network_and_other_pickles_are_refused(tmp_path):
    original = snapshot()
    original['D'].args = (0, 8, 3, 'orig')
    assert 'a Discriminator built otherwise' in refusal(tmp_path, dumps(original))
    for x in ({k: v for k, v in snapshot().items() if k != 'G_ema'}, [1, 2], {'G': 1, 'D': 2, 'G_ema': 3}, None):
        assert 'is damaged, cut short or laid out otherwise' in refusal(tmp_path, dumps(x))


def test_a_snapshot_of_tensorflow_or_stylegan3_is_told_what_it_is(tmp_path):
    content = dumps((Network(), Network(), Network()))
    assert 'TensorFlow' in refusal(tmp_path, content) and 'legacy.py' in refusal(tmp_path, content)
    original = snapshot()                                         # its layers hold arrays
    original['G']['synthesis'].attributes['size'] = np.ones(2)
    assert 'StyleGAN3' in refusal(tmp_path, dumps(original))


@pytest.mark.parametrize('content', [b'', b'\x80', b'<!DOCTYPE html><html></html>', b'PK\x03\x04rest',
                                     b"cos\nsystem\n(S'true'\ntR.", b'\x80\x01N.', b'\x80\x06N.',
                                     b'version https://git-lfs.github.com/spec/v1\n'])
def test_what_is_no_pickle_of_python_3_is_refused(content, tmp_path):
    assert 'does not begin like a pickle' in refusal(tmp_path, content)


def test_what_is_not_there_or_cannot_be_written_is_one_sentence(tmp_path, capsys):
    source, pipe = write(tmp_path / 'in.pkl', dumps(snapshot())), str(tmp_path / 'pipe')
    os.mkfifo(pipe)
    for argv in ([str(tmp_path / 'none.pkl'), str(tmp_path / 'out.pt')], [str(tmp_path), str(tmp_path / 'out.pt')],
                 [source, str(tmp_path / 'none' / 'out.pt')], [source, f'{source}/out.pt'], [pipe, source]):
        with pytest.raises(SystemExit) as e:
            convert.main(argv)
        error = capsys.readouterr().err
        assert e.value.code == 2 and error.startswith(f'error: {tmp_path}') and error.count('\n') == 1
        missing = argv[0].endswith('none.pkl')
        assert ('github.com/NVlabs' in error) == missing       # where the snapshots are
    assert sorted(os.listdir(tmp_path)) == ['in.pkl', 'pipe']


def test_a_full_disk_leaves_the_old_checkpoint_as_it_was(tmp_path, monkeypatch, capsys):
    source, out = write(tmp_path / 'in.pkl', dumps(snapshot())), write(tmp_path / 'out.pt', b'old')

    def full(saved, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(SystemExit) as e:
        convert.main([source, out])
    assert e.value.code == 2 and capsys.readouterr().err == f'error: {out}: No space left on device\n'
    with open(out, 'rb') as f:
        assert f.read() == b'old' and sorted(os.listdir(tmp_path)) == ['in.pkl', 'out.pt']


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_snapshot_cut_short_anywhere_is_refused(protocol, tmp_path):
    content = dumps(snapshot(), protocol)
    for i in range(15):
        with pytest.raises(convert.Refused):
            convert.read_snapshot(write(tmp_path / 'in.pkl', content[:len(content) * i // 15]))
    with pytest.raises(convert.Refused):
        convert.read_snapshot(write(tmp_path / 'in.pkl', content[:-1]))


def test_a_snapshot_with_flipped_bytes_is_refused_or_read_but_nothing_else(tmp_path):
    content, rng = dumps(snapshot()), random.Random(0)
    small = [i for i in range(len(content)) if content[i:i + 1] not in b'\0']
    outcomes = collections.Counter()
    for _ in range(30):
        changed = bytearray(content)
        for i in rng.sample(small, 3):
            changed[i] = rng.choice((rng.randrange(256), *b'Rb\x93\x81ceuhj'))
        try:
            convert.read_snapshot(write(tmp_path / 'in.pkl', bytes(changed)))
            outcomes['read'] += 1
        except convert.Refused:
            outcomes['refused'] += 1
    assert outcomes['refused'] > 10 and sorted(os.listdir(tmp_path)) == ['in.pkl']


def test_a_small_file_takes_little_memory_and_no_deep_recursion(tmp_path, monkeypatch):
    for content in (b'}r\xff\xff\xff\x7f.',                     # a memo of 2^31 places
                    b'\x8e' + struct.pack('<Q', 2 ** 60) + b'a.', b'\x95' + struct.pack('<Q', 2 ** 60) + b'N.',
                    b'N' + b'\x85' * 200000 + b'.'):              # nested 200,000 deep
        assert 'is damaged' in refusal(tmp_path, b'\x80\x04' + content)
    for x in (doubled('path'), {'path': doubled('path')}):
        assert 'is damaged' in refusal(tmp_path, dumps({**snapshot(), 'training_set_kwargs': x}))
    monkeypatch.setattr(convert, 'MOST_OPCODES', 1000)
    assert refusal(tmp_path, b'\x80\x04' + b'}' * 5000) == 'has 1000 opcodes, which a StyleGAN2 snapshot does not need'


def test_modules_that_hold_themselves_are_refused(tmp_path):
    original = snapshot()
    loops = original['G']['mapping'].modules
    for _ in range(60):
        loops = {'fc0': Persistent('FullyConnectedLayer', modules=loops), 'fc1': Persistent('F', modules=loops)}
    original['G']['mapping'].modules = loops
    assert 'has a part G.mapping.fc0.fc0' in refusal(tmp_path, dumps(original))


def test_the_script_refuses_a_call_in_the_words_of_its_documentation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write('in.pkl', b'\x80\x02cos\nsystem\n' + string('touch ran') + b'\x85R.')
    monkeypatch.setattr(sys, 'argv', ['convert_nvidia.py', 'in.pkl', 'out.pt'])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(convert.__file__, run_name='__main__')
    assert e.value.code == 2 and os.listdir() == ['in.pkl']
    assert capsys.readouterr().err == (
        'error: in.pkl: asks for os.system, which a StyleGAN2 snapshot does not need: not read\n')
