"""The published numbers that a run repeats, and what keeps a number from standing beside the run's own score.

Use:
    from paper import published
    from runs import collect
    for run in collect('runs'):
        if run['scores']:
            print(run['label'], published.run_cell(run))

A number stands beside ours only where data, features, samples, reference and schedule are the same.  Where
anything differs, the number is grey and the difference is named.  In published.csv the table `DiffAugment` is
of Zhao et al. 2020; all other tables are of the paper on tickets.  The last column says where a number stands.
"""
import csv
import importlib
import os

from report import last_scores
from runs import ticket_origin

CSV = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'published.csv')
NOTE = ('Published: FID of the 2015 Inception, 10,000 images (ImageNet, FFHQ: 50,000, few-shot: 5,000) against '
        'the validation split (few-shot: training images, FFHQ: all images), of a checkpoint chosen by its '
        'score; grey where ours differs in what is named.')

# The flags of a published run of SNGAN or BigGAN, where the preset of its data set has no other.
USUAL = {
    'steps': 50000, 'batch': 64, 'd_steps': 5, 'g_batch': 64, 'loss': 'hinge',
    'lr_g': 2e-4, 'lr_d': 2e-4, 'betas': [0., .9], 'adam_eps': 1e-8, 'ema': .999, 'ema_start': 0,
    'res': 32, 'mirror': False, 'subset': 'random', 'narrow': False, 'aug_on': 'both', 'lecam': None,
    'adv_step': .01, 'adv_pgd': 1, 'adv_eps': None, 'adv_sign': 'adversary',
    'adv_lambda_g': 1., 'adv_lambda_d': 1., 'adv_cut_g': 1, 'adv_cut_d': -1}

# DiffAugment's StyleGAN2 on CIFAR, where its recipe for FFHQ has other numbers
DIFFAUGMENT_CIFAR = {'res': 32, 'ch_g': 4096, 'ch_d': 4096, 'r1': .1, 'ema_kimg': 1000.}

# Channels of G and D: of SNGAN, and of BigGAN by resolution.
WIDTHS = {'sngan': (256, 128), 32: (96, 96), 64: (80, 80), 128: (96, 96)}


def lines_of(run):
    """The lines of published.csv with the model, data, share, augmentation, AdvAug and sparsity of a run."""
    flags = run['flags']
    if is_of_our_own(flags):
        return []

    aug = f"{flags['aug']}+lecam" if flags.get('lecam') else flags['aug']
    ours = {'model': run['model'], 'data': flags['data'], 'aug': aug, 'advaug': advaug_word(flags),
            'transfer': flags.get('transfer') or ''}
    pruned = 100 * max(run['sparsity'].values())

    lines = []
    with open(CSV) as f:
        for line in csv.DictReader(f):
            if float(line['frac']) != flags['frac'] or any(line[key] != word for key, word in ours.items()):
                continue
            sparsities = line['sparsity'].split('|')           # a line may stand for several
            if any(abs(pruned - float(s)) < .1 for s in sparsities):
                lines.append(line)
    return lines


def is_of_our_own(flags):
    """Whether flags make a training that no paper has published."""
    if flags.get('reinit') or flags.get('small_dense') or flags.get('slim'):
        return True
    if flags.get('margin', 1) != 1:
        return True
    return bool(flags.get('init_from')) and not flags.get('transfer')


def advaug_word(flags):
    """AdvAug in the words of published.csv: none, gd, or noise of 0.01; None for what is not published."""
    if flags['advaug'] not in ('none', 'gd'):
        return None
    if flags['adv_noise'] is None:
        return flags['advaug']
    return 'noise' if flags['adv_noise'] == .01 else None


def usual_flags(run, line):
    """The flags of the published run, as far as they are known."""
    flags, model = run['flags'], run['model']
    presets = importlib.import_module(f'train_{model}').PRESETS
    if model == 'stylegan2' and line['table'] == 'DiffAugment':
        return diffaugment_flags(flags, presets)
    if model == 'stylegan2':
        usual = dict(presets.get(flags.get('preset'), {}))
        if flags.get('preset') == 'paper' and flags['aug'] == 'diffaug':
            usual['steps'] *= 2
        return usual

    usual = {**USUAL, **presets.get(flags['data'], {})}
    if model == 'biggan' and flags['aug'] == 'diffaug':
        usual['steps'] *= 2
    usual['ch_g'], usual['ch_d'] = WIDTHS['sngan' if model == 'sngan' else usual['res']]
    return usual


def diffaugment_flags(flags, presets):
    """The flags of DiffAugment's StyleGAN2 on the data of a run; presets: those of train_stylegan2.py."""
    data = flags['data']
    if 'cifar' not in data:
        name = 'large'
        if data.startswith('100-shot'):
            name = 'fewshot'
        if data.startswith('AnimalFace'):
            name = 'animalface'
        return presets[name]

    usual = {**presets['large'], **DIFFAUGMENT_CIFAR}
    if flags['aug'] == 'diffaug':
        usual['aug_policy'] = 'color,cutout' if flags['frac'] == 1 else 'color,translation,cutout'
    return usual


def published_protocol(model, data):
    """The number of samples and the reference of the published scores."""
    if data == 'imagenet':
        return 50000, f'{data}-test'
    if data.startswith(('ffhq', 'lsun')):
        return 50000, f'{data}-all'
    if model == 'stylegan2' and 'cifar' not in data:
        return 5000, f'{data}-train'                           # few-shot
    return 10000, f'{data}-test'


def differences(run, line):
    """In what a run and a published line differ, in words; empty where the numbers may be compared."""
    flags, data, model = run['flags'], run['flags']['data'], run['model']
    score = run['scores'][-1]
    protocol = score['protocol']
    of_diffaugment = line['table'] == 'DiffAugment'
    usual = usual_flags(run, line)
    samples, reference = published_protocol(model, data)

    words = []
    if score['score'] != 'FID' or protocol['resize'] != 'half-pixel bilinear 299':
        words.append('features')

    if protocol['n_gen'] != samples:
        words.append('samples')
    if protocol['ref'] != reference:
        words.append('reference')

    # DiffAugment trained on ImageNet with TPUs and batches of 2,048.
    if score['step'] != usual.get('steps') or of_diffaugment and data == 'imagenet':
        words.append('schedule')

    # The paper on tickets used another StyleGAN2 and other losses.
    compared = usual.keys() & flags.keys() - {'steps', 'aug'}
    same = all(flags[key] == usual[key] for key in compared)
    if not same or model == 'stylegan2' and not of_diffaugment:
        words.append('settings')
    return words


# ---- in the rows of a page

def is_published_method(row):
    """Whether a row trains a dense network or a ticket of iterative pruning from random weights."""
    run, _ = last_scores(row)[0]
    finding, _ = ticket_origin(run['flags'].get('mask'), row['findings'])
    return not finding or finding['method'] == 'imp' and not finding['init_from']


def published_cell(row):
    """'FID 22.37 ± 0.1 (Table 3)', in grey with what differs; '–' without a published number."""
    if not is_published_method(row):
        return '–'
    run, _ = last_scores(row)[0]
    return run_cell(run)


def run_cell(run):
    """The published scores of what a run repeats, as a cell."""
    cells = []
    for line in lines_of(run):
        text = f"FID {line['fid']}"
        if line['fid_std']:
            text += f" ± {line['fid_std']}"
        if line['is']:
            text += f", IS {line['is']}"
        text += f" ({line['table']})"

        words = differences(run, line)
        if words:
            text = f'<span style="color:gray">{text}; other {", ".join(words)}</span>'
        cells.append(text)
    return '; '.join(cells) or '–'


def published_points(row):
    """[(FID, whether something differs)] for a figure, where ours is a FID, too."""
    pairs = last_scores(row)
    if not pairs or pairs[0][1]['score'] != 'FID' or not is_published_method(row):
        return []
    run, _ = pairs[0]
    return [(float(line['fid']), bool(differences(run, line))) for line in lines_of(run)]
