//! Real servers with their real clients, on the same node and on another one: PostgreSQL, redis, nginx with curl, gRPC,
//! WebSocket, HTTP/2 with prior knowledge.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::fixture::{MESH, Shared};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::{count, echo};

/// Until a database that listens takes clients.
const START_WAIT_MAX: Duration = Duration::from_secs(20);

fn lab() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new();
    static MANIFESTS: LazyLock<String> = LazyLock::new(|| {
        let apps = |at, node, vip| {
            include_str!("apps.yaml").replace("AT", at).replace("NODE", node).replace("VIP", vip)
        };
        let routed = include_str!("grpc.yaml");
        [MESH, &apps("near", "node1", "40"), &apps("far", "node2", "41"), routed].join("---\n")
    });
    LAB.lab("apps", &MANIFESTS, Options::default())
}

fn client(words: &[&str]) -> Result<String> {
    lab()?.exec_ok("mesh/client", words)
}

fn postgres_answers_psql(at: &str) -> Result<()> {
    let host = format!("apps-{at}");
    let psql = |sql: &str| {
        client(&["psql", "-h", &host, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtX", "-c", sql])
    };
    // It listens before it has started up.
    wait::until(START_WAIT_MAX, || psql("select"))?;
    ensure!(psql("select 6 * 7")?.trim() == "42");
    psql("create table t as select i, repeat('x', 1000) as text from generate_series(1, 20000) i")?;
    ensure!(psql("select count(*), sum(length(text)) from t")?.trim() == "20000|20000000");
    // Twenty megabytes of rows come out whole.
    ensure!(psql("select text from t")?.len() == 20_000 * 1001);
    // The server knows the pod that asked.
    let address = lab()?.pod("mesh/client")?.ips[0].to_string();
    let seen = psql("select client_addr from pg_stat_activity where pid = pg_backend_pid()")?;
    ensure!(seen.trim() == address, "PostgreSQL saw {seen}, not {address}");
    Ok(())
}

fn redis_answers_redis_cli(at: &str) -> Result<()> {
    let host = format!("apps-{at}");
    let redis = |words: &[&str]| client(&[&["redis-cli", "-h", &host], words].concat());
    ensure!(redis(&["ping"])?.trim() == "PONG");
    redis(&["set", "key", "value"])?;
    ensure!(redis(&["get", "key"])?.trim() == "value");
    let address = lab()?.pod("mesh/client")?.ips[0].to_string();
    let clients = redis(&["client", "list"])?;
    ensure!(clients.contains(&format!("addr={address}:")), "redis sees {clients}");
    Ok(())
}

fn redis_survives_its_benchmark(at: &str) -> Result<()> {
    let host = format!("apps-{at}");
    let pipelined = ["-n", "20000", "-c", "50", "-P", "16", "-t", "set,get,lpush", "-d", "1000", "--csv"];
    let told = client(&[&["redis-benchmark", "-h", &host][..], &pipelined].concat())?;
    ensure!(told.lines().filter(|line| line.contains(',')).count() == 4, "{told}");
    // A new connection for each command.
    let fresh = ["-n", "1000", "-c", "20", "-k", "0", "-t", "get", "--csv"];
    let told = client(&[&["redis-benchmark", "-h", &host][..], &fresh].concat())?;
    ensure!(told.contains("GET"), "{told}");
    Ok(())
}

fn nginx_answers_curl(at: &str) -> Result<()> {
    for port in [80, 81, 82] {
        let url = format!("http://apps-{at}:{port}");
        ensure!(client(&["curl", "-sSf", &url])? == "hello\n");
        let sum = client(&["curl", "-sSf", &format!("{url}/large.sha256")])?;
        let fetch = format!("curl -sSf {url}/large | sha256sum");
        ensure!(client(&["sh", "-c", &fetch])?.starts_with(sum.trim()), "port {port}: changed on the way");
        // Several requests on one connection, and the same by HTTP/1.0.
        let both = [format!("{url}/"), format!("{url}/large.sha256"), format!("{url}/")];
        let told = client(&["curl", "-sSf", "-w", "%{num_connects}\n", &both[0], &both[1], &both[2]])?;
        ensure!(told.lines().filter(|line| *line == "0").count() == 2, "port {port}: {told}");
        ensure!(client(&["curl", "-sSf", "-0", &url])? == "hello\n");
        // Ranges, conditions, redirects, HEAD and missing pages are the server's own.
        let part = client(&["curl", "-sSf", "-r", "1-2", &url])?;
        ensure!(part == "el", "port {port}: {part:?}");
        let head = client(&["curl", "-sSI", &format!("{url}/large")])?.to_lowercase();
        ensure!(head.starts_with("http/1.1 200") && head.contains("content-length: 50000000"), "{head}");
        let code = |path: &str| {
            client(&["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", &format!("{url}{path}")])
        };
        ensure!(code("/moved")? == "301" && code("/none")? == "404", "port {port}");
    }
    Ok(())
}

fn grpc_calls_of_all_kinds_pass(at: &str) -> Result<()> {
    // As HTTP/2 that the proxy serves, as bytes that it copies, and found out by itself.
    for port in [80, 81, 9180] {
        let url = format!("http://{at}:{port}");
        let more = ["--requests", "50", "--messages", "200", "--bytes", "10000"];
        let told = echo(lab()?, "mesh/client", &[&["grpc", "--url", &url][..], &more].concat())?;
        ensure!(count(&told, "/unary/codes/OK") == 50 && count(&told, "/streams/both") == 200, "{told}");
        let refused = ["grpc", "--url", &url, "--fail-code", "9", "--header", "x-test: a"];
        let told = echo(lab()?, "mesh/client", &refused)?;
        ensure!(count(&told, "/unary/codes/FailedPrecondition") == 1, "{told}");
        ensure!(told["unary"]["last"]["message"] == "the request asked for it", "{told}");
    }
    Ok(())
}

fn websockets_pass(at: &str) -> Result<()> {
    for port in [80, 81, 9180] {
        let to = format!("{at}:{port}");
        let more = ["--messages", "100", "--bytes", "70000"];
        echo(lab()?, "mesh/client", &[&["websocket", "--to", &to][..], &more].concat())?;
    }
    Ok(())
}

fn http_of_both_versions_passes(at: &str) -> Result<()> {
    for port in [80, 81, 9180] {
        let url = format!("http://{at}:{port}/");
        let post = ["load", "--url", &url, "--requests", "40", "--connections", "4", "--method", "POST"];
        for version in [&[][..], &["--http2"]] {
            for bytes in ["0", "100", "3000000"] {
                let body = ["--body-bytes", bytes];
                let told = echo(lab()?, "mesh/client", &[&post[..], &body, version].concat())?;
                ensure!(told["failed"] == 0, "{url} {version:?} {bytes} bytes: {told}");
            }
        }
    }
    Ok(())
}

/// Unary calls through the GRPCRoute of Service `calls`: their codes, and the last one's answer.
fn routed(to: &str, requests: &str, more: &[&str]) -> Result<Value> {
    let header = format!("x-to: {to}");
    let words = ["grpc", "--url", "http://calls", "--requests", requests, "--header", &header];
    Ok(echo(lab()?, "mesh/client", &[&words[..], more].concat())?["unary"].clone())
}

#[test]
fn a_grpc_route_sends_calls_where_their_methods_and_headers_say() -> Result<()> {
    for (to, pod) in [("any", "near"), ("far", "far"), ("permitted", "stranger")] {
        // The streaming calls that the client makes as well have a rule of their own.
        let told = routed(to, "5", &[])?;
        ensure!(told["codes"]["OK"] == 5 && told["last"]["pod"] == pod, "{to}: {told}");
        let changed = told["last"]["metadata"]["x-rule"] == "near";
        ensure!(changed == (to == "any"), "{to}: {told}");
    }
    // An answer of the application's, and the proxy's own for a backend that no ReferenceGrant permits.
    let refused = ["--fail-code", "9"];
    let told = routed("near", "1", &refused)?;
    ensure!(told["codes"]["FailedPrecondition"] == 1, "{told}");
    let told = routed("elsewhere", "5", &refused)?;
    ensure!(told["codes"]["Unavailable"] == 5, "{told}");
    let told = routed("half", "200", &refused)?;
    let (served, not) = (count(&told, "/codes/FailedPrecondition"), count(&told, "/codes/Unavailable"));
    // 100 expected with a deviation of 7: six of them.
    ensure!(served + not == 200 && (58..=142).contains(&not), "{told}");
    // What no rule of the GRPCRoute takes is not the HTTPRoute's, which would redirect it.
    let code = client(&["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://calls/"])?;
    ensure!(code == "404", "{code}");
    let status = lab()?.control_status()?;
    let of = |kind: &str| {
        let routes = status["routes"].as_array().into_iter().flatten();
        routes.filter(|route| route["kind"] == kind).collect::<Vec<_>>()
    };
    ensure!(of("HTTPRoute")[0]["reason"] == "Conflicted", "{status}");
    ensure!(of("GRPCRoute")[0]["reason"] == "RefNotPermitted", "{status}");
    Ok(())
}

macro_rules! applications {
    ($($test:ident)*) => {
        mod same_node {
            use anyhow::Result;
            $(#[test] fn $test() -> Result<()> { super::$test("near") })*
        }
        mod other_node {
            use anyhow::Result;
            $(#[test] fn $test() -> Result<()> { super::$test("far") })*
        }
    };
}

applications! {
    postgres_answers_psql
    redis_answers_redis_cli
    redis_survives_its_benchmark
    nginx_answers_curl
    grpc_calls_of_all_kinds_pass
    websockets_pass
    http_of_both_versions_passes
}
