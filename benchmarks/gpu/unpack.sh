#!/bin/sh
# Checks the bundle beside this script, joins its parts and unpacks it:
#   sh unpack.sh DIRECTORY
set -eu
mkdir -p "${1:?name a directory to unpack into}"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")"
sha256sum --check --quiet SHA256SUMS
if command -v xz > /dev/null; then
  cat gatedfwa-gpu.tar.xz* | tar -xJ -C "$target"
else
  cat gatedfwa-gpu.tar.xz* |
    python3 -c 'import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1])' "$target"
fi
