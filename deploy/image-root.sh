#!/usr/bin/env bash
# image-root.sh ROOT FILE[=PATH]...: fills the folder ROOT with what an image of Weft holds: each FILE at PATH (default
# /usr/local/bin/<its name>), the shared libraries that ldd names for it, the certificates of public authorities, /etc/passwd
# and an empty /tmp. No shell, no package manager. deploy/oci-image.sh and deploy/Dockerfile use it.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
root=$1
shift
mkdir -p "$root"/{etc/ssl/certs,run,tmp,usr/local/bin,var}

# A library keeps the path that the loader looks for; what a symbolic link means is copied.
add_libraries() {
  local listed library
  listed=$(LC_ALL=C ldd "$1" 2>&1) || {
    case $listed in *"not a dynamic executable"*) return 0 ;; esac
    echo "image-root: ldd $1: $listed" >&2
    return 1
  }
  case $listed in *"not found"*) echo "image-root: $1 needs libraries that are not here: $listed" >&2; return 1 ;; esac
  while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done < <(grep -o '/[^ ]*' <<<"$listed")
}

for file in "$@"; do
  source=${file%%=*} target=/usr/local/bin/$(basename "${file%%=*}")
  case $file in *=*) target=${file#*=} ;; esac
  [ -f "$source" ] || { echo "image-root: no file $source" >&2; exit 1; }
  mkdir -p "$root$(dirname "$target")"
  cp -L "$source" "$root$target"
  chmod 755 "$root$target"
  add_libraries "$source"
done

cat >"$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/sbin/nologin
PASSWD
printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
ln -s /run "$root/var/run"
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -f $authorities ]; then cp -L $authorities "$root$authorities"; fi

# Modes do not follow the caller's umask.
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f -perm /111 -exec chmod 755 {} +
find "$root" -type f ! -perm /111 -exec chmod 644 {} +
chmod 1777 "$root/tmp"
