//! OpenTelemetry's environment variables, read into typed settings. Every mistake is reported at once, by the variable's
//! name. Reads nothing itself: the look-up is passed in. Start at [`OtelSettings::read`].

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use super::context::Propagators;
use super::sampler::{Root, Sampler};

/// A variable whose value is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {reason}")]
pub struct EnvironmentError {
    pub variable: &'static str,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportProtocol {
    Grpc,
    HttpProtobuf,
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSettings {
    /// For HTTP with its path.
    pub endpoint: Uri,
    pub protocol: ExportProtocol,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Of one call.
    pub timeout: Duration,
    pub gzip: bool,
    /// PEM. None: the system's bundle.
    pub ca_file: Option<PathBuf>,
    pub client_certificate_file: Option<PathBuf>,
    pub client_key_file: Option<PathBuf>,
}

/// `OTEL_BSP_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSettings {
    pub schedule_delay: Duration,
    /// Of one batch, repeats included.
    pub export_timeout: Duration,
    pub queue_spans_max: usize,
    pub batch_spans_max: usize,
}

impl Default for BatchSettings {
    /// OpenTelemetry's own defaults.
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_secs(5),
            export_timeout: Duration::from_secs(30),
            queue_spans_max: 2048,
            batch_spans_max: 512,
        }
    }
}

/// Tracing. The default makes no spans: contexts pass through as they came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OtelSettings {
    /// None: no spans are made.
    pub export: Option<ExportSettings>,
    pub batch: BatchSettings,
    pub sampler: Sampler,
    pub propagators: Propagators,
    /// `OTEL_RESOURCE_ATTRIBUTES`: for every resource, below what a workload says of itself.
    pub resource: Vec<(String, String)>,
}

/// Bounds a mistyped number; a million spans are about 1 GB.
const QUEUE_SPANS_MAX: u64 = 1_000_000;
/// An hour: nobody waits longer on purpose.
const WAIT_MS_MAX: u64 = 3_600_000;

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<EnvironmentError>,
}

impl Reader<'_> {
    /// Empty is unset, as OpenTelemetry says.
    fn text(&self, variable: &str) -> Option<String> {
        (self.lookup)(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn parse<T>(
        &mut self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.text(variable)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                self.errors.push(EnvironmentError { variable, reason });
                None
            }
        }
    }

    /// The traces' own form, else the general one.
    fn signal<T>(
        &mut self,
        names: [&'static str; 2],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let own = self.text(names[0]).is_some();
        self.parse(if own { names[0] } else { names[1] }, parse)
    }

    fn number(&mut self, variable: &'static str, default: u64, max: u64) -> u64 {
        self.parse(variable, |text| number(text, max)).unwrap_or(default)
    }
}

fn number(text: &str, max: u64) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(value) if (1..=max).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not a whole number from 1 to {max}")),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

macro_rules! both {
    ($suffix:literal) => {
        [concat!("OTEL_EXPORTER_OTLP_TRACES_", $suffix), concat!("OTEL_EXPORTER_OTLP_", $suffix)]
    };
}

impl OtelSettings {
    /// `lookup`: the value of a variable.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<EnvironmentError>> {
        let mut reader = Reader { lookup, errors: Vec::new() };
        let disabled = reader.parse("OTEL_SDK_DISABLED", boolean).unwrap_or(false);
        let exporter = reader.parse("OTEL_TRACES_EXPORTER", |text| match text {
            "otlp" => Ok(true),
            "none" => Ok(false),
            _ => Err(format!("{text:?} is neither otlp nor none")),
        });
        let settings = Self {
            export: export(&mut reader),
            batch: batch(&mut reader),
            sampler: sampler(&mut reader),
            propagators: propagators(&mut reader),
            resource: reader.parse("OTEL_RESOURCE_ATTRIBUTES", pairs).unwrap_or_default(),
        };
        if !reader.errors.is_empty() {
            return Err(reader.errors);
        }
        let off = disabled || exporter == Some(false);
        Ok(if off { Self { export: None, ..settings } } else { settings })
    }
}

fn export(reader: &mut Reader<'_>) -> Option<ExportSettings> {
    let protocol = reader
        .signal(both!("PROTOCOL"), |text| match text {
            "grpc" => Ok(ExportProtocol::Grpc),
            "http/protobuf" => Ok(ExportProtocol::HttpProtobuf),
            _ => Err(format!("{text:?} is neither grpc nor http/protobuf")),
        })
        .unwrap_or(ExportProtocol::Grpc);
    let insecure = reader.signal(both!("INSECURE"), boolean).unwrap_or(false);
    let own = reader.text(both!("ENDPOINT")[0]).is_some();
    let endpoint = reader.signal(both!("ENDPOINT"), |text| endpoint(text, protocol, insecure, own));
    let headers = reader.signal(both!("HEADERS"), headers).unwrap_or_default();
    let timeout_ms = reader.signal(both!("TIMEOUT"), |text| number(text, WAIT_MS_MAX)).unwrap_or(10_000);
    let gzip = reader
        .signal(both!("COMPRESSION"), |text| match text {
            "gzip" => Ok(true),
            "none" => Ok(false),
            _ => Err(format!("{text:?} is neither gzip nor none")),
        })
        .unwrap_or(false);
    let ca_file = reader.signal(both!("CERTIFICATE"), file);
    let client_certificate_file = reader.signal(both!("CLIENT_CERTIFICATE"), file);
    let client_key_file = reader.signal(both!("CLIENT_KEY"), file);
    if client_certificate_file.is_some() != client_key_file.is_some() {
        reader.errors.push(EnvironmentError {
            variable: both!("CLIENT_KEY")[1],
            reason: "a client certificate and its key are given together or not at all".into(),
        });
    }
    Some(ExportSettings {
        endpoint: endpoint?,
        protocol,
        headers,
        timeout: Duration::from_millis(timeout_ms),
        gzip,
        ca_file,
        client_certificate_file,
        client_key_file,
    })
}

/// `own`: the traces' form, which for HTTP is taken as it is; to the general form the signal's path is added.
fn endpoint(text: &str, protocol: ExportProtocol, insecure: bool, own: bool) -> Result<Uri, String> {
    let bad = |why: &str| format!("{text:?} is not an address such as http://collector:4317: {why}");
    let grpc = protocol == ExportProtocol::Grpc;
    let full = match (text.contains("://"), grpc) {
        (true, _) => text.to_owned(),
        (false, true) if insecure => format!("http://{text}"),
        (false, true) => format!("https://{text}"),
        (false, false) => return Err(bad("it has no scheme")),
    };
    let full = if grpc || own { full } else { format!("{}/v1/traces", full.trim_end_matches('/')) };
    let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad("the scheme is neither http nor https"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("it has no host"));
    }
    Ok(uri)
}

fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Ok(path),
        Ok(_) => Err(format!("{text:?} is not a file")),
        Err(error) => Err(format!("{text:?}: {error}")),
    }
}

fn batch(reader: &mut Reader<'_>) -> BatchSettings {
    let default = BatchSettings::default();
    let queue = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", default.queue_spans_max as u64, QUEUE_SPANS_MAX);
    let batch_default = (default.batch_spans_max as u64).min(queue);
    let batch = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch_default, QUEUE_SPANS_MAX);
    if batch > queue {
        reader.errors.push(EnvironmentError {
            variable: "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            reason: format!("{batch} is more than OTEL_BSP_MAX_QUEUE_SIZE, which is {queue}"),
        });
    }
    BatchSettings {
        schedule_delay: Duration::from_millis(reader.number("OTEL_BSP_SCHEDULE_DELAY", 5_000, WAIT_MS_MAX)),
        export_timeout: Duration::from_millis(reader.number("OTEL_BSP_EXPORT_TIMEOUT", 30_000, WAIT_MS_MAX)),
        queue_spans_max: usize::try_from(queue).unwrap_or(default.queue_spans_max),
        batch_spans_max: usize::try_from(batch).unwrap_or(default.batch_spans_max),
    }
}

fn sampler(reader: &mut Reader<'_>) -> Sampler {
    let ratio = reader.parse("OTEL_TRACES_SAMPLER_ARG", |text| match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("{text:?} is not a number from 0 to 1")),
    });
    let ratio = Root::Ratio(ratio.unwrap_or(1.0));
    reader
        .parse("OTEL_TRACES_SAMPLER", |text| {
            let (root, parent_based) = match text {
                "always_on" => (Root::AlwaysOn, false),
                "always_off" => (Root::AlwaysOff, false),
                "traceidratio" => (ratio, false),
                "parentbased_always_on" => (Root::AlwaysOn, true),
                "parentbased_always_off" => (Root::AlwaysOff, true),
                "parentbased_traceidratio" => (ratio, true),
                _ => {
                    return Err(format!(
                        "{text:?} is none of always_on, always_off, traceidratio, parentbased_always_on, \
                         parentbased_always_off, parentbased_traceidratio"
                    ));
                }
            };
            Ok(Sampler { root, parent_based })
        })
        .unwrap_or_default()
}

fn propagators(reader: &mut Reader<'_>) -> Propagators {
    reader
        .parse("OTEL_PROPAGATORS", |text| {
            let mut chosen = Propagators { trace_context: false, b3_single: false, b3_multi: false };
            for name in text.split(',').map(str::trim) {
                match name {
                    "tracecontext" => chosen.trace_context = true,
                    "b3" => chosen.b3_single = true,
                    "b3multi" => chosen.b3_multi = true,
                    // Baggage is a header of the application's, which passes through in any case.
                    "baggage" | "none" => {}
                    _ => {
                        return Err(format!("{name:?} is none of tracecontext, baggage, b3, b3multi, none"));
                    }
                }
            }
            Ok(chosen)
        })
        .unwrap_or_default()
}

/// `key=value,key=value`, values percent-encoded.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not of the form key=value"))?;
            let name = name.trim();
            if name.is_empty() {
                return Err(format!("{pair:?} has no key"));
            }
            Ok((name.to_owned(), percent_decoded(value.trim())?))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push(u8::try_from(high * 16 + low).unwrap_or_default()),
            _ => return Err("a % is not followed by two hexadecimal digits".into()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "a value is not UTF-8 when decoded".into())
}

/// Values are secrets: errors name only keys.
fn headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let malformed = |_| "it is not of the form name=value,name=value".to_owned();
    pairs(text)
        .map_err(malformed)?
        .into_iter()
        .map(|(name, value)| {
            let header = HeaderName::from_str(&name).map_err(|_| format!("{name:?} is not a header name"))?;
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| format!("the value of {name:?} is not valid"))?;
            value.set_sensitive(true);
            Ok((header, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<OtelSettings, Vec<EnvironmentError>> {
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        OtelSettings::read(&lookup)
    }

    #[test]
    fn nothing_set_means_no_export() {
        assert_eq!(read(&[]), Ok(OtelSettings::default()));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(OtelSettings::default()));
    }

    #[test]
    fn endpoints_follow_the_protocol() {
        for (variables, endpoint) in [
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")][..], "http://c:4317/"),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")], "https://c:4317/"),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")],
                "http://c:4317/",
            ),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/"),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ],
                "http://c:4318/v1/traces",
            ),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x"),
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
                ],
                "http://t:1/x",
            ),
        ] {
            let export = read(variables).unwrap().export.unwrap();
            assert_eq!(export.endpoint.to_string(), endpoint, "{variables:?}");
        }
    }

    #[test]
    fn everything_is_read() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,a=b=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", file!()),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "7"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_PROPAGATORS", "b3, baggage"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%2Cb"),
        ]);
        // The certificate's path is relative to the workspace, and tests run in the package.
        let errors = settings.unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].variable, "OTEL_EXPORTER_OTLP_CERTIFICATE");

        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,a=b=c"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/proc/self/status"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "7"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_PROPAGATORS", "b3, baggage"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%2Cb"),
        ])
        .unwrap();
        let export = settings.export.unwrap();
        assert_eq!(export.headers.len(), 2);
        assert_eq!(export.headers[0].1, "Bearer x");
        assert_eq!((export.timeout, export.gzip), (Duration::from_millis(2500), true));
        assert_eq!(export.ca_file, Some("/proc/self/status".into()));
        assert_eq!((settings.batch.queue_spans_max, settings.batch.batch_spans_max), (100, 100));
        assert_eq!(settings.batch.schedule_delay, Duration::from_millis(7));
        assert_eq!(settings.sampler, Sampler { root: Root::Ratio(0.25), parent_based: false });
        let b3 = Propagators { trace_context: false, b3_single: true, b3_multi: false };
        assert_eq!(settings.propagators, b3);
        assert_eq!(settings.resource[1], ("team".into(), "a,b".into()));
    }

    #[test]
    fn an_endpoint_can_be_switched_off() {
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1"), off]).unwrap();
            assert_eq!(settings.export, None, "{off:?}");
        }
    }

    #[test]
    fn each_mistake_names_its_variable_and_all_are_reported() {
        let mistakes = [
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_PROPAGATORS", "tracecontext,ottrace"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz"),
        ];
        for mistake in mistakes {
            let errors = read(&[mistake]).unwrap_err();
            assert_eq!(errors.len(), 1, "{mistake:?}");
            assert_eq!(errors[0].variable, mistake.0);
        }
        let errors = read(&mistakes).unwrap_err();
        assert_eq!(errors.len(), mistakes.len());
        assert!(errors.iter().all(|error| !error.to_string().contains("secret")));
        let batch = read(&[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9000")]).unwrap_err();
        assert_eq!(batch[0].variable, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
    }
}
