#!/usr/bin/env bash
# run.sh [KERNEL...]: runs the tests of ebpf-redirect on other kernels than this machine's (all of ./matrix, or those named).
#
# Each kernel boots in QEMU with a file system of its own in memory: the test binaries, the libraries that ldd names, busybox,
# iproute2 and the kernel's module of veth. init.sh is its first process. The processors are emulated, ten to twenty times
# slower than real ones, so the amounts of work are divided by WEFT_TEST_DIVISOR (16). WEFT_KERNEL_ACCEL=kvm uses real ones
# (a /dev/kvm that is there is no proof that it works).
# A kernel passes only if the machine says so on its console within WEFT_KERNEL_TIMEOUT_S (1200) seconds.
# WEFT_KERNEL_TESTS (names of test binaries, with commas) runs only these.
# The kernels are fetched by `scripts/setup.sh --kernels`.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=ebpf-redirect/tests/kernels
kernels=${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}/kernels
accel=${WEFT_KERNEL_ACCEL:-tcg}
timeout_s=${WEFT_KERNEL_TIMEOUT_S:-1200}
processors=2
memory_mib=1536

fail() { printf 'kernels: %s\n' "$*" >&2; exit 1; }

work=$(mktemp -d)
machine=
finish() {
  if [ -n "$machine" ]; then kill "$machine" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

# Name and path of each test binary, the library's own tests included.
test_binaries() {
  cargo test --quiet -p weft-ebpf -p weft-ebpf-common --no-run --message-format=json |
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) | "\(.target.name) \(.executable)"'
}

# The part of the memory file system that all kernels share.
pack_tests() {
  local root=$work/root name binary files=()
  while read -r name binary; do
    # Names and lines of a panic stay; the rest of what a debugger wants would fill the machine's memory.
    objcopy --strip-debug "$binary" "$work/$name"
    files+=("$work/$name=/tests/$name")
  done < <(test_binaries)
  [ ${#files[@]} -gt 0 ] || fail "cargo names no test binaries"
  deploy/image-root.sh "$root" "${files[@]}" "$(PATH=$PATH:/usr/sbin:/sbin command -v ip)" \
    "$kernels/busybox=/bin/busybox" "$here/init.sh=/init"
  pack "$root" >"$work/tests.cpio"
}

pack() { (cd "$1" && find . | "$kernels/busybox" cpio -o -H newc 2>/dev/null); }

# boot NAME EXPECTED: true if the machine says that all passed. Its console is in $work/NAME.log.
boot() {
  local name=$1 expected=$2 kernel=$kernels/$1 log=$work/$1.log
  [ -e "$kernel/vmlinuz" ] || fail "no kernel $name: run scripts/setup.sh --kernels"
  mkdir -p "$work/$name/modules"
  cp "$kernel"/modules/*.ko "$work/$name/modules/"
  { cat "$work/tests.cpio"; pack "$work/$name"; } >"$work/$name.cpio"
  # An old model: what newer ones do fast is slow where it is emulated. Without cmpxchg16b, after which QEMU 7.2 now and then
  # resumes with wrong flags: Linux 6.12 then dies while it starts.
  local processor=(-accel "tcg,thread=multi" -cpu "Nehalem,-cx16")
  if [ "$accel" = kvm ]; then processor=(-accel kvm -cpu host); fi
  # no_timer_check: on a busy machine the ticks of an emulated timer are too late for the kernel's check of its wiring.
  timeout "$timeout_s" nice -n 5 qemu-system-x86_64 "${processor[@]}" -machine q35 -smp $processors -m $memory_mib \
    -nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$kernel/vmlinuz" -initrd "$work/$name.cpio" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check rcupdate.rcu_cpu_stall_suppress=1 weft.expect=$expected weft.divisor=$divisor weft.only=${WEFT_KERNEL_TESTS:-}" \
    <>/dev/null >"$log" 2>&1 &
  machine=$!
  local ended=0
  wait "$machine" || ended=$?
  machine=
  if [ $ended = 124 ]; then echo "kernels: no result within $timeout_s s" >>"$log"; fi
  tr -d '\r' <"$log" >"$log.text"
  grep -q '^weft-kernels: passed: ' "$log.text"
}

# What of a console shows what went wrong: failed tests and their messages, the kernel's complaints, the end.
complaints() {
  grep -E -A 4 "^test .* FAILED|panicked at|^weft-kernels: failed|WARNING:|BUG:|Kernel panic|cannot open|kernels: no result" "$1" || true
  echo "--- the last lines of the console"
  tail -n 15 "$1"
}

divisor=${WEFT_TEST_DIVISOR:-16}
pack_tests
failed=()
ran=0
while read -r name suite _ expected; do
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  ran=$((ran + 1))
  start=$SECONDS
  if boot "$name" "$expected"; then
    printf 'kernels: %s (%s): %s passed in %d s: Weft %s\n' "$name" "$suite" "$(cat "$kernels/$name/release")" $((SECONDS - start)) "$expected"
    grep -E '^(probe|test result|weft-kernels: .* took)' "$work/$name.log.text" | sed 's/^/  /'
  else
    printf 'kernels: %s (%s): %s FAILED after %d s\n' "$name" "$suite" "$(cat "$kernels/$name/release")" $((SECONDS - start))
    complaints "$work/$name.log.text" | sed 's/^/  /'
    failed+=("$name")
  fi
  if [ -n "${WEFT_KERNEL_LOGS:-}" ]; then mkdir -p "$WEFT_KERNEL_LOGS"; cp "$work/$name.log.text" "$WEFT_KERNEL_LOGS/$name.log"; fi
  rm -rf "${work:?}/$name" "$work/$name.cpio"
done < <(grep -v '^#' $here/matrix)
[ $ran -gt 0 ] || fail "none of the kernels $* is in $here/matrix"
[ ${#failed[@]} = 0 ] || fail "failed on: ${failed[*]}"
