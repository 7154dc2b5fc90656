//! Every way to name a server, from its own node and from the other, and what lies at the mesh's edge.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, host, together};

#[test]
fn a_server_is_reached_by_every_name_from_both_nodes() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "names")?;
    let hosts = shop.hosts_of("server-0")?;
    let families = cluster.families().each();
    ensure!(hosts.len() == families.len(), "an address of each family: {hosts:?}");
    for (family, host) in families.iter().zip(hosts) {
        let by_ip = format!("http://{host}:8080/");
        for client in ["client1", "client2"] {
            for (url, pods) in [
                ("http://server/", ["server-0", "server-1"].as_slice()),
                ("http://server.names.svc.cluster.local/", &["server-0", "server-1"]),
                ("http://servers:8080/", &["server-0", "server-1"]),
                ("http://server-0.servers:8080/", &["server-0"]),
                ("http://server-1.servers.names.svc:8080/", &["server-1"]),
                (by_ip.as_str(), &["server-0"]),
            ] {
                let told = shop.reach_over(*family, client, url)?;
                let answered: Vec<&str> =
                    told["pods"].as_object().into_iter().flatten().map(|(pod, _)| pod.as_str()).collect();
                ensure!(answered.iter().all(|pod| pods.contains(pod)), "{client} to {url}: {answered:?}");
            }
        }
        // Its own Service, its own name and its own address.
        for url in ["http://server/", "http://server-0.servers:8080/", by_ip.as_str()] {
            shop.reach_over(*family, "server-0", url)?;
        }
    }
    Ok(())
}

#[test]
fn strict_pods_refuse_what_is_outside_of_the_mesh_and_permissive_ones_do_not() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "edge")?;
    let outside = Shop::outside(&cluster, "edge-out")?;
    for client in ["client1", "client2"] {
        outside.reach_in_vain(client, "http://server.edge/")?;
        // Out of the mesh there is a way.
        shop.reach(client, "http://server.edge-out/")?;
    }
    // Whoever may forward ports comes from the pod's own loopback, past the mesh.
    let forwarded = cluster.port_forward(shop.namespace, "server-0", 8080)?;
    let mut stream = TcpStream::connect(forwarded.address())?;
    stream.set_read_timeout(Some(CHANGE_WAIT_MAX))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("server-0"), "{answer}");
    drop(forwarded);
    shop.apply(
        "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: open, namespace: @NS@}, spec: {inbound: {mode: PERMISSIVE}}}",
    )?;
    wait::until(CHANGE_WAIT_MAX, || outside.reach("client1", "http://server.edge/").map(drop))?;
    outside.reach("client2", "http://server.edge/").map(drop)
}

#[test]
fn node_ports_external_names_and_host_network_pods_do_what_their_users_expect() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "kinds")?;
    shop.apply(
        "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: open, namespace: @NS@}, spec: {selector: {matchLabels: {app: server}}, inbound: {mode: PERMISSIVE}}}
---
{apiVersion: v1, kind: Service, metadata: {name: alias, namespace: @NS@}, spec: {type: ExternalName, externalName: server.kinds.svc.cluster.local}}
---
{apiVersion: v1, kind: Service, metadata: {name: port, namespace: @NS@}, spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: server}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: @NS@}, spec: {nodeName: node1, hostNetwork: true, terminationGracePeriodSeconds: 1,
  dnsPolicy: ClusterFirstWithHostNet, containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '18080']}]}}",
    )?;
    cluster.wait_field(&["-n", "kinds", "pod", "host"], "{.status.phase}", "Running", START_WAIT_MAX)?;
    shop.reach("client1", "http://alias/")?;
    let [node1, node2] = ["node1", "node2"].map(|node| cluster.node_ips(node));
    let (node1, node2) = (node1?, node2?);
    for node in node1.iter().chain(&node2) {
        let url = format!("http://{}:30080/", host(*node));
        wait::until(CHANGE_WAIT_MAX, || shop.reach("host", &url).map(drop))?;
    }
    shop.reach("host", "http://server/")?;
    for client in ["client1", "client2"] {
        for node in &node1 {
            shop.reach(client, &format!("http://{}:18080/", host(*node)))?;
        }
    }
    // STRICT has no way for whoever comes without an identity, though its pod be labelled.
    shop.kubectl(&["delete", "trafficpolicy", "open"])?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach_in_vain("host", "http://server/"))?;
    for (client, node) in
        ["host", "client1"].iter().flat_map(|client| node2.iter().map(move |node| (client, node)))
    {
        // One server may hear of it after the other.
        let url = format!("http://{}:30080/", host(*node));
        wait::until(CHANGE_WAIT_MAX, || shop.reach_in_vain(client, &url))?;
    }
    shop.reach("client1", "http://server/").map(drop)
}

/// By its label, kube-proxy leaves a Service to somebody else.
#[test]
fn within_the_mesh_a_service_is_reached_without_kube_proxy() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "unproxied")?;
    let outside = Shop::outside(&cluster, "unproxied-out")?;
    for shop in [&shop, &outside] {
        shop.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: unproxied, namespace: @NS@, labels: {service.kubernetes.io/service-proxy-name: nobody}}, spec: {
              ipFamilyPolicy: PreferDualStack, selector: {app: server}, ports: [
              {name: http, port: 80, targetPort: http, appProtocol: http}, {name: tcp, port: 81, targetPort: http, appProtocol: tcp}]}}",
        )?;
    }
    for family in cluster.families().each() {
        for (client, port) in [("client1", 80), ("client2", 80), ("client1", 81), ("client2", 81)] {
            let url = format!("http://unproxied:{port}/");
            wait::until(CHANGE_WAIT_MAX, || shop.reach_over(*family, client, &url).map(drop))?;
        }
    }
    outside.reach("client1", "http://server/")?;
    outside.reach_in_vain("client1", "http://unproxied/")
}

#[test]
fn pods_that_are_not_ready_are_reached_by_the_services_that_publish_them() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "unready-too")?;
    shop.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: early, namespace: @NS@, labels: {app: early}}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{name: echo,
          image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080'], readinessProbe: {httpGet: {port: 8081, path: /}, periodSeconds: 1}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: peers, namespace: @NS@}, spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: early}, ports: [{port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: published, namespace: @NS@}, spec: {publishNotReadyAddresses: true, selector: {app: early}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: usual, namespace: @NS@}, spec: {selector: {app: early}, ports: [{port: 80, targetPort: 8080}]}}",
    )?;
    shop.wait_running("early")?;
    for client in ["client1", "client2"] {
        for url in ["http://peers:8080/", "http://published/"] {
            wait::until(CHANGE_WAIT_MAX, || shop.reach(client, url).map(drop))?;
        }
        shop.reach_in_vain(client, "http://usual/")?;
    }
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    ensure!(shop.kubectl(&["get", "pod", "early", "-o", ready])? == "False", "it never was ready");
    Ok(())
}
