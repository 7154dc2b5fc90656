#!/usr/bin/env bash
# render.sh [--check]: writes deploy/manifests/weft.yaml from the chart with its default values, or says whether it is what
# the chart renders. Needs helm: from $HELM, the PATH, or the cluster tools' cache.
set -euo pipefail
cd "$(dirname "$0")"

cached=${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}/cluster-tools/bin/helm
helm=${HELM:-$(command -v helm || echo "$cached")}
[ -x "$helm" ] || { echo "render: no helm on the PATH, in \$HELM, or at $cached" >&2; exit 1; }

render() {
  echo "# Rendered from deploy/helm/weft by deploy/render.sh with the default values; not to be edited."
  "$helm" template weft helm/weft --include-crds
}

rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
render >"$rendered"

case ${1-} in
  '') cp "$rendered" manifests/weft.yaml ;;
  --check)
    diff -u manifests/weft.yaml "$rendered" || {
      echo "render: deploy/manifests/weft.yaml is not what the chart renders: run deploy/render.sh" >&2
      exit 1
    }
    ;;
  *) echo "usage: $0 [--check]" >&2; exit 2 ;;
esac
