"""What training left on the disk: runs, the findings of their tickets, their cost; and what was published of the same.

Use:
    import results
    for run in results.collect('runs'):
        print(run['label'], run['state'], run['images'], run['seconds'])

Reads args.json, log.jsonl, metrics.jsonl and tickets, whole or torn; what cannot be read is left out.
"""
import contextlib
import csv
import glob
import importlib
import json
import os
import pickle
import re

import loop

SCORED = {'step', 'score', 'all', 'all_std', 'choose', 'report', 'report_std', 'protocol'}     # of a line that counts
FURTHER = 'is', 'kid', 'prdc', 'copy'                           # each with its own entry in the protocol
PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'docs', 'paper.csv')          # published numbers
USUAL = dict(steps=50000, batch=64, d_steps=5, g_batch=64, lr_g=2e-4, lr_d=2e-4, betas=[0., .9], adam_eps=1e-8,
             ema=.999, ema_start=0, mirror=False, res=32, loss='hinge', subset='random', adv_step=.01, adv_pgd=1,
             adv_eps=None, adv_lambda_g=1., adv_lambda_d=1., adv_cut_g=1, adv_cut_d=-1, adv_sign='adversary',
             narrow=False, aug_on='both', lecam=None)    # of a published run, but for its preset
WIDTHS = {'sngan': (256, 128), 32: (96, 96), 64: (80, 80), 128: (96, 96)}


def records(path):
    """The records of a .jsonl file that are whole and have a step."""
    found = []
    if os.path.isfile(path):
        with open(path, errors='replace') as f:
            for line in f:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return [r for r in found if isinstance(r, dict) and 'step' in r]


def read_json(path):
    """A file's value, None where there is no whole one."""
    with contextlib.suppress(OSError, ValueError), open(path) as f:
        return json.load(f)


def read(directory):
    """A run {path, flags, model, log, scores, label, sparsity, images, seconds, ...}, None without its args.json.

    images: that D has seen. seconds: of all ranks; a resumed process counts from 0 again, at another start."""
    saved = read_json(f'{directory}/args.json')
    if not saved or 'args' not in saved:
        return None
    flags, log = saved['args'], records(f'{directory}/log.jsonl')
    scores = [s for s in records(f'{directory}/metrics.jsonl') if SCORED <= s.keys()]
    scores = [s for s in scores if s['score'] == scores[-1]['score']]
    sparsity = {n: round(log[-1].get(f'sparsity_{n}', 0.), 4) if log else 0. for n in 'GD'}
    versions, ends = saved.get('versions', {}), {line.get('start'): line.get('time', 0.) for line in log}
    run = {'path': directory, 'flags': flags, 'log': log, 'scores': scores, 'sparsity': sparsity,
           'model': saved['identity']['model'], 'label': label(flags, sparsity), 'seed': flags.get('seed', 0),
           'images': log[-1].get('kimg', 0.) * 1000 if log else 0.,
           'seconds': sum(ends.values()) * versions.get('ranks', 1),
           'device': {'cpu': 'CPU'}.get(versions.get('device'), versions.get('device'))}
    return {**run, 'state': state(run), 'finished': bool(log) and log[-1]['step'] >= flags['steps']}


def state(run):
    """What is wrong with a run, '' for nothing: 'unfinished at step 20 of 50'."""
    steps, step = run['flags']['steps'], run['log'][-1]['step'] if run['log'] else 0
    if step < steps:
        return f'unfinished at step {step} of {steps}'
    if not os.path.exists(f"{run['path']}/last.pt"):
        return 'failed: no last.pt'
    if not run['scores']:
        return 'no score'
    scored = run['scores'][-1]['step']
    return '' if scored >= steps else f'scored at step {scored} of {steps}'


def pick(paths):
    """The best run of directories that hold the same training: a whole one, else the first that there is, else None."""
    runs = [r for r in map(read, paths) if r]
    return next((r for r in runs if not r['state']), runs[0] if runs else None)


def collect(folder):
    """Every run below a folder that has a log line, dense ones first."""
    paths = sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True))
    runs = [r for r in map(read, map(os.path.dirname, paths)) if r and r['log']]

    def order(r):                                              # dense first, then by sparsity, plain before augmented
        f, pruned = r['flags'], max(r['sparsity'].values())
        return f['data'], pruned, f['aug'] != 'none', f['advaug'] != 'none', f['seed'], f['steps']
    return sorted(runs, key=order)


def label(flags, sparsity):
    """What a run trained: 'ticket 36.00 % + DiffAug + AdvAug'."""
    pruned = max(sparsity.values())
    words = [f'ticket {pruned:.2%}' if pruned else 'dense']
    words += [word for key, word in (('reinit', 'other weights'), ('small_dense', 'narrow'), ('slim', 'slimming'))
              if flags.get(key)]
    if flags['aug'] != 'none':
        fixed = f" p {flags['ada_p']:g}" if flags.get('ada_p') is not None else ''
        on = {'real': ' on reals only', 'd': " in D's updates only"}.get(flags.get('aug_on'), '')
        words.append({'diffaug': 'DiffAug', 'ada': 'ADA'}[flags['aug']] + fixed + on)
    words += ['R_LC'] if flags.get('lecam') else []
    words += [f"margin {flags['margin']:g}"] if flags.get('margin', 1) != 1 else []
    words += [flags['transfer']] if flags.get('transfer') else []
    if flags['advaug'] != 'none':
        kind = 'noise' if flags['adv_noise'] else 'AdvAug'
        words.append(kind if flags['advaug'] == 'gd' else f"{kind} {flags['advaug'].upper()}")
    return ' + '.join(words) + (f", seed {flags['seed']}" if flags['seed'] else '')


def value(words, flag, default=None):
    return words[words.index(flag) + 1] if flag in words else default


def finding(words, out=None):
    """What a find_ticket command makes, from its words: {out, ticket, method, rounds, steps, ...}."""
    like = re.search(r'ticket(\d+)\.pt$', value(words, '--like') or '')            # whose rounds they are, too
    return {'out': os.path.normpath(value(words, '--out') or out), 'method': value(words, '--method', 'imp'),
            'ticket': os.path.normpath(value(words, '--ticket', 'ticket.pt')), 'like': value(words, '--like'),
            'rounds': int(value(words, '--rounds', like[1] if like else 5)), 'init_from': value(words, '--init-from'),
            'steps': int(value(words, '--steps', 0))}


def findings(folder):
    """{directory and ticket: finding} of all below a folder, by the commands that they were made with."""
    found = {}
    for path in sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True)):
        saved = read_json(path)
        if saved and 'args' not in saved and 'find_ticket' in saved.get('command', ''):
            f = finding(saved['command'].split(), os.path.dirname(path))
            found[f['out']] = found[f['ticket']] = f
    return found


def trainings(method, rounds):
    """How many trainings a ticket takes."""
    return {'imp': rounds, 'oneshot': 1, 'slimming': 1, 'early-bird': 1}.get(method, 0)


def origin(mask, found):
    """(finding, round) of a ticket; (None, 0) of none and of a dense one, (None, None) where it is not among these."""
    folder, name = os.path.split(os.path.normpath(mask or 'ticket0.pt'))
    if m := re.fullmatch(r'ticket(\d+)\.pt', name):
        if folder in found or m[1] == '0':
            return found.get(folder), int(m[1])
    f = found.get(os.path.join(folder, name))
    return f, f['rounds'] if f else None


def before(flags, found):
    """Directories of the trainings that a run has used: of its ticket, of another that this one is like, and of the
    weights that it starts from; None among them for those that are not known."""
    f, k = origin(flags.get('mask'), found)
    paths, start = [None] * (k is None), flags.get('init_from') or f and f['init_from']
    if k and f:
        paths += [f"{f['out']}/early"] * os.path.isdir(f"{f['out']}/early")        # of --rewind
        paths += [f"{f['out']}/round{i}" for i in range(trainings(f['method'], k))]
        paths += before({'mask': f['like']}, found) if f['like'] else []
    if start:
        run = read(os.path.dirname(start))
        paths += [run['path'], *before(run['flags'], found)] if run else [None]
    return list(dict.fromkeys(paths))


def masks(path):
    """{G, D} masks of a ticket file, None without a whole one."""
    with contextlib.suppress(OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
        return loop.load(path)['mask']


# ---- scores

def protocol(run):
    """What must be equal for two scores to be compared: model, size and the recorded protocol without the sparsity."""
    if not run['scores']:
        return None
    p = {k: v for k, v in run['scores'][-1]['protocol'].items() if k not in ('sparsity', 'seed', *FURTHER)}
    n_ref = {k: v for k, v in p['n_ref'].items() if k != 'train'}   # where copies are sought
    return json.dumps({**p, 'n_ref': n_ref, 'model': run['model'], 'res': run['flags']['res']}, sort_keys=True)


def phrase(runs):
    """The protocol of scored runs in words, with all values of what differs between them."""
    facts = [{**s['protocol'], **s['protocol']['n_ref'], 'name': s['score'], 'model': r['model'],
              'res': r['flags']['res'], 'weights': s['protocol']['weights'][:8]}
             for r in runs for s in r['scores'][-1:]]
    v = {k: ' / '.join(dict.fromkeys(str(f.get(k, '–')) for f in facts)) for k in set().union(*facts)}
    return (f"**{v['name']}** of {v['model']} at {v['res']} px, lower is better: {v['n_gen']} generated images, "
            f"{v['repeats']} sets of z, against {v['ref']} (last: all {v['all']}, best: chosen on {v['choose']}, "
            f"reported on the other {v['report']}); {v['features']}, resize {v['resize']}, weights {v['weights']}; "
            f"{v['quantise']}; {v['generator']}; share of data {v['frac']}"
            + (f"; classes {v['classes']}" if 'classes' in v else ''))


# ---- published numbers

def published(run):
    """The lines of docs/paper.csv that a run repeats."""
    f = run['flags']
    adv = {None: f['advaug'], .01: 'noise'}.get(f['adv_noise']) if f['advaug'] in ('none', 'gd') else None
    aug = f['aug'] + '+lecam' * bool(f.get('lecam'))
    pruned = 100 * max(run['sparsity'].values())
    other = any(map(f.get, ('reinit', 'small_dense', 'slim'))) or f.get('margin', 1) != 1
    other |= bool(f.get('init_from')) and not f.get('transfer')
    if other or not os.path.exists(PAPER):                     # report.py was copied without it
        return []
    with open(PAPER) as file:
        lines = [line for line in csv.DictReader(file) if f['frac'] == float(line['frac'])
                 and (run['model'], f['data'], aug, adv, f.get('transfer') or '')
                 == (*map(line.get, ('model', 'data', 'aug', 'advaug', 'transfer')),)]
    return [line for line in lines if any(abs(pruned - float(s)) < .1 for s in line['sparsity'].split('|'))]


def unlike(run, line):
    """What keeps a published number from standing beside that of a run: words, none if all is the same."""
    f, score = run['flags'], run['scores'][-1]
    p, data, model, its = score['protocol'], f['data'], run['model'], line['table'] == 'DiffAugment'
    presets, few = importlib.import_module(f'train_{model}').PRESETS, model == 'stylegan2' and 'cifar' not in data
    if model == 'stylegan2':
        usual = presets.get(f.get('preset'), {})
    else:
        usual = {**USUAL, **presets.get(data, {})}
        usual['steps'] *= 2 if f['aug'] == 'diffaug' and model == 'biggan' else 1
        usual['ch_g'], usual['ch_d'] = WIDTHS.get(model) or WIDTHS[usual['res']]
    n_gen = 50000 if data == 'imagenet' else 5000 if few else 10000
    same = {'features': score['score'] == 'FID' and p['resize'] == 'half-pixel bilinear 299',
            'samples': p['n_gen'] == n_gen, 'reference': p['ref'] == f'{data}-{"train" if few else "test"}',
            'schedule': score['step'] == usual.get('steps') and not (its and data == 'imagenet'),    # TPUs, batch 2,048
            'settings': all(f[k] == v for k, v in usual.items() if k in f and k not in ('steps', 'aug'))
            and (model != 'stylegan2' or its)}                 # the paper used another network and other losses
    return [word for word, equal in same.items() if not equal]


def theirs(run):
    """The published scores of a run as a cell: '22.37 ± 0.1 (Table 3)', or in grey with what differs."""
    cells = []
    for line in published(run):
        words, spread = unlike(run, line), f" ± {line['fid_std']}" if line['fid_std'] else ''
        text = f"FID {line['fid']}{spread}" + (f", IS {line['is']}" if line['is'] else '') + f" ({line['table']})"
        cells.append(f'<span style="color:gray">{text}; other {", ".join(words)}</span>' if words else text)
    return '; '.join(cells) or '–'
