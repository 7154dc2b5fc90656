//! Whether a trace is recorded: the samplers of `OTEL_TRACES_SAMPLER`. Pure.

use super::context::{Parent, TraceId};

/// What decides where no parent does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Root {
    AlwaysOn,
    AlwaysOff,
    /// Share of the traces, 0 to 1, by their ids: every SDK and proxy with the same share decides alike.
    Ratio(f64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    pub root: Root,
    /// A parent's decision is followed.
    pub parent_based: bool,
}

impl Default for Sampler {
    /// OpenTelemetry's own default.
    fn default() -> Self {
        Self { root: Root::AlwaysOn, parent_based: true }
    }
}

impl Sampler {
    pub fn sample(self, parent: Option<&Parent>, trace: TraceId) -> bool {
        match (parent, self.root) {
            (Some(parent), _) if self.parent_based => parent.context.sampled,
            (_, Root::AlwaysOn) => true,
            (_, Root::AlwaysOff) => false,
            (_, Root::Ratio(ratio)) => below(trace, ratio),
        }
    }
}

/// OpenTelemetry's algorithm: the low 63 bits against the share of 2^63.
fn below(trace: TraceId, ratio: f64) -> bool {
    const SPAN: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_precision_loss, reason = "a share of traces needs no more than 53 bits")]
    let position = (trace.low() >> 1) as f64;
    ratio >= 1.0 || position < ratio * SPAN
}

#[cfg(test)]
mod tests {
    use super::super::context::{SpanContext, SpanId};
    use super::*;

    #[test]
    fn every_sampler_decides_as_its_name_says() {
        let parent = |sampled| Parent {
            context: SpanContext { trace: TraceId::from_random(7), span: SpanId::from_random(7), sampled },
            state: String::new(),
        };
        let (low, high) = (TraceId::from_random(1), TraceId::from_random(u128::MAX));
        for (root, parent_based, no_parent_low, no_parent_high) in [
            (Root::AlwaysOn, false, true, true),
            (Root::AlwaysOff, false, false, false),
            (Root::Ratio(0.5), false, true, false),
            (Root::Ratio(0.0), false, false, false),
            (Root::Ratio(1.0), false, true, true),
            (Root::AlwaysOn, true, true, true),
            (Root::AlwaysOff, true, false, false),
            (Root::Ratio(0.5), true, true, false),
        ] {
            let sampler = Sampler { root, parent_based };
            assert_eq!(sampler.sample(None, low), no_parent_low, "{sampler:?}");
            assert_eq!(sampler.sample(None, high), no_parent_high, "{sampler:?}");
            for sampled in [true, false] {
                let expected = if parent_based { sampled } else { no_parent_high };
                assert_eq!(sampler.sample(Some(&parent(sampled)), high), expected, "{sampler:?} {sampled}");
            }
        }
    }

    #[test]
    fn the_ratio_holds() {
        let sampler = Sampler { root: Root::Ratio(0.1), parent_based: false };
        let hits = (0..10_000u64)
            .filter(|i| {
                let id = u128::from(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
                sampler.sample(None, TraceId::from_random(id))
            })
            .count();
        assert!((900..1100).contains(&hits), "{hits}");
    }
}
