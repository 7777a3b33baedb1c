#!/usr/bin/env bash
# A virtual environment with hymba_ops installed from this clone. Uses the torch of $PYTHON where that has one of at least
# 2.11 (a GPU build, say); else installs torch 2.13.0 into the environment. `make test` and `make bench` run this.
#
#   tools/setup_env.sh [environment folder, default .venv] [extras, default test]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${1:-.venv}
extras=${2:-test}

has_torch='import torch; assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 11)'
site_packages=""
if "$python" -c "$has_torch" 2>/dev/null; then
  echo "== using the torch of $python"
  site_packages=--system-site-packages
fi
[ -x "$venv/bin/python" ] || "$python" -m venv $site_packages "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
if ! "$venv/bin/python" -c "$has_torch" 2>/dev/null; then
  echo "== installing torch 2.13.0"
  "$venv/bin/pip" install -q torch==2.13.0
fi
echo "== building and installing hymba_ops (about a minute)"
# What pyproject.toml asks for, in the environment itself: an isolated build would install torch a second time.
"$venv/bin/pip" install -q "setuptools>=70" wheel ninja numpy
"$venv/bin/pip" install -q --no-build-isolation ".[$extras]"
