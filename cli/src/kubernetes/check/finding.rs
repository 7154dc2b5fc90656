//! One line of `weft check`.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    Warning,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What was looked at.
    pub(crate) what: String,
    /// How it is.
    pub(crate) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), detail: detail.into(), remedy: None }
    }

    pub(super) fn warning(
        what: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, what: what.into(), detail: detail.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn error(
        what: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Error, what: what.into(), detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        write!(f, "{level:<8} {}: {}", self.what, self.detail.replace('\n', " "))?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Each fault, in facts that are good but for it, has a finding of this level that says this.
#[cfg(test)]
pub(super) fn each_is_told<Facts>(
    good: impl Fn() -> Facts,
    judge: impl Fn(&Facts) -> Vec<Finding>,
    cases: impl IntoIterator<Item = (fn(&mut Facts), Level, &'static str)>,
) {
    for (spoil, level, part) in cases {
        let mut facts = good();
        spoil(&mut facts);
        let findings = judge(&facts);
        let told = findings.iter().find(|finding| finding.to_string().contains(part));
        assert_eq!(told.map(|finding| finding.level), Some(level), "{part} in {findings:?}");
    }
}
