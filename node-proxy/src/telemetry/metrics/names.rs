//! Every metric family that this process shows: name, type, help. The only place with names of metrics.
//!
//! `docs/telemetry.md` has the same list; a test holds them together.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// As samples show it: counters end in `_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal $help:literal)*) => {
        $(#[doc = $help] pub static $constant: Family = Family { name: $name, kind: Kind::$kind, help: $help };)*
        /// All of them, in the order of this file.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    // Istio's names: Kiali and Istio's dashboards read them.
    ISTIO_REQUESTS Counter "istio_requests_total" "Requests that ended."
    ISTIO_REQUEST_DURATION Histogram "istio_request_duration_milliseconds" "Duration of requests, retries included."
    ISTIO_REQUEST_BYTES Histogram "istio_request_bytes" "Bytes of request bodies."
    ISTIO_RESPONSE_BYTES Histogram "istio_response_bytes" "Bytes of response bodies."
    ISTIO_TCP_SENT Counter "istio_tcp_sent_bytes_total" "Bytes from the server towards the client; also of connections that still live."
    ISTIO_TCP_RECEIVED Counter "istio_tcp_received_bytes_total" "Bytes from the client towards the server; also of connections that still live."
    ISTIO_TCP_OPENED Counter "istio_tcp_connections_opened_total" "Connections opened."
    ISTIO_TCP_CLOSED Counter "istio_tcp_connections_closed_total" "Connections closed."

    // How things end, by the closed list of reasons.
    CONNECTIONS_CLOSED Counter "weft_connections_closed_total" "L4 connections that ended, by reporter and reason."
    REQUESTS_FINISHED Counter "weft_requests_finished_total" "Requests that ended, by reporter and reason."
    ATTEMPTS Counter "weft_attempts_total" "Attempts of requests that ended, by reason."
    RETRIES Counter "weft_retries_total" "Attempts after the first one."
    CONNECTIONS_LIVE Gauge "weft_connections_live" "L4 connections alive."
    REQUESTS_LIVE Gauge "weft_requests_live" "Requests in flight."
    LIVE_UNLISTED Counter "weft_live_unlisted_total" "Connections and requests not shown in /connections, because the table was full."

    // Registered by the stages that know.
    RETRY_BUDGET_SPENT Counter "weft_retry_budget_exhausted_total" "Retries not made because the budget was spent."
    EJECTIONS Counter "weft_ejections_total" "Endpoints taken out of balancing."
    ENDPOINTS_EJECTED Gauge "weft_endpoints_ejected" "Endpoints out of balancing now."
    TUNNELS_OPENED Counter "weft_tunnels_opened_total" "Tunnel handshakes made as a client, by result."
    TUNNELS_ACCEPTED Counter "weft_tunnels_accepted_total" "Tunnel handshakes taken as a server, by result."
    TUNNELS_LIVE Gauge "weft_tunnels_live" "Tunnels open now, by role."
    TUNNEL_STREAMS_LIVE Gauge "weft_tunnel_streams_live" "CONNECT streams open now, by role."
    TUNNELS_REUSED Counter "weft_tunnels_reused_total" "Streams that found a tunnel in the pool."
    HTTP_POOL_CONNECTIONS Gauge "weft_http_pool_connections" "Upstream HTTP connections in the pool."
    CERTIFICATE_EXPIRY Gauge "weft_certificate_expiry_timestamp_seconds" "When a workload certificate of this node ends, in Unix time."
    CERTIFICATE_ROTATIONS Counter "weft_certificate_rotations_total" "Certificates asked for, by result."
    CONFIG_REVISION Gauge "weft_config_revision" "Revision of the configuration in use."
    CONFIG_NACKS Counter "weft_config_nacks_total" "Pushes refused, the last good configuration kept."
    CONFIG_PUSHES Counter "weft_config_pushes_total" "Pushes applied."
    CONFIG_APPLIED_TIME Gauge "weft_config_applied_timestamp_seconds" "When the configuration in use was applied, in Unix time."
    CONTROL_CONNECTED Gauge "weft_control_plane_connected" "1 while the stream to the control plane is up."
    PODS_FAILED Gauge "weft_pods_failed" "Pods of this node that should be in the mesh and are not set up, by what happens to their connections."
    ACCEPT_LIMITED Counter "weft_accept_limited_total" "Times that a pod had as many connections as it may, and new ones had to wait."
    PODS_ENROLLED Gauge "weft_pods_enrolled" "Pods of this node whose connections go through the mesh."
    KERNEL_MAP_ENTRIES Gauge "weft_kernel_map_entries" "Entries in a kernel map."
    KERNEL_MAP_ENTRIES_MAX Gauge "weft_kernel_map_entries_max" "Entries that a kernel map can hold."
    KERNEL_EVENTS Counter "weft_kernel_events_total" "Outcomes counted by the kernel hooks."
    REDIRECT_BYTES Counter "weft_redirect_bytes_total" "Bytes of local legs, by whether sk_msg took them past the TCP/IP stack."
    PROBE_PASSED Gauge "weft_kernel_probe_passed" "1 where the start-up probe found the feature to work."
    REDIRECT_ENABLED Gauge "weft_redirect_enabled" "1 where the start-up probe passed and the redirect is on."

    // Telemetry about itself.
    LOG_LINES Counter "weft_access_log_lines_total" "Access log lines written."
    LOG_DROPPED Counter "weft_access_log_dropped_total" "Access log lines dropped, by cause: queue full, or the sink failed."
    SPANS_EXPORTED Counter "weft_spans_exported_total" "Spans that a collector took."
    SPANS_DROPPED Counter "weft_spans_dropped_total" "Spans dropped, by cause: queue full, export failed, or refused by the collector."
    SPAN_EXPORT_FAILURES Counter "weft_span_export_failures_total" "Failed calls to the collector, repeats included."
    FLOW_SERIES Gauge "weft_metric_flow_series" "Distinct label sets of the istio_* families."
    FLOW_SERIES_OVERFLOW Counter "weft_metric_flow_series_overflow_total" "Flows counted in the overflow series, because there were too many label sets."

    // The usual names for a process.
    PROCESS_CPU Counter "process_cpu_seconds_total" "CPU time of this process."
    PROCESS_MEMORY Gauge "process_resident_memory_bytes" "Resident memory of this process."
    PROCESS_FDS Gauge "process_open_fds" "Open file descriptors of this process."
    PROCESS_THREADS Gauge "process_threads" "Threads of this process."
    BUILD_INFO Gauge "weft_build_info" "1; the version is a label."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_end_in_total() {
        for (i, family) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.name != family.name), "{}", family.name);
            assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
            assert!(!family.help.contains(['\n', '\\']), "{}", family.name);
        }
    }

    /// The reference is what users read: it names every family, and none that does not exist.
    #[test]
    fn the_reference_lists_exactly_these() {
        let page = include_str!("../../../../docs/telemetry.md");
        let mut listed: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|rest| rest.split('`').next())
            .filter(|name| ["istio_", "weft_", "process_"].iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        let mut existing: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        listed.sort_unstable();
        existing.sort_unstable();
        assert_eq!(listed, existing);
    }
}
