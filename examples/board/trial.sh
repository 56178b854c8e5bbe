#!/bin/sh
# Three tracks, five entries, one of them dishonest, and a sixth that is forged from the first: trained, packed, checked,
# run again and ranked, with the commands that docs/board.md names.
#
#     sh examples/board/trial.sh [FOLDER]        # some minutes on two cores (JOBS=2); what is done is not done again
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-runs/board-trial}
mkdir -p "$folder/entries"
cp "$here"/*.py "$folder"
cd "$folder"
jobs=${JOBS:-2}

enter() { # NAME TRACK, and the entry's own tables on stdin: an experiment, ten runs, one file
    rlhf-env board --track "$2" | sed '/^\[agent\]$/,/^$/d' > "$1.toml"
    cat >> "$1.toml"
    echo "$1: ten runs of $2"
    train="test -f runs/$1/{}/evaluation.json || rlhf-env train $1.toml --resume --seed {} --out runs/$1/{}"
    mkdir -p "runs/$1"
    seq 0 9 | xargs -P "$jobs" -I '{}' sh -c "$train > runs/$1/{}.txt 2>&1 || tail -n 3 runs/$1/{}.txt"
    rlhf-env submit "runs/$1"/[0-9] --track "$2" --name "$1" --out "entries/$1.entry.json"
}

board() { # ends with status 2 where an entry is refused, as two of these are
    status=0
    rlhf-env board entries --out board --jobs "$jobs" "$@" || status=$?
    test "$status" = 2
}

enter quick least-tokens << 'END'
[agent]
name = "ppo"
lr = 0.01
epochs = 4
[stopping.reached]
function = "reached.py:Reached"
level = 0.8
END

enter plain least-tokens << 'END'
[agent]
name = "reinforce"
lr = 0.01
END

enter sums least-labels << 'END'
[agent]
name = "ppo"
lr = 0.01
epochs = 4
[stopping.reached]
function = "reached.py:Reached"
level = 0.25
END

enter seconds least-seconds << 'END'
[agent]
name = "ppo"
lr = 0.01
[stopping.reached]
function = "reached.py:Reached"
level = 0.8
END

enter peeking least-tokens << 'END' # a budget that is spent elsewhere
[agent]
function = "peeking.py:Peeking"
lr = 0.01
epochs = 4
[stopping.reached]
function = "reached.py:Reached"
level = 0.8
END

# A wrong hash: code that is not what the runs recorded.
sed -e 's/"name": "quick"/"name": "edited"/' -e 's/gold >= self.level/gold >= 0.0/' entries/quick.entry.json > entries/edited.entry.json

echo "Without any of their code:"
board
echo "Run again:"
board --trust
