#!/usr/bin/env bash
# Builds weft-cni as a static binary: it runs on the host, whatever libraries (or C library) the host has.
# Usage: node-proxy/cni/build.sh [destination]. Prints where it is. Its objects lie in a directory of their own, because other flags
# would make cargo build everything else again.
set -euo pipefail
cd "$(dirname "$0")/../.."
triple="$(uname -m)-unknown-linux-gnu"
target="${CARGO_TARGET_DIR:-$PWD/target}"
# With --target, RUSTFLAGS are for the binary and not for the build scripts of dependencies (proc-macro crates cannot be static).
RUSTFLAGS='-C target-feature=+crt-static' \
  cargo build --quiet --locked --profile small --target "$triple" --target-dir "$target/static" -p weft-cni >&2
binary="$target/static/$triple/small/weft-cni"
if [ -n "${1:-}" ]; then
  install -D -m 0755 "$binary" "$1"
  binary="$1"
fi
echo "$binary"
