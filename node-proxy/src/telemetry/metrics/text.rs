//! Writing metrics as Prometheus text (0.0.4) or OpenMetrics (1.0). No registry here.

use std::fmt::Write as _;

use super::names::{Family, Kind};

/// What `/metrics` answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    Prometheus,
    OpenMetrics,
}

impl TextFormat {
    /// By a request's Accept header.
    pub fn of_accept(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A label value with `\`, `"` and line feed escaped.
pub(super) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            _ => out.push(c),
        }
    }
    out.push('"');
}

pub(super) struct Writer {
    format: TextFormat,
    out: String,
}

impl Writer {
    pub(super) fn new(format: TextFormat) -> Self {
        Self { format, out: String::with_capacity(64 << 10) }
    }

    pub(super) fn header(&mut self, family: &Family) {
        let name = match self.format {
            TextFormat::OpenMetrics if family.kind == Kind::Counter => {
                family.name.strip_suffix("_total").unwrap_or(family.name)
            }
            _ => family.name,
        };
        // Writing to a String cannot fail; the same holds below.
        let _ = writeln!(self.out, "# HELP {name} {}", family.help);
        let _ = writeln!(self.out, "# TYPE {name} {}", family.kind.as_str());
    }

    /// One sample; the groups of labels are joined.
    pub(super) fn sample(&mut self, name: &str, labels: &[&str], value: f64) {
        self.series(name, labels);
        let _ = writeln!(self.out, " {value}");
    }

    /// A sample with an exemplar, which only OpenMetrics can show.
    pub(super) fn exemplar(
        &mut self,
        name: &str,
        labels: &[&str],
        value: f64,
        exemplar: Option<&(String, f64, f64)>,
    ) {
        self.series(name, labels);
        let _ = write!(self.out, " {value}");
        if let (TextFormat::OpenMetrics, Some((trace, at, unix_s))) = (self.format, exemplar) {
            let _ = write!(self.out, " # {{trace_id=\"{trace}\"}} {at} {unix_s:.3}");
        }
        self.out.push('\n');
    }

    fn series(&mut self, name: &str, labels: &[&str]) {
        self.out.push_str(name);
        let mut open = false;
        for group in labels.iter().filter(|group| !group.is_empty()) {
            self.out.push(if open { ',' } else { '{' });
            open = true;
            self.out.push_str(group);
        }
        if open {
            self.out.push('}');
        }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == TextFormat::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}
