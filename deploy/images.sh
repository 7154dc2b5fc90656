#!/usr/bin/env bash
# images.sh BINARIES OUTPUT [TAG [REGISTRY]]: packs what cargo built into BINARIES (such as target/release) as Weft's images:
# OUTPUT/{weft-control,weft-node,weft-echo}.tar, to be imported by `ctr --namespace k8s.io images import`.
# TAG is by default the version of the workspace, REGISTRY weft.local, as in the chart.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 4 ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
binaries=$1 output=$2
tag=${3:-$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -n 1)}
registry=${4:-weft.local}
mkdir -p "$output"

"$here/oci-image.sh" --user 65532:65532 "$registry/weft-control:$tag" "$output/weft-control.tar" "$binaries/weft-control"
# weft-node puts the plugin on the node, whose C library is not the image's.
case $(LC_ALL=C ldd "$binaries/weft-cni" 2>&1 || true) in
  *"statically linked"* | *"not a dynamic executable"*) ;;
  *) echo "images: $binaries/weft-cni is not linked statically" >&2; exit 1 ;;
esac
"$here/oci-image.sh" "$registry/weft-node:$tag" "$output/weft-node.tar" "$binaries/weft-node" "$binaries/weft-cni=/opt/weft/bin/weft-cni"
"$here/oci-image.sh" "$registry/weft-echo:$tag" "$output/weft-echo.tar" "$binaries/weft-echo"
