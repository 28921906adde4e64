#!/bin/sh
# Install the wheel into an empty environment, and use it as a new user does: sh benchmarks/wheel.sh [PYTHON ...]
# Each PYTHON is a version or a path (default: the oldest that setup.cfg admits). Needs uv; packages take about 6 GB,
# which uv shares between environments. Nothing of the checkout is read but the wheel that is built of it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[ $# -gt 0 ] || set -- "$(sed -n 's/^python_requires = >=//p' "$root/setup.cfg")"
uv build --quiet --out-dir "$folder/dist" "$root"
for python; do
    uv venv --quiet --clear --python "$python" "$folder/venv"
    uv pip install --quiet --python "$folder/venv/bin/python" "$folder"/dist/*.whl
    mkdir "$folder/empty"
    cd "$folder/empty"
    progeo=$folder/venv/bin/progeo
    "$progeo" demo --only_city --out toy --num_images 600 --image_size 64 --quiet
    "$progeo" train --config toy/tiny_resnet --data.train_folder toy/city/train --validation.folder toy/city/val \
        --out run --prompts.epochs 2 --training.epochs 1 --training.iterations_per_epoch 10 --quiet
    "$progeo" evaluate run --folder toy/city/test --out results --quiet
    "$progeo" index build run --folder toy/city/test/database --out city.index --quiet
    "$progeo" localize "$(find toy/city/test/queries -name '*.jpg' | sort | head -1)" --index city.index --quiet
    "$progeo" localize --help > /dev/null
    "$progeo" --print_completion bash | bash -n
    echo "$("$progeo" --version) works with $("$folder/venv/bin/python" --version), $(
        uv pip list --quiet --python "$folder/venv/bin/python" | awk '/^(torch|numpy|faiss-.pu) /{printf "%s %s ", $1, $2}')"
    cd "$folder"
    rm -rf "$folder/empty"
done
