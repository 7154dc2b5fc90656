# cluster-tools.sh: what the test cluster runs, for setup.sh to source: Kubernetes, etcd, containerd, runc, CNI plugins, CoreDNS,
# helm, the Gateway API's CRDs and small images. Nothing is installed: all lies in the cache, by version.
# shellcheck shell=bash

# shellcheck source=e2e/cluster/versions.sh
. e2e/cluster/versions.sh
# Counted up when the list of packages or an image changes.
CLUSTER_TOOLS_VERSION=1
# Debian's next release has a containerd that this Kubernetes speaks to; its runc wants a newer C library than the release before.
CLUSTER_SUITE=forky
CLUSTER_PACKAGES="etcd-server containerd containernetworking-plugins busybox-static"
RUNC_SUITE=bookworm

cluster_tools() {
  PATH=$PATH:/usr/local/go/bin
  have go || fail "the test cluster is built by Go 1.26: put go on the PATH or under /usr/local/go"
  local tools=$CACHE/cluster-tools
  mkdir -p "$tools/bin"
  if [ "$(cat "$tools/version" 2>/dev/null)" != $CLUSTER_TOOLS_VERSION ]; then
    quietly "etcd, containerd, runc, CNI plugins from Debian's packages" cluster_packages "$tools"
    quietly "pause and busybox images" cluster_images "$tools"
    echo $CLUSTER_TOOLS_VERSION >"$tools/version"
  fi
  if [ ! -d "$tools/gateway-api-$GATEWAY_API_VERSION" ]; then
    quietly "Gateway API $GATEWAY_API_VERSION" gateway_api "$tools/gateway-api-$GATEWAY_API_VERSION"
  fi
  if [ ! -d "$CACHE/kubernetes-$KUBERNETES_VERSION/bin" ]; then
    quietly "Kubernetes $KUBERNETES_VERSION (13 minutes of one processor)" build_kubernetes
  fi
  if [ ! -e "$tools/images/coredns-$COREDNS_VERSION.tar" ]; then
    quietly "CoreDNS $COREDNS_VERSION (3 minutes)" build_coredns "$tools"
  fi
  if [ ! -x "$tools/helm-$HELM_VERSION" ]; then
    quietly "helm $HELM_VERSION (10 minutes)" build_helm "$tools"
  fi
  ln -sf "../helm-$HELM_VERSION" "$tools/bin/helm"
  # Built objects are of no use any more.
  if [ -d "$CACHE/go-build" ]; then GOCACHE=$CACHE/go-build go clean -cache && rm -rf "$CACHE/go-build"; fi
}

# A Go command with a cache of its own, of static binaries that do not name this machine's folders.
static_go() {
  GOCACHE=$CACHE/go-build GOFLAGS=-modcacherw GOTOOLCHAIN=local CGO_ENABLED=0 nice -n 5 go "$@"
}

# Built into a folder beside, so that what is there is whole.
build_kubernetes() {
  local home=$CACHE/kubernetes-$KUBERNETES_VERSION flags="-s -w" setting commands=() command
  for setting in "gitVersion=v$KUBERNETES_VERSION" gitMajor=1 "gitMinor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION")"; do
    flags+=" -X k8s.io/component-base/version.$setting"
  done
  for command in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    commands+=("k8s.io/kubernetes/cmd/$command")
  done
  mkdir -p "$home/bin.partial"
  (cd e2e/cluster/kubernetes && patiently static_go mod download) || return 1
  (cd e2e/cluster/kubernetes && static_go build -trimpath -ldflags "$flags" -o "$home/bin.partial/" "${commands[@]}") || return 1
  mv -T "$home/bin.partial" "$home/bin"
}

# go_command MODULE@VERSION OUTPUT: builds one command of a module.
go_command() {
  local bin=$CACHE/go-bin
  rm -rf "$bin"
  GOBIN=$bin patiently static_go install -trimpath -ldflags "-s -w" "$1" || return 1
  mv "$bin"/* "$2" && rmdir "$bin"
}

build_coredns() {
  go_command "github.com/coredns/coredns@v$COREDNS_VERSION" "$1/bin/coredns" || return 1
  e2e/cluster/images/pack.sh "weft.local/coredns:$COREDNS_VERSION" "$1/images/coredns-$COREDNS_VERSION.tar" \
    "$1/bin/coredns=/coredns" -- /coredns
}

build_helm() {
  go_command "helm.sh/helm/v4/cmd/helm@v$HELM_VERSION" "$1/helm-$HELM_VERSION"
}

gateway_api() {
  local folder=$1 module
  patiently static_go mod download "sigs.k8s.io/gateway-api@v$GATEWAY_API_VERSION" || return 1
  module=$(static_go mod download -json "sigs.k8s.io/gateway-api@v$GATEWAY_API_VERSION" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [ -n "$module" ] || return 1
  rm -rf "$folder.partial"
  cp -r "$module/config/crd" "$folder.partial" && chmod -R u+w "$folder.partial" && mv -T "$folder.partial" "$folder"
}

# Unpacks Debian packages without adding their suites to the system.
cluster_packages() {
  local tools=$1 work
  work=$(mktemp -d)
  chmod 755 "$work"
  local suite
  for suite in "$CLUSTER_SUITE" "$RUNC_SUITE"; do
    debian_suite "$work/$suite" "$suite" || return 1
  done
  # shellcheck disable=SC2086 # a list
  debian_unpack "$work/$CLUSTER_SUITE" "$work/root" $CLUSTER_PACKAGES || return 1
  debian_unpack "$work/$RUNC_SUITE" "$work/root" runc || return 1
  local binary
  for binary in bin/etcd bin/containerd bin/ctr bin/containerd-shim-runc-v2 bin/busybox sbin/runc; do
    install -m 755 "$work/root/usr/$binary" "$tools/bin/" || return 1
  done
  mkdir -p "$tools/cni"
  for binary in bridge host-local loopback; do
    install -m 755 "$work/root/usr/lib/cni/$binary" "$tools/cni/" || return 1
  done
  rm -rf "$work"
}

cluster_images() {
  local tools=$1
  mkdir -p "$tools/images"
  cc -Os -static -o "$tools/bin/pause" e2e/cluster/images/pause.c || return 1
  e2e/cluster/images/pack.sh weft.local/pause:1 "$tools/images/pause.tar" "$tools/bin/pause=/pause" -- /pause || return 1
  e2e/cluster/images/pack.sh weft.local/busybox:1 "$tools/images/busybox.tar" "$tools/bin/busybox=/bin/busybox" \
    /bin/busybox:sh,wget,nslookup,nc,sleep,cat,ls,env,ip,true,false,httpd,echo,id,ps -- /bin/sh
}
