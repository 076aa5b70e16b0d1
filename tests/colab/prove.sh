#!/bin/sh
# Quickstart and notebook 01 as Colab meets them: an empty folder, a fresh environment with only what
# Colab preinstalls, the repository's address pointed at a clone of this checkout. Run by hand:
#   TORCH=torch==2.13.0+cpu tests/colab/prove.sh [PYTHON]      writes results/colab/log.txt
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tag=v$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/surgery_lib/__init__.py")

git clone -q "$root" "$work/clone"
git -C "$work/clone" tag -f "$tag" >/dev/null
"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install -q --disable-pip-version-check "${TORCH:-torch}" numpy pandas matplotlib \
    ipykernel papermill
mkdir "$work/empty" && cd "$work/empty"
cp "$root/notebooks/quickstart.ipynb" "$root/notebooks/01_probe.ipynb" .

export MODEL_SURGERY_REPOSITORY="$work/clone" MODEL_SURGERY_HEADLESS=1 PATH="$work/env/bin:$PATH"
export JUPYTER_PATH="$work/env/share/jupyter" SURGERY_MIRROR="" HF_HUB_OFFLINE=1
freeze() { "$work/env/bin/python" -m pip list --format=freeze | grep -E '^(torch|numpy)=='; }
{
    echo "before: $(freeze | tr '\n' ' ')"
    start=$(date +%s)
    papermill quickstart.ipynb out.ipynb -p profile patient --no-progress-bar >quick.log 2>&1 \
        || { tail -5 quick.log; exit 1; }
    echo "quickstart.ipynb: ended after $(($(date +%s) - start)) s, installation included"
    start=$(date +%s)
    papermill 01_probe.ipynb out01.ipynb --no-progress-bar >probe.log 2>&1 \
        || { tail -5 probe.log; exit 1; }
    echo "01_probe.ipynb: ended after $(($(date +%s) - start)) s"
    echo "after:  $(freeze | tr '\n' ' ')"
    (cd model-surgery/build/quickstart && find . -type f | sort | grep -v logs/)
} | tee "$work/log.txt"
mkdir -p "$root/results/colab" && cp "$work/log.txt" "$root/results/colab/log.txt"
