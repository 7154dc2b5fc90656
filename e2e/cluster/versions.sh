# What the test cluster is made of: read by scripts/cluster-tools.sh, which makes it, and by e2e/src/cluster, which runs it.
# shellcheck shell=bash disable=SC2034
KUBERNETES_VERSION=1.36.2
COREDNS_VERSION=1.15.0
HELM_VERSION=4.3.1
GATEWAY_API_VERSION=1.6.3
