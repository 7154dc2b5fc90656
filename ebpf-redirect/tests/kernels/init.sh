#!/bin/busybox sh
# init.sh: the first process of a machine that run.sh boots. Mounts what the tests need, runs each test binary of /tests, says
# on the console how it went, and switches the machine off. The command line's words weft.expect=, weft.divisor= and
# weft.only= are run.sh's.
# shellcheck shell=dash disable=SC2187 # busybox's shell; this is as near as shellcheck comes
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin
# The tests want the real ip.
export PATH=/usr/local/bin:/bin HOME=/tmp

fail() {
  echo "weft-kernels: failed: $*"
  poweroff -f
}

mount -t proc proc /proc || fail "no /proc"
mount -t sysfs sysfs /sys || fail "no /sys"
mount -t devtmpfs dev /dev || fail "no /dev"
# The hybrid layout, as the tests expect it.
mount -t tmpfs tmpfs /sys/fs/cgroup || fail "no place for control groups"
mkdir -p /sys/fs/cgroup/unified
mount -t cgroup2 none /sys/fs/cgroup/unified || fail "no cgroup v2"
mount -t bpf bpf /sys/fs/bpf || fail "no BPF file system"
for module in /modules/*.ko; do
  insmod "$module" || fail "module $module"
done
ip link set lo up || fail "no loopback"

expect=works only='' divisor=1
read -r line </proc/cmdline
for word in $line; do
  case $word in
    weft.expect=*) expect=${word#*=} ;;
    weft.divisor=*) divisor=${word#*=} ;;
    weft.only=*) only=${word#*=} ;;
  esac
done
export WEFT_TEST_DIVISOR="$divisor" RUST_BACKTRACE=0

echo "weft-kernels: Linux $(uname -r), $expect is expected"
failed='' count=0
for binary in /tests/*; do
  name=${binary#/tests/}
  arguments=''
  # One test needs a kernel that is too old, the others one that is not.
  case $expect/$name in
    refused/too_old) arguments=--ignored ;;
    refused/*) continue ;;
  esac
  case ,$only, in
    ,, | *,"$name",*) ;;
    *) continue ;;
  esac
  count=$((count + 1))
  start=$(cut -d . -f 1 /proc/uptime)
  # shellcheck disable=SC2086 # none or one
  "$binary" $arguments || failed="$failed $name"
  echo "weft-kernels: $name took $(($(cut -d . -f 1 /proc/uptime) - start)) s"
done
[ "$count" -gt 0 ] || fail "no test binary was run"
# What the kernel itself complained about (a stall of an emulated processor is the machine's slowness).
dmesg | grep -E 'WARNING:|BUG:|Oops|general protection|KASAN|refcount_t' && failed="$failed kernel-log"
if [ -z "$failed" ]; then
  echo "weft-kernels: passed: $count test binaries on Linux $(uname -r)"
else
  echo "weft-kernels: failed:$failed"
fi
poweroff -f
