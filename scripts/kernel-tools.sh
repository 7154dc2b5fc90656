# kernel-tools.sh: what `make test-kernels` boots, for setup.sh to source: Debian's kernels, and a busybox for their machines.
# Nothing is installed: all lies in the cache, a folder for each kernel of the matrix. To fetch newer ones remove the folder.
# shellcheck shell=bash

KERNEL_MATRIX=ebpf-redirect/tests/kernels/matrix
# What the tests need that Debian's kernels do not have built in.
KERNEL_MODULES="veth"

kernel_tools() {
  local kernels=$CACHE/kernels name suite package
  mkdir -p "$kernels"
  if [ ! -x "$kernels/busybox" ]; then
    quietly "busybox from Debian's package" kernel_busybox "$kernels"
  fi
  while read -r name suite package _; do
    if [ ! -e "$kernels/$name/release" ]; then
      quietly "kernel $name from Debian's $suite" kernel_from_debian "$kernels/$name" "$suite" "$package"
    fi
  done < <(grep -v '^#' $KERNEL_MATRIX)
}

kernel_busybox() {
  local work
  work=$(mktemp -d)
  chmod 755 "$work"
  mkdir -p "$work/packages"
  (cd "$work/packages" && apt-get download busybox-static) || return 1
  dpkg-deb -x "$work"/packages/*.deb "$work/root" || return 1
  install -m 755 "$(find "$work/root" -path '*/bin/busybox' -type f)" "$1/busybox" || return 1
  rm -rf "$work"
}

# kernel_from_debian FOLDER SUITE PACKAGE: image and modules of the kernel that a package depends on.
kernel_from_debian() {
  local folder=$1 suite=$2 work packages=() package module found
  work=$(mktemp -d)
  chmod 755 "$work"
  debian_suite "$work" "$suite" || return 1
  # Newer suites split a kernel into several packages.
  mapfile -t packages < <(APT_CONFIG=$work/apt.conf apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances "$3" | grep -oE '^linux-(image|binary|modules)-[0-9][^ ]*' | grep -v unsigned | sort -u)
  [ ${#packages[@]} -gt 0 ] || { echo "$suite has no package $3"; return 1; }
  debian_unpack "$work" "$work/root" "${packages[@]}" || return 1
  mkdir -p "$folder/modules"
  for module in $KERNEL_MODULES; do
    found=$(find "$work/root" -name "$module.ko*" | head -n 1)
    case $found in
      *.xz) xz -dc "$found" >"$folder/modules/$module.ko" || return 1 ;;
      *.zst) zstd -dcq "$found" >"$folder/modules/$module.ko" || return 1 ;;
      *.ko) cp "$found" "$folder/modules/$module.ko" || return 1 ;;
      *) echo "no module $module in ${packages[*]}"; return 1 ;;
    esac
  done
  found=$(find "$work/root" -name 'vmlinuz*' -type f | head -n 1)
  [ -n "$found" ] || { echo "no kernel in ${packages[*]}"; return 1; }
  cp "$found" "$folder/vmlinuz" || return 1
  # Last: it says that all is there.
  basename "$(find "$work/root" -path '*/modules/*' -prune -type d | head -n 1)" >"$folder/release"
  rm -rf "$work"
}
