#!/usr/bin/env bash
# setup.sh: installs what building and running Weft needs, with --demo what `make demo` needs besides, with --tests what the
# tests need besides, with --cluster what the test cluster needs besides, with --kernels other kernels to test on.
# Can be run again at any time; what is there is left alone, so a second run takes a second.
# As root on a Debian-like system, with cargo through rustup. See docs/building.md for what is needed and why.
set -euo pipefail
cd "$(dirname "$0")/.."

BPF_LINKER_VERSION=0.10.1 # the last one for the LLVM of the pinned compiler
CARGO_DENY_VERSION=0.20.2
COLLECTOR_VERSION=0.160.0
RUST_SRC_PACKAGE=rust-src=1.95.0+dfsg1-2~bpo13+1 # Debian's, where rustup cannot fetch its own
RUST_SRC_SUITE=trixie-backports
CACHE=${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}

tests=no
demo=no
cluster=no
kernels=no
for argument in "$@"; do
  case $argument in
    --tests) tests=yes demo=yes ;;
    --demo) demo=yes ;;
    --cluster) cluster=yes ;;
    --kernels) kernels=yes ;;
    *) echo "usage: $0 [--demo] [--tests] [--cluster] [--kernels]" >&2; exit 2 ;;
  esac
done

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# patiently COMMAND...: for what fetches from the network: again after a pause, for networks have bad moments.
patiently() {
  local pause
  for pause in 5 20; do
    if "$@"; then return; fi
    echo "failed: $1; again in $pause s"
    sleep "$pause"
  done
  "$@"
}

# quietly WHAT COMMAND...: shows what is being done and for how long; the output only if it fails.
quietly() {
  local what=$1 log start=$SECONDS
  shift
  log=$(mktemp)
  "$@" >"$log" 2>&1 &
  local pid=$!
  printf 'setup: %s ' "$what"
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    if (((SECONDS - start) % 10 == 0)); then printf '.'; fi
  done
  if wait "$pid"; then
    printf ' %d s\n' $((SECONDS - start))
    rm -f "$log"
  else
    printf ' failed\n'
    tail -n 40 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

check_machine() {
  [ "$(id -u)" = 0 ] || fail "run as root: the lab makes network namespaces and loads programs into the kernel"
  local release
  release=$(uname -r)
  [ "$(printf '%s\n5.15\n' "$release" | sort -V | head -n 1)" = 5.15 ] || fail "Linux 5.15 or later is needed, this is $release"
  have cargo || fail "cargo is not on the PATH: install Rust through rustup first"
}

# The binaries that show that a package is there, and the package.
packages() {
  echo "ip iproute2
nft nftables
curl curl
cc gcc
nsenter util-linux
redis-server redis-server
redis-cli redis-tools"
  if [ "$demo" = yes ]; then echo "tcpdump tcpdump"; fi
  if [ "$kernels" = yes ]; then
    echo "qemu-system-x86_64 qemu-system-x86
jq jq
objcopy binutils
xz xz-utils
zstd zstd"
  fi
  if [ "$tests" = yes ]; then
    echo "iperf3 iperf3
wrk wrk
nginx nginx-light
psql postgresql-client
jq jq
socat socat
python3 python3-minimal
openssl openssl
cmake cmake
shellcheck shellcheck"
    # Debian keeps the server's programs off the PATH.
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo "- postgresql"
  fi
}

install_packages() {
  local missing=() binary package
  while read -r binary package; do
    PATH=$PATH:/usr/sbin:/sbin have "$binary" || missing+=("$package")
  done < <(packages)
  if [ ${#missing[@]} = 0 ]; then return; fi
  have apt-get || fail "please install: ${missing[*]} (only Debian-like systems are set up by this script)"
  # The servers are for pods of the lab; none is to start on the machine itself. One that a killed run of this left is ours, too.
  local policy=/usr/sbin/policy-rc.d mark='# of the set-up of Weft'
  if [ ! -e $policy ] || grep -qxF "$mark" $policy; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >$policy
    chmod +x $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  local result=0
  quietly "packages: ${missing[*]}" patiently apt_install "${missing[@]}" </dev/null || result=1
  if grep -qxsF "$mark" $policy; then rm -f $policy; fi
  trap - EXIT
  return $result
}

apt_install() {
  # An installation that was interrupted stops all others until it is finished; one that still goes on is waited for.
  dpkg --configure -a
  apt-get update -q
  apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

mount_filesystems() {
  if ! grep -q ' cgroup2 ' /proc/self/mounts; then
    local at=/sys/fs/cgroup
    if grep -q " $at " /proc/self/mounts; then
      at=/sys/fs/cgroup/unified
      mkdir -p $at
    fi
    say "mounting cgroup v2 at $at"
    mount -t cgroup2 none $at
  fi
  if ! grep -q ' /sys/fs/bpf bpf ' /proc/self/mounts; then
    say "mounting the BPF file system"
    mount -t bpf bpf /sys/fs/bpf
  fi
}

install_rust_source() {
  local library
  library=$(rustc --print sysroot)/lib/rustlib/src/rust/library
  if [ -e "$library/core/src/lib.rs" ]; then return; fi
  # rustup also says yes where it only believes that the component is there.
  quietly "rust-src by rustup" rustup component add rust-src && [ -e "$library/core/src/lib.rs" ] && return
  quietly "rust-src by Debian's package" rust_source_from_debian "$library"
  [ -e "$library/core/src/lib.rs" ] || fail "no source of the Rust library at $library"
}

# debian_suite FOLDER SUITE: reads a suite's lists without adding it to the system: own list of sources, own folder of lists.
debian_suite() {
  local work=$1 suite=$2 mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p "$work/lists/partial" "$work/packages"
  # shellcheck disable=SC2016 # apt expands it
  mirror=$(apt-get indextargets --format '$(SITE)' | grep -m 1 "/debian/\?$")
  printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$suite" >"$work/sources.list"
  cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
CONF
  APT_CONFIG=$work/apt.conf patiently apt-get update
}

# debian_unpack FOLDER ROOT PACKAGE...: unpacks packages of a suite that was read below ROOT.
debian_unpack() {
  local work=$1 root=$2 package
  shift 2
  (cd "$work/packages" && APT_CONFIG=$work/apt.conf patiently apt-get download "$@") || return 1
  mkdir -p "$root"
  for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$root" || return 1; done
}

rust_source_from_debian() {
  local library=$1 work
  work=$(mktemp -d)
  chmod 755 "$work"
  debian_suite "$work" "$RUST_SRC_SUITE" || return 1
  debian_unpack "$work" "$work/unpacked" "$RUST_SRC_PACKAGE" || return 1
  local core
  core=$(find "$work/unpacked" -path '*/library/core/src/lib.rs' | head -n 1)
  [ -n "$core" ] || { echo "the package holds no library/core"; return 1; }
  # Whole or not at all: what is there is not looked into again.
  rm -rf "$library.partial"
  mkdir -p "${library%/*}" || return 1
  cp -a "${core%/core/src/lib.rs}" "$library.partial" || return 1
  rm -rf "$library"
  mv -T "$library.partial" "$library" || return 1
  rm -rf "$work"
}

# cargo_tool NAME VERSION [FLAGS]: installs a tool of that version; another version is replaced.
cargo_tool() {
  local name=$1 version=$2
  shift 2
  PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  if "$name" --version 2>/dev/null | grep -qF " $version"; then return; fi
  # A target directory of its own: the tool is not built with the workspace's settings, nor removed by `make clean`.
  quietly "$name $version (a few minutes)" env CARGO_TARGET_DIR="$CACHE/target" \
    cargo install --locked --force "$name" --version "$version" "$@"
  rm -rf "$CACHE/target"
}

build_collector() {
  local directory=$CACHE/collector-$COLLECTOR_VERSION
  if [ -x "$directory/otelcol" ] && cmp -s e2e/collector/builder.yaml "$directory/builder.yaml.built"; then return; fi
  PATH=$PATH:/usr/local/go/bin
  if ! have go; then
    if [ "$tests" = yes ]; then
      fail "the tests' OpenTelemetry collector is built by Go 1.25 or later: put go on the PATH or under /usr/local/go"
    fi
    say "no Go here, so no OpenTelemetry collector: the demo takes its traces without one"
    return
  fi
  mkdir -p "$directory"
  quietly "OpenTelemetry collector $COLLECTOR_VERSION (two minutes)" compile_collector "$directory"
}

compile_collector() {
  local directory=$1
  GOBIN=$directory GOFLAGS=-modcacherw patiently go install "go.opentelemetry.io/collector/cmd/builder@v$COLLECTOR_VERSION" || return 1
  sed "/^dist:/a\\  output_path: $directory/build" e2e/collector/builder.yaml >"$directory/builder.yaml"
  (cd "$directory" && CGO_ENABLED=0 patiently ./builder --config builder.yaml) || return 1
  mv "$directory/build/otelcol" "$directory/otelcol" || return 1
  rm -rf "$directory/build" "$directory/builder"
  cp e2e/collector/builder.yaml "$directory/builder.yaml.built"
}

if [ "$cluster" = yes ]; then
  # shellcheck source=scripts/cluster-tools.sh
  . scripts/cluster-tools.sh
fi
if [ "$kernels" = yes ]; then
  # shellcheck source=scripts/kernel-tools.sh
  . scripts/kernel-tools.sh
fi
check_machine
mkdir -p "$CACHE"
install_packages
mount_filesystems
install_rust_source
cargo_tool bpf-linker "$BPF_LINKER_VERSION"
if [ "$tests" = yes ]; then
  cargo_tool cargo-deny "$CARGO_DENY_VERSION" --no-default-features
fi
if [ "$tests" = yes ]; then
  build_collector
elif [ "$demo" = yes ]; then
  # An old Go, or no way to its modules: no reason to tell no story.
  build_collector || say "no OpenTelemetry collector: the demo takes its traces without one"
fi
if [ "$cluster" = yes ]; then
  cluster_tools
fi
if [ "$kernels" = yes ]; then
  kernel_tools
fi
