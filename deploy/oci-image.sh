#!/usr/bin/env bash
# oci-image.sh [--user UID:GID] REFERENCE IMAGE.tar FILE[=PATH]...: makes a container image without a container runtime.
#
# The image has one layer, which deploy/image-root.sh fills; the first FILE is what a container runs, as root or as UID:GID.
# Owner, mode and time of all that is in it are fixed, so the same files give the same image, byte by byte.
#
# The result is an OCI layout in a tar: `ctr --namespace k8s.io images import`, `skopeo copy oci-archive:`, `podman load`.
# deploy/images.sh makes Weft's own images with it.
set -euo pipefail

user=
if [ "${1:-}" = --user ] && [ $# -ge 2 ]; then
  user="\"User\":\"$2\","
  shift 2
fi
[ $# -ge 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
reference=$1 image=$2
shift 2
case $reference in
  */*:*) ;;
  *) echo "oci-image: $reference is not of the form <registry>/<name>:<tag>" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root layout=$work/layout
mkdir -p "$layout/blobs/sha256"

"$(dirname "$0")/image-root.sh" "$root" "$@"
# What a container runs: where the first file went.
case $1 in
  *=*) entry=${1#*=} ;;
  *) entry=/usr/local/bin/$(basename "$1") ;;
esac

pack() { tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar --directory "$1" .; }

# blob FILE: moves it to the place that its digest names; prints digest and size, as a descriptor has them.
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  size=$(stat -c %s "$1")
  mv "$1" "$layout/blobs/sha256/$digest"
  printf '"digest":"sha256:%s","size":%d' "$digest" "$size"
}

case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture=$(uname -m) ;;
esac
pack "$root" >"$work/layer"
layer=$(blob "$work/layer")
diff_id=$(grep -o 'sha256:[0-9a-f]*' <<<"$layer")
path=/usr/local/bin
printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":{%s"Env":["PATH=%s"],"Entrypoint":["%s"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
  "$architecture" "$user" "$path" "$entry" "$diff_id" >"$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
  "$config" "$layer" >"$work/manifest"
manifest=$(blob "$work/manifest")
# The first annotation is the specification's, the second is what containerd names the image by.
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s","io.containerd.image.name":"%s"}}]}' \
  "$manifest" "$architecture" "${reference##*:}" "$reference" >"$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
find "$layout" -type d -exec chmod 755 {} +
find "$layout" -type f -exec chmod 644 {} +
pack "$layout" >"$work/image"
mv "$work/image" "$image"
