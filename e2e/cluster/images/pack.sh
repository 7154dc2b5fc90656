#!/usr/bin/env bash
# pack.sh NAME OUT.tar [FILE=/PATH]... [/PATH:LINK,LINK,...]... -- ENTRYPOINT...: makes an image in the OCI layout, as a tar, without Docker.
# FILE=/PATH puts a file there; /PATH:LINK,... makes links of those names beside it.
set -euo pipefail

name=$1 out=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root blobs=$work/layout/blobs/sha256
mkdir -p "$root/tmp" "$blobs"
chmod 1777 "$root/tmp"
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    *=*)
      install -D -m 755 "${1%%=*}" "$root${1#*=}" ;;
    *:*)
      for link in $(tr , ' ' <<<"${1#*:}"); do ln -sf "${1%%:*}" "$root$(dirname "${1%%:*}")/$link"; done ;;
  esac
  shift
done
shift

# blob FILE: moves a file among the blobs; prints its digest and size as JSON members.
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  size=$(stat -c %s "$1")
  mv "$1" "$blobs/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$size"
}

entrypoint=$(printf '"%s",' "$@")
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" -cf "$work/layer" .
layer_digest=$(sha256sum "$work/layer" | cut -d' ' -f1)
layer=$(blob "$work/layer")
printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":[%s],"Env":["PATH=/bin:/usr/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "${entrypoint%,}" "$layer_digest" >"$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
  "$config" "$layer" >"$work/manifest"
manifest=$(blob "$work/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
  "$manifest" "$name" "${name##*:}" >"$work/layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
tar -C "$work/layout" -cf "$out.partial" .
mv "$out.partial" "$out"
