#!/usr/bin/env bash
# node.sh STAGE: a node of the test cluster: a machine of its own as far as kubelet, containerd and a privileged pod can tell,
# made of namespaces. `weft-cluster` starts it inside the node's network namespace and cgroup v2; the last stage is the node's
# process 1, and when that ends, so does the node. Settings come as NODE_* in the environment:
#   NODE_NAME, NODE_DIRECTORY (etc/ becomes /etc/kubernetes), NODE_LOGS, NODE_DATA (on a disk), NODE_GROUP (below each cgroup
#   root), NODE_KUBERNETES and NODE_TOOLS (binaries)
set -euo pipefail

controllers="cpuset cpu io memory pids"

# Where cgroup v2 is mounted, and whether it is alone.
v2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
v1=$(awk '$3 == "cgroup" { print $2 }' /proc/self/mounts)

enable_controllers() {
  local controller
  for controller in $controllers; do
    # One that this kernel lacks is not missed.
    echo "+$controller" >"$1/cgroup.subtree_control" 2>/dev/null || true
  done
}

# Joins a group of the node's name in every old hierarchy; a new cpuset group starts without processors and memory.
outside() {
  local root group part
  for root in $v1; do
    group=$root
    for part in ${NODE_GROUP//\// }; do
      mkdir -p "$group/$part"
      for file in cpuset.cpus cpuset.mems; do
        if [ -e "$group/$part/$file" ]; then cat "$group/$file" >"$group/$part/$file"; fi
      done
      group=$group/$part
    done
    echo 0 >"$group/cgroup.procs"
  done
  if [ -z "$v1" ]; then
    group=$v2
    enable_controllers "$group"
    for part in ${NODE_GROUP//\// }; do group=$group/$part; if [ "$group" != "$v2/$NODE_GROUP" ]; then enable_controllers "$group"; fi; done
  fi
  exec unshare --pid --fork --kill-child bash "$0" first
}

# Process 1, which makes its group of v2 the root that the node sees.
first() {
  echo 0 >"$v2/$NODE_GROUP/cgroup.procs"
  exec unshare --mount --uts --cgroup bash "$0" inside
}

make_root() {
  local top=$NODE_DIRECTORY/root
  mount --make-rprivate /
  mkdir -p "$top"
  mount -t tmpfs -o mode=755 weft-node "$top"
  mkdir "$top/upper" "$top/work" "$top/root"
  mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$top/root"
  root=$top/root
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 run "$root/run"
  mount -t bpf bpf "$root/sys/fs/bpf"
  mount_cgroups
  local at
  for at in containerd kubelet; do
    mkdir -p "$NODE_DATA/$at" "$root/var/lib/$at"
    mount --bind "$NODE_DATA/$at" "$root/var/lib/$at"
  done
  mkdir -p "$NODE_DATA/pods" "$root/var/log/pods"
  mount --bind "$NODE_DATA/pods" "$root/var/log/pods"
  for at in "$NODE_LOGS" "$NODE_KUBERNETES" "$NODE_TOOLS"; do
    mkdir -p "$root$at"
    mount --bind "$at" "$root$at"
  done
  private_sysctls
}

mount_cgroups() {
  local at=$root/sys/fs/cgroup hierarchy
  if [ -z "$v1" ]; then
    mount -t cgroup2 cgroup2 "$at"
    # A group with processes cannot hand out controllers.
    mkdir -p "$at/init"
    echo 0 >"$at/init/cgroup.procs"
    enable_controllers "$at"
    return
  fi
  mount -t tmpfs -o mode=755 cgroup "$at"
  while read -r _ hierarchy kind options _; do
    mkdir -p "$root$hierarchy"
    case $kind in
      cgroup2) mount -t cgroup2 cgroup2 "$root$hierarchy" ;;
      # Of the options, those that name the hierarchy.
      cgroup)
        options=$(tr , '\n' <<<"$options" | grep -xE 'cpu|cpuacct|cpuset|memory|devices|freezer|blkio|pids|net_cls|net_prio|perf_event|hugetlb|rdma|misc|name=.*' | paste -sd,)
        mount -t cgroup -o "${options/name=/none,name=}" cgroup "$root$hierarchy" ;;
    esac
  done < <(grep -E '^[^ ]+ /sys/fs/cgroup[^ ]* cgroup2? ' /proc/self/mounts)
}

# Settings of the whole machine that kubelet wants otherwise: it finds what it wants, and the machine stays as it was.
private_sysctls() {
  local directory=$root/run/sysctl setting
  mkdir -p "$directory"
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    echo "${setting#*=}" >"$directory/$(basename "${setting%%=*}")"
    mount --bind "$directory/$(basename "${setting%%=*}")" "$root/proc/sys/${setting%%=*}"
  done
}

files() {
  rm -rf "$root/etc/cni" "$root/opt/cni" "$root/etc/kubernetes" "$root/var/lib/cni"
  mkdir -p "$root/etc/cni/net.d" "$root/opt/cni/bin"
  cp -r "$NODE_DIRECTORY/etc" "$root/etc/kubernetes"
  mkdir "$root/etc/kubernetes/manifests"
  cp "$NODE_DIRECTORY/etc/10-pods.conflist" "$root/etc/cni/net.d/"
  local plugin
  for plugin in "$NODE_TOOLS"/cni/*; do ln -s "$plugin" "$root/opt/cni/bin/"; done
  echo "$NODE_NAME" >"$root/etc/hostname"
  hostname "$NODE_NAME"
}

# start NAME COMMAND...
start() {
  local name=$1
  shift
  "$@" </dev/null >>"$NODE_LOGS/$name.log" 2>&1 &
  names[$!]=$name
}

inside() {
  make_root
  files
  cd "$root"
  mkdir -p .old
  pivot_root . .old
  cd /
  umount -l /.old
  rmdir /.old
  mount --make-rshared /
  export PATH=$NODE_KUBERNETES:$NODE_TOOLS/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  declare -A names=()
  start containerd containerd --config /etc/kubernetes/containerd.toml
  until ctr version >/dev/null 2>&1; do
    if [ -z "$(jobs -r)" ]; then echo "containerd ended"; exit 1; fi
    sleep 0.1
  done
  for image in $NODE_IMAGES; do ctr -n k8s.io images import --local "$image" >>"$NODE_LOGS/containerd.log" 2>&1; done
  start kubelet kubelet --kubeconfig /etc/kubernetes/kubelet.kubeconfig --config /etc/kubernetes/kubelet.yaml \
    --hostname-override "$NODE_NAME" --node-ip "$NODE_IP"
  start kube-proxy kube-proxy --config /etc/kubernetes/kube-proxy.yaml
  # Also reaps what pods leave to process 1.
  local ended status=0
  wait -n -p ended || status=$?
  echo "${names[$ended]:-a process} of $NODE_NAME ended with $status, and the node with it"
  exit 1
}

case ${1:-} in
  outside) outside ;;
  first) first ;;
  inside) inside ;;
  *) echo "usage: $0 outside|first|inside" >&2; exit 2 ;;
esac
