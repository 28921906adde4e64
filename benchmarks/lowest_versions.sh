#!/bin/sh
# Run the tests with the lowest versions that setup.cfg admits: sh benchmarks/lowest_versions.sh [FOLDER] [PYTEST OPTIONS]
# Makes the environment in FOLDER/venv (default: a temporary folder), with the oldest Python that setup.cfg admits, and
# writes the installed versions to FOLDER/versions.txt. Needs uv; the packages take about 8 GB.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] && shift
python=$(sed -n 's/^python_requires = >=//p' "$root/setup.cfg")
mkdir -p "$folder"
uv venv --quiet --clear --python "$python" "$folder/venv"
uv pip install --quiet --python "$folder/venv/bin/python" --resolution lowest-direct "$root[docs,test]"
uv pip uninstall --quiet --python "$folder/venv/bin/python" progeo
uv pip freeze --python "$folder/venv/bin/python" > "$folder/versions.txt"
cat "$folder/versions.txt"
cd "$root"
OMP_NUM_THREADS=1 PYTHONPATH=$root PATH=$folder/venv/bin:$PATH "$folder/venv/bin/python" -m pytest "$@"
